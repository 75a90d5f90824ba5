"""Eq. 6-12: cross-attention, gate, fusion and feed-forward, head by head and step by step."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from model_factory import scramble
from torch import Tensor, nn

from signfuse_dist.model.attention import attend
from signfuse_dist.model.cmfa import CrossAttention, CrossModalFusion, FusionLayer

DIM, HEADS = 12, 3


def _attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(d_k)) V for each head of one clip, ``[steps, dim]``."""
    width, heads = DIM // HEADS, []
    for head in range(HEADS):
        part = slice(head * width, (head + 1) * width)
        rows = []
        for q in query[:, part]:
            scores = torch.stack([q @ k / math.sqrt(width) for k in key[:, part]])
            weights = torch.exp(scores) / torch.exp(scores).sum()
            rows.append(sum(w * v for w, v in zip(weights, value[:, part], strict=True)))
        heads.append(torch.stack(rows))
    return torch.cat(heads, dim=1)


def _layer_norm(x: Tensor, norm: Any) -> Tensor:
    mean, variance = x.mean(1, keepdim=True), x.var(1, correction=0, keepdim=True)
    scaled: Tensor = (x - mean) / torch.sqrt(variance + 1e-5) * norm.weight + norm.bias
    return scaled


def _linear(x: Tensor, layer: Any) -> Tensor:
    out: Tensor = x @ layer.weight.T
    return out if layer.bias is None else out + layer.bias


def _cross(queries: Tensor, keys: Tensor, part: CrossAttention) -> Tensor:
    attended = _attention(
        _linear(queries, part.query), _linear(keys, part.key), _linear(keys, part.value)
    )
    return _linear(attended, part.output)


def _fusion(visual: Tensor, skeletal: Tensor, layer: FusionLayer) -> tuple[Tensor, Tensor]:
    to_skeleton = _cross(visual, skeletal, layer.visual_from_skeletal)  # Eq. 8
    to_picture = _cross(skeletal, visual, layer.skeletal_from_visual)  # Eq. 9
    gate = 1 / (1 + torch.exp(-_linear(torch.cat((to_skeleton, to_picture), 1), layer.gate)))
    mixed = gate * to_skeleton + (1 - gate) * to_picture
    fused = _layer_norm(mixed, layer.fusion_norm) + (visual + skeletal) / 2  # Eq. 11
    inner: Any = layer.ffn
    hidden = _linear(fused, inner[0])
    hidden = hidden / 2 * (1 + torch.erf(hidden / math.sqrt(2)))  # GELU
    return _layer_norm(fused + _linear(hidden, inner[2]), layer.ffn_norm), gate  # Eq. 12


def _clip(steps: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(steps, DIM, dtype=torch.float64, generator=generator).requires_grad_()


def _pad(x: Tensor, steps: int) -> Tensor:
    return nn.functional.pad(x, (0, 0, 0, steps - len(x)), value=5.0)[None]


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_attention_of_each_head(steps: int) -> None:
    query, key, value = (_clip(steps, i) for i in range(3))
    found = attend(query[None], key[None], value[None], HEADS, key_mask=None)[0]
    torch.testing.assert_close(found, _attention(query, key, value), rtol=1e-10, atol=1e-10)


def test_cross_attention_is_torchs_multi_head_attention() -> None:
    ours = scramble(CrossAttention(DIM, HEADS).double())
    theirs = nn.MultiheadAttention(DIM, HEADS, batch_first=True).double()
    with torch.no_grad():
        weights = [ours.query.weight, ours.key.weight, ours.value.weight]
        theirs.in_proj_weight.copy_(torch.cat(weights))
        theirs.in_proj_bias.zero_()
        theirs.out_proj.load_state_dict(ours.output.state_dict())
    visual, skeletal = torch.randn(2, 3, 7, DIM, dtype=torch.float64)
    mask = torch.arange(7)[None] < torch.tensor([7, 1, 4])[:, None]
    expected, _ = theirs(visual, skeletal, skeletal, key_padding_mask=~mask)
    found = ours(visual, skeletal, mask)
    torch.testing.assert_close(found[mask], expected[mask], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_a_layer_and_its_gradients(steps: int) -> None:
    layer: Any = scramble(FusionLayer(DIM, HEADS, 4 * DIM).double())
    visual, skeletal = _clip(steps, 1), _clip(steps, 2)
    mask = (torch.arange(9) < steps)[None]
    fused, gate = layer(_pad(visual, 9), _pad(skeletal, 9), mask)
    expected, expected_gate = _fusion(visual, skeletal, layer)
    torch.testing.assert_close(fused[0, :steps], expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gate[0, :steps], expected_gate, rtol=1e-9, atol=1e-9)
    assert not fused[0, steps:].any()
    probe = torch.randn_like(expected)
    inputs = [visual, skeletal, *layer.parameters()]
    for a, b in zip(
        torch.autograd.grad((fused[0, :steps] * probe).sum(), inputs),
        torch.autograd.grad((expected * probe).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_each_direction_has_the_projections_of_its_own_streams() -> None:
    layer: Any = FusionLayer(DIM, HEADS, 4 * DIM).double()
    names = [n for n, _ in layer.named_parameters() if n.endswith(("query.weight", "key.weight",
                                                                   "value.weight"))]  # fmt: skip
    assert len(names) == 6  # W_Q, W_K, W_V of v and of s: Eq. 6-7
    assert not any("query.bias" in n for n, _ in layer.named_parameters())
    visual, skeletal = _clip(3, 1)[None], _clip(3, 2)[None]
    mask = torch.ones(1, 3, dtype=torch.bool)
    with torch.no_grad():
        before = layer.attend_across(visual, skeletal, mask)
        layer.visual_from_skeletal.value.weight.zero_()  # W_V^s enters O_{v->s} alone
        layer.visual_from_skeletal.output.bias.zero_()
        after = layer.attend_across(visual, skeletal, mask)
    assert not after[0].any()
    assert torch.equal(before[1], after[1])


def test_the_stack_feeds_each_layer_the_fused_features_of_the_one_before() -> None:
    stack: Any = scramble(CrossModalFusion(DIM, 3, HEADS, 4 * DIM).double())
    visual, skeletal = _clip(5, 1), _clip(5, 2)
    expected, first_gate = _fusion(visual, skeletal, stack.layers[0])
    for layer in stack.layers[1:]:
        expected, _ = _fusion(expected, expected, layer)
    fused, gate = stack(visual[None], skeletal[None], torch.ones(1, 5, dtype=torch.bool))
    torch.testing.assert_close(fused[0], expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(gate[0], first_gate.mean(dim=1), rtol=1e-9, atol=1e-9)
