"""Norms along time that padding and other clips cannot disturb."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class StepNorm(nn.Module):
    """Layer norm over the channels (and joints) of one step: independent of every other step.

    Input ``[batch, channels, steps, ...]``; the affine parameters are one a channel.
    """

    def __init__(self, num_channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.eps = eps

    def forward(self, x: Tensor, counted: Tensor) -> Tensor:
        """Return ``x`` normalised.

        ``counted``, bool of as many axes as ``x``, says which of a step's values are counted; a
        step without any counts all. One of two axes, as :class:`BatchNorm` takes it, is not needed.
        """
        over = (1, *range(3, x.ndim))
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        if counted.ndim == x.ndim:
            keep = (counted | ~counted.any(over, keepdim=True)).to(values.dtype).expand_as(values)
            count = keep.sum(over, keepdim=True)
            mean = (values * keep).sum(over, keepdim=True) / count
            variance = ((values - mean) * keep).square().sum(over, keepdim=True) / count
        else:
            variance, mean = torch.var_mean(values, dim=over, correction=0, keepdim=True)
        scaled = (values - mean) * torch.rsqrt(variance + self.eps)
        return (scaled * _per_channel(self.weight, x) + _per_channel(self.bias, x)).to(x.dtype)


class BatchNorm(nn.Module):
    """Batch norm over the real steps, with statistics by one of three policies.

    `sync`: in training the statistics of all processes, summed with a gradient, so any number of
    processes gives the same result (torch's own SyncBatchNorm needs a GPU and counts padding).
    `local`: in training those of this process alone, so the result depends on how many there are.
    `frozen`: the stored statistics always; untrained ones are mean 0 and variance 1.

    Input ``[batch, channels, steps, ...]``; ``counted`` is bool ``[batch, steps]``, or of as many
    axes as the input, each of its length or 1, where not all of a step is there.

    Attributes:
        period: channels so far apart have one variance, that of all their values about each
            channel's own mean; None: each has its own.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self, num_channels: int, policy: str, eps: float = 1e-5, momentum: float = 0.1
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.register_buffer("running_mean", torch.zeros(num_channels))
        self.register_buffer("running_var", torch.ones(num_channels))
        self.policy, self.eps, self.momentum = policy, eps, momentum
        self.period: int | None = None

    @property
    def uses_batch(self) -> bool:
        """Whether the next call takes its statistics from its input."""
        return self.training and self.policy != "frozen"

    def forward(self, x: Tensor, counted: Tensor) -> Tensor:
        """Return ``x`` normalised by the batch or by the running statistics."""
        mean, variance = self._statistics(x, counted) if self.uses_batch else self._running()
        scale = self.weight * torch.rsqrt(variance + self.eps)
        shift = self.bias - mean * scale
        return (x * _per_channel(scale, x) + _per_channel(shift, x)).to(x.dtype)

    def _running(self) -> tuple[Tensor, Tensor]:
        return self.running_mean, self.running_var

    def _statistics(self, x: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
        if counted.ndim == 2:
            counted = counted.view(len(counted), 1, counted.shape[1], *(1,) * (x.ndim - 3))
        keep = counted.to(self.weight.dtype)
        over = (0, *range(2, x.ndim))
        values = x.to(self.weight.dtype)
        # One for all channels, or one a channel.
        spread = math.prod(x.shape[i] for i in range(3, x.ndim) if keep.shape[i] == 1)
        places = keep.sum(over) * spread
        # Two passes: the one-pass formula loses the variance of channels with a large mean.
        sums = self._together(torch.cat(((values * keep).sum(over), places)))
        places_of_all = sums[x.shape[1] :].detach()
        mean = sums[: x.shape[1]] / places_of_all.clamp(min=1)
        centred = (values - _per_channel(mean, x)) * keep
        squares = self._together(centred.square().sum(over))
        squares, spread_over = self._pooled(squares), self._pooled(places_of_all.expand_as(squares))
        count = spread_over.clamp(min=1)
        variance = squares / count
        with torch.no_grad():
            unbiased = variance * count / (count - 1).clamp(min=1)
            for kept, found, places in (
                (self.running_mean, mean, places_of_all),
                (self.running_var, unbiased, spread_over),
            ):
                kept.lerp_(found.to(kept.dtype), self.momentum * (places > 0).to(kept.dtype))
        # The last micro batches of an epoch can hold no real clip, and all clips of a step may lack
        # a joint: nothing is learned from them,
        # and a variance of zero would blow them up to infinity through a chain of norms.
        return (
            torch.where(places_of_all > 0, mean, self.running_mean),
            torch.where(spread_over > 0, variance, self.running_var),
        )

    def _pooled(self, sums: Tensor) -> Tensor:
        """Return sums of channels, each with those of all channels whose variance it shares."""
        if self.period is None:
            return sums
        return sums.view(-1, self.period).sum(0).repeat(len(sums) // self.period)

    def _together(self, x: Tensor) -> Tensor:
        return sum_over_processes(x) if self.policy == "sync" else x


class ImageBatchNorm(BatchNorm):
    """Batch norm of feature maps ``[frames, channels, height, width]``, for torchvision's blocks.

    Paper: ResNet-50 with its batch norm, fine-tuned (section 3.7). Here: `frozen` by default,
    statistics stay those of ImageNet while weight and bias train. Because: batches of video
    frames are correlated, and frozen statistics make a clip independent of its neighbours and a
    chunked backward pass exact.
    """

    def forward(self, x: Tensor, counted: Tensor | None = None) -> Tensor:
        """Return ``x`` normalised; every frame counts."""
        if self.uses_batch:
            every = torch.ones(len(x), x.shape[2], dtype=torch.bool, device=x.device)
            return super().forward(x, every)
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, eps=self.eps
        )


def sum_over_processes(x: Tensor) -> Tensor:
    """Return the sum of ``x`` over all processes, with the gradient of that sum."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return x
    total: Tensor = _AllReduceSum.apply(x)
    return total


class _AllReduceSum(torch.autograd.Function):
    """Every process's loss depends on every process's input, so gradients are summed as well.

    torch.distributed.nn.functional.all_reduce is the same to the bit, but torch 2.15 deprecates it
    in favour of a module that is not public.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.detach().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        return total


def _per_channel(vector: Tensor, x: Tensor) -> Tensor:
    return vector.view(1, -1, *(1,) * (x.ndim - 2))
