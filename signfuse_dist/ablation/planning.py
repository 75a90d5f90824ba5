"""The plan of some ablations: rows times seeds, the stages' runs they need, and what they share.

Imports no torch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from signfuse_dist.ablation.chain import Chains, StageRun
from signfuse_dist.ablation.definition import Ablation, Row
from signfuse_dist.data.manifest import load_manifest
from signfuse_dist.data.storage import open_folder
from signfuse_dist.errors import UserError, raise_together
from signfuse_dist.run_settings import flat


@dataclass(frozen=True)
class PlannedRow:
    """A row of a table and the last stage's run of each seed."""

    row: Row
    runs: dict[int, StageRun]


@dataclass(frozen=True)
class PlannedAblation:
    """A table with its rows' runs."""

    ablation: Ablation
    rows: tuple[PlannedRow, ...]


@dataclass(frozen=True)
class Plan:
    """Everything that some ablations need on one experiment; ``tables`` is where results go."""

    experiment: str
    words: tuple[str, ...]
    seeds: tuple[int, ...]
    split: str
    tables: Path
    ablations: tuple[PlannedAblation, ...]

    def stage_runs(self) -> list[StageRun]:
        """Return each stage's run once, after the one it starts from, seed by seed."""
        found: dict[str, StageRun] = {}
        for final in self.finals():
            found.update({run.key: run for run in final.chain() if run.key not in found})
        return list(found.values())

    def finals(self) -> list[StageRun]:
        """Return each last stage's run once: the first seed of every row, then the next."""
        rows = [row for planned in self.ablations for row in planned.rows]
        found = {row.runs[seed].key: row.runs[seed] for seed in self.seeds for row in rows}
        return list(found.values())

    def describe(self) -> str:
        """Return the runs, who shares them, and what they cost.

        Raises :class:`UserError` when the training split is not packed.
        """
        runs = self.stage_runs()
        used = Counter(run.key for planned in self.ablations for row in planned.rows
                       for final in row.runs.values() for run in final.chain())  # fmt: skip
        first = runs[0].run
        clips = load_manifest(open_folder(first.shards(first.data.train_split))).num_samples
        lines = [_table(planned) for planned in self.ablations]
        lines.append(f"{len(runs)} runs of stages ({sum(used.values())} without sharing), "
                     f"{len(self.finals())} evaluations of {self.split}:")  # fmt: skip
        total = 0
        for run in runs:
            train, stage = run.run.train, run.run.stage
            steps = math.ceil(clips / train.global_batch_size) * stage.epochs
            total += steps
            shared = f", in {used[run.key]} rows" if used[run.key] > 1 else ""
            done = ", done" if run.is_done else ""
            lines.append(f"  {run.folder}: {steps} steps{shared}{done}")
        return "\n".join([*lines, f"{total} optimizer steps in all"])


def make_plan(
    ablations: Sequence[Ablation], experiment: str, words: Sequence[str], seeds: Sequence[int],
    split: str | None,
) -> Plan:  # fmt: skip
    """Plan ablations; ``split`` None means the development split, which section 5.4 asks for.

    Raises :class:`UserError` with every error of every row together.
    """
    chains = Chains(experiment, words)
    errors: list[str] = []
    planned = [_plan_one(ablation, chains, seeds, errors) for ablation in ablations]
    raise_together(errors, f"{experiment}: ablations cannot be planned")
    return Plan(
        experiment, tuple(words), tuple(seeds), split or chains.base.data.dev_split,
        chains.root / "tables" / chains.base.name, tuple(planned),
    )  # fmt: skip


def _plan_one(
    ablation: Ablation, chains: Chains, seeds: Sequence[int], errors: list[str]
) -> PlannedAblation:
    rows: list[PlannedRow] = []
    for row in ablation.rows:
        try:
            runs = {seed: chains.make(row.words, seed) for seed in seeds}
        except UserError as e:
            errors.append(f"{ablation.name}, row {row.name!r}: {e}")
            continue
        rows.append(PlannedRow(row, runs))
        errors += [f"{ablation.name}: {error}" for error in _same(rows)]
    return PlannedAblation(ablation, tuple(rows))


def _same(rows: Sequence[PlannedRow]) -> list[str]:
    """Return an error when the newest row is meant to differ from an earlier one and does not."""
    new = rows[-1]
    seed, run = next(iter(new.runs.items()))
    errors = []
    for row in [row for row in rows[:-1] if row.runs[seed].key == run.key]:
        theirs = flat(row.runs[seed].run)
        differing = [k for k, v in flat(run.run).items() if v != theirs[k]]
        if differing:
            errors.append(f"rows {row.row.name!r} and {new.row.name!r} differ in "
                          f"{', '.join(differing)} alone, which makes no other run")  # fmt: skip
    return errors


def _table(planned: PlannedAblation) -> str:
    lines = [f"{planned.ablation.name}: {planned.ablation.title}"]
    for row in planned.rows:
        last = next(iter(row.runs.values()))
        stages = ", ".join(run.run.stage.name for run in last.chain())
        lines.append(f"  {row.row.name:26} {last.key}  ({stages})")
    return "\n".join(lines)
