"""Eq. 10-11: gate, norm and residual, and the fusions that section 5.4 puts in their place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from helpers.fusion_reference import DIM, HEADS, clip, fuse, pad, same_gradients
from helpers.model_factory import scramble
from signfuse_dist.model.cmfa import FusionLayer

FUSIONS = ("cmfa", "concat", "sum", "visual_from_skeletal", "skeletal_from_visual", "no_gate")


def layer_of(fusion: str) -> Any:
    """A layer whose Eq. 12 is the identity: what is left is F_fused of Eq. 11."""
    layer: Any = scramble(FusionLayer(DIM, HEADS, 4 * DIM, fusion).double())
    layer.ffn_norm = nn.Identity()
    for parameter in layer.ffn[2].parameters():
        nn.init.zeros_(parameter)
    return layer


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_the_fused_features_and_their_gradients(steps: int, fusion: str) -> None:
    layer = layer_of(fusion)
    visual, skeletal = clip(steps, 1), clip(steps, 2)
    fused, gate = layer(pad(visual, 9), pad(skeletal, 9), (torch.arange(9) < steps)[None])
    expected, expected_gate = fuse(visual, skeletal, layer, fusion)
    torch.testing.assert_close(fused[0, :steps], expected, rtol=1e-9, atol=1e-9)
    assert not fused[0, steps:].any()
    of_fusion = [p for n, p in layer.named_parameters() if not n.startswith("ffn")]
    same_gradients(fused[0, :steps], expected, [visual, skeletal, *of_fusion])
    assert (gate is None) == (expected_gate is None) == (fusion != "cmfa")


@pytest.mark.parametrize("steps", [1, 3, 7])
def test_alpha_and_its_gradients(steps: int) -> None:
    layer = layer_of("cmfa")
    visual, skeletal = clip(steps, 1), clip(steps, 2)
    _, gate = layer(pad(visual, 9), pad(skeletal, 9), (torch.arange(9) < steps)[None])
    _, expected = fuse(visual, skeletal, layer, "cmfa")
    assert expected is not None
    torch.testing.assert_close(gate[0, :steps], expected, rtol=1e-9, atol=1e-9)
    assert ((expected > 0) & (expected < 1)).all()
    same_gradients(gate[0, :steps], expected, [visual, skeletal, *layer.gate.parameters()])


@pytest.mark.parametrize(("bias", "side"), [(40.0, 0), (-40.0, 1)])
def test_an_open_gate_passes_one_direction_alone(bias: float, side: int) -> None:
    layer = layer_of("cmfa")
    with torch.no_grad():
        layer.gate.weight.zero_()
        layer.gate.bias.fill_(bias)
    visual, skeletal = clip(5, 1), clip(5, 2)
    mask = torch.ones(1, 5, dtype=torch.bool)
    fused, _ = layer(visual[None], skeletal[None], mask)
    attended = layer.attend_across(visual[None], skeletal[None], mask)[side]
    expected = layer.fusion_norm(attended) + (visual + skeletal)[None] / 2
    torch.testing.assert_close(fused, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_fusion_has_the_parameters_of_its_equation_and_no_others(fusion: str) -> None:
    names = {n.partition(".")[0] for n, _ in layer_of(fusion).named_parameters()}
    own = {
        "cmfa": {"visual_from_skeletal", "skeletal_from_visual", "gate"},
        "no_gate": {"visual_from_skeletal", "skeletal_from_visual"},
        "visual_from_skeletal": {"visual_from_skeletal"},
        "skeletal_from_visual": {"skeletal_from_visual"},
        "concat": {"concat"},
        "sum": set(),
    }[fusion]
    assert names == own | {"fusion_norm", "ffn"}
