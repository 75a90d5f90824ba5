"""Checkpoints by parameter name: taken from the device, written beside training, found, loaded.

Not torch's distributed checkpoint, which wants DTensor states, nor DeepSpeed's own, which refuses
another number of processes: gathered by name, one format serves ZeRO-2 and plain DDP on any number.
A step waits for the copy out of the device, and for no disk.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from signfuse_dist.engine.processes import do_on_main
from signfuse_dist.errors import UserError
from signfuse_dist.files import PART, STATE, read_state, write_folder
from signfuse_dist.weights import load_exactly

WEIGHTS, OPTIMIZER = "weights.safetensors", "optimizer.safetensors"
_NAME = re.compile(r"step_(\d{8,})")
MOMENTS = ("exp_avg", "exp_avg_sq")
_TAKEN = "steps_taken"  # in the moments' file: steps that Adam took, fewer where some were skipped


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
class Checkpoint:
    """A whole checkpoint on the disk."""

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


def take_snapshot(
    accelerator: Accelerator, model: nn.Module, optimizer: Any, step: int, state: dict[str, Any]
) -> Snapshot:
    """Copy the state after ``step`` finished steps out of the device; every process calls this.

    Only the main process's snapshot holds tensors. They are copies on a CPU too: training goes on
    while they are written.
    """
    module = accelerator.unwrap_model(model)
    moments = _gather_moments(accelerator, module, optimizer)
    weights = trained_state(module) if accelerator.is_main_process else {}
    return Snapshot(step, {name: _copied(t) for name, t in weights.items()}, moments, state)


def write_snapshot(folder: Path, snapshot: Snapshot, keep: int) -> None:
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
    known = list_checkpoints(folder)
    past = [other for other in known if _step_of(other) <= snapshot.step]
    kept = {*past[-keep:], *_by_score(past)[:1]}
    for other in known:
        if other not in kept:
            shutil.rmtree(other)


class CheckpointWriter:
    """Writes snapshots in a thread of the main process, one at a time.

    A context manager that ends only when nothing is being written. A checkpoint that the disk
    refuses is named, and training goes on with the last whole one; at :meth:`finish` it is an
    error of every process. Other processes do not wait for the disk, except where the main one
    does: when the checkpoint before is still being written, and at the end.
    """

    def __init__(
        self, folder: Path, keep: int, accelerator: Accelerator, print_main: Callable[[str], None]
    ) -> None:
        self._folder, self._keep = folder, keep
        self._accelerator, self._print_main = accelerator, print_main
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._writing: tuple[int, Future[None]] | None = None
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

    def wait(self) -> None:
        """Wait until nothing is being written; say what could not be."""
        try:
            self._join()
        except OSError as e:
            self._print_main(f"{e}; training goes on")

    def start(self, snapshot: Snapshot) -> None:
        """Hand over a snapshot of the main process, when :meth:`wait` has returned; no waiting."""
        assert self._writing is None
        if self._accelerator.is_main_process:
            write = self._pool.submit(write_snapshot, self._folder, snapshot, self._keep)
            self._writing = snapshot.step, write

    def finish(self) -> None:
        """Wait for the last checkpoint; raise UserError everywhere when the disk refused it."""
        do_on_main(self._accelerator, self._join)

    def _join(self) -> None:
        """Wait for the write in flight; raise OSError, naming its step, when the disk refused."""
        if self._writing is None:
            return
        (step, write), self._writing = self._writing, None
        if not write.done():
            self._print_main(f"waiting for the checkpoint of step {step} to be written")
        try:
            write.result()
        except OSError as e:
            whole = list_checkpoints(self._folder)
            last = f"the last whole one is {whole[-1]}" if whole else "there is none before it"
            raise OSError(f"the checkpoint of step {step} could not be written: {e}; {last}") from e


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, oldest first."""
    paths = [path for path in folder.glob("step_*") if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(paths, key=_step_of)


def find_latest(folder: Path, print_main: Callable[[str], None]) -> Checkpoint | None:
    """Return the newest whole checkpoint; name a damaged one and go on to the one before."""
    return _first_whole(reversed(list_checkpoints(folder)), print_main)


def find_best(folder: Path, print_main: Callable[[str], None]) -> Checkpoint | None:
    """Return the whole checkpoint with the lowest development score; name a damaged one."""
    return _first_whole(_by_score(list_checkpoints(folder)), print_main)


def agree_on_latest(
    folder: Path, accelerator: Accelerator, print_main: Callable[[str], None]
) -> Checkpoint | None:
    """Return the checkpoint to go on from: the main process looks, and all take the same."""
    latest = [find_latest(folder, print_main) if accelerator.is_main_process else None]
    broadcast_object_list(latest)
    return latest[0]


def refuse_other_run(checkpoint: Checkpoint, expected: dict[str, Any]) -> None:
    """Raise UserError naming what of ``expected`` a checkpoint says otherwise.

    A key that only one of them has says nothing: it came or went with a version of this program,
    and ``config.yaml`` of the run folder has been compared with its default.
    """
    said, now = _flat(checkpoint.state), _flat(expected)
    odd = [f"{k} was {said[k]!r}, is {now[k]!r}" for k in now if k in said and said[k] != now[k]]
    if odd:
        raise UserError(
            f"{checkpoint.path} is a checkpoint of another run: {'; '.join(odd[:5])}. Go on with "
            "what it was, or give train.output=FOLDER for a new run"
        )


def load_weights(path: Path, model: nn.Module) -> None:
    """Put a checkpoint's weights into a model that has not been prepared yet."""
    load_exactly(load_file(path / WEIGHTS), trained_state(model), model, path / WEIGHTS)


def load_optimizer(
    path: Path, accelerator: Accelerator, model: nn.Module, optimizer: Any, step: int
) -> None:
    """Give a prepared optimizer the moments of a checkpoint; every process calls this."""
    moments = load_file(path / OPTIMIZER)
    taken = float(moments.pop(_TAKEN, torch.tensor(step)))
    module = accelerator.unwrap_model(model)
    names = {f"{name}.{key}" for name, _ in trained_parameters(module) for key in MOMENTS}
    if names != moments.keys():
        odd = sorted(names ^ moments.keys())
        raise UserError(f"{path / OPTIMIZER} is of another model: {len(odd)} differ, {odd[:3]}")
    sharded = accelerator.distributed_type == DistributedType.DEEPSPEED
    base = _base_optimizer(optimizer)
    for group in base.param_groups:
        for p in group["params"]:
            base.state[p] = {
                "step": torch.tensor(taken),
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
    """Remove what a writer that was killed left behind."""
    for part in folder.glob(f".step_*{PART}"):
        shutil.rmtree(part)


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(tensors, path)
    except SafetensorError as e:  # its name for what the disk says
        raise OSError(f"{path.name}: {e}") from e


def _first_whole(paths: Iterable[Path], print_main: Callable[[str], None]) -> Checkpoint | None:
    for path in paths:
        try:
            state = read_state(path)
            if not {"step", "broken_clips"} <= state.keys():
                raise UserError(f"{path / STATE} is not that of a checkpoint")
            return Checkpoint(path, state)
        except UserError as e:
            print_main(f"checkpoint {path} is not used: {e}")
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
    name = _NAME.fullmatch(path.name)
    assert name is not None
    return int(name[1])


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        inner = _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else None
        flat.update({f"{prefix}{key}": value} if inner is None else inner)
    return flat


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
        gathered[_TAKEN] = _copied(next(iter(_base_optimizer(optimizer).state.values()))["step"])
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
