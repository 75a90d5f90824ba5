"""Eq. 21: InfoNCE as printed, in float64, and as the cross-entropy of a similarity matrix."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

from signfuse_dist.model.losses import contrastive


def _similarity(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b) / (a.square().sum().sqrt() * b.square().sum().sqrt())


def _printed(visual: Tensor, skeletal: Tensor, tau: float) -> Tensor:
    total = torch.zeros((), dtype=visual.dtype)
    for i in range(len(visual)):
        own = torch.exp(_similarity(visual[i], skeletal[i]) / tau)
        to_skeletons = sum(torch.exp(_similarity(visual[i], s) / tau) for s in skeletal)
        to_pictures = sum(torch.exp(_similarity(skeletal[i], v) / tau) for v in visual)
        total = total + torch.log(own / to_skeletons) + torch.log(own / to_pictures)
    return -total / (2 * len(visual))


def _features(clips: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    visual = torch.randn(clips, 7, dtype=torch.float64, generator=generator) * 3
    skeletal = torch.randn(clips, 7, dtype=torch.float64, generator=generator) * 0.2
    return visual.requires_grad_(), skeletal.requires_grad_()


@pytest.mark.parametrize("tau", [0.07, 1.0])
@pytest.mark.parametrize("clips", [1, 2, 5])
def test_the_mean_of_the_terms_is_equation_21(clips: int, tau: float) -> None:
    visual, skeletal = _features(clips)
    found = contrastive(visual, skeletal, torch.ones(clips), tau)
    assert found.shape == (clips,)
    assert found.dtype == torch.float64
    expected = _printed(visual, skeletal, tau)
    torch.testing.assert_close(found.mean(), expected, rtol=1e-10, atol=1e-10)
    for a, b in zip(
        torch.autograd.grad(found.mean(), (visual, skeletal)),
        torch.autograd.grad(expected, (visual, skeletal)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_it_is_the_symmetric_cross_entropy_of_the_similarities() -> None:
    visual, skeletal = _features(6)
    logits = F.cosine_similarity(visual[:, None], skeletal[None], dim=-1) / 0.07
    diagonal = torch.arange(6)
    expected = (F.cross_entropy(logits, diagonal) + F.cross_entropy(logits.T, diagonal)) / 2
    found = contrastive(visual, skeletal, torch.ones(6), 0.07).mean()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_it_is_the_contrastive_loss_of_clip_with_its_gradients() -> None:
    """The definition that CLIP publishes: transformers' own."""
    visual, skeletal = _features(5)
    similarity = F.normalize(visual, dim=1) @ F.normalize(skeletal, dim=1).T
    expected = image_text_contrastive_loss(similarity / 0.07)
    found = contrastive(visual, skeletal, torch.ones(5), 0.07).mean()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    for a, b in zip(
        torch.autograd.grad(found, (visual, skeletal)),
        torch.autograd.grad(expected, (visual, skeletal)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_clips_of_weight_zero_are_neither_rows_nor_negatives() -> None:
    visual, skeletal = _features(5)
    weight = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0])
    found = contrastive(visual, skeletal, weight, 0.07)
    real = weight > 0
    expected = _printed(visual[real], skeletal[real], 0.07)
    torch.testing.assert_close(found.sum() / 3, expected, rtol=1e-10, atol=1e-10)
    assert not found[~real].any()
    for gradient in torch.autograd.grad(found.sum(), (visual, skeletal)):
        assert not gradient[~real].any()
        assert gradient[real].any(dim=1).all()


def test_a_batch_without_a_real_clip_is_zero_and_finite() -> None:
    visual, skeletal = _features(3)
    found = contrastive(visual, skeletal, torch.zeros(3), 0.07)
    assert not found.any()
    for gradient in torch.autograd.grad(found.sum(), (visual, skeletal)):
        assert not gradient.any()


def test_similarities_of_bfloat16_features_are_taken_in_float32() -> None:
    visual, skeletal = (x.detach().bfloat16() for x in _features(4))
    found = contrastive(visual, skeletal, torch.ones(4), 0.07).mean()
    expected = _printed(visual.double(), skeletal.double(), 0.07)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_alike_pairs_among_unlike_ones_cost_little() -> None:
    same = torch.eye(4, dtype=torch.float64)
    found = contrastive(same, same, torch.ones(4), 0.07).mean()
    assert float(found) == pytest.approx(math.log(1 + 3 * math.exp(-1 / 0.07)), rel=1e-9)
