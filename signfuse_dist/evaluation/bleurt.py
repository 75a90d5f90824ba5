"""BLEURT as a metric of sacrebleu, by transformers or by Google's package `bleurt`.

A checkpoint that transformers loads is a BERT (or a relative of it) that gives one number for a
pair of texts; those that have been converted from Google's are such. The checkpoints as Google
publishes them want its package, which needs TensorFlow and is not on the package index: it is no
dependency. Without a checkpoint the reason stands in the scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

from sacrebleu.metrics.base import Metric

from signfuse_dist.errors import UserError
from signfuse_dist.evaluation.metrics import SentenceMean

_SOURCE = "https://github.com/google-research/bleurt"
_BATCH = 64  # pairs that the model is given at once


class Scorer(Protocol):
    """What both ways of loading give; a score may lie below 0 and above 1."""

    def score(self, *, references: list[str], candidates: list[str]) -> Sequence[float]:
        """Return a score for each pair."""


def find_bleurt(checkpoint: Path | None) -> tuple[Metric | None, str]:
    """Return BLEURT as a metric in 0..100, or None and why there is none.

    ``checkpoint`` is a folder, whose name the signature gives: one of transformers (with
    ``config.json``) or one of the package `bleurt` (with ``bleurt_config.json``, such as
    ``BLEURT-20``). Raises :class:`UserError` when a checkpoint is named that cannot be used.
    """
    if checkpoint is None:
        return None, "needs a checkpoint (--bleurt FOLDER)"
    name = checkpoint.resolve().name
    if (checkpoint / "bleurt_config.json").is_file():
        return Bleurt(_google(checkpoint), name, _google_version()), ""
    if (checkpoint / "config.json").is_file():
        scorer = TransformersScorer(checkpoint)
        return Bleurt(scorer, name, f"transformers-{version('transformers')}"), ""
    raise UserError(
        f"--bleurt {checkpoint}: no checkpoint of BLEURT, it has neither the config.json of "
        f"transformers nor a bleurt_config.json; {_SOURCE} says where those of Google are"
    )


class Bleurt(SentenceMean):
    """The mean of a checkpoint's scores, times 100; of several references the best counts."""

    def __init__(self, scorer: Scorer, checkpoint: str, version: str) -> None:
        facts = {"case": "mixed", "checkpoint": checkpoint, "mean": "sentences"}
        super().__init__("BLEURT", self._sentence, {**facts, "version": version})
        self._scorer = scorer

    def _extract_corpus_statistics(
        self, hypotheses: Sequence[str], references: Sequence[Sequence[str]] | None
    ) -> list[list[float]]:
        """Score all sentences in one call, which the model takes in batches."""
        assert references is not None
        sets = [entry["refs"] for entry in self._cache_references(references)]
        pairs = [(h, text) for h, texts in zip(hypotheses, sets, strict=True) for text in texts]
        values = iter(
            self._scorer.score(references=[r for _, r in pairs], candidates=[h for h, _ in pairs])
        )
        return [[100.0 * max(float(next(values)) for _ in texts), 1.0] for texts in sets]

    def _sentence(self, hypothesis: str, reference: str) -> float:
        (value,) = self._scorer.score(references=[reference], candidates=[hypothesis])
        return float(value)


class TransformersScorer:
    """A checkpoint that transformers loads, in float32 on the machine's own device."""

    def __init__(self, checkpoint: Path) -> None:
        """Load it; raise :class:`UserError` for one that gives no single number for a pair."""
        from safetensors import SafetensorError
        from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

        from signfuse_dist import device
        from signfuse_dist.model.llm import without_bars

        try:
            labels = AutoConfig.from_pretrained(checkpoint, local_files_only=True).num_labels
            if labels != 1:
                raise UserError(
                    f"--bleurt {checkpoint}: it tells {labels} classes apart, where BLEURT gives "
                    "one number"
                )
            with without_bars():
                model = AutoModelForSequenceClassification.from_pretrained(
                    checkpoint, local_files_only=True
                )
            self._tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
        except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as e:
            raise UserError(
                f"--bleurt {checkpoint}: transformers does not load it ({e}); a checkpoint as "
                f"Google publishes it wants the package `bleurt`: pip install git+{_SOURCE}"
            ) from e
        self._model = model.eval().to(device.choose())
        self._longest = int(getattr(model.config, "max_position_embeddings", 512))

    def score(self, *, references: list[str], candidates: list[str]) -> list[float]:
        """Return the model's number for each pair; pairs beyond its length are cut."""
        import torch

        values: list[float] = []
        with torch.inference_mode():
            for start in range(0, len(references), _BATCH):
                batch = slice(start, start + _BATCH)
                given = self._tokenizer(
                    references[batch],
                    candidates[batch],
                    padding=True,
                    truncation=True,
                    max_length=self._longest,
                    return_tensors="pt",
                ).to(self._model.device)
                values += self._model(**given).logits[:, 0].tolist()
        return values


def _google(checkpoint: Path) -> Any:
    try:
        from bleurt import score
    except ImportError as e:
        raise UserError(
            f"--bleurt {checkpoint}: the package `bleurt` is not installed here ({e}); "
            f"pip install git+{_SOURCE}, give a checkpoint of transformers, or leave the option out"
        ) from e
    return score.BleurtScorer(str(checkpoint))


def _google_version() -> str:
    try:
        return f"bleurt-{version('BLEURT')}"
    except PackageNotFoundError:  # on the path without having been installed
        return "bleurt-unknown"
