"""The development score: what it is, and that training does not notice it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from helpers.little_splits import damage, data_config, write_split
from helpers.model_factory import small_config, small_model
from helpers.repository import ROOT
from signfuse_dist.config import (
    AugmentConfig,
    BlendedCorpus,
    EvaluationConfig,
    LossConfig,
    RunConfig,
    StageConfig,
    StageName,
    TrainConfig,
)
from signfuse_dist.data.loader import ClipBatches
from signfuse_dist.data.split import Split, open_split
from signfuse_dist.development import DevelopmentScore, DevelopmentScores, open_development
from signfuse_dist.errors import UserError
from signfuse_dist.evaluation.scores import score
from signfuse_dist.experiment import load_run
from signfuse_dist.model import losses
from signfuse_dist.model.signfuse import SignFuse
from signfuse_dist.objective import set_mode
from signfuse_dist.plan import ClipFrames, MicroBatch, epoch_order

LENGTHS = (4, 9, 6, 3, 5)
GROUP = 4
DECODING = EvaluationConfig(max_new_tokens=6)
DEMO = str(ROOT / "configs" / "experiment" / "demo.yaml")


def encode(text: str) -> list[int]:
    return [2 + len(text), 3, 1] if len(text) % 4 else [2 + len(text), 1]


def make(
    tmp_path: Path,
    stage: StageName,
    evaluation: EvaluationConfig = DECODING,
    **train: Any,
) -> tuple[DevelopmentScore, SignFuse, Split]:
    split = open_split(write_split(tmp_path / "dev", LENGTHS), data_config())
    values = {"micro_batch_size": 2, "global_batch_size": GROUP, "num_workers": 0, **train}
    run = RunConfig(
        name="small",
        data=data_config(),
        model=small_config(norm="sync"),
        loss=LossConfig(),
        stage=StageConfig(name=stage, epochs=3, learning_rate=1e-3, warmup_epochs=0),
        train=TrainConfig(precision="fp32", gradient_clipping=1.0, **values),
        evaluation=evaluation,
        augment=AugmentConfig(speed=0.5, colour=0.5),
    )
    model = small_model(norm="sync")
    set_mode(model, stage)
    here: Any = SimpleNamespace(
        num_processes=1, process_index=0, is_main_process=True, device=torch.device("cpu")
    )
    tokenizer: Any = SimpleNamespace(encode=encode) if stage != "contrastive" else None
    return DevelopmentScore(run, model, split, tokenizer, here), model, split


def batch_of(split: Split, clips: list[int]) -> Any:
    frames = ClipFrames(split.lengths, 64, AugmentConfig(), 0)
    return ClipBatches(split, [MicroBatch(clips, 0)], frames, encode)[0]


@torch.no_grad()
def test_it_is_the_language_loss_a_token_over_the_whole_split(tmp_path: Path) -> None:
    development, model, split = make(tmp_path, "finetune")
    scores = development()
    batch = batch_of(split, list(range(len(LENGTHS))))
    expected = model.eval()(batch, None, True).negative_log_likelihood
    assert batch.text_lengths is not None
    assert scores == {
        "dev_language": pytest.approx(float(expected.sum() / batch.text_lengths.sum()), rel=1e-6)
    }


@torch.no_grad()
def test_the_contrastive_stage_compares_groups_whatever_the_micro_batch(tmp_path: Path) -> None:
    """The clips of a group come from one order, and B is the group's, not the micro batch's."""
    development, model, split = make(tmp_path, "contrastive")
    scores = development()
    order = epoch_order(0, 0, len(LENGTHS)).tolist()
    model.eval()
    total = 0.0
    for group in (order[:GROUP], order[GROUP:]):
        batch = batch_of(split, group)
        summaries = model(batch, "unimodal", False).summaries
        total += float(losses.contrastive(*summaries, batch.weight, 0.07).sum())
    assert scores == {"dev_contrastive": pytest.approx(total / len(LENGTHS), rel=1e-5)}
    whole, *_ = make(tmp_path, "contrastive", micro_batch_size=GROUP)
    assert whole()["dev_contrastive"] == pytest.approx(total / len(LENGTHS), rel=1e-5)


@pytest.mark.parametrize(("select_by", "metric"), [("bleu", "BLEU-4"), ("chrf", "chrF")])
def test_translations_with_one_beam_are_scored_by_the_protocol_of_the_run(
    tmp_path: Path, select_by: str, metric: str
) -> None:
    """First stands what checkpoints are compared by; padding of the last group has no translation.

    The tokenizer of the test makes the references' first words of some tokens, so that the score
    is neither 0 nor 100.
    """
    development, model, split = make(tmp_path, "finetune", select_by=select_by)
    texts = {entry.id: entry.text for entry in split.entries()}
    words = [word for text in texts.values() for word in text.split()]
    decoded: list[list[int]] = []

    def decode(row: list[int]) -> str:
        decoded.append(row)
        return " ".join(words[token % len(words)] for token in row)

    development._tokenizer.decode = decode  # type: ignore[union-attr,method-assign]
    development._tokenizer.end = 1  # type: ignore[union-attr]
    model.tokenizer = development._tokenizer
    scores = development()
    assert list(scores) == [f"dev_{select_by}", "dev_language"]
    assert len(decoded) == len(LENGTHS)
    model.eval()
    decoding = EvaluationConfig(num_beams=1, max_new_tokens=6)
    expected = {}
    for place, name in enumerate(split.ids):
        (row,) = model.decode(batch_of(split, [place]), decoding).tokens
        expected[name] = decode(row)
    whole = score(expected, texts, "sacrebleu")
    assert scores[f"dev_{select_by}"] == pytest.approx(whole[metric].value)
    assert development() == scores


def test_the_contrastive_stage_goes_by_its_loss_whatever_the_others_go_by(tmp_path: Path) -> None:
    development, *_ = make(tmp_path, "contrastive", select_by="bleu")
    assert list(development()) == ["dev_contrastive"]


def test_translations_that_do_not_fit_are_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"evaluation\.max_new_tokens of 128 tokens does not fit"):
        make(tmp_path, "finetune", EvaluationConfig(), select_by="bleu")


@pytest.mark.parametrize("stage", ["contrastive", "alignment", "finetune"])
def test_training_does_not_notice_it(tmp_path: Path, stage: StageName) -> None:
    """Modes, statistics, weights and torch's randomness are what they were; twice is the same."""
    development, model, _ = make(tmp_path, stage)
    modes = {name: part.training for name, part in model.named_modules()}
    assert any(modes.values())
    state = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    drawn, numpy_drawn = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = development()
    assert torch.equal(torch.get_rng_state(), drawn)
    assert np.array_equal(np.random.get_state()[1], numpy_drawn)
    assert {name: part.training for name, part in model.named_modules()} == modes
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in state.items())
    assert all(p.grad is None for p in model.parameters())
    assert development() == first


def test_a_clip_that_cannot_be_read_is_named_and_there_is_no_score(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    development, model, split = make(tmp_path, "finetune")
    damage(split, 2, "jpegs", bytes(8))
    assert development() == {}
    said = capsys.readouterr().out
    assert "development clip left out: clip 2: shard-000000.tar" in said
    assert said.endswith(
        "no development score: 1 of 5 clips of dev could not be read; they are named above\n"
    )
    assert model.training


def test_a_score_that_is_not_finite_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    development, model, _ = make(tmp_path, "finetune")
    assert model.adapter is not None
    with torch.no_grad():
        next(model.adapter.parameters()).fill_(float("nan"))
    assert development() == {}
    assert capsys.readouterr().out.endswith("no development score: dev_language is nan\n")


def test_a_split_that_is_not_packed_is_named_with_what_to_write(tmp_path: Path) -> None:
    run = load_run(DEMO, "finetune", [f"data.shards={tmp_path}"])
    with pytest.raises(UserError, match=r"dev/manifest\.json.*train\.dev_epochs=0"):
        open_development(run)
    off = load_run(DEMO, "finetune", [f"data.shards={tmp_path}", "train.dev_epochs=0"])
    assert open_development(off) == {}


def test_the_best_without_a_score_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.select=best needs a development score"):
        load_run(DEMO, "finetune", ["train.select=best", "train.dev_epochs=0"])


def test_a_blend_is_scored_by_corpus_and_its_own_split_is_scored_once(tmp_path: Path) -> None:
    """The first figure is that of the run's own split, by which checkpoints are compared."""
    development, model, split = make(tmp_path, "finetune")
    more = open_split(write_split(tmp_path / "more", (2, 5)), data_config())
    parts = (
        BlendedCorpus(corpus="own", data=data_config()),
        BlendedCorpus(corpus="more", data=data_config(shards=str(tmp_path / "more"))),
    )
    run = replace(development._run, data=data_config(blend=parts))
    here, tokenizer = development._accelerator, development._tokenizer
    splits = {"": split, "more": more}
    scores = DevelopmentScores(run, model, splits, tokenizer, here)()
    assert list(scores) == ["dev_language", "dev_language/own", "dev_language/more"]
    assert scores["dev_language"] == scores["dev_language/own"] == development()["dev_language"]
    alone = DevelopmentScore(run, model, more, tokenizer, here)()
    assert scores["dev_language/more"] == alone["dev_language"]
    damage(split, 2, "jpegs", bytes(8))
    assert DevelopmentScores(run, model, splits, tokenizer, here)() == {}


def test_a_corpus_without_pairs_has_no_contrastive_score(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    development, _, _ = make(tmp_path, "contrastive")
    development._sums = lambda: (0.0, 0.0, 0.0)  # type: ignore[method-assign]
    assert development() == {}
    assert "no clip of dev has both streams" in capsys.readouterr().out
