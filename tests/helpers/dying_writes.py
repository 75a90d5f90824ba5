"""A process that is killed (-9) at a named moment of writing a checkpoint."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

from signfuse_dist import files
from signfuse_dist.engine import checkpoint
from signfuse_dist.engine.checkpoint_files import OPTIMIZER

MOMENTS = ("half a file", "before the checksums", "before the name", "after it", "pruning")
"""In the order in which they come: the file of Adam's moments is cut short; all files are there but
``state.json``; the folder is whole and has no name; it has one, and older ones are all there; one
of them is half removed."""


def die_while_writing(moment: str, write: int = 1) -> None:
    """Let this process kill itself at ``moment`` of its ``write``-th checkpoint, or a later one."""
    assert moment in MOMENTS
    begun = 0
    write_snapshot, save_tensors = checkpoint.write_snapshot, checkpoint.save_tensors
    write_state, replace, rmtree = files._write_state, os.replace, shutil.rmtree

    def die(at: str) -> None:
        if at == moment and begun >= write:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(*of: Any) -> None:
        nonlocal begun
        begun += 1
        write_snapshot(*of)

    def save(tensors: Any, path: Path) -> None:
        save_tensors(tensors, path)
        if path.name == OPTIMIZER and moment == "half a file" and begun >= write:
            os.truncate(path, path.stat().st_size // 2)
            die("half a file")

    def state(*of: Any) -> None:
        die("before the checksums")
        write_state(*of)

    def rename(source: Any, target: Any) -> None:
        is_checkpoint = Path(target).name.startswith("step_")
        if is_checkpoint:
            die("before the name")
        replace(source, target)
        if is_checkpoint:
            die("after it")

    def prune(path: Any, *options: Any, **more: Any) -> None:
        if Path(path).name.endswith(".old.part") and Path(path).exists() and begun >= write:
            next(Path(path).iterdir()).unlink()
            die("pruning")
        rmtree(path, *options, **more)

    checkpoint.write_snapshot, checkpoint.save_tensors = counted, save  # type: ignore[assignment]
    files._write_state = state
    os.replace, shutil.rmtree = rename, prune  # type: ignore[assignment]
