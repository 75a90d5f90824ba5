"""What a plan's runs have left: scores, translations, parameters and step time, row by row.

A run that is not finished, or whose files cannot be read, is named with the reason; it is never
left out.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

from signfuse_dist.ablation.chain import StageRun
from signfuse_dist.ablation.contrasts import CORPUS, Channel, Contrast, measure
from signfuse_dist.ablation.definition import Ablation, Row
from signfuse_dist.ablation.planning import Plan, PlannedAblation, PlannedRow
from signfuse_dist.ablation.running import scores_file
from signfuse_dist.errors import UserError
from signfuse_dist.evaluation.files import read_pairs
from signfuse_dist.evaluation.metrics import Scores
from signfuse_dist.evaluation.presets import Preset, find_preset
from signfuse_dist.evaluation.results import read_scores


@dataclass(frozen=True)
class SeedResult:
    """One seed of a row: ``step_seconds`` of the last stage, ``trained`` parameters in it."""

    seed: int
    folder: Path
    scores: Scores
    hypotheses: Mapping[str, str]
    references: Mapping[str, str]
    trained: int
    step_seconds: float
    world_size: int
    contrasts: Mapping[Channel, Contrast] = field(default_factory=dict)


@dataclass(frozen=True)
class RowResult:
    """A row: its finished seeds, and why each other seed is missing."""

    row: Row
    seeds: tuple[SeedResult, ...]
    missing: Mapping[int, str]

    def values(self, metric: str) -> list[float]:
        """Return a metric's value of each finished seed that has it."""
        return [s.scores[metric].value for s in self.seeds if metric in s.scores.scores]

    def contrast(self, channel: Channel) -> Contrast | None:
        """Return the counts of all seeds together; None for another corpus."""
        found = [seed.contrasts[channel] for seed in self.seeds if channel in seed.contrasts]
        return reduce(add, found) if found else None


@dataclass(frozen=True)
class Results:
    """A table's rows with their results."""

    ablation: Ablation
    experiment: str
    words: tuple[str, ...]
    split: str
    rows: tuple[RowResult, ...]
    preset: Preset

    def row(self, name: str) -> RowResult:
        """Return the row of that name."""
        return next(row for row in self.rows if row.row.name == name)

    @property
    def full(self) -> RowResult:
        """The row that the others are compared with."""
        return self.row(self.ablation.full)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Return mean and sample deviation; of one value there is no deviation, of none no mean."""
    if not values:
        return math.nan, None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def collect(plan: Plan) -> list[Results]:
    """Read the results of every table of a plan."""
    return [_collect(plan, planned) for planned in plan.ablations]


def _collect(plan: Plan, planned: PlannedAblation) -> Results:
    data = next(iter(planned.rows[0].runs.values())).run.data
    rows = tuple(_collect_row(plan, row) for row in planned.rows)
    preset = find_preset(data.metric_preset, data.bleu_tokenizer)
    return Results(planned.ablation, plan.experiment, plan.words, plan.split, rows, preset)


def _collect_row(plan: Plan, planned: PlannedRow) -> RowResult:
    seeds, missing = [], {}
    for seed, run in planned.runs.items():
        try:
            seeds.append(read_seed(run, seed, plan.split))
        except UserError as e:
            missing[seed] = str(e)
    return RowResult(planned.row, tuple(seeds), missing)


def read_seed(run: StageRun, seed: int, split: str) -> SeedResult:
    """Read what one last stage's run has left; raise :class:`UserError` saying what is missing."""
    for stage in run.chain():
        if not stage.is_done:
            raise UserError(f"stage {stage.run.stage.name} is not trained")
    path = scores_file(run, split)
    if not path.is_file():
        raise UserError(f"not evaluated on {split}")
    scores, _ = read_scores(path)
    hypotheses, references = read_pairs(path.with_name("hypotheses.jsonl"), None)
    if len(hypotheses) != scores.num_samples:
        raise UserError(f"{path} is of other translations than those beside it: evaluate again")
    plan = _read_json(run.folder / "plan.json")
    parts = _read_json(run.folder / "parameters.json")
    is_drawn = run.run.data.corpus == CORPUS
    try:
        trained = sum(int(part["trained"]) for part in parts.values())
        batch, world = int(plan["global_batch_size"]), int(plan["world_size"])
    except (KeyError, TypeError, ValueError) as e:
        raise UserError(f"{run.folder}: plan.json or parameters.json is not a run's ({e!r})") from e
    return SeedResult(
        seed, run.folder, scores, hypotheses, references, trained,
        _step_seconds(run.folder / "metrics.jsonl", batch), world,
        measure(hypotheses, references) if is_drawn else {},
    )  # fmt: skip


def _step_seconds(log: Path, global_batch_size: int) -> float:
    """Return the median seconds of a step over the log's lines; the first holds the warming up."""
    try:
        lines = log.read_text(encoding="utf-8").splitlines()
        rates = [float(json.loads(line)["clips_per_second"]) for line in lines]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"{log}: cannot be read ({e!r})") from e
    rates = rates[1:] or rates
    if not rates or min(rates) <= 0:
        raise UserError(f"{log}: holds no speed")
    return global_batch_size / statistics.median(rates)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise UserError(f"{path}: cannot be read ({e})") from e
    if not isinstance(found, dict):
        raise UserError(f"{path}: not a JSON object")
    return found
