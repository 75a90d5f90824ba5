"""Attention of CMFA and HTA: one function, so that one setting can drive both."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def attend(
    query: Tensor, key: Tensor, value: Tensor, num_heads: int, key_mask: Tensor | None
) -> Tensor:
    """Return softmax(Q K^T / sqrt(d_k)) V of Eq. 8-9 for ``num_heads`` heads, d_k = dim / heads.

    Args:
        query: ``[batch, queries, dim]``.
        key: ``[batch, keys, dim]``.
        value: ``[batch, keys, dim]``.
        num_heads: h; divides ``dim``.
        key_mask: bool ``[batch, keys]``, True = real and one real step a clip at
            least; None = every key is real.

    Returns:
        ``[batch, queries, dim]``, heads side by side. Queries beyond a clip's end are not zeroed.
    """
    out = F.scaled_dot_product_attention(
        _split(query, num_heads),
        _split(key, num_heads),
        _split(value, num_heads),
        attn_mask=None if key_mask is None else key_mask[:, None, None, :],
    )
    return out.transpose(1, 2).flatten(2)


def _split(x: Tensor, num_heads: int) -> Tensor:
    heads: Tensor = x.unflatten(-1, (num_heads, -1)).transpose(1, 2)
    return heads
