"""Where the gain of Eq. 11's norm starts, and what that leaves of the streams."""

from __future__ import annotations

import pytest
import torch

from helpers.model_factory import small_config
from signfuse_dist.model.building import build_fusion
from signfuse_dist.model.cmfa import CrossModalFusion


@pytest.mark.parametrize("gain", [0.0, 0.1, 1.0])
def test_every_layer_starts_at_the_gain_of_the_configuration(gain: float) -> None:
    stack = build_fusion(small_config(fusion_layers=2, fusion_gain=gain))
    starts = [p for n, p in stack.named_parameters() if n.endswith("fusion_norm.weight")]
    assert len(starts) == 2
    assert all((start == gain).all() for start in starts)


@torch.no_grad()
def _share_that_tells_the_steps_apart(gain: float) -> float:
    """Of an untrained stack's output: its variance along time over its mean square."""
    torch.manual_seed(0)
    stack = CrossModalFusion(64, 3, 4, 256, "cmfa", gain)
    visual, skeletal = torch.randn(2, 8, 20, 64).relu()
    fused, _ = stack(visual, skeletal, torch.ones(8, 20, dtype=torch.bool))
    return float(fused.var(dim=1).mean() / fused.square().mean())


def test_a_small_gain_keeps_the_steps_of_a_clip_apart_where_one_drowns_them() -> None:
    large, small = (_share_that_tells_the_steps_apart(gain) for gain in (1.0, 0.1))
    assert large < 0.1
    assert small > 0.7
