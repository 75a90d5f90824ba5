"""Where a process computes: a GPU that torch can use, or the CPU, and never the CPU unawares."""

from __future__ import annotations

import os

import torch

from signfuse_dist.errors import UserError
from signfuse_dist.nvidia import driver_version, signs_of_gpus, why_unusable


def choose() -> torch.device:
    """Return the GPU where torch can use one, else the CPU; raise UserError as :func:`has_gpu`."""
    return torch.device("cuda" if has_gpu() else "cpu")


def has_gpu() -> bool:
    """Return whether torch can use a GPU.

    Raises UserError where the machine says that it has one and torch cannot use it: days of
    training would run on its cores.
    """
    if torch.cuda.is_available():
        return True
    if signs := signs_of_gpus(os.environ):
        raise UserError(f"{', '.join(signs)}, and torch cannot use a GPU: {why_unusable()}")
    return False


def describe() -> str:
    """Return where this process computes, in words for a run's first line."""
    if not has_gpu():
        return f"the CPU ({torch.get_num_threads()} threads a process)"
    return (
        f"{torch.cuda.get_device_name()} (CUDA {torch.version.cuda}, driver {driver_version()}, "
        f"{torch.cuda.device_count()} visible)"
    )
