"""The plan of some ablations: rows times seeds, the stages' runs they need, and what they share.

Imports no torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from signfuse_dist.ablation.rows import Ablation, AblationRow
from signfuse_dist.config import RunConfig, StageName
from signfuse_dist.data.blended import count_clips
from signfuse_dist.errors import UserError, raise_together
from signfuse_dist.experiment import load_run, load_stages
from signfuse_dist.run_folder import RunFolder, fixed
from signfuse_dist.sections import keys_with
from signfuse_dist.start import local_fingerprint

FOLDER = "ablation"  # inside train.output
_LONGEST_NAME = 48


@dataclass(frozen=True)
class StageRun:
    """One stage of one row and seed. ``overrides`` start it; ``before`` is what it starts from."""

    key: str
    run: RunConfig
    overrides: tuple[str, ...]
    before: StageRun | None

    @property
    def folder(self) -> Path:
        """Its run folder."""
        return self.run.folder

    @property
    def is_done(self) -> bool:
        """Whether it is trained."""
        return RunFolder(self.folder).is_finished

    def chain(self) -> list[StageRun]:
        """Return the stages up to this one, the first one first."""
        return [*(self.before.chain() if self.before else ()), self]

    def link_stages(self) -> None:
        """Put the folders of the stages before beside this one, where the trainer looks for them.

        Raises :class:`UserError` when something else is there.
        """
        for earlier in self.chain()[:-1]:
            link = RunFolder(self.folder).beside(earlier.run.stage.name).path
            target = Path("..", "..") / earlier.folder.relative_to(earlier.folder.parents[2])
            link.parent.mkdir(parents=True, exist_ok=True)
            try:
                link.symlink_to(target)
            except FileExistsError:
                if not link.is_symlink() or link.readlink() != target:
                    raise UserError(f"{link} is there and is no link to {target}") from None


class Chains:
    """Makes the stages' runs of an experiment's rows."""

    def __init__(self, experiment: str, overrides: Sequence[str]) -> None:
        """Read the experiment.

        Raises :class:`UserError` for its errors, and for an override that is the ablation's own.
        """
        for override in overrides:
            key, _, value = override.partition("=")
            if key == "stage":
                raise UserError(f"{override}: an ablation trains every stage of its rows")
            if key == "train.seed":
                raise UserError(f"{override}: write --seeds {value}")
        self.experiment, self.overrides = experiment, tuple(overrides)
        self.base = load_stages(experiment, overrides)[-1]
        self.root = Path(self.base.train.output) / FOLDER

    def make(self, overrides: Sequence[str], seed: int) -> StageRun:
        """Return the last stage's run of the row with these overrides.

        Raises :class:`UserError` for what is no valid configuration or cannot translate.
        """
        taken = [
            o for o in overrides if o.partition("=")[0] in ("stage", "train.seed", "train.output")
        ]
        if taken:
            raise UserError(f"{', '.join(taken)}: not a row's to say")
        overrides = (*self.overrides, *overrides, f"train.seed={seed}")
        runs = load_stages(self.experiment, overrides)
        used = [run.stage.name for run in runs]
        if used == ["contrastive"]:
            raise UserError("train.stages=[contrastive] has no LLM and cannot be scored")
        made: StageRun | None = None
        for place in range(len(used)):
            made = self._stage(overrides, used[: place + 1], made, place == len(used) - 1)
        assert made is not None
        return made

    def _stage(
        self,
        row_overrides: Sequence[str],
        used: Sequence[StageName],
        before: StageRun | None,
        last: bool,
    ) -> StageRun:
        stage = used[-1]
        own = self.base.flat()
        overrides = [*row_overrides, _override("train.stages", list(used))]
        if stage == "contrastive":  # shared by rows that differ in what it does not read
            overrides += [_override(key, own[key]) for key in keys_with("unread by contrastive")]
        run = load_run(self.experiment, stage, overrides)
        depends: dict[str, Any] = {"before": before.key if before else None, "fixed": fixed(run)}
        start = local_fingerprint(run)
        if start is not None:  # a start that is trained again is another one
            depends["start"] = start
        if last:
            depends["evaluation"] = dataclasses.asdict(run.evaluation)
        text = json.dumps(depends, sort_keys=True, ensure_ascii=True)
        key = f"{self._name(run)}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        output = str(self.root / key)
        run = dataclasses.replace(run, train=dataclasses.replace(run.train, output=output))
        return StageRun(
            key, run, (f"stage={stage}", *overrides, _override("train.output", output)), before
        )

    def _name(self, run: RunConfig) -> str:
        """Return what differs from the experiment and the seed, as part of a folder's name."""
        own, ours = self.base.flat(), run.flat()
        changed = [
            f"{key.partition('.')[2]}-{_short(ours[key])}"
            for key in ours
            if ours[key] != own[key]
            and key not in ("name", *keys_with("not in a name", "resume"))
            and not key.startswith("stage.")
        ]
        name = re.sub(r"[^A-Za-z0-9]+", "-", "_".join(changed) or "full")
        return f"{name[:_LONGEST_NAME].strip('-')}-seed{run.train.seed}"


def _override(key: str, value: Any) -> str:
    return f"{key}={json.dumps(value, ensure_ascii=False)}"


def _short(value: Any) -> str:
    return "+".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


@dataclass(frozen=True)
class PlannedRow:
    """A row of a table and the last stage's run of each seed."""

    row: AblationRow
    runs: dict[int, StageRun]


@dataclass(frozen=True)
class PlannedAblation:
    """A table with its rows' runs."""

    ablation: Ablation
    rows: tuple[PlannedRow, ...]


@dataclass(frozen=True)
class AblationPlan:
    """Everything that some ablations need on one experiment; ``tables`` is where results go."""

    experiment: str
    overrides: tuple[str, ...]
    seeds: tuple[int, ...]
    split: str
    tables: Path
    ablations: tuple[PlannedAblation, ...]

    def stage_runs(self) -> list[StageRun]:
        """Return each stage's run once, after the one it starts from, seed by seed."""
        by_key: dict[str, StageRun] = {}
        for final in self.finals():
            for run in final.chain():
                by_key.setdefault(run.key, run)
        return list(by_key.values())

    def finals(self) -> list[StageRun]:
        """Return each last stage's run once: the first seed of every row, then the next."""
        rows = [row for planned in self.ablations for row in planned.rows]
        by_key = {row.runs[seed].key: row.runs[seed] for seed in self.seeds for row in rows}
        return list(by_key.values())

    def describe(self) -> str:
        """Return the runs, who shares them, and what they cost.

        Raises :class:`UserError` when the training split is not packed.
        """
        runs = self.stage_runs()
        used = Counter(
            run.key
            for planned in self.ablations
            for row in planned.rows
            for final in row.runs.values()
            for run in final.chain()
        )
        first = runs[0].run
        clips = sum(count_clips(first))
        lines = [_list_rows(planned) for planned in self.ablations]
        lines.append(
            f"{len(runs)} runs of stages ({sum(used.values())} without sharing), "
            f"{len(self.finals())} evaluations of {self.split}:"
        )
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
    ablations: Sequence[Ablation],
    experiment: str,
    overrides: Sequence[str],
    seeds: Sequence[int],
    split: str | None,
) -> AblationPlan:
    """Plan ablations; ``split`` None means the development split, which section 5.4 asks for.

    Raises :class:`UserError` with every error of every row together.
    """
    chains = Chains(experiment, overrides)
    errors: list[str] = []
    planned = [_plan_one(ablation, chains, seeds, errors) for ablation in ablations]
    raise_together(errors, f"{experiment}: ablations cannot be planned")
    return AblationPlan(
        experiment,
        tuple(overrides),
        tuple(seeds),
        split or chains.base.data.dev_split,
        chains.root / "tables" / chains.base.name,
        tuple(planned),
    )


def _plan_one(
    ablation: Ablation, chains: Chains, seeds: Sequence[int], errors: list[str]
) -> PlannedAblation:
    rows: list[PlannedRow] = []
    for row in ablation.rows:
        try:
            runs = {seed: chains.make(row.overrides, seed) for seed in seeds}
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
        theirs = row.runs[seed].run.flat()
        differing = [k for k, v in run.run.flat().items() if v != theirs[k]]
        if differing:
            errors.append(
                f"rows {row.row.name!r} and {new.row.name!r} differ in "
                f"{', '.join(differing)} alone, which makes no other run"
            )
    return errors


def _list_rows(planned: PlannedAblation) -> str:
    lines = [f"{planned.ablation.name}: {planned.ablation.title}"]
    for row in planned.rows:
        last = next(iter(row.runs.values()))
        stages = ", ".join(run.run.stage.name for run in last.chain())
        lines.append(f"  {row.row.name:26} {last.key}  ({stages})")
    return "\n".join(lines)
