"""Checkpoints by parameter name: taken from the device, written beside training, loaded.

Not torch's distributed checkpoint, which wants DTensor states, nor DeepSpeed's own, which refuses
another number of processes: gathered by name, one format serves ZeRO-2 and plain DDP on any number.
A step waits for the copy out of the device, and for no disk. What lies on the disk, and which one
is gone on from, is known to :mod:`signfuse_dist.engine.checkpoint_files`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from signfuse_dist.engine.checkpoint_files import (
    AVERAGE,
    MOMENTS,
    OPTIMIZER,
    STEPS_TAKEN,
    WEIGHTS,
    Checkpoint,
    Fits,
    any_fits,
    by_score,
    find_latest,
    list_checkpoints,
    path_of,
    step_of,
)
from signfuse_dist.engine.processes import do_on_main
from signfuse_dist.errors import DamagedError, MachineError, UserError
from signfuse_dist.files import PART, remove, write_folder
from signfuse_dist.system_errors import what_helps
from signfuse_dist.tensor_files import read_infos
from signfuse_dist.weights import load_exactly, load_tensors, refuse_difference, save_tensors


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint in the memory of the host: nothing in it changes when training goes on.

    Attributes:
        step: optimizer steps done.
        weights: trained parameters and buffers by name.
        moments: Adam's, by parameter name and key.
        state: what else ``state.json`` says.
        average: of the weights over the last steps, by name; empty where none is kept.
    """

    step: int
    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    state: dict[str, Any]
    average: dict[str, Tensor] = field(default_factory=dict)


def take_snapshot(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Any,
    step: int,
    state: dict[str, Any],
    average: Mapping[str, Tensor] | None = None,
) -> Snapshot:
    """Copy the state after ``step`` finished steps out of the device; every process calls this.

    Only the main process's snapshot holds tensors. They are copies on a CPU too: training goes on
    while they are written.
    """
    module = accelerator.unwrap_model(model)
    moments = _gather_moments(accelerator, module, optimizer)
    weights, mean = {}, {}
    if accelerator.is_main_process:
        weights, mean = (
            {name: _copied(tensor) for name, tensor in tensors.items()}
            for tensors in (trained_state(module), average or {})
        )
    return Snapshot(step, weights, moments, state, mean)


def write_snapshot(folder: Path, snapshot: Snapshot, keep: int) -> None:
    """Write a snapshot durably, then remove what is not kept; raise OSError when the disk refuses.

    Kept are the newest ``keep`` and the one with the lowest development score. Checkpoints of
    later steps are of a run that went back before them, because they were damaged: they go too.
    """
    writers: dict[str, Callable[[Path], object]] = {
        WEIGHTS: partial(save_tensors, snapshot.weights),
        OPTIMIZER: partial(save_tensors, snapshot.moments),
    }
    if snapshot.average:
        writers[AVERAGE] = partial(save_tensors, snapshot.average)
    state = {**snapshot.state, "step": snapshot.step}
    write_folder(path_of(folder, snapshot.step), writers, state)
    known = list_checkpoints(folder)
    past = [other for other in known if step_of(other) <= snapshot.step]
    kept = {*past[-keep:], *by_score(past)[:1]}
    for other in known:
        if other not in kept:
            remove(other)


class CheckpointWriter:
    """Writes snapshots in a thread of the main process, one at a time.

    A context manager that ends only when nothing is being written. A checkpoint that the disk
    refuses is named, and training goes on with the last whole one, until ``max_failed`` in a row
    were refused; at :meth:`finish` it is an error of every process. Other processes do not wait for
    the disk, except where the main one does: when the checkpoint before is still being written, and
    at the end.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        accelerator: Accelerator,
        print_main: Callable[[str], None],
        *,
        start_step: int,
        max_failed: int,
    ) -> None:
        """``start_step``: of the checkpoint that is gone on from, 0 where there is none."""
        self._folder, self._keep = folder, keep
        self._accelerator, self._print_main = accelerator, print_main
        self._whole, self._failed, self._max_failed = start_step, 0, max_failed
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._writing: tuple[int, Future[None]] | None = None
        self._refusal: tuple[int, str, str] | None = None  # step, what was said, what helps
        if accelerator.is_main_process:
            remove_parts(folder)

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.wait()
        self._pool.shutdown()

    @property
    def has_given_up(self) -> bool:
        """Whether as many in a row as are allowed could not be written; known to the main process.

        Waits for nothing.
        """
        if self._writing is not None and self._writing[1].done():
            self.wait()
        return self._failed >= self._max_failed

    def wait(self) -> None:
        """Wait until nothing is being written; say what could not be."""
        self._join()

    def start(self, snapshot: Snapshot) -> None:
        """Hand over a snapshot of the main process, when :meth:`wait` has returned; no waiting."""
        assert self._writing is None
        if self._accelerator.is_main_process:
            write = self._pool.submit(write_snapshot, self._folder, snapshot, self._keep)
            self._writing = snapshot.step, write

    def finish(self) -> None:
        """Wait for the last checkpoint; raise MachineError everywhere when the disk refused it."""
        do_on_main(self._accelerator, self._end)

    def _end(self) -> None:
        """Wait for the last write; raise MachineError with the steps that are lost."""
        self._join(last=True)
        if self._refusal is None:
            return
        step, said, helps = self._refusal
        raise MachineError(
            f"{said}, and what was trained since, up to step {step}, is lost. "
            f"{helps[0].upper()}{helps[1:]}, then run the same command again: it is trained again"
        )

    def _join(self, last: bool = False) -> None:
        """Wait for the write in flight; say where the disk refused it, but for the ``last``."""
        if self._writing is None:
            return
        (step, write), self._writing = self._writing, None
        if not write.done():
            self._print_main(f"waiting for the checkpoint of step {step} to be written")
        try:
            write.result()
        except OSError as e:
            self._failed += 1
            whole = f"the last whole one is of step {self._whole}"
            said = (
                f"the checkpoint of step {step} could not be written: {e}; "
                f"{whole if self._whole else 'there is none before it'}"
            )
            self._refusal = step, said, what_helps(e)
            after = "training goes on"
            if self._failed >= self._max_failed:
                after = (
                    f"{self._failed} in a row could not be, so training stops "
                    "(train.failed_checkpoints)"
                )
            if not last:
                self._print_main(f"{said}; {after}")
        else:
            self._whole, self._failed, self._refusal = step, 0, None


def agree_on_latest(
    folder: Path,
    accelerator: Accelerator,
    print_main: Callable[[str], None],
    fits: Fits = any_fits,
) -> Checkpoint | None:
    """Return the checkpoint to go on from: the main process looks, and all take the same.

    What :func:`find_latest` raises there is raised by every process.
    """
    return do_on_main(accelerator, lambda: find_latest(folder, print_main, fits))


def refuse_other_tensors(checkpoint: Checkpoint, model: nn.Module, averaged: bool = False) -> None:
    """Raise DamagedError unless a checkpoint has the tensors of ``model``, as it trains.

    ``averaged``: whether it must have an average of the weights.
    """
    if averaged and not checkpoint.has_average:
        raise DamagedError(f"{checkpoint.path} is damaged: it has no {AVERAGE}")
    trained = dict(trained_parameters(model))
    moments = {f"{name}.{key}": p for name, p in trained.items() for key in MOMENTS}
    stored = read_infos(checkpoint.path / OPTIMIZER)
    stored.pop(STEPS_TAKEN, None)
    try:
        for name in (WEIGHTS, AVERAGE) if averaged else (WEIGHTS,):
            path = checkpoint.path / name
            refuse_difference(read_infos(path), trained_state(model), path)
        refuse_difference(stored, moments, checkpoint.path / OPTIMIZER)
    except UserError as e:
        raise DamagedError(str(e)) from e


def load_weights(path: Path, model: nn.Module, averaged: bool = False) -> None:
    """Put a checkpoint's weights, or their average, into a model that is not prepared yet."""
    file = path / (AVERAGE if averaged else WEIGHTS)
    load_exactly(load_tensors(file), trained_state(model), model, file)


def read_average(path: Path) -> dict[str, Tensor]:
    """Return the average of the weights in a checkpoint."""
    return load_tensors(path / AVERAGE)


def load_optimizer(
    path: Path, accelerator: Accelerator, model: nn.Module, optimizer: Any, step: int
) -> None:
    """Give a prepared optimizer the moments of a checkpoint; every process calls this.

    That they are those of ``model`` has been asked by :func:`refuse_other_tensors`.
    """
    moments = load_tensors(path / OPTIMIZER)
    taken = float(moments.pop(STEPS_TAKEN, torch.tensor(step)))
    module = accelerator.unwrap_model(model)
    sharded = accelerator.distributed_type == DistributedType.DEEPSPEED
    base = _base_optimizer(optimizer)
    for group in base.param_groups:
        for p in group["params"]:
            # torch wants it beside the parameter where one kernel takes all.
            base.state[p] = {
                "step": torch.tensor(taken, device=p.device if group.get("fused") else "cpu"),
                **{key: torch.zeros_like(p) for key in MOMENTS},
            }
    if sharded:
        _link_moments(optimizer)
    for name, parameter in trained_parameters(module):
        for key in MOMENTS:
            value = moments[f"{name}.{key}"].to(parameter.device)
            if sharded:
                from deepspeed.utils import safe_set_full_optimizer_state

                safe_set_full_optimizer_state(parameter, value, key)
            else:
                base.state[parameter][key].copy_(value)


def trained_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters that train, by name."""
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint: trained parameters and persistent buffers.

    A state also holds second names of tied weights and the scales of quantized ones, which belong
    to a frozen LLM and are neither.
    """
    kept = {name for name, _ in trained_parameters(model)}
    kept.update(name for name, _ in model.named_buffers())
    return {n: tensor.detach() for n, tensor in model.state_dict().items() if n in kept}


def remove_parts(folder: Path) -> None:
    """Remove what a writer that was killed left; the caller holds the lock of the run."""
    for part in folder.glob(f".step_*{PART}"):
        shutil.rmtree(part)


def _gather_moments(accelerator: Accelerator, module: nn.Module, optimizer: Any) -> dict[str, Any]:
    sharded = accelerator.distributed_type == DistributedType.DEEPSPEED
    gathered = {}
    if sharded:
        _link_moments(optimizer)
    for name, parameter in trained_parameters(module):
        for key in MOMENTS:
            if sharded:
                from deepspeed.utils import safe_get_full_optimizer_state

                value = safe_get_full_optimizer_state(parameter, key)
            else:
                value = _base_optimizer(optimizer).state[parameter][key]
            if accelerator.is_main_process:
                gathered[f"{name}.{key}"] = _copied(value)
    if accelerator.is_main_process:
        gathered[STEPS_TAKEN] = _copied(
            next(iter(_base_optimizer(optimizer).state.values()))["step"]
        )
    return gathered


def _link_moments(optimizer: Any) -> None:
    """Let DeepSpeed find each parameter's slice of the moments.

    It links them once, after the step of the first parameter group, when the others have no
    moments yet; so link again before they are asked for. Private to DeepSpeed 0.19.8.
    """
    zero = optimizer.optimizer
    zero._hp_optimizer_states_linked = False
    zero._lazy_init_hp_params_optimizer_state()


def _base_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """Return torch's own optimizer under Accelerate's and DeepSpeed's wrappers."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    base: torch.optim.Optimizer = optimizer
    return base


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()
