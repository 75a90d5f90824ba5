"""Hierarchical Temporal Aggregation, Eq. 13-17: three time scales, pooled to one length."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from signfuse_dist.batch import length_mask, pooling_weights
from signfuse_dist.model.attention import Attention
from signfuse_dist.model.dropout import ClipDropout
from signfuse_dist.model.positions import pooled_times


class TimeScale(nn.Module):
    """One of Eq. 13-15: a depthwise separable convolution of one kernel and stride."""

    def __init__(self, dim: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.depthwise = nn.Conv1d(dim, dim, kernel, stride, padding=kernel // 2, groups=dim)
        self.pointwise = nn.Conv1d(dim, dim, 1)

    def forward(self, fused: Tensor, step_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """``[batch, steps, dim]``, zero beyond each end, to ceil(steps / stride) and lengths."""
        x = self.pointwise(self.depthwise(fused.transpose(1, 2))).transpose(1, 2)
        lengths = torch.div(step_lengths + self.stride - 1, self.stride, rounding_mode="floor")
        return x, lengths


class TemporalPooling(nn.Module):
    """HTA left out (section 5.4): the fused features pooled to T'' as in Eq. 16, and no more."""

    def __init__(self, pooled_length: int) -> None:
        super().__init__()
        self.pooled_length = pooled_length

    def forward(self, fused: Tensor, step_lengths: Tensor) -> Tensor:
        """``[batch, steps, dim]`` to ``[batch, pooled_length, dim]``; padding is not read."""
        return _pool(fused, step_lengths, self.pooled_length)


class TemporalAggregation(nn.Module):
    """Eq. 13-17 with as many scales as there are kernels and strides; all three by default.

    Paper: Eq. 16 prints H_seg twice. Here: the third is H_seq. Because: three scales are named
    and Eq. 15 defines H_seq.
    """

    def __init__(
        self,
        dim: int,
        kernels: Sequence[int],
        strides: Sequence[int],
        pooled_length: int,
        num_heads: int,
    ) -> None:
        super().__init__()
        self.pooled_length = pooled_length
        self.attention = Attention(num_heads)
        self.scales = nn.ModuleList(
            TimeScale(dim, kernel, stride) for kernel, stride in zip(kernels, strides, strict=True)
        )
        self.combine = nn.Linear(len(self.scales) * dim, dim)
        # No bias, as in Eq. 6-7: softmax takes a bias of the keys away.
        self.query_key_value = nn.Linear(dim, 3 * dim, bias=False)
        self.output = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.dropout = ClipDropout()

    def forward(self, fused: Tensor, step_lengths: Tensor) -> Tensor:
        """Return ``temporal`` (H_final of Eq. 17), ``[batch, pooled_length, dim]``.

        ``fused`` is ``[batch, steps, dim]``, zero beyond each clip's end.
        """
        mask = length_mask(step_lengths, fused.shape[1])
        combined = self.combine(self.multi_scale(fused * mask[:, :, None], step_lengths))
        times = pooled_times(step_lengths, self.pooled_length)
        query, key, value = self._project(combined, times)
        attended = self.attention(query, key, value, times=times)  # every pooled position is real
        temporal: Tensor = self.norm(combined + self.dropout(self.output(attended)))
        return temporal

    def _project(self, combined: Tensor, times: Tensor) -> Sequence[Tensor]:
        placed = self.attention.placed(combined, times)
        if placed is combined:
            return self.query_key_value(combined).chunk(3, dim=-1)  # type: ignore[no-any-return]
        both, own = self.query_key_value.weight.split((2 * combined.shape[2], combined.shape[2]))
        return (*F.linear(placed, both).chunk(2, dim=-1), F.linear(combined, own))

    def multi_scale(self, fused: Tensor, step_lengths: Tensor) -> Tensor:
        """Return H_multi of Eq. 16, ``[batch, pooled_length, scales * dim]``."""
        pooled = []
        for scale in self.scales:
            x, lengths = scale(fused, step_lengths)
            pooled.append(_pool(x, lengths, self.pooled_length))
        return torch.cat(pooled, dim=-1)


def _pool(x: Tensor, lengths: Tensor, pooled_length: int) -> Tensor:
    """Adaptive average pooling over each clip's real steps."""
    return pooling_weights(lengths, x.shape[1], pooled_length).to(x.dtype) @ x
