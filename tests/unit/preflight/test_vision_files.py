"""What `check` says of a vision model, from its files and without torch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from helpers.model_factory import small_config
from helpers.vision_models import write_vision_model
from signfuse_dist.config import LossConfig
from signfuse_dist.experiment import load_stages
from signfuse_dist.model.signfuse import SignFuse, count_parameters
from signfuse_dist.objective import prepare
from signfuse_dist.preflight import memory
from signfuse_dist.preflight.vision_files import check_vision, find_vision_files


@pytest.mark.parametrize("family", ["dinov2", "clip", "siglip"])
def test_parameters_by_the_files_are_those_of_the_model(tmp_path: Path, family: str) -> None:
    folder = write_vision_model(tmp_path / family, family)
    for training in ("frozen", "full"):
        config = small_config(visual_backbone=f"hf:{folder}", visual_training=training)
        with torch.device("meta"):
            model = SignFuse(config, None)
        expected = count_parameters(model)["visual"]
        assert memory.parameters(config, 12)["visual"] == expected
        prepare(model, "contrastive", LossConfig())
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        counted = memory.count_trained(config, LossConfig(), "contrastive", 12, 0)
        assert counted == pytest.approx(trained, abs=36)  # but for what nothing sees


def test_a_model_that_does_not_say_how_wide_it_is_is_counted_without_what_follows(
    tmp_path: Path,
) -> None:
    folder = write_vision_model(tmp_path / "dinov2", "dinov2")
    config = small_config(visual_backbone=f"hf:{folder}")
    whole = memory.parameters(config, 12)["visual"]
    said = json.loads((folder / "config.json").read_text())
    width = said.pop("hidden_size")
    other = Path(shutil.copytree(folder, tmp_path / "other"))  # files that are read are kept
    (other / "config.json").write_text(json.dumps(said))
    config = small_config(visual_backbone=f"hf:{other}")
    after = width * config.dim * config.visual_kernel
    assert memory.parameters(config, 12)["visual"] == whole - after


def test_a_vision_model_that_is_there_is_described(tmp_path: Path) -> None:
    folder = write_vision_model(tmp_path / "clip", "clip")
    config = small_config(visual_backbone=f"hf:{folder}")
    (found,) = check_vision(config, 32, True)
    assert found.level == "ok"
    assert "12 numbers a frame, 32 pixels, frozen" in found.said
    (found,) = check_vision(config, 24, True)
    assert found.level == "error"
    assert "sees 32 pixels, data.frame_size is 24" in found.said
    files = find_vision_files(config)
    assert files is not None
    kept, at_once = files.frame_bytes(bf16=True) or (0, 0)
    assert kept > at_once > 3 * 32**2


def test_one_that_is_not_there_or_damaged_is_named(tmp_path: Path) -> None:
    (found,) = check_vision(small_config(visual_backbone=f"hf:{tmp_path / 'no'}"), 32, True)
    assert found.level == "error"
    folder = write_vision_model(tmp_path / "clip", "clip")
    (folder / "preprocessor_config.json").write_text("[")
    (found,) = check_vision(small_config(visual_backbone=f"hf:{folder}"), 32, True)
    assert found.level == "error"
    assert "cannot be read" in found.said
    assert check_vision(small_config(), 32, True) == []


@pytest.mark.parametrize(
    ("family", "gigabytes", "level"),
    [("clip", None, "ok"), ("resnet", None, "warning"), ("resnet", 80.0, "warning")],
)
def test_a_memory_that_is_not_known_is_no_memory_that_suffices(
    tmp_path: Path, family: str, gigabytes: float | None, level: str
) -> None:
    folder = write_vision_model(tmp_path / family, family)
    words = [f"model.visual_backbone=hf:{folder}", "model.visual_norm=frozen"]
    run = load_stages("demo", words)[0]
    need = memory.estimate(run, None, 100, 1, 0)
    finding = memory.judge_gpu(run, need, 100, gigabytes, "", 1)
    assert finding.level == level
    assert ("which is not known" in finding.value) is (level == "warning")
