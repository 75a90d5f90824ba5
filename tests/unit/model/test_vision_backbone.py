"""A vision model of transformers inside SignFuse: what trains, what is saved, what it costs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from helpers.model_factory import draw_clips, join, small_config
from helpers.vision_models import write_vision_model
from signfuse_dist.batch import SignBatch
from signfuse_dist.config import LossConfig
from signfuse_dist.errors import UserError
from signfuse_dist.model import saved
from signfuse_dist.model.flops import StepFlops
from signfuse_dist.model.saved import SignFuseConfig
from signfuse_dist.model.signfuse import SignFuse
from signfuse_dist.model.vision import FrameVectors
from signfuse_dist.objective import prepare, set_mode


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vision_model(tmp_path_factory.mktemp("hub") / "clip", "clip")


def model_of(folder: Path, **changes: Any) -> SignFuse:
    torch.manual_seed(0)
    return SignFuse(small_config(visual_backbone=f"hf:{folder}", **changes), (12, 1.0)).eval()


def batch() -> SignBatch:
    return join(draw_clips([5, 3]))


def test_a_frozen_vision_model_gives_what_a_feature_set_of_it_gives(folder: Path) -> None:
    model, given = model_of(folder), batch()
    assert model.vision is not None
    vectorise = FrameVectors("m", model.vision, torch.device("cpu"), frame_size=32)
    vectors = torch.from_numpy(vectorise(given.frames.permute(0, 2, 3, 1).numpy()))
    torch.manual_seed(0)
    config = small_config(visual_backbone="features:m")
    other = SignFuse(config, (12, 1.0), vector_dim=12).eval()
    other.load_state_dict(saved.own_state(model))
    with torch.no_grad():
        theirs = other.encode(replace(given, frames=given.frames[:0], frame_vectors=vectors))
        ours = model.encode(given)
    torch.testing.assert_close(ours.visual, theirs.visual, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.skeletal, theirs.skeletal)


def test_frozen_by_default_and_trained_by_a_key(folder: Path) -> None:
    for training, trains in ((None, False), ("frozen", False), ("full", True)):
        model = model_of(folder, visual_training=training)
        prepare(model, "contrastive", LossConfig())
        set_mode(model, "contrastive")
        assert model.visual is not None
        assert model.visual.conv.weight.requires_grad
        named = dict(model.visual.backbone.named_parameters())
        got = {name for name, p in named.items() if p.requires_grad}
        # But for biases on keys, which softmax does not see.
        seen = {name for name in named if not name.endswith("k_proj.bias")}
        assert got == (seen if trains else set())
        assert not any(part.training for part in model.vision.network.modules())
        model.visual(*_visual_of(batch())).sum().backward()
        assert {name for name, p in named.items() if p.grad is not None} == got
    prepare(model, "alignment", LossConfig())
    assert not any(p.requires_grad for p in model.visual.parameters())


def _visual_of(given: SignBatch) -> tuple[Any, ...]:
    steps = (given.frame_lengths + 1) // 2
    return given.frames, given.frame_lengths, steps, given.weight, 5


def test_chunks_change_nothing_and_a_frozen_model_keeps_nothing(folder: Path) -> None:
    model, given = model_of(folder), batch()
    whole = model.encode(given).visual
    model.visual.budget = replace(model.visual.budget, chunk=3)
    torch.testing.assert_close(model.encode(given).visual, whole, rtol=1e-5, atol=1e-6)
    prepare(model, "contrastive", LossConfig())
    features = model.visual.frame_features(given.frames, given.frame_lengths, given.weight)
    assert not features.requires_grad


def test_a_resnet_may_stay_as_it_is() -> None:
    model = SignFuse(small_config(visual_training="frozen"), (12, 1.0))
    prepare(model, "finetune", LossConfig())
    assert model.visual is not None
    assert not any(p.requires_grad for p in model.visual.backbone.parameters())
    assert model.visual.conv.weight.requires_grad
    assert "visual.backbone.conv1.weight" in saved.own_state(model)


def test_a_frozen_vision_model_is_saved_by_name_and_comes_back(
    folder: Path, tmp_path: Path
) -> None:
    model = model_of(folder)
    model = SignFuse(model.built_from, None, vision=model.vision).eval()
    saved.save(model, tmp_path / "saved", {})
    with safe_open(tmp_path / "saved" / "model.safetensors", framework="pt") as file:
        assert not [name for name in file.keys() if "backbone" in name]  # noqa: SIM118
    again = SignFuse.from_pretrained(tmp_path / "saved")
    given = batch()
    with torch.no_grad():
        torch.testing.assert_close(again.encode(given).visual, model.encode(given).visual)
    moved = write_vision_model(tmp_path / "moved", "clip")
    SignFuse.from_pretrained(tmp_path / "saved", visual_backbone=f"hf:{moved}")
    other = write_vision_model(tmp_path / "other", "clip", seed=1)
    with pytest.raises(UserError, match="is another vision model now"):
        SignFuse.from_pretrained(tmp_path / "saved", visual_backbone=f"hf:{other}")


def test_a_trained_vision_model_is_part_of_the_model_and_needs_no_hub(tmp_path: Path) -> None:
    hub = write_vision_model(tmp_path / "siglip", "siglip")
    config = small_config(visual_backbone=f"hf:{hub}", visual_training="full")
    model = SignFuse(config, None).eval()
    with torch.no_grad():
        for parameter in model.vision.parameters():
            parameter.add_(0.01)
    saved.save(model, tmp_path / "saved", {})
    for file in hub.iterdir():
        file.unlink()
    again = SignFuse.from_pretrained(tmp_path / "saved")
    given = batch()
    with torch.no_grad():
        torch.testing.assert_close(again.encode(given).visual, model.encode(given).visual)
    path = tmp_path / "saved" / "config.json"
    said = json.loads(path.read_text())["visual_network"]
    assert said["config"]["model_type"] == "siglip_vision_model"
    config = SignFuseConfig.from_pretrained(tmp_path / "saved")
    assert config.visual_fingerprint == model.vision.fingerprint


def test_a_model_that_names_a_folder_loads_from_another_place(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    model = SignFuse(small_config(visual_backbone=f"hf:{folder.name}"), None)
    saved.save(model, tmp_path / "saved", {})
    saved.load_into(tmp_path / "saved", model)  # the next stage names it as it was typed
    monkeypatch.chdir(tmp_path)
    again = SignFuse.from_pretrained(tmp_path / "saved")
    assert again.built_from.vision_model == str(folder)


def test_a_stage_does_not_start_from_another_vision_model(folder: Path, tmp_path: Path) -> None:
    model = SignFuse(small_config(visual_backbone=f"hf:{folder}"), None)
    saved.save(model, tmp_path / "saved", {})
    write_vision_model(tmp_path / "clip", "clip", seed=3)
    (tmp_path / "place").symlink_to(tmp_path / "clip")
    other = SignFuse(small_config(visual_backbone=f"hf:{tmp_path / 'clip'}"), None)
    other.built_from = model.built_from
    with pytest.raises(UserError, match="is another vision model now"):
        saved.load_into(tmp_path / "saved", other)
    saved.load_into(tmp_path / "saved", SignFuse(model.built_from, None))


def test_its_operations_are_counted_forward_and_backward_where_it_trains(folder: Path) -> None:
    costs = {}
    for training in ("frozen", "full"):
        model = model_of(folder, visual_training=training)
        prepare(model, "contrastive", LossConfig())
        counter = StepFlops(model, "unimodal", language=False)
        assert counter.uncounted == {}
        costs[training] = counter(batch())["visual"]
    assert costs["frozen"].forward == costs["full"].forward > 1e6
    assert costs["full"].backward > 10 * costs["frozen"].backward


def test_its_parameters_are_counted_without_memory(folder: Path) -> None:
    whole = model_of(folder)
    with torch.device("meta"):
        counted = SignFuse(whole.built_from, (12, 1.0))
    assert [p.shape for p in counted.parameters()] == [p.shape for p in whole.parameters()]
    assert all(p.is_meta for p in counted.parameters())


def test_a_model_of_films_is_for_feature_sets_alone(tmp_path: Path) -> None:
    films = write_vision_model(tmp_path / "v", "videomae")
    with pytest.raises(UserError, match=r"looks at 4 frames at a time: .* signfuse features"):
        model_of(films)


def test_vectors_and_pictures_are_not_taken_for_each_other(folder: Path) -> None:
    given = batch()
    vectors = replace(given, frames=given.frames[:0], frame_vectors=torch.zeros(8, 12))
    with pytest.raises(UserError, match="vectors of 12 numbers a frame, and the model has"):
        model_of(folder).encode(vectors)
    of_vectors = SignFuse(small_config(visual_backbone="features:m"), None, vector_dim=12)
    with pytest.raises(UserError, match="given 8 pictures without vectors"):
        of_vectors.encode(given)
    with pytest.raises(UserError, match="vectors of 12 numbers a frame, and the model has"):
        SignFuse(small_config(visual_backbone="features:m"), None, vector_dim=7).encode(vectors)
    with pytest.raises(UserError, match="is not known here"):
        SignFuse(small_config(visual_backbone="features:m"), None)
