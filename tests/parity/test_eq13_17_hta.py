"""Eq. 13-17: three time scales by loops, pooling and self-attention by torch's own modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.fusion_reference import same_gradients
from helpers.model_factory import scramble
from signfuse_dist.batch import pooling_weights
from signfuse_dist.model.hta import TemporalAggregation, TimeScale

DIM, HEADS, POOLED = 6, 2, 5
KERNELS, STRIDES, ALL = (1, 5, 11), (1, 2, 4), (0, 1, 2)


def _depthwise_separable(x: Tensor, scale: Any, kernel: int, stride: int) -> Tensor:
    """DWConv1D over one clip: each channel by itself, then channels mixed at each step."""
    rows = []
    for step in range(-(-len(x) // stride)):
        total = scale.depthwise.bias
        for k in range(kernel):
            position = stride * step + k - kernel // 2
            if 0 <= position < len(x):
                total = total + scale.depthwise.weight[:, 0, k] * x[position]
        rows.append(scale.pointwise.weight[:, :, 0] @ total + scale.pointwise.bias)
    return torch.stack(rows)


def _pool(x: Tensor, size: int) -> Tensor:
    rows = []
    for i in range(size):
        start, stop = i * len(x) // size, -(-(i + 1) * len(x) // size)
        rows.append(sum(x[j] for j in range(start, stop)) / (stop - start))
    return torch.stack(rows)


def _naive(fused: Tensor, module: Any, chosen: tuple[int, ...]) -> Tensor:
    multi = torch.cat(
        [
            _pool(_depthwise_separable(fused, scale, KERNELS[i], STRIDES[i]), POOLED)
            for scale, i in zip(module.scales, chosen, strict=True)
        ],
        dim=1,
    )  # Eq. 16
    combined = multi @ module.combine.weight.T + module.combine.bias
    projected = combined @ module.query_key_value.weight.T
    query, key, value = projected.chunk(3, dim=1)
    width, heads = DIM // HEADS, []
    for head in range(HEADS):
        part = slice(head * width, (head + 1) * width)
        scores = query[:, part] @ key[:, part].T / width**0.5
        heads.append((scores.exp() / scores.exp().sum(1, keepdim=True)) @ value[:, part])
    x = combined + torch.cat(heads, 1) @ module.output.weight.T + module.output.bias
    mean, variance = x.mean(1, keepdim=True), x.var(1, correction=0, keepdim=True)
    scaled: Tensor = (x - mean) / (variance + 1e-5) ** 0.5 * module.norm.weight + module.norm.bias
    return scaled


def _module(chosen: tuple[int, ...] = ALL) -> Any:
    torch.manual_seed(0)
    kernels, strides = [KERNELS[i] for i in chosen], [STRIDES[i] for i in chosen]
    return scramble(TemporalAggregation(DIM, kernels, strides, POOLED, HEADS).double())


@pytest.mark.parametrize(("kernel", "stride"), list(zip(KERNELS, STRIDES, strict=True)))
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 13])
def test_one_time_scale(steps: int, kernel: int, stride: int) -> None:
    scale = scramble(TimeScale(DIM, kernel, stride).double())
    x = torch.randn(steps, DIM, dtype=torch.float64, requires_grad=True)
    found, lengths = scale(x[None], torch.tensor([steps]))
    assert lengths.tolist() == [-(-steps // stride)] == [found.shape[1]]
    expected = _depthwise_separable(x, scale, kernel, stride)
    torch.testing.assert_close(found[0], expected, rtol=1e-10, atol=1e-10)
    same_gradients(found[0], expected, [x, *scale.parameters()])


@pytest.mark.parametrize("pooled", [1, 3, 5, 64])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 13])
def test_pooling_is_torchs_adaptive_average_over_real_steps(steps: int, pooled: int) -> None:
    x = torch.randn(steps, DIM, dtype=torch.float64)
    expected = nn.AdaptiveAvgPool1d(pooled)(x.T[None])[0].T
    rubbish = torch.full((4, DIM), 9.0, dtype=torch.float64)
    weights = pooling_weights(torch.tensor([steps]), steps + 4, pooled)
    found = weights[0] @ torch.cat((x, rubbish))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(_pool(x, pooled), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chosen", [ALL, (0,), (1,), (2,), (0, 2)])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 13])
def test_equations_13_to_17_and_their_gradients(steps: int, chosen: tuple[int, ...]) -> None:
    """With all scales, and with subsets of them (section 5.4)."""
    module = _module(chosen)
    x = torch.randn(steps, DIM, dtype=torch.float64, requires_grad=True)
    padded = nn.functional.pad(x, (0, 0, 0, 6), value=5.0)[None]
    found = module(padded, torch.tensor([steps]))[0]
    expected = _naive(x, module, chosen)
    assert found.shape == (POOLED, DIM)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    same_gradients(found, expected, [x, *module.parameters()])


def test_the_self_attention_is_torchs_with_its_gradients() -> None:
    module = _module()
    theirs = nn.MultiheadAttention(DIM, HEADS, batch_first=True).double()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(module.query_key_value.weight)
        theirs.in_proj_bias.zero_()
        theirs.out_proj.load_state_dict(module.output.state_dict())
    x, lengths = torch.randn(2, 9, DIM, dtype=torch.float64), torch.tensor([9, 9])
    x.requires_grad_()
    combined = module.combine(module.multi_scale(x, lengths))
    expected = module.norm(combined + theirs(combined, combined, combined)[0])
    found = module(x, lengths)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    same_gradients(found, expected, [x])
