"""Sections of a report that show scores: beside the controls, among published ones, of parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from signfuse_dist.errors import UserError
from signfuse_dist.evaluation.controls import CONTROLS, USUAL_CONTROLS
from signfuse_dist.evaluation.metrics import tokens
from signfuse_dist.evaluation.protocols import ERRORS, Preset, find_preset, in_order
from signfuse_dist.evaluation.scores import Scores, SplitScores
from signfuse_dist.evaluation.sentences import SentenceStatistics
from signfuse_dist.report import plots
from signfuse_dist.report.figures import Figure, Table
from signfuse_dist.report.inputs import PackedSplit, ReportInputs
from signfuse_dist.report.plots import plot
from signfuse_dist.report.published import ResultRow, extra_data, results, shown, table_for

NUM_BUCKETS = 4
# Of a reference's length: the bins in which the field shows scores; above the last there is one.
LENGTH_BINS = ((1, 6), (7, 12), (13, 18), (19, 24), (25, 31))
SHOWN = ("BLEU-4", "ROUGE-L", "chrF")
SHOWN_SIGNERS = 20  # those with the most clips
UNKNOWN = "unknown"
_FEW = 5  # distinct lengths that are buckets of their own
_TITLES = {
    "shuffled": "videos shuffled",
    "blank": "pictures blank",
    "masked_joints": "joints masked",
    "moved": "signer moved",
}
_ABOUT = {
    "shuffled": "Videos shuffled: each video's translation is scored against the sentence of "
    "another video. What remains there is earned without watching.",
    "blank": "Pictures blank: every frame is one grey, the joints are kept. What remains came "
    "through the joints, or is earned without watching",
    "masked_joints": "Joints masked: no joint is found in any frame, the pictures are kept. What "
    "remains came through the pictures, or is earned without watching",
    "moved": "Signer moved: pictures and joints are a tenth smaller and a tenth of the picture "
    "further right. What is lost was read off place and size.",
}


def about_control(control: str, split_scores: SplitScores) -> str:
    """Return what a control's scores say; of a hidden stream beside those of no watching at all."""
    about = _ABOUT[control]
    if control not in ("blank", "masked_joints"):
        return about
    shuffled = split_scores.controls.get("shuffled")
    if shuffled is None or "BLEU-4" not in shuffled.scores:
        return f"{about}; there is no shuffled score to tell how much of it."
    hidden = split_scores.controls[control].scores
    text = f"{about}: of that, the shuffled videos have BLEU-4 {shuffled['BLEU-4'].value:.2f}"
    if "BLEU-4" in hidden:
        text += f", this control {hidden['BLEU-4'].value:.2f}"
    return f"{text}."


def preset_of(run: ReportInputs) -> Preset | None:
    """Return the run's protocol, or note why it is not known."""
    config = run.config
    if config is None:
        return None
    try:
        return find_preset(config.data.metric_preset, config.data.bleu_tokenizer)
    except UserError as error:
        run.note("scores of parts of the split", error)
        return None


def score_content(run: ReportInputs, preset: Preset | None) -> dict[str, Any]:
    """Return what the templates show of scores."""
    split_scores = run.split_scores
    if split_scores is None:
        return {"scores": None, "score_notes": [], "published": None, "decoding": None}
    scores = split_scores.scores
    if scores.num_samples != len(run.hypotheses):
        run.note(
            "scores",
            f"scores.json is of {scores.num_samples} sentences, hypotheses.jsonl has "
            f"{len(run.hypotheses)}: score again",
        )
    return {
        "scores": _scores_table(split_scores),
        "score_notes": _notes(run, split_scores),
        "published": _published_table(run, scores, preset),
        "decoding": _decoding_table(split_scores.decoding),
    }


@dataclass(frozen=True)
class Breakdown:
    """One way of dividing a split; ``figure`` is None where there is only one part."""

    title: str
    about: str
    table: Table
    figure: Figure | None


@dataclass(frozen=True)
class PartScores:
    """Scores of parts of a split under a protocol."""

    preset: Preset
    statistics: SentenceStatistics

    def breakdown(
        self, title: str, unit: str, about: str, parts: Mapping[str, Sequence[str]]
    ) -> Breakdown:
        """Return the parts' scores as a table and bars; ``–`` where no sentence of one counts."""
        scores = [self.statistics.scores(ids) for ids in parts.values()]
        rows = tuple(
            (part, str(len(ids)), *(f"{s[name]:.2f}" if s else "–" for name in SHOWN))
            for (part, ids), s in zip(parts.items(), scores, strict=True)
        )
        caption = f"Scores by {unit}, under the preset {self.preset.name}"
        table = Table(caption, (unit, "sentences", *SHOWN), rows)
        values = {part: s["chrF"] for part, s in zip(parts, scores, strict=True) if s}
        return Breakdown(f"By {title}", about, table, _bars(title, unit, values))


def _bars(title: str, unit: str, values: Mapping[str, float]) -> Figure | None:
    if len(values) < 2:
        return None
    told = "; ".join(f"{name}: {value:.1f}" for name, value in values.items())
    return plot(
        f"by_{title.replace(' ', '_')}",
        partial(
            plots.bucket_bars, [_short(name) for name in values], list(values.values()), "chrF"
        ),
        f"Bars of chrF by {unit}. {told}.",
        f"chrF by {unit}; the table has the other scores and the counts.",
        None,
    )


def count_sentences(run: ReportInputs, preset: Preset | None) -> SentenceStatistics | None:
    """Return what the sentences add to the scores of parts, or note why it is not known."""
    if preset is None:
        return None
    count = partial(SentenceStatistics, run.hypotheses, run.references, preset, SHOWN)
    return run.attempt("scores of parts of the split", count, None)


def divide_split(
    run: ReportInputs, packed: PackedSplit | None, preset: Preset, statistics: SentenceStatistics
) -> list[Breakdown]:
    """Return the divisions that can be made; what is not known is noted in the run."""
    parts = PartScores(preset, statistics)
    lengths = {i: len(tokens(text, preset)) for i, text in run.references.items()}
    breakdowns = [_by_reference(parts, lengths)]
    seconds: dict[str, float] = {}
    signers: dict[str, str | None] = {}
    if packed is not None:
        seconds = run.attempt("lengths of the clips", packed.seconds, {})
        signers = run.attempt("signers", packed.signers, {})
    if run.references.keys() <= seconds.keys():
        of_ours = {i: seconds[i] for i in run.references}
        breakdowns.append(_by_length(parts, "clip length", "seconds of the clip", of_ours))
    elif packed is not None:
        run.note("scores by clip length", "the clips' lengths in seconds are not all known")
    return [*breakdowns, _by_signer(run, parts, signers)]


def bin_lengths(lengths: Mapping[str, int]) -> dict[str, list[str]]:
    """Return ids by the name of their bin, shortest first; bins without any are left out.

    A reference without a token, as 13a finds none in some scripts, counts to the shortest.
    """
    last = LENGTH_BINS[-1][1]
    names = {f"{low} to {high}": high for low, high in LENGTH_BINS}
    bins: dict[str, list[str]] = {name: [] for name in (*names, f"above {last}")}
    for i in sorted(lengths):
        fitting = (name for name, high in names.items() if lengths[i] <= high)
        bins[next(fitting, f"above {last}")].append(i)
    return {name: ids for name, ids in bins.items() if ids}


def divide(lengths: Mapping[str, float]) -> dict[str, list[str]]:
    """Return ids by the name of their bucket, shortest first.

    Few lengths are buckets of their own; more are cut at their quartiles.
    """
    values = sorted(set(lengths.values()))
    if len(values) <= _FEW:
        return {_number(v): sorted(i for i in lengths if lengths[i] == v) for v in values}
    shares = np.linspace(0, 1, NUM_BUCKETS + 1)[1:-1]
    edges = np.unique(np.quantile(list(lengths.values()), shares, method="lower"))
    places = {i: int(np.searchsorted(edges, v)) for i, v in lengths.items()}
    buckets = {}
    for place in sorted(set(places.values())):
        ids = sorted(i for i, p in places.items() if p == place)
        ends = [lengths[i] for i in ids]
        low, high = _number(min(ends)), _number(max(ends))
        buckets[low if low == high else f"{low} to {high}"] = ids
    return buckets


def _scores_table(split_scores: SplitScores) -> Table:
    scores, controls = split_scores.scores, split_scores.controls
    shown = [name for name in CONTROLS if name in controls]
    spans = ("95% interval",) if scores.intervals else ()
    apart = split_scores.unseen
    unseen = () if apart is None else (f"{apart.num_samples} unseen sentences",)
    rows = []
    for name in in_order(scores.scores):
        value, signature = scores[name]
        interval = [_interval(scores, name)] if spans else []
        interval += [] if apart is None else [_value(apart, name)]
        others = (_value(controls[control], name) for control in shown)
        rows.append((name, f"{value:.2f}", *interval, *others, signature))
    return Table(
        f"Scores under the preset “{scores.preset}” beside the controls. Higher is better; 100 is "
        f"the most.{_lower(scores)}",
        (
            "Metric",
            "Score",
            *spans,
            *unseen,
            *(_TITLES[name].capitalize() for name in shown),
            "Signature",
        ),
        tuple(rows),
    )


def _lower(scores: Scores) -> str:
    errors = [name for name in in_order(scores.scores) if name in ERRORS]
    return f" Of {', '.join(errors)} lower is better." if errors else ""


def _interval(scores: Scores, name: str) -> str:
    if name not in scores.intervals:
        return "–"
    low, high = scores.intervals[name]
    return f"{low:.2f} to {high:.2f}"


def _value(scores: Scores, name: str) -> str:
    return f"{scores[name].value:.2f}" if name in scores.scores else "–"


def _notes(run: ReportInputs, split_scores: SplitScores) -> list[str]:
    scores = split_scores.scores
    notes = [f"{name} is not scored: {why}" for name, why in scores.unavailable.items()]
    notes += scores.notes
    if scores.resampling:
        notes.append(
            f"95% intervals by resampling the sentences ({scores.resampling}): they say how much "
            "the choice of sentences moves a score, not how much another training would."
        )
    apart = split_scores.unseen
    if apart is not None:
        notes.append(
            f"Unseen are the {apart.num_samples} sentences whose reference is no sentence of the "
            f"training split; {scores.num_samples - apart.num_samples} are one."
        )
    near = split_scores.near_attention
    if near is not None:
        notes.append(f"Attention within one step of its own, in the first layer of CMFA: {near}.")
    for control in CONTROLS:
        if control in split_scores.controls:
            notes.append(about_control(control, split_scores))
        elif control in split_scores.inapplicable:
            reason = split_scores.inapplicable[control]
            notes.append(f"The control “{_TITLES[control]}” is not applicable: {reason}.")
        elif control in USUAL_CONTROLS:
            run.note(f"control {control}", "it was not asked for when the split was evaluated")
            notes.append(f"There is no control “{_TITLES[control]}”.")
    return notes


def _published_table(run: ReportInputs, scores: Scores, preset: Preset | None) -> Table | None:
    if run.config is None or preset is None:
        return None
    published = results(run.config.data.corpus, run.split)
    if not published:
        return None
    ours = {"this run": {name: score.value for name, score in scores.scores.items()}}
    more = {"this run": extra_data(run.config, run.config.data.corpus)}
    rows = table_for(published, ours, preset, more)
    return Table(
        "This run among published gloss-free results, best BLEU-4 first, as they are printed. What "
        "the last column names keeps two results from being compared as they are.",
        ("System", "Appeared", "BLEU-4", "ROUGE-L", "What differs"),
        tuple(_published_row(row) for row in rows),
    )


def _published_row(row: ResultRow) -> tuple[str, ...]:
    figures = (row.bleu4_shown, shown(row.rouge_l))
    name = f"{row.name} (ours)" if row.ours else row.name
    differences = "; ".join(row.differences) or ("–" if row.ours else "nothing that is known")
    return name, row.appeared, *figures, differences


def _decoding_table(decoding: Mapping[str, Any]) -> Table | None:
    if not decoding:
        return None
    rows = tuple((str(key), str(value)) for key, value in sorted(decoding.items()))
    return Table("What the sentences were decoded with (section evaluation)", ("", "value"), rows)


def _by_reference(parts: PartScores, lengths: Mapping[str, int]) -> Breakdown:
    unit = f"{parts.preset.units} of the reference"
    about = f"Bins as published tables have them, by the {unit}."
    return parts.breakdown("reference length", unit, about, bin_lengths(lengths))


def _by_length(parts: PartScores, title: str, unit: str, lengths: Mapping[str, float]) -> Breakdown:
    about = f"Parts of about the same number of sentences, by the {unit}."
    return parts.breakdown(title, unit, about, divide(lengths))


def _by_signer(
    run: ReportInputs, parts: PartScores, signers: Mapping[str, str | None]
) -> Breakdown:
    ids: dict[str, list[str]] = {}
    for name in sorted(run.references):
        ids.setdefault(signers.get(name) or UNKNOWN, []).append(name)
    ordered = sorted(ids.items(), key=lambda part: (-len(part[1]), part[0]))
    about = "The signers as the corpus names them."
    if set(ids) == {UNKNOWN}:
        about = "The corpus names no signers, so they are unknown."
    if len(ordered) > SHOWN_SIGNERS:
        about += f" The {SHOWN_SIGNERS} with the most clips, of {len(ordered)}."
    return parts.breakdown("signer", "signer", about, dict(ordered[:SHOWN_SIGNERS]))


def _number(value: float) -> str:
    return f"{value:.0f}" if value == int(value) else f"{value:.1f}"


def _short(name: str) -> str:
    return name if len(name) <= 10 else f"{name[:9]}…"
