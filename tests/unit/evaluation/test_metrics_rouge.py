"""ROUGE-L against a naive longest common subsequence, and its value for each beta."""

from __future__ import annotations

import sys
import time
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from signfuse_dist.errors import UserError
from signfuse_dist.evaluation.metrics import (
    f_measure,
    lcs_length,
    long_package_rouge_l,
    package_rouge_l,
    rouge_l,
    sentence_rouge_l,
)

WORDS = st.lists(st.sampled_from("abcd"), max_size=9)


def naive_lcs(a: list[str], b: list[str]) -> int:
    """Try every subsequence of a, longest first."""

    def within(candidate: tuple[str, ...]) -> bool:
        rest = iter(b)
        return all(token in rest for token in candidate)

    sizes = range(len(a), -1, -1)
    return next(size for size in sizes if any(within(c) for c in combinations(a, size)))


@settings(max_examples=200, deadline=None)
@given(WORDS, WORDS)
def test_the_longest_common_subsequence_is_that_of_trying_them_all(a, b):
    assert lcs_length(a, b) == naive_lcs(a, b) == lcs_length(b, a)


def test_sentences_longer_than_a_machine_word_are_counted_exactly():
    a = [str(i) for i in range(500)]
    b = [str(i) for i in range(0, 500, 2)] + ["other"] * 300
    assert lcs_length(a, b) == 250


HYPOTHESIS = ["the", "rain", "comes", "from", "west"]
REFERENCE = ["rain", "from", "the", "north", "west", "today"]


@pytest.mark.parametrize(
    ("beta", "expected"),
    [
        # P = 3/5, R = 3/6: rain from west.
        (1.0, 2 * 0.6 * 0.5 / 1.1),
        (1.2, 2.44 * 0.6 * 0.5 / (0.5 + 1.44 * 0.6)),
        ("p/r", 0.6 * 0.5 * (0.5**2 + 0.6**2) / (0.5**3 + 0.6**3)),
    ],
)
def test_each_beta_gives_its_published_formula(beta, expected):
    assert sentence_rouge_l(HYPOTHESIS, REFERENCE, beta) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("beta", [1.0, 1.2, "p/r"])
@given(st.floats(0.01, 1.0), st.floats(0.01, 1.0))
def test_the_f_measure_lies_between_precision_and_recall(beta, precision, recall):
    value = f_measure(precision, recall, beta)
    assert min(precision, recall) - 1e-9 <= value <= max(precision, recall) + 1e-9


def test_a_larger_beta_leans_towards_recall():
    assert f_measure(0.9, 0.3, 1.2) < f_measure(0.9, 0.3, 1.0)
    assert f_measure(0.3, 0.9, 1.2) > f_measure(0.3, 0.9, 1.0)


@pytest.mark.parametrize("beta", [1.0, 1.2, "p/r"])
def test_nothing_shared_and_nothing_written_score_zero(beta):
    assert sentence_rouge_l([], REFERENCE, beta) == 0.0
    assert sentence_rouge_l(["sun"], REFERENCE, beta) == 0.0
    assert rouge_l([[], REFERENCE], [REFERENCE, REFERENCE], beta) == pytest.approx(50.0)


def test_a_corpus_scores_the_mean_of_its_sentences():
    one = sentence_rouge_l(HYPOTHESIS, REFERENCE, 1.2)
    assert rouge_l([HYPOTHESIS, REFERENCE], [REFERENCE, REFERENCE], 1.2) == pytest.approx(
        100 * (one + 1) / 2
    )


def test_a_beta_that_is_not_positive_is_refused():
    with pytest.raises(UserError, match="beta -1"):
        rouge_l([["a"]], [["a"]], -1.0)
    with pytest.raises(UserError, match="no sentences"):
        rouge_l([], [], 1.0)


def test_the_score_of_the_package_counts_distinct_words():
    # Distinct words: 2 of the hypothesis, 3 of the reference, and "a b" shared.
    expected = 2 * 1.0 * (2 / 3) / (1 + 2 / 3)
    assert package_rouge_l(list("aab"), list("abc")) == pytest.approx(expected, abs=1e-6)
    assert sentence_rouge_l(list("aab"), list("abc"), 1.0) == pytest.approx(2 / 3)


@pytest.mark.parametrize("empty", [[], ["."], [".", "."], [" "]])
def test_what_the_package_refuses_scores_zero(empty):
    assert package_rouge_l(empty, REFERENCE) == 0.0
    assert package_rouge_l(REFERENCE, empty) == 0.0


def test_a_sentence_longer_than_the_stack_is_scored_by_the_package():
    limit = sys.getrecursionlimit()
    words = [str(i) for i in range(limit + 100)]
    expected = 2 * 3 / (len(words) + 3)
    assert package_rouge_l(words, words[:3]) == pytest.approx(expected, abs=1e-6)
    assert sys.getrecursionlimit() == limit


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(["a", "b", "c", "d", "."]), max_size=14),
    st.lists(st.sampled_from(["a", "b", "c", "d", "."]), max_size=14),
)
def test_what_is_too_long_for_the_package_is_computed_to_the_same_end(a, b):
    both = [" ".join(words) for words in (a, b)]
    if all(text.strip(". ") for text in both):
        assert long_package_rouge_l(*both) == package_rouge_l(a, b)


def test_a_sentence_of_hundreds_of_thousands_of_characters_is_scored_at_once():
    long, reference = list("ab" * 300_000), list("abcab")
    begin = time.process_time()
    assert package_rouge_l(long, reference) == pytest.approx(2 * 1 * (2 / 3) / (1 + 2 / 3))
    assert sentence_rouge_l(long, reference, 1.0) == pytest.approx(2 * 4 / (600_000 + 5))
    assert sentence_rouge_l(reference, long, 1.0) == pytest.approx(2 * 4 / (600_000 + 5))
    assert time.process_time() - begin < 20  # minutes before, or all of the memory
    with pytest.raises(UserError, match=r"600,000 and a reference of 600,000 tokens are too long"):
        package_rouge_l(long, long)


UNIQUE = st.lists(st.sampled_from("abcdefghij"), max_size=9, unique=True)


@settings(max_examples=100, deadline=None)
@given(UNIQUE, UNIQUE)
def test_without_repeated_words_the_package_is_beta_1(a, b):
    assert package_rouge_l(a, b) == pytest.approx(sentence_rouge_l(a, b, 1.0), abs=1e-6)
