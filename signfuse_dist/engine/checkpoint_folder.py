"""Checkpoints on the disk: folders ``step_00000123`` that are there whole or not at all.

Each holds ``weights.safetensors`` (trainable parameters and norm buffers),
``optimizer.safetensors`` (``NAME.exp_avg``, ``NAME.exp_avg_sq``) and ``state.json``: step, position
in the data, development score, what the run is, and checksums. Nothing in it depends on how many
processes wrote it.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from signfuse_dist.errors import UserError
from signfuse_dist.files import PART, STATE, read_state, write_folder

WEIGHTS, OPTIMIZER = "weights.safetensors", "optimizer.safetensors"
_NAME = re.compile(r"step_(\d{8,})")


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint in the memory of the host: nothing in it changes when training goes on.

    Attributes:
        step: optimizer steps done.
        weights: trained parameters and buffers by name.
        moments: Adam's, by parameter name and key.
        state: what else ``state.json`` says.
    """

    step: int
    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    state: dict[str, Any]


@dataclass(frozen=True)
class Found:
    """A whole checkpoint that a run goes on from."""

    path: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(self.state["step"])

    @property
    def broken_clips(self) -> int:
        """Clips of its epoch that could not be read so far."""
        return int(self.state["broken_clips"])


def write(folder: Path, snapshot: Snapshot, keep: int) -> None:
    """Write a snapshot durably, then remove what is not kept; raise OSError when the disk refuses.

    Kept are the newest ``keep`` and the one with the lowest development score. Checkpoints of
    later steps are of a run that went back before them, because they were damaged: they go too.
    """
    writers: dict[str, Callable[[Path], object]] = {
        WEIGHTS: partial(_save, snapshot.weights),
        OPTIMIZER: partial(_save, snapshot.moments),
    }
    path = folder / f"step_{snapshot.step:08d}"
    write_folder(path, writers, {**snapshot.state, "step": snapshot.step})
    known = list_steps(folder)
    past = [other for other in known if _step_of(other) <= snapshot.step]
    kept = {*past[-keep:], *_by_score(past)[:1]}
    for other in known:
        if other not in kept:
            shutil.rmtree(other)


def latest(folder: Path, say: Callable[[str], None]) -> Found | None:
    """Return the newest whole checkpoint; name a damaged one and go on to the one before."""
    return _first_whole(reversed(list_steps(folder)), say)


def best(folder: Path, say: Callable[[str], None]) -> Found | None:
    """Return the whole checkpoint with the lowest development score; name a damaged one."""
    return _first_whole(_by_score(list_steps(folder)), say)


def list_steps(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, oldest first."""
    found = [path for path in folder.glob("step_*") if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=_step_of)


def remove_parts(folder: Path) -> None:
    """Remove what a writer that was killed left behind."""
    for part in folder.glob(f".step_*{PART}"):
        shutil.rmtree(part)


def refuse_other_run(found: Found, expected: dict[str, Any]) -> None:
    """Raise UserError naming what of ``expected`` a checkpoint says otherwise.

    A key that only one of them has says nothing: it came or went with a version of this program,
    and ``config.yaml`` of the run folder has been compared with its default.
    """
    said, now = _flat(found.state), _flat(expected)
    odd = [f"{k} was {said[k]!r}, is {now[k]!r}" for k in now if k in said and said[k] != now[k]]
    if odd:
        raise UserError(
            f"{found.path} is a checkpoint of another run: {'; '.join(odd[:5])}. Go on with what "
            "it was, or give train.output=FOLDER for a new run"
        )


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(tensors, path)
    except SafetensorError as e:  # its name for what the disk says
        raise OSError(f"{path.name}: {e}") from e


def _first_whole(paths: Any, say: Callable[[str], None]) -> Found | None:
    for path in paths:
        try:
            state = read_state(path)
            if not {"step", "broken_clips"} <= state.keys():
                raise UserError(f"{path / STATE} is not that of a checkpoint")
            return Found(path, state)
        except UserError as e:
            say(f"checkpoint {path} is not used: {e}")
    return None


def _by_score(paths: Sequence[Path]) -> list[Path]:
    """Return those that have a development score, lowest first; of equal ones the earliest."""
    scores = {path: _score_of(path) for path in paths}
    scored = [path for path in paths if scores[path] is not None]
    return sorted(scored, key=lambda path: (scores[path], _step_of(path)))


def _score_of(path: Path) -> float | None:
    """Read a score without the checksums: a damaged checkpoint is found when it is used."""
    try:
        score = json.loads((path / STATE).read_text(encoding="utf-8"))["score"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return score if isinstance(score, float) else None


def _step_of(path: Path) -> int:
    found = _NAME.fullmatch(path.name)
    assert found is not None
    return int(found[1])


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        inner = _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else None
        flat.update({f"{prefix}{key}": value} if inner is None else inner)
    return flat
