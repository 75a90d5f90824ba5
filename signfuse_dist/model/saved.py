"""Models on disk: building from a configuration, ImageNet weights, and the ``model/`` folder."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.models import get_model_weights

from signfuse_dist.config import ModelConfig, RunConfig
from signfuse_dist.errors import UserError
from signfuse_dist.files import read_state, write_folder
from signfuse_dist.model.llm import TextTokenizer, load_language_model, load_tokenizer
from signfuse_dist.model.signfuse import SignFuse
from signfuse_dist.weights import load_exactly

_WEIGHTS = "weights.safetensors"


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
    read_state(folder)
    load_exactly(load_file(folder / _WEIGHTS), own_state(model), model, folder / _WEIGHTS, may_miss)


def load_visual_weights(model: SignFuse, config: ModelConfig) -> None:
    """Start the ResNet from ``model.visual_weights``: `imagenet`, a file, or null for none."""
    source = config.visual_weights
    if source is None:
        return
    state = _imagenet(config.visual_backbone) if source == "imagenet" else _weights_of(source)
    state = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    load_exactly(state, model.visual.backbone.state_dict(), model.visual.backbone, Path(source))


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
    if path.suffix == ".safetensors":
        return load_file(path)
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state
