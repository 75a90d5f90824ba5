"""Eq. 6-12 written out for one clip, ``[steps, dim]`` in float64: heads and steps by loops."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

DIM, HEADS = 12, 3


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(d_k)) V of each head."""
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


def linear(x: Tensor, layer: Any) -> Tensor:
    out: Tensor = x @ layer.weight.T
    return out if layer.bias is None else out + layer.bias


def layer_norm(x: Tensor, norm: Any) -> Tensor:
    mean, variance = x.mean(1, keepdim=True), x.var(1, correction=0, keepdim=True)
    scaled: Tensor = (x - mean) / torch.sqrt(variance + 1e-5) * norm.weight + norm.bias
    return scaled


def cross(queries: Tensor, keys: Tensor, part: Any) -> Tensor:
    """Eq. 8 or 9 with the output projection."""
    projected = (linear(queries, part.query), linear(keys, part.key), linear(keys, part.value))
    return linear(attention(*projected), part.output)


def mix(visual: Tensor, skeletal: Tensor, layer: Any, fusion: str) -> tuple[Tensor, Tensor | None]:
    """What is inside the norm of Eq. 11, and alpha of Eq. 10."""
    if fusion == "sum":
        return visual + skeletal, None
    if fusion == "concat":
        return linear(torch.cat((visual, skeletal), 1), layer.concat), None
    if fusion == "visual_from_skeletal":
        return cross(visual, skeletal, layer.visual_from_skeletal), None
    if fusion == "skeletal_from_visual":
        return cross(skeletal, visual, layer.skeletal_from_visual), None
    to_skeleton = cross(visual, skeletal, layer.visual_from_skeletal)
    to_picture = cross(skeletal, visual, layer.skeletal_from_visual)
    if fusion == "no_gate":
        return 0.5 * to_skeleton + 0.5 * to_picture, None
    gate = 1 / (1 + torch.exp(-linear(torch.cat((to_skeleton, to_picture), 1), layer.gate)))
    return gate * to_skeleton + (1 - gate) * to_picture, gate


def fuse(visual: Tensor, skeletal: Tensor, layer: Any, fusion: str) -> tuple[Tensor, Tensor | None]:
    """F_fused of Eq. 11 and alpha."""
    mixed, gate = mix(visual, skeletal, layer, fusion)
    return layer_norm(mixed, layer.fusion_norm) + (visual + skeletal) / 2, gate


def feed_forward(fused: Tensor, layer: Any) -> Tensor:
    """F'_fused of Eq. 12, with GELU by the error function."""
    hidden = linear(fused, layer.ffn[0])
    hidden = hidden / 2 * (1 + torch.erf(hidden / math.sqrt(2)))
    return layer_norm(fused + linear(hidden, layer.ffn[2]), layer.ffn_norm)


def clip(steps: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(steps, DIM, dtype=torch.float64, generator=generator).requires_grad_()


def pad(x: Tensor, steps: int) -> Tensor:
    """A batch of one clip with rubbish beyond its end."""
    return nn.functional.pad(x, (0, 0, 0, steps - len(x)), value=5.0)[None]


def same_gradients(found: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    """Compare the gradients of a random weighting of two results."""
    probe = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad((found * probe).sum(), inputs),
        torch.autograd.grad((expected * probe).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
