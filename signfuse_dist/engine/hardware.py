"""What a device can do at best, and how much of its memory has been used."""

from __future__ import annotations

import resource

import torch

# Dense bfloat16 operations a second from the makers' data sheets, by a part of the name that CUDA
# gives; the first that fits counts.
_PEAKS = (
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("GH200", 989e12),
    ("H100", 989e12),
    ("H200", 989e12),
    ("B200", 2250e12),
    ("A100", 312e12),
    ("A40", 149.7e12),
    ("A30", 165e12),
    ("A10", 125e12),
    ("L40S", 362e12),
    ("L4", 121e12),
)


def peak_flops(device_name: str, precision: str) -> float | None:
    """Return the operations a second that a device can do; None where they are not known.

    They are known for bfloat16 on the GPUs of the table, and for nothing else.
    """
    if precision != "bf16":
        return None
    words = device_name.replace("-", " ")
    for part, peak in _PEAKS:
        if f" {part} " in f" {words} ":
            return peak
    return None


def device_name(device: torch.device) -> str:
    """Return the name that CUDA has for a GPU; a CPU is called CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def peak_memory(device: torch.device) -> float:
    """Return the most bytes that this process has held: allocated on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
