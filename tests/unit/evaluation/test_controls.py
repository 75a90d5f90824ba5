"""The shuffled control moves every translation to another sentence, the same way every time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.model_factory import small_config
from signfuse_dist.batch import SignBatch
from signfuse_dist.errors import UserError
from signfuse_dist.evaluation.controls import (
    CONTROLS,
    chosen_controls,
    hidden,
    score_control,
    shuffled,
    why_inapplicable,
)
from signfuse_dist.evaluation.scores import score


@given(st.integers(2, 40), st.integers(0, 2**32))
def test_no_video_keeps_its_sentence_and_none_is_lost(count, seed):
    hypotheses = {f"id{i}": f"sentence {i}" for i in range(count)}
    moved = shuffled(hypotheses, seed)
    assert all(moved[i] != hypotheses[i] for i in hypotheses)
    assert sorted(moved.values()) == sorted(hypotheses.values())
    assert set(moved) == set(hypotheses)


def test_the_same_seed_gives_the_same_shuffle_in_any_order_of_the_ids():
    hypotheses = {f"id{i}": f"sentence {i}" for i in range(30)}
    backwards = dict(reversed(hypotheses.items()))
    assert shuffled(hypotheses, 7) == shuffled(backwards, 7)
    assert shuffled(hypotheses, 7) != shuffled(hypotheses, 8)


def test_the_shuffle_of_a_seed_stays_what_it_was():
    assert list(shuffled({c: c for c in "abcdef"}, 0).values()) == ["c", "e", "b", "a", "f", "d"]


def test_two_samples_change_places():
    assert shuffled({"a": "1", "b": "2"}, 3) == {"a": "2", "b": "1"}


@pytest.mark.parametrize("hypotheses", [{}, {"only": "one"}])
def test_fewer_than_two_samples_leave_nothing_to_exchange(hypotheses):
    with pytest.raises(UserError, match="at least 2 samples"):
        shuffled(hypotheses, 0)


def test_the_control_of_a_single_sample_does_not_apply():
    assert score_control({"a": "x"}, {"a": "x"}, "sacrebleu", 0) is None


def test_a_system_that_watches_scores_far_above_its_control():
    words = ["rain", "sun", "wind", "snow", "hail", "fog", "frost", "heat", "storm", "cloud"]
    references = {f"id{i}": f"{w} falls over {w} hills and {w} towns" for i, w in enumerate(words)}
    scores = score(references, references, "sacrebleu")
    control = score_control(references, references, "sacrebleu", 0)
    assert control is not None
    assert control["BLEU-4"].value < scores["BLEU-4"].value / 2


def test_a_system_that_says_always_the_same_scores_as_its_control():
    references = {f"id{i}": f"the weather on day {i}" for i in range(5)}
    blind = dict.fromkeys(references, "the weather on day 3")
    assert score_control(blind, references, "sacrebleu", 0) == score(blind, references, "sacrebleu")


def one_clip():
    return SignBatch(
        ids=("a",),
        frames=torch.randint(0, 255, (3, 3, 8, 8), dtype=torch.uint8),
        pose=torch.rand(1, 3, 75, 2),
        joint_mask=torch.ones(1, 3, 75, dtype=torch.bool),
        frame_lengths=torch.tensor([3]),
        weight=torch.ones(1),
    )


def test_a_blank_video_is_one_grey_and_keeps_its_joints():
    clip = one_clip()
    blank = hidden(clip, "blank")
    assert blank.frames.shape == clip.frames.shape
    assert blank.frames.flatten(2).unique(dim=2).shape[2] == 1
    # What the visual stream makes of it is nearly nothing.
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    assert ((blank.frames[0, :, 0, 0] / 255 - mean) / std).abs().max() < 0.01
    assert blank.pose is clip.pose
    assert blank.joint_mask is clip.joint_mask


def test_masked_joints_are_all_missing_and_the_pictures_are_kept():
    clip = one_clip()
    masked = hidden(clip, "masked_joints")
    assert not masked.joint_mask.any()
    assert not masked.pose.any()
    assert masked.frames is clip.frames


def test_a_moved_clip_shows_pictures_and_joints_a_tenth_smaller_and_further_right():
    clip, side = one_clip(), 60
    frames = torch.zeros(3, 3, side, side, dtype=torch.uint8)
    frames[:, 0, 30:40, 20:30] = 255  # its middle at 25 of 60 in x, 35 in y
    pose = torch.tensor([25.0, 35.0]).div(side).expand(1, 3, 75, 2)
    moved = hidden(replace(clip, frames=frames, pose=pose), "moved")
    assert moved.frames.dtype is torch.uint8
    assert moved.frames.shape == frames.shape
    y, x = (moved.frames[1, 0] > 127).nonzero(as_tuple=True)
    place = torch.stack([x.double().mean() + 0.5, y.double().mean() + 0.5]) / side
    assert torch.allclose(place, moved.pose[0, 1, 7].double(), atol=0.5 / side)
    expected = torch.tensor([30 - 5 / 1.1 + 6, 30 + 5 / 1.1]).double() / side
    assert torch.allclose(place, expected, atol=0.5 / side)
    assert len(x) == pytest.approx(100 / 1.21, rel=0.1)
    assert not moved.frames[:, 1:].any()  # no colour is another
    assert moved.joint_mask is clip.joint_mask


def test_of_a_clip_without_pictures_the_joints_are_moved():
    clip = replace(one_clip(), frames=torch.zeros(0, 3, 8, 8, dtype=torch.uint8))
    clip = replace(clip, has_visual=torch.tensor([False]))
    moved = hidden(clip, "moved")
    assert not moved.frames.numel()
    expected = (clip.pose - 0.5) / 1.1 + 0.5 + torch.tensor([0.1, 0.0])
    assert torch.allclose(moved.pose, expected)


def test_controls_that_say_nothing_of_a_model_are_not_decoded():
    skeletal, visual, both = (small_config(streams=s) for s in ("skeletal", "visual", "both"))
    vectors = small_config(visual_backbone="features:dino")
    assert why_inapplicable("blank", skeletal, 9) is not None
    assert why_inapplicable("masked_joints", visual, 9) is not None
    assert why_inapplicable("shuffled", both, 1) is not None
    assert why_inapplicable("moved", vectors, 9) is not None
    assert [why_inapplicable(name, both, 9) for name in CONTROLS] == [None] * 4


def test_controls_are_chosen_by_name():
    assert chosen_controls("none") == ()
    assert chosen_controls("masked_joints,shuffled") == ("shuffled", "masked_joints")
    assert chosen_controls("moved") == ("moved",)
    with pytest.raises(UserError, match="did you mean 'blank'"):
        chosen_controls("blnk")
