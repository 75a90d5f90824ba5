"""What the ResNet starts from: ImageNet weights of torchvision, a file, or nothing."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torchvision.models import get_model_weights

from signfuse_dist.config import ModelConfig
from signfuse_dist.errors import UserError, first_line
from signfuse_dist.model.signfuse import SignFuse
from signfuse_dist.model.visual import ResNet
from signfuse_dist.weights import load_exactly

_UNREADABLE = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    KeyError,
    UnpicklingError,
    SafetensorError,
)


def load_visual_weights(model: SignFuse, config: ModelConfig) -> None:
    """Start the ResNet from ``model.visual_weights``: `imagenet`, a file, or null for none.

    Nothing is read for a model without a ResNet. Raises UserError when the weights are missing,
    damaged or of another network; pickles that could run code are not loaded.
    """
    source = config.visual_weights
    if source is None or model.visual is None or not isinstance(model.visual.backbone, ResNet):
        return
    state = _imagenet(config.visual_backbone) if source == "imagenet" else _weights_of(source)
    state = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    backbone = model.visual.backbone
    load_exactly(_without_counters(state), backbone.state_dict(), backbone, Path(source))


def _without_counters(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop what files of ImageNet weights have and nothing reads."""
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
        raise UserError(f"model.visual_weights={source}: cannot be read: {first_line(e)}") from e
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise UserError(f"model.visual_weights={source}: holds no mapping of names to tensors")
    return state
