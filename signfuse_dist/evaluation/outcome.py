"""What an evaluation writes: sentences, scores beside their controls, gates, attention maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from signfuse_dist.config import RunConfig
from signfuse_dist.evaluation.card import write_card
from signfuse_dist.evaluation.control import score_control
from signfuse_dist.evaluation.files import write_arrays, write_hypotheses
from signfuse_dist.evaluation.journal import AS_IS
from signfuse_dist.evaluation.metrics import Scores, format_scores, score, score_with_intervals
from signfuse_dist.evaluation.presets import find_preset
from signfuse_dist.evaluation.results import Results, write_results
from signfuse_dist.evaluation.samples import rank_samples, spread
from signfuse_dist.evaluation.translator import Translation

Maps = Callable[[str], Mapping[str, NDArray[np.float32]]]
_TITLES = {
    "shuffled": "the same with the videos shuffled among the sentences",
    "blank": "the same with grey pictures, joints kept",
    "masked_joints": "the same with all joints masked, pictures kept",
}


@dataclass(frozen=True)
class Outcome:
    """What was decoded: translations by way of showing and id, and why controls do not apply."""

    run: RunConfig
    references: dict[str, str]
    translations: dict[str, dict[str, Translation]]
    reasons: dict[str, str | None]

    def sentences(self, shown: str) -> dict[str, str]:
        """Return the hypotheses of one way of showing, by id."""
        return {name: t.text for name, t in self.translations[shown].items()}


def write_outcome(run_folder: Path, folder: Path, outcome: Outcome, maps: Maps) -> None:
    """Write all files of ``RUN/evaluation/SPLIT``, the run's model card, and print the scores.

    ``maps`` gives a clip's cross-attention by its id. The scores are written last but the card, so
    a folder with scores has the rest.
    """
    sentences = outcome.sentences(AS_IS)
    folder.mkdir(parents=True, exist_ok=True)
    write_hypotheses(folder / "hypotheses.jsonl", sentences, outcome.references)
    gates = {t.id: t.gate for t in outcome.translations[AS_IS].values() if t.gate is not None}
    _write_or_remove(folder / "gates.npz", gates)
    _write_or_remove(folder / "attention.npz", _sample_maps(outcome, sentences, maps))
    results = _results(outcome, sentences)
    write_results(folder / "scores.json", results)
    write_card(run_folder)
    _print(results)


def _results(outcome: Outcome, sentences: dict[str, str]) -> Results:
    run = outcome.run
    preset = find_preset(run.data.metric_preset, run.data.bleu_tokenizer)
    language, references = run.data.language, outcome.references
    scores = score_with_intervals(sentences, references, preset, language)
    controls: dict[str, Scores] = {}
    for control in (name for name, reason in outcome.reasons.items() if reason is None):
        if control == "shuffled":
            found = score_control(sentences, references, preset, run.train.seed, language)
            assert found is not None
            controls[control] = found
        else:
            controls[control] = score(outcome.sentences(control), references, preset, language)
    inapplicable = {name: reason for name, reason in outcome.reasons.items() if reason}
    return Results(scores, controls, inapplicable, asdict(run.evaluation))


def _sample_maps(
    outcome: Outcome, sentences: dict[str, str], maps: Maps
) -> dict[str, NDArray[np.float32]]:
    """Return the maps of the samples that the report shows, by ``DIRECTION/ID``."""
    ranked = rank_samples(sentences, outcome.references)
    chosen = spread(ranked, outcome.run.evaluation.num_samples)
    return {f"{way}/{s.id}": array for s in chosen for way, array in maps(s.id).items()}


def _write_or_remove(path: Path, arrays: Mapping[str, NDArray[np.float32]]) -> None:
    """Write the arrays; where there are none, none of an earlier evaluation may stay."""
    if arrays:
        write_arrays(path, arrays)
    else:
        path.unlink(missing_ok=True)


def _print(results: Results) -> None:
    print(format_scores(results.scores))
    for name, scores in results.controls.items():
        print(f"\n{_TITLES[name]}:\n{format_scores(scores)}")
    for name, reason in results.inapplicable.items():
        print(f"\nno control {name}: {reason}")
