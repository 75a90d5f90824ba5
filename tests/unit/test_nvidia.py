"""GPUs that a machine says it has: found by their signs, never given up for the CPU in silence."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from helpers.repository import ROOT
from signfuse_dist import device, nvidia
from signfuse_dist.errors import UserError


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without a sign of a GPU; returns the folder that PATH and the devices lead to."""
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_GPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(nvidia, "_DEVICES", tmp_path)
    monkeypatch.setattr(nvidia, "_DRIVER", tmp_path / "version")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return tmp_path


def nvidia_smi(folder: Path, driver: str, gpus: int = 4) -> None:
    """Put an nvidia-smi into the folder that answers what is asked of it."""
    tool = folder / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\n"
        f"case $1 in --list-gpus) for i in {' '.join('x' * gpus)}; do echo GPU; done;;\n"
        f"--query-gpu=driver_version) echo {driver};;\n"
        "--query-gpu=memory.total) echo 81920; echo 40960;; esac\n"
    )
    tool.chmod(0o755)


def test_a_machine_without_a_sign_of_a_gpu_computes_on_the_cpu() -> None:
    assert device.choose().type == "cpu"
    assert device.describe().startswith("the CPU")


@pytest.mark.parametrize(
    ("sign", "said"),
    [
        ("CUDA_VISIBLE_DEVICES=0,1", "CUDA_VISIBLE_DEVICES is 0,1"),
        ("SLURM_GPUS_ON_NODE=4", "Slurm grants 4 GPUs"),
        ("device", "nvidia0, nvidia1"),
        ("nvidia-smi", "nvidia-smi lists 4 GPUs"),
    ],
)
def test_each_sign_of_a_gpu_that_torch_cannot_use_ends_the_run(
    bare_machine: Path, monkeypatch: pytest.MonkeyPatch, sign: str, said: str
) -> None:
    if "=" in sign:
        monkeypatch.setenv(*sign.split("=", 1))
    elif sign == "device":
        for name in ("nvidia0", "nvidia1", "nvidiactl"):
            (bare_machine / name).touch()
    else:
        nvidia_smi(bare_machine, "535.183.01")
    with pytest.raises(UserError, match=f"{said}.*torch cannot use a GPU"):
        device.has_gpu()


@pytest.mark.parametrize("hidden", ["", "-1", "NoDevFiles"])
def test_who_hides_the_gpus_trains_on_the_cpu(
    bare_machine: Path, monkeypatch: pytest.MonkeyPatch, hidden: str
) -> None:
    nvidia_smi(bare_machine, "535.183.01")
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "4")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert not device.has_gpu()


@pytest.mark.parametrize(
    ("cuda", "driver", "said"),
    [
        ("13.2", "570.124.06", r"needs driver 580.65.06 or newer, .* is 570.124.06. .*CUDA 12 "),
        ("12.6", "470.57.02", r"needs driver 525.60.13 or newer, .* is 470.57.02. .*CUDA 11 "),
        ("12.6", "390.48", r"needs driver 525.60.13 .* Have the driver updated"),
        ("13.2", "580.65.06", "is 580.65.06, new enough"),
        (None, "580.65.06", "built without CUDA"),
    ],
)
def test_the_driver_that_torch_needs_and_what_to_install_are_said(
    bare_machine: Path,
    monkeypatch: pytest.MonkeyPatch,
    cuda: str | None,
    driver: str,
    said: str,
) -> None:
    nvidia_smi(bare_machine, driver)
    monkeypatch.setattr(nvidia, "torch_cuda", lambda: cuda)
    with pytest.raises(UserError, match=said):
        device.choose()


def test_without_nvidia_smi_the_driver_is_read_from_the_kernel(bare_machine: Path) -> None:
    assert nvidia.driver_version() is None
    (bare_machine / "version").write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12\nGCC version: 12\n"
    )
    assert nvidia.driver_version() == "535.183.01"


def test_the_cuda_of_torch_is_read_without_running_torch() -> None:
    assert nvidia.torch_cuda() == torch.version.cuda


def test_the_memory_is_that_of_the_smallest_gpu(bare_machine: Path) -> None:
    assert nvidia.gpu_gigabytes() is None
    nvidia_smi(bare_machine, "580.65.06")
    assert nvidia.gpu_gigabytes() == pytest.approx(42.95, abs=0.01)


def test_another_index_of_torch_is_handed_to_the_installer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    make = ["make", "--dry-run", "--always-make", "install"]
    plain = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "--index" not in plain
    other = [*make, "TORCH_INDEX=https://wheels.example/cu126"]
    said = subprocess.run(other, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "--index https://wheels.example/cu126 --index-strategy unsafe-best-match" in said
