"""From a row and a seed to the runs of its stages, each with an identity of its own.

A stage's run is what its numbers depend on: its resolved configuration, without what is free on a
resume, and the run that it starts from. Rows in which these are the same share the run: the whole
model is in every table, and rows that differ in the last stage share the first ones. What a stage
does not read is set back to the experiment's own value, so that rows which differ in it share too.
Imports no torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from signfuse_dist.config import RunConfig, StageName
from signfuse_dist.config_load import load_run, load_stages
from signfuse_dist.errors import UserError
from signfuse_dist.run_settings import FREE_ON_RESUME, fixed, flat

FOLDER = "ablation"  # inside train.output
# The contrastive stage has no LLM (section 3.7), and Eq. 21 is all that it minimises.
_UNREAD: dict[StageName, tuple[str, ...]] = {
    "contrastive": (
        "model.llm", "model.llm_revision", "model.llm_dtype", "model.llm_quantization",
        "model.lora_targets", "model.lora_rank", "model.lora_alpha", "model.prompt",
        "loss.contrastive_weight", "loss.alignment_weight", "loss.alignment_pooling",
    ),
}  # fmt: skip
_NOT_IN_A_NAME = ("name", "train.seed", "train.stages", "loss.contrastive_weight")
_LONGEST_NAME = 48


@dataclass(frozen=True)
class StageRun:
    """One stage of one row and seed. ``words`` start it; ``before`` is what it starts from."""

    key: str
    run: RunConfig
    words: tuple[str, ...]
    before: StageRun | None

    @property
    def folder(self) -> Path:
        """Its run folder."""
        return self.run.folder

    @property
    def is_done(self) -> bool:
        """Whether it is trained."""
        return (self.folder / "model").is_dir()

    def chain(self) -> list[StageRun]:
        """Return the stages up to this one, the first one first."""
        return [*(self.before.chain() if self.before else ()), self]

    def link_stages(self) -> None:
        """Put the folders of the stages before beside this one, where the trainer looks for them.

        Raises :class:`UserError` when something else is there.
        """
        for earlier in self.chain()[:-1]:
            link = self.folder.with_name(earlier.run.stage.name)
            target = Path("..", "..") / earlier.folder.relative_to(earlier.folder.parents[2])
            link.parent.mkdir(parents=True, exist_ok=True)
            try:
                link.symlink_to(target)
            except FileExistsError:
                if not link.is_symlink() or link.readlink() != target:
                    raise UserError(f"{link} is there and is no link to {target}") from None


class Chains:
    """Makes the stages' runs of an experiment's rows."""

    def __init__(self, experiment: str, words: Sequence[str]) -> None:
        """Read the experiment; raise :class:`UserError` for its errors and for words of ours."""
        for word in words:
            key = word.partition("=")[0]
            if key == "stage":
                raise UserError(f"{word}: an ablation trains every stage of its rows")
            if key == "train.seed":
                raise UserError(f"{word}: write --seeds {word.partition('=')[2]}")
        self.experiment, self.words = experiment, tuple(words)
        self.base = load_stages(experiment, words)[-1]
        self.root = Path(self.base.train.output) / FOLDER

    def make(self, words: Sequence[str], seed: int) -> StageRun:
        """Return the last stage's run of the row with these words.

        Raises :class:`UserError` for what is no valid configuration or cannot translate.
        """
        taken = [w for w in words if w.partition("=")[0] in ("stage", "train.seed", "train.output")]
        if taken:
            raise UserError(f"{', '.join(taken)}: not a row's to say")
        together = (*self.words, *words, f"train.seed={seed}")
        runs = load_stages(self.experiment, together)
        used = [run.stage.name for run in runs]
        if used == ["contrastive"]:
            raise UserError("train.stages=[contrastive] has no LLM and cannot be scored")
        made: StageRun | None = None
        for place in range(len(used)):
            made = self._stage(together, used[: place + 1], made, place == len(used) - 1)
        assert made is not None
        return made

    def _stage(
        self, together: Sequence[str], used: Sequence[StageName], before: StageRun | None,
        last: bool,
    ) -> StageRun:  # fmt: skip
        stage = used[-1]
        own = flat(self.base)
        words = [*together, _word("train.stages", list(used))]
        words += [_word(key, own[key]) for key in _UNREAD.get(stage, ())]
        run = load_run(self.experiment, stage, words)
        depends: dict[str, Any] = {"before": before.key if before else None, "fixed": fixed(run)}
        if last:
            depends["evaluation"] = dataclasses.asdict(run.evaluation)
        text = json.dumps(depends, sort_keys=True, ensure_ascii=True)
        key = f"{self._name(run)}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        output = str(self.root / key)
        run = dataclasses.replace(run, train=dataclasses.replace(run.train, output=output))
        return StageRun(key, run, (f"stage={stage}", *words, _word("train.output", output)), before)

    def _name(self, run: RunConfig) -> str:
        """Return what differs from the experiment and the seed, as part of a folder's name."""
        own, ours = flat(self.base), flat(run)
        changed = [
            f"{key.partition('.')[2]}-{_short(ours[key])}"
            for key in ours
            if ours[key] != own[key] and key not in (*_NOT_IN_A_NAME, *FREE_ON_RESUME)
            and not key.startswith(("stage.", "evaluation."))
        ]  # fmt: skip
        name = re.sub(r"[^A-Za-z0-9]+", "-", "_".join(changed) or "full")
        return f"{name[:_LONGEST_NAME].strip('-')}-seed{run.train.seed}"


def _word(key: str, value: Any) -> str:
    return f"{key}={json.dumps(value, ensure_ascii=False)}"


def _short(value: Any) -> str:
    return "+".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
