"""What the tests on a GPU need; each skips by the name of what is missing."""

from __future__ import annotations

import pytest
import torch

from helpers.project import project

__all__ = ["project"]


@pytest.fixture(autouse=True, scope="session")
def device() -> torch.device:
    """The GPU; before anything that a test needs is made."""
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA GPU")
    return torch.device("cuda", 0)


@pytest.fixture(params=["flash_attention_2", "varlen"])
def kernel(request: pytest.FixtureRequest, device: torch.device) -> str:
    """Each variable-length backend that is here."""
    from signfuse_dist.model.attention import why_not

    reason = why_not(request.param, device, torch.bfloat16, 64)
    if reason is not None:
        pytest.skip(f"{request.param} is not here: {reason}")
    name: str = request.param
    return name
