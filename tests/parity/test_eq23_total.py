"""Eq. 23: L_LM + lambda_1 L_contra + lambda_2 L_align, on a model and by its parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from model_factory import draw_clips, join, small_model

from signfuse_dist import loss
from signfuse_dist.config import LossConfig
from signfuse_dist.stages import StageObjective, prepare


def _losses_by_hand(model: Any, clips: list[Any]) -> dict[str, torch.Tensor]:
    """L_LM a token, L_contra a clip and the distance of Eq. 22 a clip, each clip by itself."""
    summaries, nll, apart = [], [], []
    for clip in clips:
        batch = join([clip])
        output = model(batch, "unimodal", True)
        summaries.append(output.summaries)
        nll.append(output.negative_log_likelihood)
        apart.append(
            (output.sign_embeddings.mean(1) - output.text_embeddings.mean(1)).square().sum(1)
        )
    visual, skeletal = (torch.cat(side) for side in zip(*summaries, strict=True))
    tokens = sum(len(clip.tokens) for clip in clips)
    return {
        "contrastive": loss.contrastive(visual, skeletal, torch.ones(len(clips)), 0.07).mean(),
        "language": torch.cat(nll).sum() / tokens,
        "distance": torch.cat(apart).mean(),
    }


def test_the_total_of_the_finetune_stage_is_equation_23_with_its_gradients() -> None:
    model = small_model()
    prepare(model, "finetune", LossConfig())
    clips = draw_clips([5, 2, 3])
    by_hand = _losses_by_hand(model, clips)
    align = by_hand["distance"] + by_hand["language"]
    expected = by_hand["language"] + 0.1 * by_hand["contrastive"] + 0.05 * align
    objective, batch = StageObjective("finetune", LossConfig()), join(clips)
    counts, sums = objective.counts(batch), objective(model, batch)
    assert counts == {"language": 9.0, "distance": 3.0, "contrastive": 3.0}
    means = {name: value / counts[name] for name, value in sums.items()}
    total = torch.stack([objective.weights[n] * m for n, m in means.items()]).sum()
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-6)
    trained = [p for p in model.parameters() if p.requires_grad]
    for a, b in zip(
        torch.autograd.grad(total, trained), torch.autograd.grad(expected, trained), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5 * float(b.abs().max() + 1))
    named = objective.report({name: float(value.detach()) for name, value in means.items()})
    assert named["total"] == pytest.approx(expected.item(), rel=1e-5)
    assert named["alignment"] == pytest.approx(align.item(), rel=1e-5)
    assert named["language"] == pytest.approx(by_hand["language"].item(), rel=1e-5)
    assert named["contrastive"] == pytest.approx(by_hand["contrastive"].item(), rel=1e-5)


def test_the_contrastive_stage_minimises_equation_21_alone() -> None:
    assert StageObjective("contrastive", LossConfig()).weights == {"contrastive": 1.0}


def test_the_lambdas_are_the_configurations() -> None:
    weights = StageObjective(
        "finetune", LossConfig(contrastive_weight=0.5, alignment_weight=0.25)
    ).weights
    assert weights == {"language": 1.25, "distance": 0.25, "contrastive": 0.5}
