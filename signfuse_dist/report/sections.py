"""Sections of a report that show a run: training, the data it comes from, samples in pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeGuard

import numpy as np
from numpy.typing import NDArray

from signfuse_dist.evaluation.asked import CORPUS
from signfuse_dist.evaluation.scores import read_split_scores
from signfuse_dist.evaluation.translations import Sample
from signfuse_dist.recipe import departures, shown
from signfuse_dist.report import plots
from signfuse_dist.report.figures import Figure, Table
from signfuse_dist.report.inputs import (
    LogRow,
    PackedSplit,
    PlanFacts,
    ReportInputs,
    Sheet,
    open_packed,
)
from signfuse_dist.report.plots import plot, thinned
from signfuse_dist.run_folder import RunFolder

CURVE_STEPS = 16  # rows of the tables of what a curve draws
_PLAN = {
    "num_clips": "training clips",
    "world_size": "processes",
    "micro_batch_size": "micro batch",
    "accumulation": "accumulation",
    "global_batch_size": "clips a step",
    "steps_per_epoch": "steps an epoch",
    "total_steps": "optimizer steps",
    "warmup_steps": "warmup steps",
    "num_pairs": "pairs of Eq. 21",
}


def open_splits(run: ReportInputs) -> dict[str, PackedSplit]:
    """Open the packed split that was evaluated, and the one trained on."""
    if run.config is None:
        run.note("packed data", "without the configuration its folder is not known")
        return {}
    packed = {}
    for split in dict.fromkeys((run.split, run.config.data.train_split)):
        opened = run.attempt(
            f"packed data of {split!r}", partial(open_packed, run.config.shards(split)), None
        )
        if opened is not None:
            packed[split] = opened
    return packed


def training_figures(run: ReportInputs) -> list[Figure]:
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


def _loss_change(stage: str, rows: Sequence[LogRow]) -> str:
    """Say in words what the curve shows, for those who do not see it."""
    changes = []
    for name in ("total", *plots.DEV_SCORES):
        values = [value for row in rows if (value := row.value(name)) is not None]
        if values:
            changes.append(f"{name} from {values[0]:.3g} to {values[-1]:.3g}")
    return f"{stage}: {', '.join(changes)} in {rows[-1].step} steps" if changes else ""


def _dev_scores(run: ReportInputs) -> list[str]:
    rows = [row for log in run.curves.values() for row in log]
    return [n for n in plots.DEV_SCORES if any(row.value(n) is not None for row in rows)]


def _log_table(run: ReportInputs, caption: str, names: tuple[str, ...]) -> Table:
    rows = []
    for stage, log in run.curves.items():
        scores = [name for name in names if name in plots.DEV_SCORES]
        scored = [row for row in log if any(row.value(name) is not None for name in scores)]
        chosen = {row.step: row for some in (log, scored) for row in thinned(some, CURVE_STEPS)}
        for step, row in sorted(chosen.items()):
            rows.append((stage, str(step), *(_number(row.value(name)) for name in names)))
    return Table(caption, ("stage", "step", *(n.replace("_", " ") for n in names)), tuple(rows))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def data_table(packed: Mapping[str, PackedSplit]) -> Table:
    """Return where each split comes from."""
    facts = {split: opened.facts() for split, opened in packed.items()}
    names = list(dict.fromkeys(name for split in facts.values() for name in split))
    rows = tuple((n, *(facts[s].get(n, "–") for s in facts)) for n in names)
    return Table("Where the data comes from, by split", ("", *facts), rows)


def run_tables(run: ReportInputs) -> list[Table]:
    """Return how the run was trained, evaluated, and with which versions; empty ones left out."""
    ours = run.plans.get(run.path.name, PlanFacts())
    facts = {about: getattr(ours, key) for key, about in _PLAN.items()}
    plan = [(about, str(value)) for about, value in facts.items() if value is not None]
    time = [(stage, *_duration(rows, run.plans[stage])) for stage, rows in run.curves.items()]
    tables = [
        Table(
            f"Recipe {run.config.recipe if run.config else 'not known'}: what of the method is not "
            "as printed in the paper, by the recipe or by hand",
            ("key", "printed", "here"),
            _recipe(run),
        ),
        Table("The batch plan of this stage (plan.json)", ("", "value"), tuple(plan)),
        Table(
            "Time of training, from the speeds in metrics.jsonl; checkpoints and pauses are not in "
            "it",
            ("stage", "optimizer steps", "time"),
            tuple(time),
        ),
        Table(
            "Trainings before this experiment's, the oldest first (train.start)",
            ("run", "optimizer steps", "corpora"),
            _origin(run),
        ),
        *_by_corpus(run),
        Table("How it was evaluated (evaluation.json)", ("", "value"), _rows(run.evaluated)),
        Table("Versions (versions.json)", ("name", "value"), _rows(run.versions)),
    ]
    return [table for table in tables if table.rows]


def _recipe(run: ReportInputs) -> tuple[tuple[str, ...], ...]:
    """Return a row for each key of the method that is not at its default."""
    changed = {} if run.config is None else departures(run.config)
    return tuple((key, shown(before), shown(now)) for key, (before, now) in changed.items())


def _by_corpus(run: ReportInputs) -> list[Table]:
    """Return the losses of a blend by corpus at some steps, and the scores of its corpora."""
    tables = []
    for stage, log in run.curves.items():
        names = sorted({name for row in log for name in row.by_corpus})
        rows = [
            (str(row.step), *(_number(row.by_corpus.get(name)) for name in names))
            for row in thinned([row for row in log if row.by_corpus], CURVE_STEPS)
        ]
        caption = f"Losses and development scores of stage {stage} by corpus, at some of the steps"
        tables.append(Table(caption, ("step", *names), tuple(rows)))
    scored = []
    for name, folder in RunFolder(run.path).scored().items():
        found = run.attempt(f"scores of {name}", partial(read_split_scores, folder.scores), None)
        if found is not None and CORPUS in found.settings:
            figures = [
                f"{metric} {value:.2f}" for metric, (value, _) in found.scores.scores.items()
            ]
            row = (str(found.settings[CORPUS]), name, found.scores.preset, ", ".join(figures))
            scored.append(row)
    caption = "Scores of the corpora of the blend that were evaluated"
    tables.append(Table(caption, ("corpus", "evaluation", "preset", "scores"), tuple(scored)))
    return tables


def _origin(run: ReportInputs) -> tuple[tuple[str, ...], ...]:
    """Return a row for each training of the model that the run was started from."""
    origin = None if run.config is None else run.config.origin
    if origin is None:
        return ()
    named = (f"start {origin.start}", f"fingerprint {origin.fingerprint[:12]}", "")
    rows = [
        (
            trained.run,
            "unknown" if trained.steps is None else str(trained.steps),
            ", ".join(f"{c.name} ({c.language})" for c in trained.corpora) or "unknown",
        )
        for trained in origin.history
    ]
    return (*rows, named)


def _duration(rows: Sequence[LogRow], plan: PlanFacts) -> tuple[str, str]:
    """Return the steps of a log and the time they took, by the speed of each interval."""
    seconds, before = 0.0, 0
    for row in rows:
        if not _is_positive(row.clips_per_second) or not _is_positive(plan.global_batch_size):
            return str(rows[-1].step), "unknown"
        seconds += (row.step - before) * plan.global_batch_size / row.clips_per_second
        before = row.step
    return str(before), f"about {_clock(seconds)}"


def _is_positive(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value) and value > 0


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min {rest:02d} s" if hours else f"{minutes} min {rest:02d} s"


def _rows(values: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(values.items()))


TABLE_STEPS = 16  # rows of the tables of what a plot over time draws
# What each direction of Eq. 8-9 is called; another, of a fusion of the user's, by its own name.
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
    run: ReportInputs, chosen: list[Sample], packed: PackedSplit | None
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


def _sheet(run: ReportInputs, sample: Sample, packed: PackedSplit | None) -> Sheet | None:
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
    known = [direction for direction in _ASKED if direction in maps]
    ordered = dict.fromkeys([*known, *sorted(maps)])
    named = {_ASKED.get(d, d.replace("_", " ")): maps[d] for d in ordered}
    num_steps = len(next(iter(named.values())))
    times = plots.step_times(num_steps, seconds)
    columns = []
    for weights in named.values():
        columns.append([f"{_time(times[k])} ({w:.2f})" for k, w in _strongest(weights)])
    rows = [(_time(t), *cells) for t, *cells in zip(times, *columns, strict=True)]
    evenness = "; ".join(f"{name}: {_evenness(weights)}" for name, weights in named.items())
    return plot(
        f"sample-{number:02d}-attention",
        partial(plots.attention_maps, named, seconds),
        f"Cross-attention of the clip {sample.id}, {num_steps} by {num_steps} steps. {evenness}.",
        "Cross-attention of the first fusion layer (Eq. 8-9), averaged over heads: where each step "
        f"of one stream looks in the other; the page's colour is 0, each row adds up to 1. "
        f"{evenness}.",
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
