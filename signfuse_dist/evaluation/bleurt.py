"""BLEURT by Google's package `bleurt`, for those who have it and a checkpoint.

The package wants TensorFlow and is not on the package index, so it is no dependency: where it, or a
checkpoint, is missing, the reason stands in the scores in place of a figure.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sacrebleu.metrics.base import Metric

from signfuse_dist.errors import UserError
from signfuse_dist.evaluation.measures import SentenceMean

_SOURCE = "https://github.com/google-research/bleurt"


def find_bleurt(checkpoint: Path | None) -> tuple[Metric | None, str]:
    """Return BLEURT as a metric in 0..100, or None and why there is none.

    ``checkpoint`` is an unpacked folder such as ``BLEURT-20``, whose name the signature gives.
    Raises :class:`UserError` when a checkpoint is named that cannot be used: who names one wants
    the figure.
    """
    if checkpoint is None:
        here = "installed" if importlib.util.find_spec("bleurt") else "not installed"
        return None, f"needs the package `bleurt` ({here}) and a checkpoint (--bleurt FOLDER)"
    try:
        from bleurt import score
    except ImportError as e:
        raise UserError(
            f"--bleurt {checkpoint}: the package `bleurt` is not installed here ({e}); "
            f"pip install git+{_SOURCE}, or leave the option out"
        ) from e
    if not (checkpoint / "bleurt_config.json").is_file():
        raise UserError(
            f"--bleurt {checkpoint}: no checkpoint of BLEURT, it has no bleurt_config.json; "
            f"{_SOURCE} says where they are"
        )
    return Bleurt(score.BleurtScorer(str(checkpoint)), checkpoint.resolve().name), ""


class Bleurt(SentenceMean):
    """The mean of a BLEURT checkpoint's scores, times 100; a score may lie below 0 and above 1."""

    def __init__(self, scorer: Any, checkpoint: str) -> None:
        facts = {"case": "mixed", "checkpoint": checkpoint, "mean": "sentences"}
        super().__init__("BLEURT", self._sentence, {**facts, "version": _version()})
        self._scorer = scorer

    def _extract_corpus_statistics(
        self, hypotheses: Sequence[str], references: Sequence[Sequence[str]] | None
    ) -> list[list[float]]:
        """Score all sentences in one call, which the model takes in batches."""
        assert references is not None
        (only,) = references
        values = self._scorer.score(references=list(only), candidates=list(hypotheses))
        self.num_refs = 1
        return [[100.0 * float(value), 1.0] for value in values]

    def _sentence(self, hypothesis: str, reference: str) -> float:
        (value,) = self._scorer.score(references=[reference], candidates=[hypothesis])
        return float(value)


def _version() -> str:
    try:
        return f"bleurt-{version('BLEURT')}"
    except PackageNotFoundError:  # on the path without having been installed
        return "bleurt-unknown"
