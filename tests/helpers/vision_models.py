"""Small random vision models of each family, in folders as the model hub has them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

SIDE = 32
_VIT = {
    "hidden_size": 12,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 8,
    "initializer_range": 0.3,
}
_TEXT = {**_VIT, "num_hidden_layers": 1, "vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1}


def _dinov2() -> Any:
    from transformers import Dinov2Config, Dinov2Model

    # Its processor cuts out 28 of 30 pixels, and it was trained on larger pictures.
    return Dinov2Model(Dinov2Config(**{**_VIT, "image_size": 56, "patch_size": 14}))


def _clip() -> Any:
    from transformers import CLIPConfig, CLIPModel

    return CLIPModel(CLIPConfig(text_config=_TEXT, vision_config=_VIT, projection_dim=8))


def _siglip() -> Any:
    from transformers import SiglipConfig, SiglipModel

    return SiglipModel(SiglipConfig(text_config=_TEXT, vision_config=_VIT))


def _classifier() -> Any:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig(**_VIT))


def _resnet() -> Any:
    from transformers import ResNetConfig, ResNetModel

    shape: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1]}
    return ResNetModel(ResNetConfig(**shape, layer_type="basic"))


def _videomae() -> Any:
    from transformers import VideoMAEConfig, VideoMAEModel

    return VideoMAEModel(VideoMAEConfig(**_VIT, num_frames=4, tubelet_size=2))


FAMILIES: dict[str, Callable[[], Any]] = {
    "dinov2": _dinov2,
    "clip": _clip,
    "siglip": _siglip,
    "classifier": _classifier,
    "resnet": _resnet,
    "videomae": _videomae,
}
PICTURES = tuple(name for name in FAMILIES if name != "videomae")
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
_PROCESSOR: dict[str, Any] = {
    "do_normalize": True,
    "image_mean": MEAN,
    "image_std": STD,
    "size": {"height": SIDE, "width": SIDE},
}
_CUTS = {**_PROCESSOR, "size": {"shortest_edge": 30}, "do_center_crop": True}
_CUTS["crop_size"] = {"height": 28, "width": 28}


def write_vision_model(folder: Path, family: str, seed: int = 0, **said: Any) -> Path:
    """Write a random model and its image processor, with what is ``said`` of pictures instead."""
    torch.manual_seed(seed)
    FAMILIES[family]().save_pretrained(folder)
    processor = {**(_CUTS if family == "dinov2" else _PROCESSOR), **said}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    return folder
