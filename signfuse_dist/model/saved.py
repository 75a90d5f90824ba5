"""Models on disk: building from a configuration, ImageNet weights, and the ``model/`` folder."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.models import get_model_weights

from signfuse_dist.config import ModelConfig, RunConfig
from signfuse_dist.errors import UserError, raise_together
from signfuse_dist.files import read_state, write_folder
from signfuse_dist.model.llm import TextTokenizer, load_language_model, load_tokenizer
from signfuse_dist.model.signfuse import SignFuse
from signfuse_dist.weights import load_exactly

_WEIGHTS = "weights.safetensors"
# What a stage may change of the one before: where the LLM is and how it is adapted and asked.
_FREE = ("llm", "llm_dtype", "llm_quantization", "attention", "lora_targets", "lora_rank",
         "lora_alpha", "prompt", "visual_weights")  # fmt: skip
_UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, KeyError, UnpicklingError,
               SafetensorError)  # fmt: skip


def build(config: ModelConfig, language: bool) -> tuple[SignFuse, TextTokenizer | None]:
    """Build an untrained model, with the LLM and its tokenizer when ``language``.

    Raises UserError when the LLM cannot be loaded.
    """
    if not language:
        return SignFuse(config, None), None
    tokenizer = load_tokenizer(config)
    return SignFuse(config, load_language_model(config, tokenizer)), tokenizer


def own_state(model: SignFuse) -> dict[str, Tensor]:
    """Return everything but the frozen LLM: the components and the LoRA matrices."""
    return {
        name: tensor.detach()
        for name, tensor in model.state_dict().items()
        if not name.startswith("language_model.") or "lora_" in name
    }


def save(model: SignFuse, run: RunConfig, folder: Path) -> None:
    """Write the ``model/`` folder of a finished stage: weights, configuration, checksums."""
    tensors = {name: t.cpu().contiguous() for name, t in own_state(model).items()}
    write_folder(
        folder,
        {_WEIGHTS: lambda path: save_file(tensors, path)},
        {"stage": run.stage.name, "config": run.to_dict()},
    )


def load_into(folder: Path, model: SignFuse, may_miss: tuple[str, ...] = ()) -> None:
    """Load a ``model/`` folder into a model of the same configuration.

    ``may_miss``: components that the folder need not have. Raises UserError when a file is
    damaged or of another configuration.
    """
    state = read_state(folder)
    if _WEIGHTS not in state["files"]:
        raise UserError(f"{folder}: its state.json lists no {_WEIGHTS}")
    _refuse_another_model(state, model.built_from, folder)
    load_exactly(load_file(folder / _WEIGHTS), own_state(model), model, folder / _WEIGHTS, may_miss)


def _refuse_another_model(state: dict[str, Any], config: ModelConfig, folder: Path) -> None:
    """Compare configurations: heads and strides change what weights mean and not their shapes."""
    saved = state.get("config")
    saved = saved.get("model") if isinstance(saved, dict) else None
    if not isinstance(saved, dict):
        raise UserError(f"{folder}: its state.json holds no configuration of a model")
    now = json.loads(json.dumps(dataclasses.asdict(config)))
    differ = [k for k in now if k not in _FREE and saved.get(k) != now[k]]
    errors = [f"model.{k} was {saved.get(k)!r}, is {now[k]!r}" for k in differ]
    raise_together(errors, f"{folder} was trained with another model configuration")


def load_visual_weights(model: SignFuse, config: ModelConfig) -> None:
    """Start the ResNet from ``model.visual_weights``: `imagenet`, a file, or null for none."""
    source = config.visual_weights
    if source is None:
        return
    state = _imagenet(config.visual_backbone) if source == "imagenet" else _weights_of(source)
    state = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    backbone = model.visual.backbone
    load_exactly(
        _without_counters(state), _without_counters(backbone.state_dict()), backbone, Path(source)
    )


def _without_counters(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop what some files of ImageNet weights have and others have not, and nothing reads."""
    return {n: tensor for n, tensor in state.items() if not n.endswith(".num_batches_tracked")}


def _imagenet(backbone: str) -> dict[str, Tensor]:
    advice = "give a file (model.visual_weights=PATH) or start from nothing (=null)"
    try:
        weights = get_model_weights(backbone)["IMAGENET1K_V1"]
        state: dict[str, Tensor] = weights.get_state_dict(check_hash=True, weights_only=True)
    except (ValueError, KeyError) as e:
        raise UserError(f"model.visual_weights: no ImageNet {backbone}; {advice}") from e
    except OSError as e:
        raise UserError(
            f"model.visual_weights=imagenet: {backbone} is not in the cache and cannot be "
            f"downloaded ({e}); {advice}"
        ) from e
    return state


def _weights_of(source: str) -> dict[str, Tensor]:
    path = Path(source)
    if not path.is_file():
        raise UserError(f"model.visual_weights={source}: no such file (nor the word imagenet)")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as e:
        raise UserError(f"model.visual_weights={source}: cannot be read: {_first_line(e)}") from e
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise UserError(f"model.visual_weights={source}: holds no mapping of names to tensors")
    return state


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
