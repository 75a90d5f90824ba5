"""The GPUs that this machine says it has, their driver, and why torch cannot use them.

Imports no torch: a node whose driver is older than torch's CUDA looks to torch like a machine
without a GPU, and what it has is known from Slurm, the devices and the driver alone.
"""

from __future__ import annotations

import importlib.util
import runpy
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from packaging.version import InvalidVersion, Version

from signfuse_dist.errors import UserError

_HIDDEN = ("", "-1", "NoDevFiles")  # values of CUDA_VISIBLE_DEVICES that ask for the CPU
# The first driver on Linux that runs programs of a CUDA version, by its major number, as NVIDIA's
# table of minor version compatibility has it.
_FIRST_DRIVER = {11: "450.80.02", 12: "525.60.13", 13: "580.65.06"}
_DEVICES = Path("/dev")
_DRIVER = Path("/proc/driver/nvidia/version")


def signs_of_gpus(environment: Mapping[str, str]) -> list[str]:
    """Return what says that this machine has GPUs for the process; nothing where they are hidden.

    ``CUDA_VISIBLE_DEVICES=`` hides them: who sets it wants the CPU.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in _HIDDEN:
        return []
    signs = [] if visible is None else [f"CUDA_VISIBLE_DEVICES is {visible}"]
    granted = environment.get("SLURM_GPUS_ON_NODE", "0")
    if granted != "0":
        signs.append(f"Slurm grants {granted} GPUs (SLURM_GPUS_ON_NODE)")
    nodes = sorted(path.name for path in _DEVICES.glob("nvidia[0-9]*"))
    if nodes:
        signs.append(f"there are {_DEVICES}/{', '.join(nodes)}")
    if listed := _ask("--list-gpus"):
        signs.append(f"nvidia-smi lists {len(listed)} GPUs")
    return signs


def count_gpus(environment: Mapping[str, str]) -> int:
    """Return how many GPUs a process of this machine sees, whether or not torch can use them."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return 0 if visible.strip() in _HIDDEN else len(visible.split(","))
    return len(_ask("--list-gpus")) or len(list(_DEVICES.glob("nvidia[0-9]*")))


def why_unusable() -> str:
    """Return why torch may not use the GPUs of this machine, as far as can be told, and what to do.

    Reads torch's version and the driver's; imports no torch.
    """
    cuda, driver = torch_cuda(), driver_version()
    if cuda is None:
        return (
            "the torch that is installed is built without CUDA. Install one with it "
            "(README, Install), or train on the CPU with CUDA_VISIBLE_DEVICES="
        )
    said = f"torch is built for CUDA {cuda}"
    if driver is None:
        return (
            f"{said}, and no driver is found (nvidia-smi, {_DRIVER}). Start a container with the "
            "GPUs (apptainer exec --nv), or ask who runs the node, or train on the CPU with "
            "CUDA_VISIBLE_DEVICES="
        )
    needed = first_driver(cuda)
    if needed is None or not is_older(driver, needed):
        return (
            f"{said}, the driver is {driver}, new enough. Run python -c 'import torch; "
            "torch.cuda.init()' on the node to see the cause, or hide the GPUs with "
            "CUDA_VISIBLE_DEVICES= to train on the CPU"
        )
    fits = [str(major) for major, first in _FIRST_DRIVER.items() if not is_older(driver, first)]
    instead = (
        f"Install torch for CUDA {fits[-1]} (make clean, then make install TORCH_INDEX=ADDRESS, "
        f"with the address of PyTorch's wheels for it)"
        if fits
        else "Have the driver updated"
    )
    return (
        f"{said}, which needs driver {needed} or newer, and the driver is {driver}. {instead}, or "
        "train on the CPU with CUDA_VISIBLE_DEVICES="
    )


def torch_sees_gpu() -> bool:
    """Return whether torch can use a GPU, asked in a process of its own, which takes seconds."""
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    return done.returncode == 0


def torch_cuda() -> str | None:
    """Return the CUDA version that torch is built for, None for a build without; no torch runs."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        raise UserError("torch is not installed: make install")
    version = runpy.run_path(str(Path(found.origin).with_name("version.py")))
    return None if version["cuda"] is None else str(version["cuda"])


def driver_version() -> str | None:
    """Return the version of NVIDIA's driver, None where there is none."""
    if lines := _ask("--query-gpu=driver_version", "--format=csv,noheader"):
        return lines[0]
    try:
        words = _DRIVER.read_text(encoding="utf-8").split()
    except OSError:
        return None
    return next((word for word in words if word.count(".") >= 1 and word[0].isdigit()), None)


def gpu_gigabytes() -> float | None:
    """Return the memory of this machine's smallest GPU in GB, None where there is none."""
    lines = _ask("--query-gpu=memory.total", "--format=csv,noheader,nounits")
    try:
        return min(float(line) for line in lines) * 1024**2 / 1e9 if lines else None
    except ValueError:
        return None  # "[N/A]", of a GPU that shares the machine's memory


def first_driver(cuda: str) -> str | None:
    """Return the first driver that runs a CUDA version, None for one that is not known."""
    return _FIRST_DRIVER.get(int(cuda.partition(".")[0]))


def is_older(driver: str, other: str) -> bool:
    """Return whether a driver's version is below another; one that is no version is not."""
    try:
        return Version(driver) < Version(other)
    except InvalidVersion:
        return False


def _ask(*options: str) -> list[str]:
    """Return the lines of nvidia-smi, none where it is missing or has no driver to speak to."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    try:
        done = subprocess.run(
            [tool, *options], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]
