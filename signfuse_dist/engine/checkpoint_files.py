"""Checkpoints as they lie on the disk: what one holds, which are whole, which is gone on from.

The trainer and `signfuse check` both ask here, so that they decide alike. Imports no torch.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass as record

from signfuse_dist.errors import DamagedError, UserError, printable, raise_together
from signfuse_dist.files import STATE, peek_state, read_state
from signfuse_dist.plan import Plan, data_position
from signfuse_dist.records import Number, Whole, build
from signfuse_dist.system_errors import unreadable
from signfuse_dist.tensor_files import TensorInfo, read_floats, read_infos, refuse_not_finite

WEIGHTS, OPTIMIZER = "weights.safetensors", "optimizer.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq")
AVERAGE = "average.safetensors"  # of the weights over the last steps, where one is kept
STEPS_TAKEN = "steps_taken"  # in the moments' file: steps of Adam, fewer where some were skipped
_NAME = re.compile(r"step_([0-9]{8,18})")
_Count = Annotated[Whole, Field(ge=0)]
_Positive = Annotated[Whole, Field(ge=1)]


@record(frozen=True, kw_only=True)
class _Position:
    seed: _Count
    epoch: _Count
    step: _Count
    clips: _Positive


@record(frozen=True, kw_only=True)
class _Selected:
    best: Number | None
    waited: _Count


@record(frozen=True, kw_only=True)
class _State:
    """``state.json``, as far as every checkpoint has it alike."""

    version: Annotated[Whole, Field(ge=1, le=1)]
    step: _Positive
    data: _Position
    broken_clips: _Count
    development: dict[str, Number]
    score: Number | None
    run: dict[str, Any]
    files: dict[str, str]
    selection: _Selected | None = None
    """Of engine/selection.py; None in a checkpoint of an earlier version."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on the disk."""

    path: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(self.state["step"])

    @property
    def selection(self) -> dict[str, Any]:
        """The best development score so far, and how many came after it."""
        return dict(self.state.get("selection") or {})

    @property
    def has_average(self) -> bool:
        """Whether it holds an average of the weights."""
        return AVERAGE in self.state["files"]

    @property
    def broken_clips(self) -> int:
        """Clips of its epoch that could not be read so far."""
        return int(self.state["broken_clips"])


Fits = Callable[[Checkpoint], None]
"""Asks whether a whole checkpoint fits a run: raises DamagedError where it is to be left for the
one before, another UserError where the run must not go on at all."""


def any_fits(checkpoint: Checkpoint) -> None:
    """Ask nothing."""


def list_checkpoints(folder: Path) -> list[Path]:
    """Return what has the name of a checkpoint, whatever it is, oldest first.

    Raises UserError where the folder is there and cannot be listed: that is not the same as none.
    """
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as e:
        raise unreadable(e, folder, DamagedError) from e
    return sorted((folder / name for name in names if _NAME.fullmatch(name)), key=step_of)


def step_of(path: Path) -> int:
    """Return the step in the name of a checkpoint."""
    name = _NAME.fullmatch(path.name)
    assert name is not None
    return int(name[1])


def path_of(folder: Path, step: int) -> Path:
    """Return where the checkpoint of a step lies."""
    return folder / f"step_{step:08d}"


def find_latest(
    folder: Path, say: Callable[[str], None], fits: Fits = any_fits
) -> Checkpoint | None:
    """Return the newest whole checkpoint that fits; say which are left out, why, and what is lost.

    None where there is none at all. Raises UserError naming each where there are some and none is
    whole: a stage does not start over by itself.
    """
    found, faults = _first_whole(reversed(list_checkpoints(folder)), fits)
    if found is None:
        _raise_none_whole(folder, faults)
        return None
    for path, why in faults.items():
        lost = f"what was trained since, up to step {step_of(path)}, is trained again"
        say(f"checkpoint {path} is not used: {why}; going back to step {found.step}, {lost}")
    return found


def find_best(folder: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """Return the whole checkpoint with the lowest development score; name all that are damaged.

    None where no whole one has a score. Raises UserError naming each where none is whole.
    """
    whole, faults = {}, {}
    for path in list_checkpoints(folder):
        try:
            whole[path] = read_checkpoint(path)
        except DamagedError as e:
            faults[path] = printable(str(e))
    if not whole:
        _raise_none_whole(folder, faults)
    for path, why in faults.items():
        say(f"checkpoint {path} is not used: {why}")
    return next((whole[path] for path in by_score(list(whole))), None)


def by_score(paths: Sequence[Path]) -> list[Path]:
    """Return those that have a development score, lowest first; of equal ones the earliest."""
    scores = {path: _score_of(path) for path in paths}
    scored = [path for path in paths if scores[path] is not None]
    return sorted(scored, key=lambda path: (scores[path], step_of(path)))


def read_checkpoint(path: Path) -> Checkpoint:
    """Return a checkpoint that is whole.

    Raises :class:`DamagedError` where a file is missing or differs from its checksum, what
    ``state.json`` says cannot be, the tensors of the two files do not go together, or one of them
    holds what is not finite; an error of another kind where it may not, or cannot now, be read.
    """
    state = read_state(path)
    errors: list[str] = []
    known = build(_State, state, errors)
    if known is None:
        raise DamagedError(f"{path / STATE} is damaged: {'; '.join(errors[:3])}")
    if path != path_of(path.parent, known.step):
        raise DamagedError(f"{path / STATE} is damaged: it is of step {known.step}")
    for name in (WEIGHTS, OPTIMIZER):
        if name not in known.files:
            raise DamagedError(f"{path / STATE} is damaged: it lists no {name}")
    _refuse_impossible(known, path / STATE)
    _refuse_other_moments(path)
    _refuse_numbers(path, known.step, AVERAGE in known.files)
    return Checkpoint(path, state)


def refuse_other_run(checkpoint: Checkpoint, expected: Mapping[str, Any]) -> None:
    """Raise UserError naming what of ``expected`` a checkpoint says otherwise.

    A key that only one of them has says nothing: it came or went with a version of this program,
    and ``config.yaml`` of the run folder has been compared with its default.
    """
    odd = _differences(checkpoint, expected)
    if odd:
        raise UserError(
            f"{checkpoint.path} is a checkpoint of another run: {'; '.join(odd[:5])}. Go on with "
            "what it was, or give train.output=FOLDER for a new run"
        )


def refuse_other_position(checkpoint: Checkpoint, plan: Plan, seed: int) -> None:
    """Raise :class:`DamagedError` where the data of this run stands elsewhere after its step."""
    path, step = checkpoint.path / STATE, checkpoint.step
    odd = _differences(checkpoint, {"data": data_position(plan, seed, step)})
    if step > plan.total_steps:
        odd.append(f"step was {step} of {plan.total_steps}")
    if odd:
        raise DamagedError(f"{path} is damaged: {'; '.join(odd)}")


def _first_whole(paths: Iterable[Path], fits: Fits) -> tuple[Checkpoint | None, dict[Path, str]]:
    """Return the first that is whole and fits, and why those before it are not."""
    faults = {}
    for path in paths:
        try:
            found = read_checkpoint(path)
            fits(found)
        except DamagedError as e:
            faults[path] = printable(str(e))
        else:
            return found, faults
    return None, faults


def _raise_none_whole(folder: Path, faults: Mapping[Path, str]) -> None:
    """Raise UserError with every checkpoint and its fault; do nothing where there is none."""
    raise_together(
        [f"{path.name}: {why}" for path, why in faults.items()],
        f"{folder}: no checkpoint is whole, and a stage does not start over by itself. Put a copy "
        "of one in its place, or remove that folder to train the stage from its beginning",
    )


def _refuse_impossible(state: _State, path: Path) -> None:
    """Raise DamagedError for a position of the data that no number of steps an epoch leads to."""
    epoch, within = state.data.epoch, state.data.step
    before = state.step - within  # steps of the epochs that are over
    if before % epoch or before // epoch <= within if epoch else before:
        raise DamagedError(
            f"{path} is damaged: step {state.step} is not step {within} of epoch {epoch}"
        )
    if state.broken_clips > state.data.clips:
        raise DamagedError(
            f"{path} is damaged: {state.broken_clips} clips of {state.data.clips} are broken"
        )


def _refuse_other_moments(path: Path) -> None:
    """Raise DamagedError unless each moment has its like, and a weight of its shape and dtype."""
    weights, moments = read_infos(path / WEIGHTS), read_infos(path / OPTIMIZER)
    taken = moments.pop(STEPS_TAKEN, None)
    if taken not in (None, TensorInfo("F32", ())):
        raise DamagedError(f"{path / OPTIMIZER} is damaged: {STEPS_TAKEN} is no number of F32")
    names = {name.rpartition(".")[0] for name in moments}
    expected = {f"{n}.{key}": weights[n] for n in names & weights.keys() for key in MOMENTS}
    if not expected or moments != expected:
        odd = sorted(n for n in moments | expected if moments.get(n) != expected.get(n))
        raise DamagedError(
            f"{path / OPTIMIZER} is damaged: {len(odd)} moments are missing, unknown or not of the "
            f"shape and dtype of their weights, {odd[:3]}"
        )


def _refuse_numbers(path: Path, step: int, averaged: bool) -> None:
    """Raise DamagedError for numbers that no step leaves behind."""
    refuse_not_finite(path / WEIGHTS)
    if averaged:
        refuse_not_finite(path / AVERAGE)
    for name, tensor in read_floats(path / OPTIMIZER):
        if name.endswith(MOMENTS[1]) and tensor.size and tensor.min() < 0:
            raise DamagedError(f"{path / OPTIMIZER} is damaged: {name} has negative squares")
        if name == STEPS_TAKEN and not 1 <= float(tensor) <= step:
            raise DamagedError(
                f"{path / OPTIMIZER} is damaged: {float(tensor):g} steps taken of {step}"
            )


def _score_of(path: Path) -> float | None:
    """Read a score without the checksums: a damaged checkpoint is found when it is used."""
    score = peek_state(path).get("score")
    return score if isinstance(score, float) and math.isfinite(score) else None


def _differences(checkpoint: Checkpoint, expected: Mapping[str, Any]) -> list[str]:
    said, now = _flat(checkpoint.state), _flat(expected)
    return [f"{k} was {said[k]!r}, is {now[k]!r}" for k in now if k in said and said[k] != now[k]]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        inner = _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else None
        flat.update({f"{prefix}{key}": value} if inner is None else inner)
    return flat
