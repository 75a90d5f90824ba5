"""Intervals and paired tests by sacrebleu, for every metric.

Paired bootstrap (Koehn, 2004): both systems are scored on the same sentences drawn with
replacement, and p is the share of draws whose absolute difference, less the mean of these, exceeds
the one observed. Approximate randomisation (Riezler and Maxwell, 2005): translations change sides
at random, and p is the share of trials whose absolute difference exceeds the one observed. The 95%
interval is the middle of the bootstrap distribution, centred at its mean, as sacrebleu gives it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from sacrebleu.significance import PairedTest
from sacrebleu.significance import Result as _Result

from signfuse_dist.errors import UserError
from signfuse_dist.evaluation.metrics import Measure

Method = Literal["bootstrap", "randomization"]
# sacrebleu's own, which its command line uses as well.
SEED = 12345
NUM_SAMPLES: Mapping[Method, int] = {"bootstrap": 1000, "randomization": 10000}
_FEWEST = 100
_VARIABLE = "SACREBLEU_SEED"


@dataclass(frozen=True)
class Resampling:
    """How often and by which seed; ``num_samples`` None means sacrebleu's usual number.

    Raises :class:`UserError` for too few samples to tell 5%, and for a seed that is not positive
    (sacrebleu takes 0 for no seed at all).
    """

    method: Method = field(
        default="bootstrap", metadata={"help": "the paired test (default: %(default)s)"}
    )
    num_samples: int | None = field(
        default=None, metadata={"help": "resamples (default: 1000) or random trials (10000)"}
    )
    seed: int = field(
        default=SEED,
        metadata={"help": "of the resampling (default: sacrebleu's %(default)s)"},
    )

    def __post_init__(self) -> None:
        if self.count < _FEWEST:
            raise UserError(f"{self.count} resamples are too few for a test; at least {_FEWEST}")
        if self.seed < 1:
            raise UserError(f"the seed {self.seed} is not positive")

    @property
    def count(self) -> int:
        """Resamples of the bootstrap, or trials of the randomisation."""
        return NUM_SAMPLES[self.method] if self.num_samples is None else self.num_samples

    def __str__(self) -> str:
        kind = "bs" if self.method == "bootstrap" else "ar"
        return f"{kind}:{self.count}|seed:{self.seed}"


class TestedScore(NamedTuple):
    """One system's score by one metric: 0..100, its 95% interval, and p against the baseline."""

    value: float
    interval: tuple[float, float]
    p_value: float | None


def resample(
    measure: Measure,
    systems: Sequence[Sequence[str]],
    references: Sequence[Sequence[str]],
    how: Resampling,
) -> tuple[list[TestedScore], str]:
    """Return the score of each system, and the signature with the method and seed.

    ``systems`` are the translations of each, and ``references`` the first reference of every
    sentence, then the second of those that have one; all of it in one order and as a protocol
    compares it. The first system is the baseline and has no p value.
    """
    kind = "bs" if how.method == "bootstrap" else "ar"
    named = [(str(number), texts) for number, texts in enumerate(systems)]
    with _sacrebleu_seed(how.seed):
        test = PairedTest(
            named,
            {"it": measure.metric},
            references,
            kind,
            how.count,
            n_ar_confidence=NUM_SAMPLES["bootstrap"] if kind == "ar" else -1,
        )
        signatures, columns = test()
    (name,) = signatures
    results = [r for r in columns[name] if isinstance(r, _Result)]
    scores = [_tested_score(r, results[0].score if i else None) for i, r in enumerate(results)]
    return scores, measure.signature(signatures[name])


def _tested_score(result: _Result, baseline: float | None) -> TestedScore:
    assert result.mean is not None
    assert result.ci is not None
    low, high = float(result.mean - result.ci), float(result.mean + result.ci)
    p = result.p_value
    if baseline is not None and result.score == baseline:
        # sacrebleu counts the trials that differ by more than nothing; identical systems give
        # none, and it would call them different with the smallest p there is.
        p = 1.0
    return TestedScore(float(result.score), (low, high), None if p is None else float(p))


@contextmanager
def _sacrebleu_seed(seed: int) -> Iterator[None]:
    """Set the seed where sacrebleu reads it, which is the environment alone."""
    before = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = str(seed)
    try:
        yield
    finally:
        if before is None:
            del os.environ[_VARIABLE]
        else:
            os.environ[_VARIABLE] = before
