"""What a table shows: differences in BLEU-4, whether they are noise, and what the paper expects.

The paper prints no numbers, only directions, so a finding is a direction as well. Of two rows only
those seeds count that both have finished; their translations stand one after another in the paired
bootstrap. With one seed this says nothing about what another seed would give.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from signfuse_dist.ablation.collect import Results, RowResult, mean_and_deviation
from signfuse_dist.evaluation.measures import build_measures
from signfuse_dist.evaluation.presets import Preset, normalize
from signfuse_dist.evaluation.resampling import Resampling, resample

METRIC = "BLEU-4"
SIGNIFICANT = 0.05
Verdict = Literal["agrees", "contradicts", "within noise", "not known"]


@dataclass(frozen=True)
class Difference:
    """BLEU-4 of one row less that of another, over the seeds of both; p is two-sided."""

    value: float
    p_value: float
    seeds: tuple[int, ...]

    @property
    def is_noise(self) -> bool:
        """Whether another choice of sentences may turn it round."""
        return self.p_value >= SIGNIFICANT


@dataclass(frozen=True)
class Finding:
    """A row against the full one (None for that itself), and against the paper's expectation."""

    against_full: Difference | None
    expected: str
    verdict: Verdict | None
    against_expected: Difference | None


def find(results: Results) -> dict[str, Finding]:
    """Return the finding of each row by its name."""
    return {row.row.name: _find(results, row) for row in results.rows}


def _find(results: Results, row: RowResult) -> Finding:
    full = None if row is results.full else difference(row, results.full, results.preset)
    expectation = row.row.expectation
    if expectation is None:
        return Finding(full, "", None, None)
    other = difference(row, results.row(expectation.other), results.preset)
    return Finding(full, str(expectation), _verdict(other, expectation.side), other)


def difference(ours: RowResult, others: RowResult, preset: Preset) -> Difference | None:
    """Compare two rows over the seeds that both have finished; None when there is none."""
    first = {seed.seed: seed for seed in ours.seeds}
    second = {seed.seed: seed for seed in others.seeds}
    both = tuple(seed for seed in first if seed in second)
    if not both:
        return None
    texts: tuple[list[str], list[str], list[str]] = ([], [], [])
    for seed in both:
        for name, reference in sorted(first[seed].references.items()):
            texts[0].append(first[seed].hypotheses[name])
            texts[1].append(second[seed].hypotheses[name])
            texts[2].append(reference)
    values = [
        mean_and_deviation([found[seed].scores[METRIC].value for seed in both])[0]
        for found in (first, second)
    ]
    value = values[0] - values[1]
    return Difference(value, p_value(*texts, preset), both)


def p_value(
    ours: Sequence[str], others: Sequence[str], references: Sequence[str], preset: Preset
) -> float:
    """Return p of a difference in BLEU-4: sacrebleu's paired bootstrap, two-sided."""
    theirs, mine, yours = (
        [normalize(text, preset) for text in texts] for texts in (references, ours, others)
    )
    (_, found), _ = resample(build_measures(preset, None)[METRIC], [yours, mine], theirs,
                             Resampling())  # fmt: skip
    assert found.p_value is not None
    return found.p_value


def _verdict(found: Difference | None, side: str) -> Verdict:
    if found is None or math.isnan(found.value):
        return "not known"
    if found.is_noise:
        return "within noise"
    return "agrees" if (found.value > 0) == (side == "above") else "contradicts"
