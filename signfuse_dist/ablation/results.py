"""What the runs of an ablation have left: scores, translations, speed, and words one stream shows.

Every row is there, and every seed of it: finished, or missing with the reason.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from pathlib import Path
from typing import Literal

from signfuse_dist.ablation.rows import Ablation, AblationRow
from signfuse_dist.ablation.runs import AblationPlan, PlannedAblation, PlannedRow, StageRun
from signfuse_dist.ablation.workers import scores_file
from signfuse_dist.errors import UserError, raise_together
from signfuse_dist.evaluation.protocols import Preset, find_preset
from signfuse_dist.evaluation.scores import NearAttention, Scores, read_split_scores
from signfuse_dist.evaluation.translations import read_pairs
from signfuse_dist.report.inputs import read_log, read_parameters, read_plan
from signfuse_dist.run_folder import RunFolder
from signfuse_dist.synthetic.language import JOINTS_ONLY, PICTURE_ONLY, VERBS

CORPUS = "synthetic"
Channel = Literal["picture", "joints"]
CHANNELS: tuple[Channel, ...] = ("picture", "joints")
_GROUPS: Mapping[Channel, tuple[tuple[str, ...], ...]] = {
    "picture": PICTURE_ONLY,
    "joints": JOINTS_ONLY,
}
SIGNIFICANT_CONTRAST = 0.05


@dataclass(frozen=True)
class Contrast:
    """Counts over the references that hold a member of a group of one channel.

    ``num`` references, ``named`` of them translated with one member, ``right`` with the right one;
    ``chance`` is what guessing gets right of ``named``.
    """

    num: int
    named: int
    right: int
    chance: float

    @property
    def accuracy(self) -> float:
        """Share of right ones among those named; not a number when none is."""
        return self.right / self.named if self.named else math.nan

    @property
    def p_value(self) -> float:
        """Chance that guessing gets at least as many right: the binomial test, one-sided."""
        n, p = self.named, self.chance
        return sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(self.right, n + 1))

    @property
    def is_told(self) -> bool:
        """Whether guessing does not explain it."""
        return self.p_value < SIGNIFICANT_CONTRAST

    def __add__(self, other: Contrast) -> Contrast:
        """Join the counts of two sets of translations."""
        return Contrast(
            self.num + other.num, self.named + other.named, self.right + other.right, self.chance
        )


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
    near: NearAttention | None = None


@dataclass(frozen=True)
class RowResult:
    """A row: its finished seeds, and why each other seed is missing."""

    row: AblationRow
    seeds: tuple[SeedResult, ...]
    missing: Mapping[int, str]

    def values(self, metric: str) -> list[float]:
        """Return a metric's value of each finished seed that has it."""
        return [s.scores[metric].value for s in self.seeds if metric in s.scores.scores]

    def contrast(self, channel: Channel) -> Contrast | None:
        """Return the counts of all seeds together; None for another corpus."""
        contrasts = [seed.contrasts[channel] for seed in self.seeds if channel in seed.contrasts]
        return reduce(add, contrasts) if contrasts else None


@dataclass(frozen=True)
class TableResults:
    """A table's rows with their results."""

    ablation: Ablation
    experiment: str
    overrides: tuple[str, ...]
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


def collect(plan: AblationPlan) -> list[TableResults]:
    """Read the results of every table of a plan."""
    return [_collect(plan, planned) for planned in plan.ablations]


def read_seed(run: StageRun, seed: int, split: str) -> SeedResult:
    """Read what one last stage's run has left; raise :class:`UserError` saying what is missing."""
    for stage in run.chain():
        if not stage.is_done:
            raise UserError(f"stage {stage.run.stage.name} is not trained")
    folder = RunFolder(run.folder)
    path = scores_file(run, split)
    if not path.is_file():
        raise UserError(f"not evaluated on {split}")
    of_split = read_split_scores(path)
    scores = of_split.scores
    hypotheses, references = read_pairs(folder.evaluation(split).hypotheses, None)
    if len(hypotheses) != scores.num_samples:
        raise UserError(f"{path} is of other translations than those beside it: evaluate again")
    plan = read_plan(folder.plan)
    if plan.global_batch_size is None or plan.world_size is None:
        raise UserError(f"{folder.plan}: holds no global_batch_size or no world_size")
    parameters = read_parameters(folder.parameters)
    is_drawn = run.run.data.corpus == CORPUS
    return SeedResult(
        seed,
        run.folder,
        scores,
        hypotheses,
        references,
        sum(component.trained for component in parameters.values()),
        _step_seconds(folder.metrics, plan.global_batch_size),
        plan.world_size,
        count_contrasts(hypotheses, references) if is_drawn else {},
        of_split.near_attention,
    )


def count_contrasts(
    hypotheses: Mapping[str, str], references: Mapping[str, str]
) -> dict[Channel, Contrast]:
    """Return the contrast of each channel over translations and references of the same ids."""
    return {channel: _count_channel(channel, hypotheses, references) for channel in CHANNELS}


def _collect(plan: AblationPlan, planned: PlannedAblation) -> TableResults:
    data = next(iter(planned.rows[0].runs.values())).run.data
    rows = tuple(_collect_row(plan, row) for row in planned.rows)
    preset = find_preset(data.metric_preset, data.bleu_tokenizer)
    return TableResults(planned.ablation, plan.experiment, plan.overrides, plan.split, rows, preset)


def _collect_row(plan: AblationPlan, planned: PlannedRow) -> RowResult:
    seeds, missing = [], {}
    for seed, run in planned.runs.items():
        try:
            seeds.append(read_seed(run, seed, plan.split))
        except UserError as e:
            missing[seed] = str(e)
    return RowResult(planned.row, tuple(seeds), missing)


def _step_seconds(log: Path, global_batch_size: int) -> float:
    """Return the median seconds of a step over the log's lines; the first holds the warming up."""
    errors: list[str] = []
    rates = [row.clips_per_second for row in read_log(log, errors.append)]
    raise_together(errors, f"{log}: cannot be read")
    later = [rate for rate in rates[1:] or rates if rate is not None and rate > 0]
    if not later or len(later) < len(rates[1:] or rates):
        raise UserError(f"{log}: holds no speed")
    return global_batch_size / statistics.median(later)


def _count_channel(
    channel: Channel, hypotheses: Mapping[str, str], references: Mapping[str, str]
) -> Contrast:
    num = named = right = 0
    groups = _GROUPS[channel]
    for name, reference in references.items():
        for group in groups:
            wanted = _members(reference, group)
            if not wanted:
                continue
            num += 1
            told = _members(hypotheses[name], group)
            named += len(told) == 1
            right += told == wanted
    return Contrast(num, named, right, 1 / len(groups[0]))


def _members(text: str, group: tuple[str, ...]) -> set[str]:
    """Return the members of a group that a text names, in any form."""
    words = set(text.split())
    return {
        member
        for member in group
        if words & set(VERBS[member].forms() if member in VERBS else (member,))
    }
