"""Eq. 22: the squared distance to the text's embeddings, with a stopped gradient, plus L_LM."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from signfuse_dist.config import LossConfig
from signfuse_dist.model.losses import distance
from signfuse_dist.objective import StageObjective

LENGTHS = (1, 3, 5)


def _embeddings() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sign = torch.randn(3, 4, 6, dtype=torch.float64, generator=generator)
    text = torch.randn(3, 5, 6, dtype=torch.float64, generator=generator)
    return sign.requires_grad_(), text.requires_grad_()


def _naive(sign: Tensor, text: Tensor, pooling: str) -> Tensor:
    """One clip, ``[sign_tokens, llm_dim]`` and ``[real tokens, llm_dim]``."""
    if pooling == "mean":
        apart = sum(sign) / len(sign) - sum(text) / len(text)
        return sum(a * a for a in apart)
    slots, total = len(sign), torch.zeros((), dtype=sign.dtype)
    for i in range(slots):
        start, stop = i * len(text) // slots, -(-(i + 1) * len(text) // slots)
        apart = sign[i] - sum(text[start:stop]) / (stop - start)
        total = total + (apart * apart).sum() / slots
    return total


@pytest.mark.parametrize("pooling", ["mean", "resample"])
def test_the_distance_over_real_tokens(pooling: str) -> None:
    sign, text = _embeddings()
    found = distance(sign, text, torch.tensor(LENGTHS), pooling)
    expected = torch.stack(
        [_naive(sign[i], text[i, :n].detach(), pooling) for i, n in enumerate(LENGTHS)]
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    (a,) = torch.autograd.grad(found.sum(), sign)
    (b,) = torch.autograd.grad(expected.sum(), sign)
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("pooling", ["mean", "resample"])
def test_no_gradient_reaches_the_text(pooling: str) -> None:
    sign, text = _embeddings()
    (gradient,) = torch.autograd.grad(
        distance(sign, text * 1.0, torch.tensor(LENGTHS), pooling).sum(), text, allow_unused=True
    )
    assert gradient is None


def test_bfloat16_embeddings_of_the_llm_are_compared_in_float32() -> None:
    sign, text = (x.detach().bfloat16() for x in _embeddings())
    found = distance(sign, text, torch.tensor(LENGTHS), "mean")
    assert found.dtype == torch.float32
    expected = [
        _naive(sign[i].double(), text[i, :n].double(), "mean") for i, n in enumerate(LENGTHS)
    ]
    torch.testing.assert_close(found.double(), torch.stack(expected), rtol=1e-5, atol=1e-5)


def test_the_alignment_stage_minimises_distance_plus_language() -> None:
    objective = StageObjective("alignment", LossConfig())
    named = objective.report({"language": 3.0, "distance": 0.25})
    assert named == {"language": 3.0, "alignment": 3.25, "total": 3.25}
