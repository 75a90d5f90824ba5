"""Eq. 6-9: projections and cross-attention, head by head, and torch's own module."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from helpers.fusion_reference import DIM, HEADS, attention, clip, cross, pad, same_gradients
from helpers.model_factory import scramble
from signfuse_dist.model.attention import attend
from signfuse_dist.model.cmfa import CrossAttention, FusionLayer


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_attention_of_each_head_and_its_gradients(steps: int) -> None:
    query, key, value = (clip(steps, i) for i in range(3))
    found = attend(query[None], key[None], value[None], HEADS, key_mask=None)[0]
    expected = attention(query, key, value)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    same_gradients(found, expected, [query, key, value])


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_both_directions_and_their_gradients(steps: int) -> None:
    layer: Any = scramble(FusionLayer(DIM, HEADS, 4 * DIM, "cmfa").double())
    visual, skeletal = clip(steps, 1), clip(steps, 2)
    mask = (torch.arange(9) < steps)[None]
    found = layer.attend_across(pad(visual, 9), pad(skeletal, 9), mask)
    expected = (
        cross(visual, skeletal, layer.visual_from_skeletal),  # Eq. 8
        cross(skeletal, visual, layer.skeletal_from_visual),  # Eq. 9
    )
    sides = (layer.visual_from_skeletal, layer.skeletal_from_visual)
    for ours, theirs, part in zip(found, expected, sides, strict=True):
        torch.testing.assert_close(ours[0, :steps], theirs, rtol=1e-9, atol=1e-9)
        same_gradients(ours[0, :steps], theirs, [visual, skeletal, *part.parameters()])


def test_cross_attention_is_torchs_multi_head_attention_with_its_gradients() -> None:
    ours = scramble(CrossAttention(DIM, HEADS).double())
    theirs = nn.MultiheadAttention(DIM, HEADS, batch_first=True).double()
    with torch.no_grad():
        weights = [ours.query.weight, ours.key.weight, ours.value.weight]
        theirs.in_proj_weight.copy_(torch.cat(weights))
        theirs.in_proj_bias.zero_()
        theirs.out_proj.load_state_dict(ours.output.state_dict())
    visual, skeletal = torch.randn(2, 3, 7, DIM, dtype=torch.float64)
    visual.requires_grad_()
    skeletal.requires_grad_()
    mask = torch.arange(7)[None] < torch.tensor([7, 1, 4])[:, None]
    expected, _ = theirs(visual, skeletal, skeletal, key_padding_mask=~mask)
    found = ours(visual, skeletal, mask)
    torch.testing.assert_close(found[mask], expected[mask], rtol=1e-9, atol=1e-9)
    probe, inputs = torch.randn_like(found[mask]), [visual, skeletal]
    weights = [ours.query.weight, ours.key.weight, ours.value.weight]
    *own, query, key, value = torch.autograd.grad((found[mask] * probe).sum(), inputs + weights)
    *their, stacked = torch.autograd.grad(
        (expected[mask] * probe).sum(), [*inputs, theirs.in_proj_weight]
    )
    for a, b in zip((*own, torch.cat((query, key, value))), (*their, stacked), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_each_direction_has_the_projections_of_its_own_streams() -> None:
    layer: Any = FusionLayer(DIM, HEADS, 4 * DIM, "cmfa").double()
    names = [
        n
        for n, _ in layer.named_parameters()
        if n.endswith(("query.weight", "key.weight", "value.weight"))
    ]
    assert len(names) == 6  # W_Q, W_K, W_V of v and of s: Eq. 6-7
    assert not any("query.bias" in n for n, _ in layer.named_parameters())
    visual, skeletal = clip(3, 1)[None], clip(3, 2)[None]
    mask = torch.ones(1, 3, dtype=torch.bool)
    with torch.no_grad():
        before = layer.attend_across(visual, skeletal, mask)
        layer.visual_from_skeletal.value.weight.zero_()  # W_V^s enters O_{v->s} alone
        layer.visual_from_skeletal.output.bias.zero_()
        after = layer.attend_across(visual, skeletal, mask)
    assert not after[0].any()
    assert torch.equal(before[1], after[1])
