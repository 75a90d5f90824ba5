"""Eq. 18-19 and the layer norm of section 3.6, position by position."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.model_factory import scramble, small_config, tiny_llama
from signfuse_dist.model.llm import LanguageModel
from signfuse_dist.model.signfuse import SignFuse
from signfuse_dist.model.sla import SignLanguageAdapter

DIM, LLM_DIM = 5, 7


def _naive(temporal: Tensor, adapter: Any, tokens: int) -> Tensor:
    first, last, norm = adapter.mlp[0], adapter.mlp[2], adapter.norm
    rows = []
    for i in range(tokens):
        start, stop = i * len(temporal) // tokens, -(-(i + 1) * len(temporal) // tokens)
        z = sum(temporal[j] for j in range(start, stop)) / (stop - start)  # Eq. 18
        hidden = first.weight @ z + first.bias
        hidden = hidden / 2 * (1 + torch.erf(hidden / math.sqrt(2)))
        e = last.weight @ hidden + last.bias  # Eq. 19
        e = (e - e.mean()) / torch.sqrt(e.var(correction=0) + 1e-5)
        rows.append(e * norm.weight + norm.bias)
    return torch.stack(rows)


@pytest.mark.parametrize(("pooled", "tokens"), [(7, 3), (8, 4), (3, 5), (1, 1)])
def test_equations_18_and_19_and_their_gradients(pooled: int, tokens: int) -> None:
    adapter = scramble(SignLanguageAdapter(DIM, LLM_DIM, tokens, 0.02).double())
    temporal = torch.randn(2, pooled, DIM, dtype=torch.float64, requires_grad=True)
    found = adapter(temporal)
    expected = torch.stack([_naive(clip, adapter, tokens) for clip in temporal])
    assert found.shape == (2, tokens, LLM_DIM)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    probe = torch.randn_like(found)
    inputs = [temporal, *adapter.parameters()]
    for a, b in zip(
        torch.autograd.grad((found * probe).sum(), inputs),
        torch.autograd.grad((expected * probe).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_sign_tokens_start_at_the_scale_of_the_llms_embeddings() -> None:
    llm = LanguageModel(tiny_llama(), [0])
    table = llm.model.get_input_embeddings().weight.double()
    rms = math.sqrt(float((table * table).mean()))
    assert llm.embedding_rms == pytest.approx(rms, rel=1e-6)
    for gain, expected in (("embeddings", rms), ("one", 1.0)):
        model = SignFuse(small_config(adapter_gain=gain), llm)
        assert model.adapter is not None
        found = model.adapter(torch.randn(4, 7, small_config().dim))
        assert float(found.detach().square().mean().sqrt()) == pytest.approx(expected, rel=2e-2)
    assert rms < 0.5  # far enough from 1 for the two to differ
