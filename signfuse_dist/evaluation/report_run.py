"""The report's account of training, data and run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from signfuse_dist.evaluation import plots
from signfuse_dist.evaluation.figures import Figure, Table, plot, thinned
from signfuse_dist.evaluation.key_frames import PackedSplit, open_packed
from signfuse_dist.evaluation.run_folder import RunFolder

TABLE_STEPS = 16  # rows of the tables of what a curve draws
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
        chosen = {row["step"]: row for some in (log, scored) for row in thinned(some, TABLE_STEPS)}
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
            ("stage", "optimizer steps", "time"), tuple(time),
        ),
        Table("How it was evaluated (evaluation.json)", ("", "value"), _rows(run.evaluated)),
        Table("Versions (versions.json)", ("name", "value"), _rows(run.versions)),
    ]  # fmt: skip
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
