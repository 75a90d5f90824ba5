"""Trackers beside ``metrics.jsonl``: TensorBoard, Weights & Biases and others, by Accelerate.

They get the same figures at the same steps. A resumed run goes on in the same place: TensorBoard
drops what an earlier part wrote after the checkpoint, and Weights & Biases, whose run has its name
in ``wandb_run_id`` of the run folder, keeps what it has of a step and refuses to have it twice.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import filter_trackers

from signfuse_dist.engine.tracker_packages import missing_packages
from signfuse_dist.errors import UserError, raise_together
from signfuse_dist.files import write_text
from signfuse_dist.run_folder import RunFolder

_PROJECT = "signfuse"


def refuse_missing(names: Sequence[str]) -> None:
    """Raise UserError naming each tracker whose package is not installed, and how to install it."""
    raise_together(missing_packages(names), "train.trackers")


def start(
    accelerator: Accelerator,
    names: Sequence[str],
    folder: Path,
    config: Mapping[str, Any],
    start_step: int,
) -> None:
    """Start the trackers of a run; every process calls this, and the first one's write.

    Args:
        names: as ``train.trackers`` has them.
        folder: the run folder; a tracker keeps its files in its ``trackers``.
        config: the resolved configuration, sections of keys.
        start_step: steps already done, of which nothing is written again.
    """
    if not names:
        return
    refuse_missing(names)
    kept = RunFolder(folder).trackers
    if accelerator.is_main_process:
        kept.mkdir(exist_ok=True)
    accelerator.log_with = filter_trackers(list(names), kept)
    if len(accelerator.log_with) != len(set(names)):
        raise RuntimeError(f"of the trackers {list(names)} Accelerate takes {accelerator.log_with}")
    accelerator.project_configuration.set_directories(str(folder))
    accelerator.project_configuration.logging_dir = str(kept)
    options: dict[str, dict[str, Any]] = {"tensorboard": {"purge_step": start_step + 1}}
    if "wandb" in names:
        options["wandb"] = _wandb(accelerator, folder)
    accelerator.init_trackers(_PROJECT, flatten(config), options)


def _wandb(accelerator: Accelerator, folder: Path) -> dict[str, Any]:
    """Return what makes a resumed run the same run; WANDB_MODE=offline needs no network."""
    path = RunFolder(folder).wandb_run_id
    if accelerator.is_main_process and not path.exists():
        write_text(path, uuid.uuid4().hex[:8])
    accelerator.wait_for_everyone()
    name = path.read_text(encoding="utf-8").strip()
    if not name.isalnum():
        raise UserError(f"{path} holds {name!r}, which is no name of a run: remove the file")
    return {
        "id": name,
        "resume": "allow",
        "dir": str(RunFolder(folder).trackers),
        "name": f"{folder.parent.name}/{folder.name}",
    }


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration as ``section.key`` to what every tracker takes: numbers and texts."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{inner}": v for inner, v in flatten(value).items()}
        else:
            flat[key] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return flat
