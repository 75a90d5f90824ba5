"""The shuffled control moves every translation to another sentence, the same way every time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

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


def test_controls_that_say_nothing_of_a_model_are_not_decoded():
    assert why_inapplicable("blank", "skeletal", 9) is not None
    assert why_inapplicable("masked_joints", "visual", 9) is not None
    assert why_inapplicable("shuffled", "both", 1) is not None
    assert [why_inapplicable(name, "both", 9) for name in CONTROLS] == [None] * 3


def test_controls_are_chosen_by_name():
    assert chosen_controls("none") == ()
    assert chosen_controls("masked_joints,shuffled") == ("shuffled", "masked_joints")
    with pytest.raises(UserError, match="did you mean 'blank'"):
        chosen_controls("blnk")
