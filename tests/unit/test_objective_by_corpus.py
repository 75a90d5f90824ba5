"""Losses of a blend: observed by corpus, compared within one, asked by its prompt."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from helpers.model_factory import draw_clips, join, small_model
from signfuse_dist.config import LossConfig
from signfuse_dist.model.losses import contrastive
from signfuse_dist.objective import StageObjective

CORPUS = torch.tensor([0, 1, 0, 1, 1])


def test_the_losses_of_the_corpora_add_up_to_those_that_are_minimised() -> None:
    model, batch = small_model(), replace(join(draw_clips([5, 3, 8, 4, 6])), corpus=CORPUS)
    plain, by_corpus = (
        StageObjective("finetune", LossConfig(), names) for names in ([], ["one", "two"])
    )
    sums, own = by_corpus(model, batch), plain(model, batch)
    counts = by_corpus.counts(batch)
    assert set(sums) == {*own, *by_corpus.observed}
    for name, value in own.items():
        assert torch.equal(sums[name], value), "what is minimised is as without a blend"
        parts = sums[f"{name}/one"] + sums[f"{name}/two"]
        assert torch.allclose(parts, value.detach(), rtol=1e-5)
        assert not parts.requires_grad
        assert counts[f"{name}/one"] + counts[f"{name}/two"] == counts[name]
    means = {name: float(sums[name].detach()) / counts[name] for name in sums}
    said = by_corpus.report(means)
    assert said["alignment/two"] == pytest.approx(means["distance/two"] + means["language/two"])
    assert said["total"] == pytest.approx(plain.report(means)["total"])
    assert "distance/one" not in said
    no_clip_of_two = {n: v for n, v in means.items() if not n.endswith("/two")}
    assert not any(name.endswith("/two") for name in by_corpus.report(no_clip_of_two))


def test_negatives_within_a_corpus_are_those_of_the_corpus_alone() -> None:
    torch.manual_seed(0)
    visual, skeletal = torch.randn(5, 8), torch.randn(5, 8)
    found = contrastive(visual, skeletal, torch.ones(5), 0.07, CORPUS)
    for number in (0, 1):
        own = number == CORPUS
        alone = contrastive(visual[own], skeletal[own], torch.ones(int(own.sum())), 0.07)
        assert torch.allclose(found[own], alone, rtol=1e-5)
    assert not torch.allclose(found, contrastive(visual, skeletal, torch.ones(5), 0.07))


def test_the_key_says_among_which_clips_negatives_are() -> None:
    model, batch = small_model(), replace(join(draw_clips([5, 3, 8, 4, 6])), corpus=CORPUS)
    values = [
        float(
            StageObjective("contrastive", LossConfig(negatives=key), ["a", "b"])(model, batch)[
                "contrastive"
            ].detach()
        )
        for key in ("all", "corpus")
    ]
    assert values[1] < values[0], "fewer negatives"


def test_clips_are_asked_by_the_prompt_of_their_corpus() -> None:
    model, batch = small_model(), join(draw_clips([5, 3, 8, 4, 6]))
    llm = model.language_model

    def likelihood(corpus: torch.Tensor | None) -> torch.Tensor:
        with torch.no_grad():
            output = model(replace(batch, corpus=corpus), None, True)
        assert output.negative_log_likelihood is not None
        return output.negative_log_likelihood

    alone = []
    for prompt in ([0, 2, 3, 4], [0, 2, 4]):
        llm.prompt = torch.tensor(prompt)
        alone.append(likelihood(None))
    assert not torch.allclose(*alone)
    llm.prompt = torch.tensor([0, 2, 3, 4])
    llm.set_prompts([[0, 2, 3, 4], [0, 2, 4]])
    assert torch.equal(likelihood(None), alone[0]), "a batch of no blend: by the model's own"
    found = likelihood(CORPUS)
    expected = torch.where(CORPUS == 0, alone[0], alone[1])
    assert torch.allclose(found, expected, rtol=1e-5)
    assert llm.room(3) == 64 - 3 - 4, "the longest prompt leaves the least room"
