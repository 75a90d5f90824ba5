"""What each sentence adds to a score: parts of a corpus are scored without counting again.

sacrebleu computes a corpus's score from counts of its sentences alone; a part's score from the
counts of its own sentences is therefore that of a corpus of its own, to the bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sacrebleu.metrics.base import Metric

from signfuse_dist.evaluation.metrics import build_measures
from signfuse_dist.evaluation.protocols import Preset, Reference, prepare


class SentenceStatistics:
    """The counts of every sentence by metric name, for some metrics of a protocol."""

    def __init__(
        self,
        hypotheses: Mapping[str, str],
        references: Mapping[str, Reference],
        preset: Preset,
        names: Sequence[str],
    ) -> None:
        """Count; the ids of both are the same. Raises UserError where no sentence counts."""
        ids = sorted(references)
        prepared = prepare([[hypotheses[i] for i in ids]], [references[i] for i in ids], preset)
        (ours,) = prepared.systems
        self._places = {ids[place]: number for number, place in enumerate(prepared.places)}
        measures = build_measures(preset, None)
        self._metrics: dict[str, Metric] = {name: measures[name].metric for name in names}
        self._counts: dict[str, list[Any]] = {
            name: list(metric._extract_corpus_statistics(ours, prepared.streams))
            for name, metric in self._metrics.items()
        }

    def scores(self, ids: Iterable[str]) -> dict[str, float]:
        """Return the scores 0..100 of a part by metric name; empty where none of it counts."""
        places = sorted(self._places[i] for i in ids if i in self._places)  # sums are of floats
        if not places:
            return {}
        return {
            name: float(metric._aggregate_and_compute([counts[p] for p in places]).score)
            for (name, metric), counts in zip(
                self._metrics.items(), self._counts.values(), strict=True
            )
        }

    def of_sentences(self, name: str) -> dict[str, float]:
        """Return one metric of every sentence that counts, 0..100, by id."""
        metric, counts = self._metrics[name], self._counts[name]
        return {
            i: float(metric._aggregate_and_compute([counts[place]]).score)
            for i, place in self._places.items()
        }
