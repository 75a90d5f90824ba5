"""Attention of CMFA and HTA: one function, four backends with one meaning, one setting."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from signfuse_dist.config import AttentionName
from signfuse_dist.model.attention_choice import choose_backend
from signfuse_dist.model.attention_packed import attend_packed, kernel_of


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    key_mask: Tensor | None,
    query_mask: Tensor | None = None,
    backend: AttentionName = "auto",
) -> Tensor:
    """Return softmax(Q K^T / sqrt(d_k)) V of Eq. 8-9 for ``num_heads`` heads, d_k = dim / heads.

    Args:
        query: ``[batch, queries, dim]``.
        key: ``[batch, keys, dim]``.
        value: ``[batch, keys, dim]``.
        num_heads: h; divides ``dim``.
        key_mask: bool ``[batch, keys]``, True = real and one real step a clip at
            least; None = every key is real.
        query_mask: bool ``[batch, queries]``; None = every query is real.
        backend: which kernel computes it; they differ by rounding only.

    Returns:
        ``[batch, queries, dim]``, heads side by side, zero where a query is not real.

    Raises UserError when the backend is not there.
    """
    head_dim = query.shape[-1] // num_heads
    chosen = choose_backend(backend, query.device, query.dtype, head_dim)
    if chosen == "eager":
        return attend_eagerly(query, key, value, num_heads, key_mask, query_mask)[0]
    if chosen == "sdpa":
        return _attend_by_sdpa(query, key, value, num_heads, key_mask, query_mask)
    return attend_packed(query, key, value, num_heads, key_mask, query_mask, kernel_of(chosen))


def attend_eagerly(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    key_mask: Tensor | None,
    query_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Do as :func:`attend`, in plain steps, and return the weights as well, for plots.

    The weights are ``[batch, heads, queries, keys]``: each query's sum to 1 over the real keys,
    and are 0 at all others. The softmax is taken in float32 at least.
    """
    head_dim = query.shape[-1] // num_heads
    scores = _split(query, num_heads) @ _split(key, num_heads).transpose(2, 3) / head_dim**0.5
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if key_mask is not None:
        scores = scores.masked_fill(~key_mask[:, None, None, :], -torch.inf)
    weights = scores.softmax(dim=-1).to(value.dtype)
    return _join(weights @ _split(value, num_heads), query_mask), weights


def _attend_by_sdpa(
    query: Tensor, key: Tensor, value: Tensor, num_heads: int, key_mask: Tensor | None,
    query_mask: Tensor | None,
) -> Tensor:  # fmt: skip
    out = F.scaled_dot_product_attention(
        _split(query, num_heads),
        _split(key, num_heads),
        _split(value, num_heads),
        attn_mask=None if key_mask is None else key_mask[:, None, None, :],
    )
    return _join(out, query_mask)


def _split(x: Tensor, num_heads: int) -> Tensor:
    heads: Tensor = x.unflatten(-1, (num_heads, -1)).transpose(1, 2)
    return heads


def _join(heads: Tensor, query_mask: Tensor | None) -> Tensor:
    out = heads.transpose(1, 2).flatten(2)
    return out if query_mask is None else out.masked_fill(~query_mask[:, :, None], 0)


class Attention(nn.Module):
    """:func:`attend` as a part of a model, without parameters: it holds the setting."""

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.backend: AttentionName = "auto"
        self.listener: Callable[[Tensor], None] | None = None

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
    ) -> Tensor:
        """Arguments and result as of :func:`attend`."""
        if self.listener is None:
            return attend(
                query, key, value, self.num_heads, key_mask, query_mask, self.backend
            )  # fmt: skip
        out, weights = attend_eagerly(query, key, value, self.num_heads, key_mask, query_mask)
        self.listener(weights.detach())
        return out


def set_backend(model: nn.Module, backend: AttentionName) -> None:
    """Let every :class:`Attention` of ``model`` use ``backend``."""
    for module in model.modules():
        if isinstance(module, Attention):
            module.backend = backend


@contextmanager
def recorded_weights(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Compute attention eagerly inside the block, and keep each module's last weights by name.

    Yields a dictionary that fills as the model runs: ``[batch, heads, queries, keys]`` each.
    """
    weights: dict[str, Tensor] = {}
    found = {n: m for n, m in model.named_modules() if isinstance(m, Attention)}
    for name, module in found.items():
        module.listener = partial(weights.__setitem__, name)
    try:
        yield weights
    finally:
        for module in found.values():
            module.listener = None
