"""Samples in pictures: key frames with skeletons, the gate over time, cross-attention maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from signfuse_dist.errors import UserError
from signfuse_dist.evaluation.controls import CONTROLS
from signfuse_dist.evaluation.metrics import tokens
from signfuse_dist.evaluation.protocols import Preset, find_preset, in_order
from signfuse_dist.evaluation.scores import Scores, SplitScores, score
from signfuse_dist.evaluation.translations import Sample
from signfuse_dist.report import plots
from signfuse_dist.report.inputs import PackedSplit, RunFolder, Sheet, open_packed
from signfuse_dist.report.plots import Figure, Table, plot, thinned
from signfuse_dist.report.published import ResultRow, table_for

CURVE_STEPS = 16  # rows of the tables of what a curve draws
_PLAN = {
    "num_clips": "training clips", "world_size": "processes", "micro_batch_size": "micro batch",
    "accumulation": "accumulation", "global_batch_size": "clips a step",
    "steps_per_epoch": "steps an epoch", "total_steps": "optimizer steps",
    "warmup_steps": "warmup steps", "num_pairs": "pairs of Eq. 21",
}  # fmt: skip


def open_splits(run: RunFolder) -> dict[str, PackedSplit]:
    """Open the packed split that was evaluated, and the one trained on."""
    if run.config is None:
        run.note("packed data", "without the configuration its folder is not known")
        return {}
    found = {}
    for split in dict.fromkeys((run.split, run.config.data.train_split)):
        opened = run.attempt(
            f"packed data of {split!r}", partial(open_packed, run.config.shards(split)), None
        )
        if opened is not None:
            found[split] = opened
    return found


def training_figures(run: RunFolder) -> list[Figure]:
    """Return the curves of losses and learning rate of every stage that has a log."""
    if not run.curves:
        return []
    stages = ", ".join(run.curves)
    ends = "; ".join(filter(None, (_loss_change(s, rows) for s, rows in run.curves.items())))
    losses = plot(
        "losses",
        partial(plots.loss_curves, run.curves),
        f"Losses against the optimizer step for {stages}. {ends}.",
        f"Losses of the stages ({stages}), as logged. {ends}.",
        _log_table(run, "Losses at some of the steps", (*plots.LOSSES, *_dev_scores(run))),
    )
    rates = plot(
        "learning_rate",
        partial(plots.learning_rates, run.curves),
        f"Learning rate against the optimizer step for {stages}.",
        "Learning rate: warmup, then cosine.",
        _log_table(run, "Learning rate at some of the steps", ("learning_rate",)),
    )
    return [losses, rates]


def _loss_change(stage: str, rows: list[dict[str, Any]]) -> str:
    """Say in words what the curve shows, for those who do not see it."""
    changes = []
    for name in ("total", *plots.DEV_SCORES):
        values = [v for row in rows if isinstance(v := row.get(name), (int, float))]
        if values:
            changes.append(f"{name} from {values[0]:.3g} to {values[-1]:.3g}")
    return f"{stage}: {', '.join(changes)} in {rows[-1]['step']} steps" if changes else ""


def _dev_scores(run: RunFolder) -> list[str]:
    rows = [row for log in run.curves.values() for row in log]
    return [name for name in plots.DEV_SCORES if any(name in row for row in rows)]


def _log_table(run: RunFolder, caption: str, names: tuple[str, ...]) -> Table:
    rows = []
    for stage, log in run.curves.items():
        scored = [row for row in log if any(n in row for n in names if n in plots.DEV_SCORES)]
        chosen = {row["step"]: row for some in (log, scored) for row in thinned(some, CURVE_STEPS)}
        for _, row in sorted(chosen.items()):
            rows.append((stage, str(row["step"]), *(_figure(row.get(name)) for name in names)))
    return Table(caption, ("stage", "step", *(n.replace("_", " ") for n in names)), tuple(rows))


def _figure(value: object) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"{value:.4g}"
    return "–"


def data_table(packed: Mapping[str, PackedSplit]) -> Table:
    """Return where each split comes from."""
    facts = {split: opened.facts() for split, opened in packed.items()}
    names = list(dict.fromkeys(name for split in facts.values() for name in split))
    rows = tuple((n, *(facts[s].get(n, "–") for s in facts)) for n in names)
    return Table("Where the data comes from, by split", ("", *facts), rows)


def run_tables(run: RunFolder) -> list[Table]:
    """Return how the run was trained, evaluated, and with which versions; empty ones left out."""
    ours = run.plans.get(run.path.name, {})
    plan = [(words, str(ours[key])) for key, words in _PLAN.items() if key in ours]
    time = [(s, *_duration(rows, run.plans.get(s, {}))) for s, rows in run.curves.items()]
    tables = [
        Table("The batch plan of this stage (plan.json)", ("", "value"), tuple(plan)),
        Table(
            "Time of training, from the speeds in metrics.jsonl; checkpoints and pauses are not in "
            "it",
            ("stage", "optimizer steps", "time"),
            tuple(time),
        ),
        Table("How it was evaluated (evaluation.json)", ("", "value"), _rows(run.evaluated)),
        Table("Versions (versions.json)", ("name", "value"), _rows(run.versions)),
    ]
    return [table for table in tables if table.rows]


def _duration(rows: list[dict[str, Any]], plan: Mapping[str, Any]) -> tuple[str, str]:
    """Return the steps of a log and the time they took, by the speed of each interval."""
    size, seconds, before = plan.get("global_batch_size"), 0.0, 0
    for row in rows:
        speed = row.get("clips_per_second")
        if not _is_positive(speed) or not _is_positive(size):
            return str(rows[-1]["step"]), "unknown"
        seconds += (row["step"] - before) * float(size or 0) / float(speed or 1)
        before = row["step"]
    return str(before), f"about {_clock(seconds)}"


def _is_positive(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and value > 0


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min {rest:02d} s" if hours else f"{minutes} min {rest:02d} s"


def _rows(values: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(values.items()))


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


def _scores_table(results: SplitScores) -> Table:
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


def _notes(run: RunFolder, results: SplitScores) -> list[str]:
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


def _published_row(row: ResultRow) -> tuple[str, ...]:
    figures = ("–" if value is None else f"{value:.2f}" for value in (row.bleu4, row.rouge_l))
    name = f"{row.name} (ours)" if row.ours else row.name
    differences = "; ".join(row.differences) or ("–" if row.ours else "nothing that is known")
    return name, row.appeared, *figures, differences


def _decoding_table(decoding: Mapping[str, Any]) -> Table | None:
    if not decoding:
        return None
    rows = tuple((str(key), str(value)) for key, value in sorted(decoding.items()))
    return Table("What the sentences were decoded with (section evaluation)", ("", "value"), rows)


NUM_BUCKETS = 4
SHOWN = ("BLEU-4", "ROUGE-L", "chrF")
SHOWN_SIGNERS = 20  # those with the most clips
UNKNOWN = "unknown"
_FEW = 5  # distinct lengths that are buckets of their own


@dataclass(frozen=True)
class Breakdown:
    """One way of dividing a split; ``figure`` is None where there is only one part."""

    title: str
    about: str
    table: Table
    figure: Figure | None


def breakdowns(run: RunFolder, packed: PackedSplit | None, preset: Preset) -> list[Breakdown]:
    """Return the divisions that can be made; what is not known is noted in the run."""
    lengths = {i: float(len(tokens(text, preset))) for i, text in run.references.items()}
    found = [
        _by_length(run, preset, "reference length", f"{preset.units} of the reference", lengths)
    ]
    seconds: dict[str, float] = {}
    signers: dict[str, str | None] = {}
    if packed is not None:
        seconds = run.attempt("lengths of the clips", packed.seconds, {})
        signers = run.attempt("signers", packed.signers, {})
    if run.references.keys() <= seconds.keys():
        of_ours = {i: seconds[i] for i in run.references}
        found.append(_by_length(run, preset, "clip length", "seconds of the clip", of_ours))
    elif packed is not None:
        run.note("scores by clip length", "the clips' lengths in seconds are not all known")
    return [*found, _by_signer(run, preset, signers)]


def _by_length(
    run: RunFolder, preset: Preset, title: str, unit: str, lengths: Mapping[str, float]
) -> Breakdown:
    parts = divide(lengths)
    table, scores = _table(run, preset, unit, parts)
    about = f"Parts of about the same number of sentences, by the {unit}."
    return Breakdown(f"By {title}", about, table, _bars(title, unit, parts, scores))


def _by_signer(run: RunFolder, preset: Preset, signers: Mapping[str, str | None]) -> Breakdown:
    parts: dict[str, list[str]] = {}
    for name in sorted(run.references):
        parts.setdefault(signers.get(name) or UNKNOWN, []).append(name)
    ordered = sorted(parts.items(), key=lambda part: (-len(part[1]), part[0]))
    about = "The signers as the corpus names them."
    if set(parts) == {UNKNOWN}:
        about = "The corpus names no signers, so they are unknown."
    if len(ordered) > SHOWN_SIGNERS:
        about += f" The {SHOWN_SIGNERS} with the most clips, of {len(ordered)}."
    shown = dict(ordered[:SHOWN_SIGNERS])
    table, scores = _table(run, preset, "signer", shown)
    return Breakdown("By signer", about, table, _bars("signer", "signer", shown, scores))


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
    found = {}
    for place in sorted(set(places.values())):
        ids = sorted(i for i, p in places.items() if p == place)
        ends = [lengths[i] for i in ids]
        low, high = _number(min(ends)), _number(max(ends))
        found[low if low == high else f"{low} to {high}"] = ids
    return found


def _number(value: float) -> str:
    return f"{value:.0f}" if value == int(value) else f"{value:.1f}"


def _table(
    run: RunFolder, preset: Preset, unit: str, parts: Mapping[str, Sequence[str]]
) -> tuple[Table, list[Scores]]:
    scores = [_score(run, preset, ids) for ids in parts.values()]
    names = [name for name in SHOWN if all(name in part.scores for part in scores)]
    rows = tuple(
        (part, str(len(ids)), *(f"{found[name].value:.2f}" for name in names))
        for (part, ids), found in zip(parts.items(), scores, strict=True)
    )
    caption = f"Scores by {unit}, under the preset {preset.name}"
    return Table(caption, (unit, "sentences", *names), rows), scores


def _score(run: RunFolder, preset: Preset, ids: Sequence[str]) -> Scores:
    language = run.config.data.language if run.config else None
    pick: Callable[[Mapping[str, str]], dict[str, str]] = lambda texts: {i: texts[i] for i in ids}  # noqa: E731
    return score(pick(run.hypotheses), pick(run.references), preset, language)


def _bars(
    title: str, unit: str, parts: Mapping[str, Sequence[str]], scores: Sequence[Scores]
) -> Figure | None:
    if len(parts) < 2:
        return None
    values = [found["chrF"].value for found in scores]
    words = "; ".join(f"{name}: {value:.1f}" for name, value in zip(parts, values, strict=True))
    return plot(
        f"by_{title.replace(' ', '_')}",
        partial(plots.bucket_bars, [_short(name) for name in parts], values, "chrF"),
        f"Bars of chrF by {unit}. {words}.",
        f"chrF by {unit}; the table has the other scores and the counts.",
        None,
    )


def _short(name: str) -> str:
    return name if len(name) <= 10 else f"{name[:9]}…"


TABLE_STEPS = 16  # rows of the tables of what a plot over time draws
_ASKED = {
    "visual_from_skeletal": "pictures ask, joints answer",
    "skeletal_from_visual": "joints ask, pictures answer",
}
Maps = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Detail:
    """One sample with its pictures."""

    sample: Sample
    figures: tuple[Figure, ...]


def sample_details(
    run: RunFolder, chosen: list[Sample], packed: PackedSplit | None
) -> list[Detail]:
    """Return the samples with the pictures that can be drawn; the others are noted in the run."""
    if not chosen:
        return []
    ids = [sample.id for sample in chosen]
    gates, maps = run.gates(ids), run.attention(ids)
    details = []
    for number, sample in enumerate(chosen, start=1):
        sheet = _sheet(run, sample, packed)
        seconds = sheet.seconds if sheet else None
        figures = [_frames_figure(number, sample, sheet)] if sheet else []
        gate = gates.get(sample.id)
        if gate is not None and len(gate):
            figures.append(_gate_figure(number, sample, gate, seconds))
        if sample.id in maps:
            figures.append(_attention_figure(number, sample, maps[sample.id], seconds))
        details.append(Detail(sample, tuple(figures)))
    return details


def _sheet(run: RunFolder, sample: Sample, packed: PackedSplit | None) -> Sheet | None:
    if packed is None:
        return None
    what = f"key frames of {sample.id!r}"
    return run.attempt(what, partial(packed.key_frames, sample.id), None)


def _frames_figure(number: int, sample: Sample, sheet: Sheet) -> Figure:
    caption = f"Key frames with the joints that the model saw, in order of time: {sheet.about}."
    alt = f"A signer in frames of the clip {sample.id}, its skeleton drawn over: {sheet.about}."
    return Figure(f"sample-{number:02d}-frames", sheet.jpeg, None, alt, caption)


def _gate_figure(
    number: int, sample: Sample, gate: NDArray[np.float32], seconds: float | None
) -> Figure:
    span = f"mean {gate.mean():.2f}, from {gate.min():.2f} to {gate.max():.2f}"
    times = plots.step_times(len(gate), seconds)
    rows = [(_time(t), f"{g:.3f}") for t, g in zip(times, gate, strict=True)]
    return plot(
        f"sample-{number:02d}-gate",
        partial(plots.gate_over_time, gate, seconds=seconds),
        f"Mean gate over {len(gate)} steps of the clip {sample.id}: {span}.",
        "Mean gate of the first fusion layer (Eq. 10) over time: 1 takes the picture's queries "
        f"alone, 0 the joints' alone. {span[0].upper()}{span[1:]}.",
        Table(
            f"The gate of {sample.id} over time",
            (_unit(seconds), "gate"),
            tuple(thinned(rows, TABLE_STEPS)),
        ),
    )


def _attention_figure(number: int, sample: Sample, maps: Maps, seconds: float | None) -> Figure:
    named = {_ASKED[way]: weights for way, weights in maps.items()}
    num_steps = len(next(iter(maps.values())))
    times = plots.step_times(num_steps, seconds)
    columns = []
    for weights in named.values():
        columns.append([f"{_time(times[k])} ({w:.2f})" for k, w in _strongest(weights)])
    rows = [(_time(t), *cells) for t, *cells in zip(times, *columns, strict=True)]
    words = "; ".join(f"{name}: {_evenness(weights)}" for name, weights in named.items())
    return plot(
        f"sample-{number:02d}-attention",
        partial(plots.attention_maps, named, seconds),
        f"Cross-attention of the clip {sample.id}, {num_steps} by {num_steps} steps. {words}.",
        "Cross-attention of the first fusion layer (Eq. 8-9), averaged over heads: where each step "
        f"of one stream looks in the other; the page's colour is 0, each row adds up to 1. "
        f"{words}.",
        Table(
            f"Where {sample.id} looks most, with the weight there",
            (f"asked from, {_unit(seconds)}", *named),
            tuple(thinned(rows, TABLE_STEPS)),
        ),
    )


def _strongest(weights: NDArray[np.float32]) -> list[tuple[int, float]]:
    """Return the place and the weight of each query's strongest key."""
    places = weights.argmax(axis=1)
    return [(int(k), float(row[k])) for k, row in zip(places, weights, strict=True)]


def _evenness(weights: NDArray[np.float32]) -> str:
    strongest = weights.max(axis=1)
    return (
        f"strongest weight {strongest.mean():.2f} on average and {strongest.max():.2f} at most, "
        f"{1 / weights.shape[1]:.2f} would be even"
    )


def _time(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _unit(seconds: float | None) -> str:
    return "step of the encoder" if seconds is None else "seconds"
