"""Checkpoints in memory: trainable weights and Adam moments by parameter name.

ZeRO-2 keeps the moments in flat slices, one a process; here they are gathered by name, so that one
format serves ZeRO-2 and plain DDP on any number of processes. What a checkpoint is on the disk is
``checkpoint_folder``'s, when it is written ``checkpoint_writer``'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list
from safetensors.torch import load_file
from torch import Tensor, nn

from signfuse_dist.engine.checkpoint_folder import OPTIMIZER, WEIGHTS, Found, Snapshot, latest
from signfuse_dist.errors import UserError
from signfuse_dist.weights import load_exactly

MOMENTS = ("exp_avg", "exp_avg_sq")
_TAKEN = "steps_taken"  # in the moments' file: steps that Adam took, fewer where some were skipped


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


def take(
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


def find(folder: Path, accelerator: Accelerator, say: Callable[[str], None]) -> Found | None:
    """Return the checkpoint to go on from: the main process looks, and all take the same."""
    found = [latest(folder, say) if accelerator.is_main_process else None]
    broadcast_object_list(found)
    return found[0]


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
