"""What `check` says of a vision model, from its files and without torch."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.fake_cuda import Loss, Peak, blank_batch, fake_cuda, measure
from helpers.model_factory import small_config
from helpers.vision_models import PICTURES, write_vision_model
from signfuse_dist.config import LossConfig, ModelConfig
from signfuse_dist.experiment import load_stages
from signfuse_dist.model.signfuse import SignFuse, count_parameters
from signfuse_dist.model.vision import load_configured
from signfuse_dist.objective import prepare
from signfuse_dist.preflight import memory
from signfuse_dist.preflight.frame_memory import Held
from signfuse_dist.preflight.frame_memory import measure as measure_frame
from signfuse_dist.preflight.vision_files import (
    FrameMemory,
    check_vision,
    frame_memory,
    vision_bytes,
)


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


def test_one_that_is_not_there_or_damaged_is_named(tmp_path: Path) -> None:
    (found,) = check_vision(small_config(visual_backbone=f"hf:{tmp_path / 'no'}"), 32, True)
    assert found.level == "error"
    folder = write_vision_model(tmp_path / "clip", "clip")
    (folder / "preprocessor_config.json").write_text("[")
    (found,) = check_vision(small_config(visual_backbone=f"hf:{folder}"), 32, True)
    assert found.level == "error"
    assert "cannot be read" in found.said
    assert check_vision(small_config(), 32, True) == []


@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize("family", PICTURES)
def test_the_memory_of_a_frame_is_what_fake_tensors_of_a_gpu_find(
    tmp_path: Path, family: str, bf16: bool
) -> None:
    folder = write_vision_model(tmp_path / family, family)
    config = small_config(visual_backbone=f"hf:{folder}", visual_training="full")
    found = _measured_here(config, 48, bf16)  # larger than it sees

    def on_gpu(frames: int) -> Peak:
        def part() -> tuple[nn.Module, Loss]:
            model = load_configured(config)
            return model, lambda batch: model(batch.frames.float()).float().sum()

        return measure(part, blank_batch(config, 1, frames, 4, 48), bf16)

    one, two = on_gpu(64), on_gpu(128)
    expected = (two.kept - one.kept) / 64, (two.most - one.most) / 64
    assert (found.kept, found.most) == pytest.approx(expected, rel=0.12)

    def frozen_on_gpu(frames: int) -> int:
        with torch.device("meta"):
            model = load_configured(config).requires_grad_(False)
        with fake_cuda() as mode:
            mode.move(model)
            autocast = torch.autocast("cuda", torch.bfloat16, enabled=bf16)
            with Held("cuda") as held, torch.no_grad(), autocast:
                model(torch.empty(frames, 3, 48, 48, device="cuda"))
        return held.peak

    assert found.frozen == pytest.approx((frozen_on_gpu(128) - frozen_on_gpu(64)) / 64, rel=0.12)
    assert found.dim == 12


def _measured_here(config: ModelConfig, frame_size: int, bf16: bool) -> FrameMemory:
    with torch.device("meta"):
        model = load_configured(config)
    return measure_frame(model, frame_size, bf16)


def test_a_process_of_its_own_finds_the_same_and_check_goes_by_it(tmp_path: Path) -> None:
    folder = write_vision_model(tmp_path / "resnet", "resnet")
    words = [f"model.visual_backbone=hf:{folder}", "model.visual_norm=frozen"]
    run = load_stages("demo", [*words, "model.visual_training=full", "data.frame_size=48"])[0]
    each = _measured_here(run.model, 48, bf16=False)
    assert frame_memory(run) == pytest.approx(each)
    assert sum(vision_bytes(run, 100, 0.0)) == pytest.approx(100 * each.most)
    frozen = replace(run, model=replace(run.model, visual_training="frozen", visual_chunk=10))
    expected = 10 * each.frozen + 100 * 12 * 4
    assert sum(vision_bytes(frozen, 100, 0.0)) == pytest.approx(expected)
    need = memory.estimate(run, None, 100, 1, 0)
    assert memory.judge_gpu(run, need, 100, None, "", 1).level == "ok"
    small = need.total / 1e9 * 0.9
    whole = replace(run, model=replace(run.model, visual_chunk="auto"))
    assert memory.resolve_chunk(whole, None, 100, 1, 0, 80.0).model.visual_chunk is None
    assert memory.resolve_chunk(whole, None, 100, 1, 0, small).model.visual_chunk == 16


@pytest.mark.parametrize("gigabytes", [None, 80.0])
def test_a_memory_that_is_not_known_is_no_memory_that_suffices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gigabytes: float | None
) -> None:
    folder = write_vision_model(tmp_path / "clip", "clip")
    said = json.loads((folder / "config.json").read_text())
    said["vision_config"]["num_attention_heads"] = 5  # of 12 channels
    (folder / "config.json").write_text(json.dumps(said))
    words = [f"model.visual_backbone=hf:{folder}", "model.visual_norm=frozen"]
    run = load_stages("demo", words)[0]
    why = frame_memory(run)
    assert isinstance(why, str)
    assert why.startswith(f"model.visual_backbone=hf:{folder}: ")
    assert "cannot be loaded" in why
    need = memory.estimate(run, None, 100, 1, 0)
    finding = memory.judge_gpu(run, need, 100, gigabytes, "", 1)
    assert finding.level == "warning"
    assert f"which is not known ({why})" in finding.value
    resolved = memory.resolve_chunk(run, None, 100, 1, 0, 80.0)
    assert resolved.model.visual_chunk == 64
    said = memory.say_chunk(run.model, resolved.model, memory.why_unknown(run))
    assert said.startswith("vision model: 64 frames at once")
    assert f"what a frame takes is not known: {why}" in said
