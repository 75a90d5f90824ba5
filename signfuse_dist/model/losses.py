"""The losses of Eq. 21-22 as pure functions; each returns one value a clip.

The engine sums them over clips, processes and accumulation and divides by the global count once,
so no process's mean ever enters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from signfuse_dist.batch import pooling_weights


def contrastive(
    visual_summary: Tensor,
    skeletal_summary: Tensor,
    weight: Tensor,
    temperature: float,
    corpus: Tensor | None = None,
) -> Tensor:
    """Return each clip's term of InfoNCE, Eq. 21: ``[batch]``; its mean over B is the loss.

    The pairs of all processes are each other's negatives: rows of this process against columns of
    all, with a gradient through the gathering. Similarities and log-sum-exp are in float32.

    Args:
        visual_summary: f_v, ``[batch, dim]``, the same batch size on every process.
        skeletal_summary: f_s, ``[batch, dim]``.
        weight: ``[batch]``; a clip of weight 0 is neither a row nor a negative, nor is one of one
            stream (:attr:`~signfuse_dist.batch.SignBatch.pair_weight`).
        temperature: tau.
        corpus: ``[batch]``; where it is given, only clips of one corpus are each other's negatives.
    """
    dtype = torch.promote_types(visual_summary.dtype, torch.float32)
    visual = F.normalize(visual_summary.to(dtype), dim=-1)
    skeletal = F.normalize(skeletal_summary.to(dtype), dim=-1)
    columns = gather_rows(weight) > 0
    of_all = None if corpus is None else gather_rows(corpus)
    own = torch.arange(len(visual), device=visual.device) + len(visual) * _rank()
    terms = torch.zeros_like(visual[:, 0])
    for rows, others in ((visual, skeletal), (skeletal, visual)):
        similarity = rows @ gather_rows(others).T / temperature
        # A clip of weight 0 keeps its own column: its row is not used, but must stay finite.
        allowed = columns[None, :].repeat(len(rows), 1)
        if of_all is not None and corpus is not None:
            allowed &= corpus[:, None] == of_all[None, :]
        allowed[torch.arange(len(rows)), own] = True
        terms = terms + F.cross_entropy(
            similarity.masked_fill(~allowed, float("-inf")), own, reduction="none"
        )
    return terms / 2 * weight


class Compared(NamedTuple):
    """One micro batch's part of Eq. 21 over several.

    Attributes:
        value: the sum of its clips' terms, 0-dim, without a graph.
        gradients: of the terms of all clips of all processes, by this part's f_v and f_s.
        terms: of its clips, ``[batch]``, without a graph.
    """

    value: Tensor
    gradients: tuple[Tensor, Tensor]
    terms: Tensor


def contrastive_in_parts(
    summaries: Sequence[tuple[Tensor, Tensor]],
    weights: Sequence[Tensor],
    temperature: float,
    corpora: Sequence[Tensor] | None = None,
) -> list[Compared]:
    """Compare the clips of several micro batches (and processes), which are too many to hold.

    Gradient caching (Gao et al., 2021): the gradient of Eq. 21 by the summaries needs the
    summaries alone. :func:`replay` carries it on into a micro batch that is computed again.

    Args:
        summaries: f_v and f_s of each micro batch, ``[batch, dim]``; no graph is needed.
        weights: of each micro batch, ``[batch]``, as in :func:`contrastive`.
        temperature: tau.
        corpora: of each micro batch, as in :func:`contrastive`.
    """
    sides = [torch.cat(side).detach() for side in zip(*summaries, strict=True)]
    visual, skeletal = (
        side.to(torch.promote_types(side.dtype, torch.float32)).requires_grad_() for side in sides
    )
    sizes = [len(weight) for weight in weights]
    with torch.enable_grad():
        corpus = None if corpora is None else torch.cat(list(corpora))
        terms = contrastive(visual, skeletal, torch.cat(list(weights)), temperature, corpus)
        gradients = torch.autograd.grad(terms.sum(), (visual, skeletal))
    parts = [x.split(sizes) for x in (terms.detach(), *gradients)]
    return [Compared(own.sum(), (v, s), own) for own, v, s in zip(*parts, strict=True)]


def replay(summaries: tuple[Tensor, Tensor], compared: Compared) -> Tensor:
    """Return the value of a part of Eq. 21 with its gradient by ``summaries``, 0-dim."""
    value: Tensor = _Replay.apply(*summaries, compared.value, *compared.gradients)
    return value


def distance(
    sign_embeddings: Tensor, text_embeddings: Tensor, text_lengths: Tensor, pooling: str
) -> Tensor:
    """Return the squared distance of Eq. 22 for each clip: ``[batch]``.

    Paper: ||E_sign - sg(E_text)||^2 of tensors of different lengths. Here, `mean`: both averaged
    over their real tokens, squared L2 over d_LLM; `resample`: the text averaged into N_s slots,
    squared L2 a slot, averaged over slots. Because: the lengths N_s and N do not agree.

    Args:
        sign_embeddings: ``[batch, sign_tokens, llm_dim]``.
        text_embeddings: ``[batch, tokens, llm_dim]``; no gradient flows into them.
        text_lengths: ``[batch]``, at least 1.
        pooling: `mean` or `resample`.
    """
    sign = sign_embeddings.float() if sign_embeddings.dtype != torch.float64 else sign_embeddings
    text = text_embeddings.detach().to(sign.dtype)
    slots = sign.shape[1] if pooling == "resample" else 1
    pooled = pooling_weights(text_lengths, text.shape[1], slots).to(sign.dtype) @ text
    if pooling == "mean":
        sign = sign.mean(dim=1, keepdim=True)
    return (sign - pooled).square().sum(dim=-1).mean(dim=-1)


def gather_rows(x: Tensor) -> Tensor:
    """Return the rows of all processes in rank order; the gradient reaches every process."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return x
    gathered: Tensor = _GatherRows.apply(x)
    return gathered


class _Replay(torch.autograd.Function):
    """A value and the gradient that was found with it."""

    @staticmethod
    def forward(
        ctx: Any, visual: Tensor, skeletal: Tensor, value: Tensor, *gradients: Tensor
    ) -> Tensor:
        ctx.dtypes = visual.dtype, skeletal.dtype
        ctx.save_for_backward(*gradients)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        known = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return (*((grad * gradient).to(dtype) for gradient, dtype in known), None, None, None)


class _GatherRows(torch.autograd.Function):
    """All-gather whose gradient is the sum over processes of what each made of these rows.

    torch.distributed.nn.functional.all_gather is the same to the bit, but torch 2.15 deprecates it
    in favour of a module that is not public.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        gathered = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, x.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
