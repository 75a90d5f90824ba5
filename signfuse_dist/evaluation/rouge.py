"""ROUGE-L: with a beta, which no library gives, and the score of the Python package `rouge`.

F = (1 + beta^2) P R / (R + beta^2 P) with P and R the longest common subsequence over the length
of the hypothesis and of the reference (Lin, 2004). The score of a corpus is the mean over its
sentences, times 100. Published variants differ in beta: 1 (the harmonic mean), 1.2 (MS-COCO), and
P/R, chosen anew for each sentence, which leans towards the smaller of the two.

The package `rouge` gives another score: it counts each distinct token once and joins the common
subsequences of what full stops separate. Some published protocols take it, so their preset does.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from typing import Any

from signfuse_dist.errors import UserError
from signfuse_dist.evaluation.presets import Beta


def lcs_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Return the length of the longest common subsequence of two token lists.

    Bit-parallel: the row of the dynamic programme is one integer whose bit i is 0 where the row
    grows at ``a[i]``, so a row costs a few integer operations instead of ``len(a)`` comparisons.
    """
    places: dict[str, int] = {}
    for i, token in enumerate(a):
        places[token] = places.get(token, 0) | 1 << i
    full = (1 << len(a)) - 1
    row = full
    for token in b:
        matches = row & places.get(token, 0)
        row = (row + matches | row - matches) & full
    return len(a) - row.bit_count()


def f_measure(precision: float, recall: float, beta: Beta) -> float:
    """Return the F measure in 0..1; 0.0 when nothing is shared."""
    if precision == 0.0 or recall == 0.0:
        return 0.0
    weight = (precision / recall) ** 2 if beta == "p/r" else beta**2
    return (1 + weight) * precision * recall / (recall + weight * precision)


def sentence_rouge_l(hypothesis: Sequence[str], reference: Sequence[str], beta: Beta) -> float:
    """Return ROUGE-L of one sentence in 0..1; 0.0 for an empty hypothesis or reference."""
    if not hypothesis or not reference:
        return 0.0
    shared = lcs_length(hypothesis, reference)
    return f_measure(shared / len(hypothesis), shared / len(reference), beta)


def rouge_l(
    hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[str]], beta: Beta
) -> float:
    """Return the mean ROUGE-L of a corpus, 0..100.

    Raises :class:`UserError` when beta is not positive, or there is nothing to score.
    """
    if not isinstance(beta, str) and not beta > 0:
        raise UserError(f"ROUGE-L: beta {beta!r} is not a positive number (or 'p/r')")
    if not hypotheses:
        raise UserError("ROUGE-L: there are no sentences to score")
    pairs = zip(hypotheses, references, strict=True)
    return 100.0 * sum(sentence_rouge_l(h, r, beta) for h, r in pairs) / len(hypotheses)


def package_rouge_l(hypothesis: Sequence[str], reference: Sequence[str]) -> float:
    """Return the F1 of ROUGE-L in 0..1 by the package `rouge`.

    0.0 where hypothesis or reference holds nothing but full stops, which the package refuses.
    """
    both = [" ".join(tokens) for tokens in (hypothesis, reference)]
    if not all(text.strip(". ") for text in both):
        return 0.0
    with _deeper(len(hypothesis) + len(reference)):
        (found,) = _package().get_scores(*both)
    return float(found["rouge-l"]["f"])


def package_version() -> str:
    """Return the version of the package `rouge`, for the signature."""
    return version("rouge")


@cache
def _package() -> Any:
    from rouge import Rouge

    return Rouge(metrics=["rouge-l"])


@contextmanager
def _deeper(num_tokens: int) -> Iterator[None]:
    """Let the package recurse once for each token of a long sentence."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(before + num_tokens)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)
