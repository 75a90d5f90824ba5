"""What the ResNet starts from: torchvision's weights, a file, and files that are refused."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import resnet18

from helpers.model_factory import small_config
from signfuse_dist.config import ModelConfig
from signfuse_dist.errors import UserError
from signfuse_dist.model.signfuse import SignFuse
from signfuse_dist.model.visual_weights import load_visual_weights


def resnet(source: str) -> tuple[SignFuse, ModelConfig]:
    config = small_config(
        visual_backbone="resnet18",
        visual_width=64,
        visual_norm="frozen",
        visual_weights=source,
    )
    return SignFuse(config, None), config


@pytest.mark.parametrize("counters", [True, False])
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_weights_of_torchvision_are_read_from_a_file(
    tmp_path: Path, counters: bool, ending: str
) -> None:
    torch.manual_seed(3)
    theirs = resnet18(weights=None).state_dict()
    if not counters:  # as in files from before torchvision counted batches
        theirs = {n: t for n, t in theirs.items() if not n.endswith("num_batches_tracked")}
    path = tmp_path / f"resnet18.{ending}"
    torch.save(theirs, path) if ending == "pth" else save_file(theirs, path)
    model, config = resnet(str(path))
    load_visual_weights(model, config)
    assert model.visual is not None
    for name, tensor in model.visual.backbone.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name


def test_a_model_of_the_skeletal_stream_alone_reads_no_weights() -> None:
    config = small_config(visual_weights="imagenet", streams="skeletal")
    load_visual_weights(SignFuse(config, None), config)


class Bomb:
    """A pickle of this runs code when it is loaded without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_a_weights_file_that_would_run_code_is_refused(tmp_path: Path, form: str) -> None:
    path, hit = tmp_path / "weights.pth", tmp_path / "hit"
    bomb = {"conv1.weight": Bomb(hit)}
    torch.save(bomb, path) if form == "torch" else path.write_bytes(pickle.dumps(bomb))
    model, config = resnet(str(path))
    with pytest.raises(UserError, match=r"model\.visual_weights=.*cannot be read"):
        load_visual_weights(model, config)
    assert not hit.exists()


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"no weights", bytes(100)], ids=["empty", "text", "zeros"]
)
def test_a_file_that_holds_no_weights_is_refused(
    tmp_path: Path, ending: str, content: bytes
) -> None:
    path = tmp_path / f"weights.{ending}"
    path.write_bytes(content)
    model, config = resnet(str(path))
    with pytest.raises(UserError, match=r"model\.visual_weights=.*cannot be read"):
        load_visual_weights(model, config)


@pytest.mark.parametrize("value", [torch.ones(3), [1], {"model": {"conv1.weight": torch.ones(1)}}])
def test_a_file_of_something_else_than_weights_is_refused(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "weights.pth"
    torch.save(value, path)
    model, config = resnet(str(path))
    with pytest.raises(UserError, match="holds no mapping of names to tensors"):
        load_visual_weights(model, config)


def test_imagenet_weights_that_were_downloaded_in_part_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub/checkpoints/resnet18-f37072fd.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"PK\x03\x04")
    config = small_config(visual_backbone="resnet18", visual_weights="imagenet")
    with pytest.raises(UserError, match=r"=imagenet .*resnet18-f37072fd.pth cannot be read"):
        load_visual_weights(SignFuse(config, None), config)


def test_weights_that_are_missing_or_of_no_known_network_are_refused(tmp_path: Path) -> None:
    model, config = resnet(str(tmp_path / "absent.pth"))
    with pytest.raises(UserError, match="no such file"):
        load_visual_weights(model, config)
    with pytest.raises(UserError, match="no ImageNet resnet10"):
        load_visual_weights(model, small_config(visual_weights="imagenet"))
