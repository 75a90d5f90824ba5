"""The shuffled control moves every translation to another sentence, the same way every time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signfuse_dist.errors import UserError
from signfuse_dist.evaluation.control import score_control, shuffled
from signfuse_dist.evaluation.metrics import score


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
