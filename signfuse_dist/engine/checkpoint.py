"""Checkpoints: trainable weights and Adam moments by parameter name, on any number of processes.

A checkpoint is a folder ``step_00000123`` with ``weights.safetensors`` (trainable parameters and
norm buffers), ``optimizer.safetensors`` (``NAME.exp_avg``, ``NAME.exp_avg_sq``) and
``state.json`` (step and checksums). ZeRO-2 keeps the moments in flat slices, one a process; here
they are gathered by name, so a checkpoint does not know how many processes wrote it. It is
written to a temporary folder, synced and renamed: a folder that is there is whole.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from signfuse_dist.errors import UserError
from signfuse_dist.files import read_state, write_folder
from signfuse_dist.weights import load_exactly

MOMENTS = ("exp_avg", "exp_avg_sq")
_TAKEN = "steps_taken"  # in the moments' file: steps that Adam took, fewer where some were skipped
_WEIGHTS, _OPTIMIZER = "weights.safetensors", "optimizer.safetensors"


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


def save(
    folder: Path, accelerator: Accelerator, model: nn.Module, optimizer: Any, step: int, keep: int
) -> None:
    """Write the checkpoint of ``step`` finished steps; every process calls this.

    Keeps the newest ``keep``. Raises OSError when the disk refuses.
    """
    module = accelerator.unwrap_model(model)
    moments = _gather_moments(accelerator, module, optimizer)
    if accelerator.is_main_process:
        write_folder(
            folder / f"step_{step:08d}",
            {
                _WEIGHTS: lambda path: save_file(_on_cpu(trained_state(module)), path),
                _OPTIMIZER: lambda path: save_file(moments, path),
            },
            {"step": step},
        )
        for old in _steps(folder)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def latest(folder: Path, say: Callable[[str], None]) -> tuple[Path, int] | None:
    """Return the newest whole checkpoint and its step; name a damaged one and go on to the next."""
    for path in reversed(_steps(folder)):
        try:
            return path, int(read_state(path)["step"])
        except (UserError, KeyError) as e:
            say(f"checkpoint {path} is not used: {e}")
    return None


def load_weights(path: Path, model: nn.Module) -> None:
    """Put a checkpoint's weights into a model that has not been prepared yet."""
    load_exactly(load_file(path / _WEIGHTS), trained_state(model), model, path / _WEIGHTS)


def load_optimizer(
    path: Path, accelerator: Accelerator, model: nn.Module, optimizer: Any, step: int
) -> None:
    """Give a prepared optimizer the moments of a checkpoint; every process calls this."""
    moments = load_file(path / _OPTIMIZER)
    taken = float(moments.pop(_TAKEN, torch.tensor(step)))
    module = accelerator.unwrap_model(model)
    names = {f"{name}.{key}" for name, _ in trained_parameters(module) for key in MOMENTS}
    if names != moments.keys():
        odd = sorted(names ^ moments.keys())
        raise UserError(f"{path / _OPTIMIZER} is of another model: {len(odd)} differ, {odd[:3]}")
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
                gathered[f"{name}.{key}"] = value.detach().cpu().contiguous()
    if accelerator.is_main_process:
        gathered[_TAKEN] = next(iter(_base_optimizer(optimizer).state.values()))["step"].cpu()
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


def _steps(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step_*") if p.is_dir())


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.cpu().contiguous() for name, t in tensors.items()}
