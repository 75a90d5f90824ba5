"""Which samples a report shows: spread evenly from the best translation to the worst.

Order is by sentence-level chrF, which is defined for sentences, unlike BLEU. Evenly spread, because
a report of the best alone flatters and of the worst alone misleads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from signfuse_dist.evaluation.measures import sentence_chrf


@dataclass(frozen=True)
class Sample:
    """One translation; ``rank`` 1 is the best of the split, ``chrf`` in 0..100."""

    rank: int
    id: str
    hypothesis: str
    reference: str
    chrf: float


def rank_samples(hypotheses: Mapping[str, str], references: Mapping[str, str]) -> list[Sample]:
    """Return every sample from best to worst; equal scores in the order of their ids."""
    scored = sorted((-sentence_chrf(hypotheses[i], references[i]), i) for i in references)
    return [
        Sample(rank, i, hypotheses[i], references[i], -negative)
        for rank, (negative, i) in enumerate(scored, start=1)
    ]


def spread(samples: list[Sample], count: int) -> list[Sample]:
    """Return ``count`` samples, or all, evenly spaced, with the best and the worst among them."""
    if count >= len(samples):
        return samples
    if count < 2:
        return samples[:count]
    last = len(samples) - 1
    return [samples[round(i * last / (count - 1))] for i in range(count)]
