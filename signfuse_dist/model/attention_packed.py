"""Attention over packed clips: the real tokens one clip after the other, no padding computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from signfuse_dist.model.attention_choice import Backend

# A kernel takes query, key and value as [tokens, heads, head_dim], the offsets of the clips in
# queries and in keys, int32 [batch + 1], and how many tokens of each a clip has at most. It
# returns [tokens of the queries, heads, head_dim].
Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int, int], Tensor]


@dataclass(frozen=True)
class Packing:
    """Where the real tokens of a padded batch are.

    Attributes:
        shape: (batch, steps) of the padded batch.
        places: int64 ``[tokens]``, the real ones among batch * steps; None = all are.
        offsets: int32 ``[batch + 1]``, where each clip begins, and the end.
    """

    shape: tuple[int, int]
    places: Tensor | None
    offsets: Tensor

    def pack(self, x: Tensor) -> Tensor:
        """``[batch, steps, ...]`` to ``[tokens, ...]``."""
        flat = x.flatten(0, 1)
        return flat if self.places is None else flat.index_select(0, self.places)

    def unpack(self, packed: Tensor) -> Tensor:
        """``[tokens, ...]`` to ``[batch, steps, ...]``, zero where there is no token."""
        flat = packed
        if self.places is not None:
            batch, steps = self.shape
            flat = packed.new_zeros(batch * steps, *packed.shape[1:])
            flat = flat.index_copy(0, self.places, packed)
        return flat.reshape(*self.shape, *packed.shape[1:])


def find_tokens(mask: Tensor | None, shape: tuple[int, int], device: torch.device) -> Packing:
    """Return where the tokens are that ``mask``, bool ``[batch, steps]``, calls real.

    With a mask the host waits for the device once: it must know how many tokens there are.
    """
    batch, steps = shape
    if mask is None:
        every = torch.arange(0, batch * steps + 1, steps, dtype=torch.int32, device=device)
        return Packing(shape, None, every)
    ends = mask.sum(dim=1).cumsum(0).to(torch.int32)
    return Packing(shape, mask.flatten().nonzero().squeeze(1), torch.cat((ends.new_zeros(1), ends)))


def attend_packed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    key_mask: Tensor | None,
    query_mask: Tensor | None,
    kernel: Kernel,
) -> Tensor:
    """Pack, run ``kernel``, and put its result back; arguments and result as of ``attend``."""
    keys = find_tokens(key_mask, (key.shape[0], key.shape[1]), key.device)
    queries = keys
    if query_mask is not key_mask or query.shape[1] != key.shape[1]:
        queries = find_tokens(query_mask, (query.shape[0], query.shape[1]), query.device)
    out = kernel(
        queries.pack(query).unflatten(-1, (num_heads, -1)),
        keys.pack(key).unflatten(-1, (num_heads, -1)),
        keys.pack(value).unflatten(-1, (num_heads, -1)),
        queries.offsets,
        keys.offsets,
        query.shape[1],
        key.shape[1],
    )
    return queries.unpack(out.flatten(1))


def kernel_of(backend: Backend) -> Kernel:
    """Return the kernel of a variable-length backend."""
    return _flash_attention_2 if backend == "flash_attention_2" else _varlen


def _flash_attention_2(
    query: Tensor, key: Tensor, value: Tensor, query_offsets: Tensor, key_offsets: Tensor,
    most_queries: int, most_keys: int,
) -> Tensor:  # fmt: skip
    from flash_attn import flash_attn_varlen_func

    # Deterministic: a resumed run repeats the undisturbed one bit for bit.
    out: Tensor = flash_attn_varlen_func(
        query, key, value, query_offsets, key_offsets, most_queries, most_keys, deterministic=True
    )
    return out


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, query_offsets: Tensor, key_offsets: Tensor,
    most_queries: int, most_keys: int,
) -> Tensor:  # fmt: skip
    from torch.nn.attention.varlen import varlen_attn

    out = varlen_attn(query, key, value, query_offsets, key_offsets, most_queries, most_keys)
    assert isinstance(out, Tensor)
    return out
