"""What a device can do at best, by its name; absent where not known; the parts of a start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from signfuse_dist.engine.metrics import device_name, peak_flops, peak_memory
from signfuse_dist.engine.timing import Startup


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA A10", 125e12),
        ("CPU", None),
        ("NVIDIA A1000 Laptop", None),
    ],
)
def test_the_peak_goes_by_the_name_of_the_gpu(name: str, peak: float | None) -> None:
    assert peak_flops(name, "bf16") == peak
    assert peak_flops(name, "fp32") is None


def test_memory_of_a_cpu_is_that_of_the_process() -> None:
    device = torch.device("cpu")
    assert device_name(device) == "CPU"
    before = peak_memory(device)
    held = torch.ones(64 * 2**20)  # 256 MB
    assert peak_memory(device) >= before
    assert peak_memory(device) > held.nbytes


def test_the_parts_of_a_start_add_up_and_are_written_once(tmp_path: Path) -> None:
    startup = Startup()
    for part in ("data", "model", "data"):
        startup.lap(part)
    path = tmp_path / "startup.json"
    line = startup.end(path)
    assert line is not None
    assert line.startswith("first step after ")
    written = json.loads(path.read_text(encoding="utf-8"))
    assert list(written) == ["total", "imports", "data", "model"]
    assert written["imports"] > 0.1
    startup.lap("late")
    assert startup.end(path) is None
    assert json.loads(path.read_text(encoding="utf-8")) == written
