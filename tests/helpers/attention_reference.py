"""Attention by loops, and a kernel that packs nothing: what the backends are compared with."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def attend_by_loops(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    key_lengths: list[int],
    query_lengths: list[int],
) -> Tensor:
    """softmax(Q K^T / sqrt(d_k)) V, one clip, head and query at a time; zero beyond each end."""
    width = query.shape[2] // num_heads
    clips = []
    for clip, (keys, queries) in enumerate(zip(key_lengths, query_lengths, strict=True)):
        rows = []
        for step in range(query.shape[1]):
            heads = []
            for head in range(num_heads):
                part = slice(head * width, (head + 1) * width)
                scores = [query[clip, step, part] @ key[clip, k, part] for k in range(keys)]
                weights = torch.exp(torch.stack(scores) / math.sqrt(width))
                heads.append(weights / weights.sum() @ value[clip, :keys, part])
            rows.append(torch.cat(heads) * float(step < queries))
        clips.append(torch.stack(rows))
    return torch.stack(clips)


def loop_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_offsets: Tensor,
    key_offsets: Tensor,
    most_queries: int,
    most_keys: int,
) -> Tensor:
    """Variable-length attention on any device: what the CUDA kernels compute, clip by clip."""
    clips = []
    for i in range(len(query_offsets) - 1):
        q = query[int(query_offsets[i]) : int(query_offsets[i + 1])].transpose(0, 1)
        k, v = (
            x[int(key_offsets[i]) : int(key_offsets[i + 1])].transpose(0, 1) for x in (key, value)
        )
        assert q.shape[1] <= most_queries
        assert k.shape[1] <= most_keys
        weights = (q @ k.transpose(1, 2) / math.sqrt(query.shape[2])).softmax(dim=-1)
        clips.append((weights @ v).transpose(0, 1))
    return torch.cat(clips)
