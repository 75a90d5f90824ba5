"""On a GPU a step repeats itself bit for bit where deterministic kernels are asked for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from helpers.model_factory import step_of
from signfuse_dist.config import STAGES, StageName, TrainConfig
from signfuse_dist.engine import processes

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def deterministic() -> Iterator[None]:
    """Deterministic kernels, and torch's choice afterwards."""
    train = {"micro_batch_size": 1, "precision": "bf16", "gradient_clipping": 1.0}
    processes.set_kernels(TrainConfig(deterministic=True, **train))
    yield
    processes.set_kernels(TrainConfig(**train))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stage", STAGES)
def test_a_step_gives_the_same_bits_each_time(
    stage: StageName, dtype: torch.dtype, device: torch.device
) -> None:
    first, second = (step_of(stage, device, dtype) for _ in range(2))
    assert first
    assert all(torch.equal(first[name], second[name]) for name in first)
