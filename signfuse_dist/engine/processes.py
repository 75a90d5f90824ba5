"""Starting the processes: one Accelerator that is what was launched, or an error."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

# Read when torch first takes memory of a GPU: batches of long and of short clips in turn leave gaps
# in segments of one size.
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
# DeepSpeed picks its device when it is imported; without a GPU it must be told.
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import (
    DeepSpeedPlugin,
    DistributedDataParallelKwargs,
    DistributedType,
    InitProcessGroupKwargs,
    broadcast_object_list,
)
from safetensors import SafetensorError

from signfuse_dist.config import TrainConfig
from signfuse_dist.device import has_gpu
from signfuse_dist.engine.ds_config import resolve
from signfuse_dist.errors import UserError
from signfuse_dist.plan import Plan
from signfuse_dist.system_errors import told

T = TypeVar("T")

_SECONDS_BETWEEN_LOOKS = 0.5


def launched_world_size() -> int:
    """Return the number of processes that the launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launched_template() -> Path | None:
    """Return the DeepSpeed template that the launcher names, or None for plain DDP.

    `accelerate launch` passes on what its launch file says in two variables, which are set by
    hand for torchrun. Raises UserError where one of them is there without the other.
    """
    asked = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
    template = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    if asked and template == "none":
        raise UserError(
            "DeepSpeed is asked for without a template: a launch file names one as "
            "deepspeed_config_file (see launch/), torchrun needs "
            "ACCELERATE_DEEPSPEED_CONFIG_FILE=ds_configs/zero2.json"
        )
    if not asked and template != "none":
        raise UserError(
            f"ACCELERATE_DEEPSPEED_CONFIG_FILE={template} without ACCELERATE_USE_DEEPSPEED=true: "
            "set both for DeepSpeed, neither for plain DDP"
        )
    return Path(template) if asked else None


def start(plan: Plan, train: TrainConfig) -> tuple[Accelerator, dict[str, Any] | None]:
    """Make the Accelerator; return it with the DeepSpeed dictionary (None for plain DDP).

    Raises UserError for `accelerate launch --cpu`, and RuntimeError when the processes do not see
    each other: each would train alone, and nothing else would say so.
    """
    if os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("true", "1"):
        raise UserError(
            "ACCELERATE_USE_CPU is set (`accelerate launch --cpu`, or use_cpu: true in the launch "
            "file): Accelerate then starts one process, whatever was asked for. Leave it out; a "
            "machine without a GPU trains on the CPU (hide GPUs with CUDA_VISIBLE_DEVICES=)"
        )
    set_kernels(train)
    template = launched_template()
    resolved = resolve(template, plan, train) if template else None
    handlers: list[Any] = [DistributedDataParallelKwargs(broadcast_buffers=False)]
    # Without a launcher there is one process and no group; Accelerate would look for it.
    if not has_gpu() and "LOCAL_RANK" in os.environ:
        handlers.append(InitProcessGroupKwargs(backend="gloo"))
    plugin = None
    if resolved is not None:
        _skip_shared_memory_op()
        plugin = DeepSpeedPlugin(hf_ds_config=dict(resolved))
    accelerator = Accelerator(
        cpu=resolved is None and not has_gpu(),
        deepspeed_plugin=plugin,
        gradient_accumulation_steps=plan.accumulation,
        mixed_precision="bf16" if resolved is None and train.precision == "bf16" else "no",
        kwargs_handlers=handlers,
    )
    _assert_launched(accelerator, resolved is not None)
    return accelerator, resolved


def set_kernels(train: TrainConfig) -> None:
    """Let torch use the kernels that ``train.deterministic`` and ``train.tf32`` allow.

    An operation without a deterministic kernel is then an error of torch, which names it.
    """
    torch.use_deterministic_algorithms(train.deterministic)
    torch.backends.cudnn.deterministic = train.deterministic
    if train.deterministic:
        # Read when cuBLAS starts: workspaces of their own for each stream.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_float32_matmul_precision("high" if train.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = train.tf32


def do_on_main(accelerator: Accelerator, do: Callable[[], T]) -> T:
    """Let the main process look at the disk or write to it; return to all what it returns.

    Every process raises the UserError of the main one, and MachineError when the disk refuses: one
    that ended alone would leave the others waiting.
    """
    result: T | None = None
    refusal: UserError | None = None
    if accelerator.is_main_process:
        try:
            result = do()
        except UserError as e:
            refusal = e
        except (OSError, SafetensorError) as e:
            refusal = told(e)
    shared: list[Any] = [result, refusal]
    broadcast_object_list(shared)
    result, refusal = shared
    if refusal is not None:
        raise refusal
    return cast(T, result)


def gather_patiently(topic: str, own: str, wait: Callable[[], None]) -> list[str]:
    """Return what every process says of a topic, in their order; ``wait`` is called meanwhile.

    Through the job's store: a collective would give up after ten minutes, and what the others do
    may take an hour. A topic is spoken of once a job.
    """
    if not dist.is_initialized():
        return [own]
    store = dist.distributed_c10d._get_default_store()
    keys = [f"signfuse/{topic}/{rank}" for rank in range(dist.get_world_size())]
    store.set(keys[dist.get_rank()], own)
    while not store.check(keys):
        wait()
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    return [store.get(key).decode() for key in keys]


def _assert_launched(accelerator: Accelerator, deepspeed: bool) -> None:
    world = launched_world_size()
    seen = dist.get_world_size() if dist.is_initialized() else 1
    if not accelerator.num_processes == seen == world:
        raise RuntimeError(
            f"{world} processes were launched, Accelerate sees {accelerator.num_processes} and "
            f"torch.distributed {seen}: check the launch file (use_cpu must be false)"
        )
    if deepspeed != (accelerator.distributed_type == DistributedType.DEEPSPEED):
        raise RuntimeError(
            f"DeepSpeed was {'' if deepspeed else 'not '}asked for, and Accelerate runs "
            f"{accelerator.distributed_type}"
        )
    if world > 1 and not deepspeed and accelerator.distributed_type not in _PLAIN:
        raise RuntimeError(
            f"plain DDP was asked for, Accelerate runs {accelerator.distributed_type}"
        )


_PLAIN = (DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)


def _skip_shared_memory_op() -> None:
    """Keep DeepSpeed from compiling an op for CPU inference that training never uses (31 s)."""
    import deepspeed
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    deepspeed.ops.__compatible_ops__[ShareMemCommBuilder.NAME] = False
