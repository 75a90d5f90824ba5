"""Checkpoints and models of a few numbers, as they lie on the disk; written without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from signfuse_dist import files
from signfuse_dist.engine.checkpoint_files import MOMENTS, OPTIMIZER, STEPS_TAKEN, WEIGHTS
from signfuse_dist.files import STATE, checksum, write_folder

STEPS_AN_EPOCH = 4


def write_checkpoint(folder: Path, step: int, score: float | None = None, **changes: Any) -> Path:
    """Write a checkpoint of a projection and a statistic; return its folder.

    ``changes`` are of ``state.json``.
    """
    weights = {"first.weight": np.full((2, 3), 0.5, np.float32), "mean": np.zeros(3, np.float32)}
    moments = {f"first.weight.{key}": np.full((2, 3), 0.25, np.float32) for key in MOMENTS}
    moments[STEPS_TAKEN] = np.array(step, np.float32)
    epoch, within = divmod(step, STEPS_AN_EPOCH)
    state = {
        "step": step,
        "data": {"seed": 0, "epoch": epoch, "step": within, "clips": 8},
        "broken_clips": 1,
        "development": {} if score is None else {"dev_language": score},
        "score": score,
        "run": {"stage": "finetune", "config": {"train.seed": 0}, "meeting": 2},
    }
    path = folder / f"step_{step:08d}"
    writers = {
        WEIGHTS: lambda at: save_file(weights, at),
        OPTIMIZER: lambda at: save_file(moments, at),
    }
    write_folder(path, writers, {**state, **changes})
    return path


def write_model(folder: Path, number: float = 0.5) -> None:
    """Write what has the checksums of a saved model, and one tensor."""
    tensor = {"fusion.weight": np.full(3, number, np.float32)}
    write_folder(folder, {"model.safetensors": lambda at: save_file(tensor, at)}, {})


def sign(path: Path, **changes: Any) -> None:
    """Write ``state.json`` again, with changes and every checksum right; ``...`` removes a key."""
    state = {**json.loads((path / STATE).read_text(encoding="utf-8")), **changes}
    state = {key: value for key, value in state.items() if value is not ...}
    del state["state_sha256"]
    if isinstance(state.get("files"), dict):
        state["files"] = {name: checksum(path / name) for name in state["files"]}
    state["state_sha256"] = files._checksum_of(state)
    (path / STATE).write_text(json.dumps(state), encoding="utf-8")
