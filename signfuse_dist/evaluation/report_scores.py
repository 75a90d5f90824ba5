"""The report's scores: ours with intervals, beside the controls, among published results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from signfuse_dist.errors import UserError
from signfuse_dist.evaluation.control import CONTROLS
from signfuse_dist.evaluation.figures import Table
from signfuse_dist.evaluation.metrics import Scores
from signfuse_dist.evaluation.presets import Preset, find_preset, in_order
from signfuse_dist.evaluation.published import Row, table_for
from signfuse_dist.evaluation.results import Results
from signfuse_dist.evaluation.run_folder import RunFolder

_TITLES = {
    "shuffled": "videos shuffled", "blank": "pictures blank", "masked_joints": "joints masked",
}  # fmt: skip
_ABOUT = {
    "shuffled": "Videos shuffled: each video's translation is scored against the sentence of "
    "another video. What remains there is earned without watching.",
    "blank": "Pictures blank: every frame is one grey, the joints are kept. What remains came "
    "through the joints.",
    "masked_joints": "Joints masked: no joint is found in any frame, the pictures are kept. What "
    "remains came through the pictures.",
}


def preset_of(run: RunFolder) -> Preset | None:
    """Return the run's protocol, or note why it is not known."""
    config = run.config
    if config is None:
        return None
    try:
        return find_preset(config.data.metric_preset, config.data.bleu_tokenizer)
    except UserError as error:
        run.note("scores of parts of the split", error)
        return None


def score_content(run: RunFolder, preset: Preset | None) -> dict[str, Any]:
    """Return what the templates show of scores."""
    results = run.results
    if results is None:
        return {"scores": None, "score_notes": [], "published": None, "decoding": None}
    scores = results.scores
    if scores.num_samples != len(run.hypotheses):
        run.note(
            "scores",
            f"scores.json is of {scores.num_samples} sentences, hypotheses.jsonl has "
            f"{len(run.hypotheses)}: score again",
        )
    return {
        "scores": _scores_table(results),
        "score_notes": _notes(run, results),
        "published": _published_table(run, scores, preset),
        "decoding": _decoding_table(results.decoding),
    }


def _scores_table(results: Results) -> Table:
    scores, controls = results.scores, results.controls
    shown = [name for name in CONTROLS if name in controls]
    spans = ("95% interval",) if scores.intervals else ()
    rows = []
    for name in in_order(scores.scores):
        value, signature = scores[name]
        interval = (_interval(scores, name),) if spans else ()
        others = (_value(controls[control], name) for control in shown)
        rows.append((name, f"{value:.2f}", *interval, *others, signature))
    return Table(
        f"Scores under the preset “{scores.preset}” beside the controls. Higher is better; 100 is "
        "the most.",
        ("Metric", "Score", *spans, *(_TITLES[name].capitalize() for name in shown), "Signature"),
        tuple(rows),
    )


def _interval(scores: Scores, name: str) -> str:
    if name not in scores.intervals:
        return "–"
    low, high = scores.intervals[name]
    return f"{low:.2f} to {high:.2f}"


def _value(scores: Scores, name: str) -> str:
    return f"{scores[name].value:.2f}" if name in scores.scores else "–"


def _notes(run: RunFolder, results: Results) -> list[str]:
    scores = results.scores
    notes = [f"{name} is not scored: {why}" for name, why in scores.unavailable.items()]
    notes += scores.notes
    if scores.resampling:
        notes.append(
            f"95% intervals by resampling the sentences ({scores.resampling}): they say how much "
            "the choice of sentences moves a score, not how much another training would."
        )
    for control in CONTROLS:
        if control in results.controls:
            notes.append(_ABOUT[control])
        elif control in results.inapplicable:
            reason = results.inapplicable[control]
            notes.append(f"The control “{_TITLES[control]}” is not applicable: {reason}.")
        else:
            run.note(f"control {control}", "it was not asked for when the split was evaluated")
            notes.append(f"There is no control “{_TITLES[control]}”.")
    return notes


def _published_table(run: RunFolder, scores: Scores, preset: Preset | None) -> Table | None:
    if run.config is None or preset is None:
        return None
    rows = table_for(run.config.data.corpus, run.split, scores, preset)
    if all(row.ours for row in rows):
        return None
    return Table(
        "This run among published gloss-free results, best BLEU-4 first, as their own papers print "
        "them. What the last column names keeps two results from being compared as they are.",
        ("System", "Appeared", "BLEU-4", "ROUGE-L", "What differs"),
        tuple(_published_row(row) for row in rows),
    )


def _published_row(row: Row) -> tuple[str, ...]:
    figures = ("–" if value is None else f"{value:.2f}" for value in (row.bleu4, row.rouge_l))
    name = f"{row.name} (ours)" if row.ours else row.name
    differences = "; ".join(row.differences) or ("–" if row.ours else "nothing that is known")
    return name, row.appeared, *figures, differences


def _decoding_table(decoding: Mapping[str, Any]) -> Table | None:
    if not decoding:
        return None
    rows = tuple((str(key), str(value)) for key, value in sorted(decoding.items()))
    return Table("What the sentences were decoded with (section evaluation)", ("", "value"), rows)
