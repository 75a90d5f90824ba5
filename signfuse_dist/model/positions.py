"""Where a step stands in time, as attention of CMFA and HTA is told it (``model.positions``).

Paper: Eq. 6-9 and the attention of Eq. 17 have no positions, so CMFA of permuted steps is the
permuted CMFA; section 6.1 wants a correspondence "at each temporal position".
Here: ``none`` by default, and three kinds that have no parameters. ``sinusoidal`` adds sines and
cosines of the time to what queries and keys are projected from (Vaswani et al., 2017), in every
layer, and to neither values nor residual. ``rotary`` turns queries and keys by angles that grow
with the time (Su et al., 2021). ``distance`` takes slope x |time difference| from each head's
scores, with slopes 2, 1, 1/2, 1/4, ... over the heads (Press et al., 2022, whose slopes and causal
order are others).
Because: without them nothing keeps a step of the one stream near its own moment of the other
(docs/log.md has what each was worth).

Times are in steps. In CMFA both sides share the clip's steps 0, 1, 2, ... In HTA pooled position i
of P stands in the middle of what it averages of a clip of L steps, at (i + 1/2) L / P - 1/2: so a
distance in HTA is one of the clip's time too, whatever its length, and neighbours are nearer than a
step where the clip is shorter than P.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BASE = 10000.0  # of Vaswani et al., the longest wavelength over 2 pi


def step_times(count: int, device: torch.device) -> Tensor:
    """Return 0, 1, ... as float32 ``[1, count]``: the times of the steps of any clip."""
    return torch.arange(count, device=device, dtype=torch.float32)[None]


def pooled_times(step_lengths: Tensor, pooled_length: int) -> Tensor:
    """Return the times of HTA's pooled positions in steps of each clip.

    Float64 ``[batch, pooled]``, as exact as the pooling itself; who uses them rounds.
    """
    middle = torch.arange(pooled_length, device=step_lengths.device, dtype=torch.float64) + 0.5
    return middle[None] * (step_lengths[:, None].double() / pooled_length) - 0.5


def sinusoidal(times: Tensor, dim: int) -> Tensor:
    """Return sines and then cosines of each time, ``[..., steps]`` to ``[..., steps, dim]``.

    The frequencies are 10000^(-2i / dim) radians a step; ``dim`` is even.
    """
    angles = _angles(times, dim)
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


def rotated(x: Tensor, times: Tensor, num_heads: int) -> Tensor:
    """Turn queries or keys ``[batch, steps, dim]`` by their times, ``[batch or 1, steps]``.

    Channel i of a head's first half and of its second are the plane that is turned by the time x
    10000^(-2i / head_dim) radians, so a product of the two depends on the difference of their
    times. The channels of a head are even in number.
    """
    heads = x.unflatten(-1, (num_heads, -1))
    angles = _angles(times.to(torch.promote_types(x.dtype, torch.float32)), heads.shape[-1])
    cos, sin = (f[:, :, None].to(x.dtype) for f in (angles.cos(), angles.sin()))
    first, second = heads.chunk(2, dim=-1)
    turned = torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)
    return turned.flatten(2)


def slopes(num_heads: int, device: torch.device) -> Tensor:
    """Return what each head loses a step of distance: 2, 1, 1/2, 1/4, ..., float32 ``[heads]``."""
    return 2.0 ** (1.0 - torch.arange(num_heads, device=device, dtype=torch.float32))


def distance_bias(times: Tensor, num_heads: int) -> Tensor:
    """Return -slope x |time difference|, ``[batch or 1, heads, queries, keys]``.

    ``times`` are ``[batch or 1, steps]``, of queries and keys alike.
    """
    apart = (times[:, None, :, None] - times[:, None, None, :]).abs()
    return -slopes(num_heads, times.device)[:, None, None].to(times.dtype) * apart


def near_diagonal(weights: Tensor, steps: int = 1) -> tuple[float, float]:
    """Return the share of attention within ``steps`` of a query's own time, and that of chance.

    ``weights`` are those of one clip without padding, ``[..., queries, keys]``, whose rows sum to
    1, queries and keys having the same times. Chance is attention that is the same everywhere. A
    correspondence "at each temporal position" (section 6.1) has a share well above it.
    """
    queries, keys = weights.shape[-2:]
    rows = torch.arange(queries, device=weights.device)[:, None]
    near = (rows - torch.arange(keys, device=weights.device)[None]).abs() <= steps
    share = (weights * near).sum(dim=-1).mean()
    return float(share), float(near.double().mean())


def _angles(times: Tensor, dim: int) -> Tensor:
    """Return time x 10000^(-2i / dim), ``[..., steps]`` to ``[..., steps, dim / 2]``."""
    exponents = torch.arange(0, dim, 2, device=times.device, dtype=times.dtype) / dim
    return times[..., None] * _BASE**-exponents
