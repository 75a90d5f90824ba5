"""Where a model comes from: every training that went into it, oldest first, with its corpora.

A model's ``usage.json`` carries it, so that it survives the run folder and the model hub;
``config.yaml`` of a run that was started from another model (``train.start``) repeats it. Imports
no torch.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic.dataclasses import dataclass

from signfuse_dist.records import STRICT_KEYS, NonBlank, Whole

OF_EARLIER_VERSION = "a run of an earlier version"


@dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class TrainedCorpus:
    """A corpus that a stage was trained on; ``clips`` is None where nobody said how many."""

    name: NonBlank
    language: NonBlank
    clips: Whole | None


@dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class TrainedStage:
    """One training.

    Attributes:
        run: experiment and stage, ``EXPERIMENT/STAGE``.
        corpora: on which it was trained.
        steps: optimizer steps; None where an earlier version did not say.
    """

    run: NonBlank
    corpora: tuple[TrainedCorpus, ...]
    steps: Whole | None

    def __str__(self) -> str:
        steps = "an unknown number of" if self.steps is None else str(self.steps)
        corpora = ", ".join(
            f"{corpus.name} ({corpus.language}"
            f"{'' if corpus.clips is None else f', {corpus.clips} clips'})"
            for corpus in self.corpora
        )
        return f"{self.run}: {steps} steps on {corpora or 'an unknown corpus'}"


@dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class Origin:
    """What a run was started from.

    Attributes:
        start: the run, model or hub name that was given.
        fingerprint: the checksum of the checksums of the model's files.
        history: every training of that model, oldest first; empty where it does not say.
    """

    start: NonBlank
    fingerprint: NonBlank
    history: tuple[TrainedStage, ...]

    def __str__(self) -> str:
        chain = "; then ".join(map(str, self.history)) or "a model that says nothing of itself"
        return f"{self.start} (fingerprint {self.fingerprint[:12]}): {chain}"


def other_corpora(history: Sequence[TrainedStage], corpus: str) -> list[str]:
    """Say which trainings of ``history`` saw more than ``corpus``, as tables name extra data."""
    more = []
    for trained in history:
        names = [c.name for c in trained.corpora if c.name != corpus]
        if not trained.corpora:
            more.append(f"an unknown corpus ({trained.run})")
        elif names:
            more.append(f"{', '.join(names)} ({trained.run})")
    return more
