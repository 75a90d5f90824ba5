"""The word error rate: edits against a table filled by hand, over the words of the corpus."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from signfuse_dist.evaluation.metrics import num_edits
from signfuse_dist.evaluation.protocols import PRESETS
from signfuse_dist.evaluation.scores import score
from signfuse_dist.evaluation.significance import Resampling

WORDS = st.lists(st.sampled_from("abc"), max_size=8)


def by_definition(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    @cache
    def edits(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        same = a[i - 1] == b[j - 1]
        return min(edits(i - 1, j - 1) + (not same), edits(i - 1, j) + 1, edits(i, j - 1) + 1)

    return edits(len(a), len(b))


@settings(max_examples=200, deadline=None)
@given(WORDS, WORDS)
def test_edits_are_those_of_the_definition(a: list[str], b: list[str]) -> None:
    assert num_edits(a, b) == by_definition(tuple(a), tuple(b)) == num_edits(b, a)


def test_edits_are_summed_over_the_corpus_before_they_are_divided() -> None:
    references = {"1": "A B C D", "2": "E", "3": "F G"}
    ours = {"1": "A X C D E", "2": "", "3": "F G"}  # a substitution, an insertion, a deletion
    wer = score(ours, references, "glosses")["WER"]
    assert wer.value == pytest.approx(100 * 3 / 7)
    assert "case:mixed|tok:space" in wer.signature


def test_more_than_was_to_be_written_is_more_than_a_hundred() -> None:
    assert score({"1": "A B C D"}, {"1": "X"}, "glosses")["WER"].value == 400


def test_of_several_references_the_nearest_counts() -> None:
    wer = score({"1": "A B"}, {"1": ("X Y Z", "A B C")}, "glosses")["WER"]
    assert wer.value == pytest.approx(100 / 3)


def test_it_has_an_interval_and_comes_first_where_a_protocol_asks_for_it_alone() -> None:
    references = {str(n): "A B C" for n in range(12)}
    ours = {str(n): "A B" if n % 2 else "A B C" for n in range(12)}
    scores = score(ours, references, "glosses", resampling=Resampling())
    low, high = scores.intervals["WER"]
    assert low < scores["WER"].value < high
    assert next(iter(scores.scores)) == "WER"
    assert [name for name, preset in PRESETS.items() if preset.word_errors] == ["glosses"]
    assert "WER" not in score(ours, references, "sacrebleu").scores


def test_a_sentence_of_endless_words_is_counted_at_once() -> None:
    assert num_edits(["A"] * 12, ["B"] * 300_000) == 300_000
