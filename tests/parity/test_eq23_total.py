"""Eq. 23: L_LM + lambda_1 L_contra + lambda_2 L_align, each clip by itself, in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from helpers.model_factory import Example, draw_clips, join, scramble, small_config, tiny_gpt2
from signfuse_dist.config import LossConfig
from signfuse_dist.model.llm import LanguageModel
from signfuse_dist.model.signfuse import SignFuse
from signfuse_dist.objective import StageObjective, prepare


def in_float64(clip: Example) -> Example:
    return replace(clip, pose=clip.pose.double())


def _info_nce(visual: torch.Tensor, skeletal: torch.Tensor, tau: float) -> torch.Tensor:
    """Eq. 21 as printed."""
    total = torch.zeros((), dtype=visual.dtype)
    for i in range(len(visual)):
        own = torch.cosine_similarity(visual[i], skeletal[i], dim=0) / tau
        rows = torch.cosine_similarity(visual[i][None], skeletal) / tau
        columns = torch.cosine_similarity(skeletal[i][None], visual) / tau
        total = total + 2 * own - torch.log(rows.exp().sum()) - torch.log(columns.exp().sum())
    return -total / (2 * len(visual))


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
        "contrastive": _info_nce(visual, skeletal, 0.07),
        "language": torch.cat(nll).sum() / tokens,
        "distance": torch.cat(apart).mean(),
    }


def _model() -> Any:
    """The last stage in float64 throughout, LoRA too: GPT-2's arithmetic is, Llama's is not."""
    torch.manual_seed(0)
    config = small_config(lora_targets=("c_attn",))
    model = SignFuse(config, LanguageModel(tiny_gpt2(), [0, 2, 3, 4]))
    for name, part in model.named_children():
        if name != "language_model":
            scramble(part)
    prepare(model, "finetune", LossConfig())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # starts at zero, which hides A's gradient
                parameter.normal_(std=0.1)
    return model.double().eval()


def test_the_total_of_the_finetune_stage_is_equation_23_with_its_gradients() -> None:
    model, clips = _model(), [in_float64(clip) for clip in draw_clips([5, 2, 3])]
    by_hand = _losses_by_hand(model, clips)
    align = by_hand["distance"] + by_hand["language"]
    expected = by_hand["language"] + 0.1 * by_hand["contrastive"] + 0.05 * align
    objective, batch = StageObjective("finetune", LossConfig()), join(clips)
    counts, sums = objective.counts(batch), objective(model, batch)
    assert counts == {"language": 9.0, "distance": 3.0, "contrastive": 3.0}
    means = {name: value / counts[name] for name, value in sums.items()}
    total = torch.stack([objective.weights[n] * m for n, m in means.items()]).sum()
    assert total.dtype == torch.float64
    torch.testing.assert_close(total, expected, rtol=1e-11, atol=1e-11)
    trained = [p for p in model.parameters() if p.requires_grad]
    for a, b in zip(
        torch.autograd.grad(total, trained), torch.autograd.grad(expected, trained), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10 * float(b.abs().max() + 1))
    named = objective.report({name: float(value.detach()) for name, value in means.items()})
    assert named["total"] == pytest.approx(expected.item(), rel=1e-10)
    assert named["alignment"] == pytest.approx(align.item(), rel=1e-10)
    assert named["language"] == pytest.approx(by_hand["language"].item(), rel=1e-10)
    assert named["contrastive"] == pytest.approx(by_hand["contrastive"].item(), rel=1e-10)


def test_the_contrastive_stage_minimises_equation_21_alone() -> None:
    assert StageObjective("contrastive", LossConfig()).weights == {"contrastive": 1.0}


def test_the_lambdas_are_the_configurations() -> None:
    weights = StageObjective(
        "finetune", LossConfig(contrastive_weight=0.5, alignment_weight=0.25)
    ).weights
    assert weights == {"language": 1.25, "distance": 0.25, "contrastive": 0.5}


def test_without_lambda_1_the_contrastive_loss_is_not_computed() -> None:
    objective = StageObjective("finetune", LossConfig(contrastive_weight=0.0))
    assert objective.weights.keys() == {"language", "distance"}
    batch = join([in_float64(clip) for clip in draw_clips([2, 3])])
    assert objective(_model(), batch).keys() == {"language", "distance"}
