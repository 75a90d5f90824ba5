"""Dropout by clip: as often as asked for, the same wherever a clip is, off in evaluation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.model_factory import draw_clips, join, small_model
from signfuse_dist.config import LossConfig
from signfuse_dist.model.dropout import ClipDropout, drawn, set_dropout
from signfuse_dist.objective import StageObjective, prepare, set_mode

KEYS = torch.tensor([5, 2**62 + 17, 5 + 2**40])


def _dropped(rate: float, x: Tensor, keys: Tensor = KEYS, name: str = "a") -> Tensor:
    layer = ClipDropout(rate, name).train()
    with drawn(layer, keys):
        out: Tensor = layer(x)
    return out


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_values_are_zeroed_as_often_as_asked_for_and_the_mean_stays(rate: float) -> None:
    out = _dropped(rate, torch.ones(3, 200, 64))
    zero = (out == 0).float()
    assert float(zero.mean()) == pytest.approx(rate, abs=0.01)
    torch.testing.assert_close(out.unique(), torch.tensor([0, 1 / (1 - rate)]))
    for axis in range(3):  # no clip, step or channel is hit more than others
        others = tuple(i for i in range(3) if i != axis)
        sizes = 3 * 200 * 64 / zero.shape[axis]
        spread = zero.mean(others).std()
        assert float(spread) < 3 * (rate * (1 - rate) / sizes) ** 0.5


def test_masks_of_neighbours_are_independent() -> None:
    kept = (_dropped(0.5, torch.ones(3, 200, 64)) > 0).double() - 0.5
    for shifted in (kept.roll(1, 0), kept.roll(1, 1), kept.roll(1, 2), kept.roll((1, 1), (1, 2))):
        assert abs(float((kept * shifted).mean()) * 4) < 0.02
    other = (_dropped(0.5, torch.ones(3, 200, 64), name="b") > 0).double() - 0.5
    assert abs(float((kept * other).mean()) * 4) < 0.02


def test_a_clips_mask_depends_on_no_neighbour_and_no_padding() -> None:
    whole = _dropped(0.4, torch.ones(3, 9, 8))
    assert torch.equal(_dropped(0.4, torch.ones(1, 5, 8), KEYS[1:2])[0], whole[1, :5])
    assert torch.equal(_dropped(0.4, torch.ones(3, 9, 8), KEYS.flip(0)).flip(0), whole)
    assert torch.equal(_dropped(0.4, torch.ones(3, 9, 8)), whole)


def test_one_draw_holds_for_all_joints_of_a_step() -> None:
    flat = _dropped(0.4, torch.ones(3, 9, 8))
    joints = _dropped(0.4, torch.ones(3, 8, 9, 5))
    assert torch.equal(joints, flat.transpose(1, 2)[..., None].expand(3, 8, 9, 5))


def test_nothing_is_dropped_in_evaluation_and_nothing_without_a_key_in_training() -> None:
    layer, x = ClipDropout(0.5), torch.ones(2, 3, 4)
    assert layer.eval()(x) is x
    assert ClipDropout(0.0).train()(x) is x
    with pytest.raises(ValueError, match="no key"):
        layer.train()(x)
    with drawn(layer, KEYS), pytest.raises(ValueError, match="a clip"):
        layer(x)
    assert layer.keys is None


def test_every_part_that_trains_drops_with_masks_of_its_own() -> None:
    model = small_model(dropout=0.3)
    found = {n: m for n, m in model.named_modules() if isinstance(m, ClipDropout)}
    parts = [name.partition(".")[0] for name in found]
    assert {part: parts.count(part) for part in parts} == {
        "skeletal": 4, "fusion": 4, "temporal": 1, "adapter": 1
    }  # fmt: skip
    assert {module.rate for module in found.values()} == {0.3}
    by_part = [[m.salt for n, m in found.items() if n.startswith(part)] for part in set(parts)]
    assert all(len(set(salts)) == len(salts) for salts in by_part)
    set_dropout(model, 0.0)
    assert {module.rate for module in found.values()} == {0.0}


def _losses(model: Any, clips: Any) -> dict[str, Tensor]:
    return StageObjective("finetune", LossConfig())(model, join(clips))


def test_dropout_changes_training_by_clip_and_no_score() -> None:
    clips = draw_clips([5, 3, 8])
    plain, dropping = small_model(), small_model(dropout=0.3, lora_dropout=0.3)
    for model in (plain, dropping):
        prepare(model, "finetune", LossConfig())
        model.eval()
    for name, parameter in plain.named_parameters():
        if "lora_B" in name:
            nn.init.constant_(parameter, 0.1)
    dropping.load_state_dict(plain.state_dict())
    torch.testing.assert_close(_losses(plain, clips), _losses(dropping, clips))
    set_mode(dropping, "finetune")
    assert not any(m.training for m in dropping.language_model.modules() if type(m) is nn.Dropout)
    found = _losses(dropping, clips)
    assert not torch.allclose(found["language"], _losses(plain, clips)["language"])
    torch.testing.assert_close(_losses(dropping, clips), found)
    others = [replace(clip, name=f"other {i}") for i, clip in enumerate(clips)]
    assert not torch.allclose(_losses(dropping, others)["language"], found["language"])


def test_lora_drops_its_inputs_in_the_stage_that_trains_it_alone() -> None:
    model = small_model(lora_dropout=0.3)
    prepare(model, "finetune", LossConfig())
    inside = [
        m for n, m in model.named_modules() if isinstance(m, ClipDropout) and "lora_dropout" in n
    ]
    assert len(inside) == 4  # two layers of two projections
    set_mode(model, "finetune")
    assert all(m.training and m.rate == 0.3 for m in inside)
    assert not model.language_model.model.training
    set_mode(model, "alignment")
    assert not any(m.training for m in inside)
