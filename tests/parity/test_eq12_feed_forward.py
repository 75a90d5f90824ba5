"""Eq. 12: the feed-forward network with its post-norm, and the stack of layers (section 3.4)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from helpers.fusion_reference import DIM, HEADS, clip, feed_forward, fuse, pad, same_gradients
from helpers.model_factory import scramble
from signfuse_dist.model.cmfa import CrossModalFusion, FusionLayer


@pytest.mark.parametrize("fusion", ["cmfa", "concat", "visual_from_skeletal"])
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_a_whole_layer_and_its_gradients(steps: int, fusion: str) -> None:
    layer: Any = scramble(FusionLayer(DIM, HEADS, 4 * DIM, fusion).double())
    visual, skeletal = clip(steps, 1), clip(steps, 2)
    found, _ = layer(pad(visual, 9), pad(skeletal, 9), (torch.arange(9) < steps)[None])
    expected = feed_forward(fuse(visual, skeletal, layer, fusion)[0], layer)
    torch.testing.assert_close(found[0, :steps], expected, rtol=1e-9, atol=1e-9)
    assert not found[0, steps:].any()
    same_gradients(found[0, :steps], expected, [visual, skeletal, *layer.parameters()])


def test_it_is_the_feed_forward_half_of_torchs_post_norm_transformer_layer() -> None:
    """torch's layer with its attention silenced, on what Eq. 11 gives."""
    layer: Any = scramble(FusionLayer(DIM, HEADS, 4 * DIM, "sum").double())
    theirs = nn.TransformerEncoderLayer(
        DIM, HEADS, 4 * DIM, dropout=0.0, activation="gelu", batch_first=True
    ).double()
    theirs.linear1.load_state_dict(layer.ffn[0].state_dict())
    theirs.linear2.load_state_dict(layer.ffn[2].state_dict())
    theirs.norm2.load_state_dict(layer.ffn_norm.state_dict())
    visual, skeletal = clip(7, 1), clip(7, 2)
    fused, _ = fuse(visual, skeletal, layer, "sum")
    expected = theirs.norm2(fused + theirs._ff_block(fused))
    found, _ = layer(visual[None], skeletal[None], torch.ones(1, 7, dtype=torch.bool))
    torch.testing.assert_close(found[0], expected, rtol=1e-9, atol=1e-9)
    same_gradients(found[0], expected, [visual, skeletal])


def test_the_stack_feeds_each_layer_the_fused_features_of_the_one_before() -> None:
    stack: Any = scramble(CrossModalFusion(DIM, 3, HEADS, 4 * DIM, "cmfa", 1.0).double())
    visual, skeletal = clip(5, 1), clip(5, 2)
    fused, first_gate = fuse(visual, skeletal, stack.layers[0], "cmfa")
    expected = feed_forward(fused, stack.layers[0])
    for layer in stack.layers[1:]:
        expected = feed_forward(fuse(expected, expected, layer, "cmfa")[0], layer)
    found, gate = stack(visual[None], skeletal[None], torch.ones(1, 5, dtype=torch.bool))
    assert first_gate is not None
    torch.testing.assert_close(found[0], expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(gate[0], first_gate.mean(dim=1), rtol=1e-9, atol=1e-9)
    same_gradients(found[0], expected, [visual, skeletal, *stack.parameters()])
