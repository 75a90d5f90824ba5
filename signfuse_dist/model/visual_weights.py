"""What the ResNet starts from: ImageNet weights of torchvision, a file, or nothing."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from torchvision.models import get_model_weights

from signfuse_dist.config import ModelConfig
from signfuse_dist.errors import UserError
from signfuse_dist.model.signfuse import SignFuse
from signfuse_dist.model.visual import ResNet
from signfuse_dist.weights import load_exactly, read_published, read_weights

_ADVICE = "give a file (model.visual_weights=PATH) or start from nothing (=null)"


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
    try:
        weights = get_model_weights(backbone)["IMAGENET1K_V1"]
    except (ValueError, KeyError) as e:
        raise UserError(f"model.visual_weights: no ImageNet {backbone}; {_ADVICE}") from e
    return read_published(weights, f"model.visual_weights=imagenet ({_ADVICE})")


def _weights_of(source: str) -> dict[str, Tensor]:
    path = Path(source)
    if not path.is_file():
        raise UserError(f"model.visual_weights={source}: no such file (nor the word imagenet)")
    return read_weights(path, f"model.visual_weights={source}")
