"""The Sign-Language Adapter, Eq. 18-19: from temporal features to tokens of the LLM."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from signfuse_dist.batch import pooling_weights
from signfuse_dist.model.dropout import ClipDropout


class SignLanguageAdapter(nn.Module):
    """Eq. 18-19 and the layer norm of section 3.6.

    Paper: the norm's gain is not said; a plain one has RMS 1. Here: ``gain`` starts at the RMS of
    the LLM's own embedding table (``model.adapter_gain``; 1 is the other choice). Because: those
    embeddings have an RMS near 0.02, and sign tokens fifty times as large are out of the LLM's
    distribution.
    """

    def __init__(self, dim: int, llm_dim: int, num_sign_tokens: int, gain: float) -> None:
        super().__init__()
        self.num_sign_tokens = num_sign_tokens
        self.mlp = nn.Sequential(nn.Linear(dim, llm_dim), nn.GELU(), nn.Linear(llm_dim, llm_dim))
        self.norm = nn.LayerNorm(llm_dim)
        self.dropout = ClipDropout()
        nn.init.constant_(self.norm.weight, gain)

    def forward(self, temporal: Tensor) -> Tensor:
        """``[batch, pooled, dim]`` to ``sign_embeddings``, ``[batch, num_sign_tokens, llm_dim]``.

        Every pooled position is real, so this pooling (Eq. 18) needs no mask.
        """
        pooled = temporal.shape[1]
        # A product, as in Eq. 16: torch's own pooling has no deterministic backward pass on CUDA.
        every = torch.full((1,), pooled, device=temporal.device)  # no copy from the host
        weights = pooling_weights(every, pooled, self.num_sign_tokens).to(temporal.dtype)
        first, activation, last = self.mlp
        inner = self.dropout(activation(first(weights @ temporal)))
        sign_embeddings: Tensor = self.norm(last(inner))
        return sign_embeddings
