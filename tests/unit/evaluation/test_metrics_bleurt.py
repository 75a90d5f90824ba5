"""BLEURT by transformers, a drawn checkpoint; and by a stand-in of Google's package."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
)

from signfuse_dist.errors import UserError
from signfuse_dist.evaluation.scores import score

TEXTS = {"a": "rain in the west", "b": "sun"}
OTHERS = {"a": "rain in the east", "b": "sun"}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "BLEURT-20"
    folder.mkdir()
    (folder / "bleurt_config.json").write_text("{}")
    return folder


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Put a package `bleurt` on the path; the list grows by the size of every call of it."""
    sizes: list[int] = []

    class BleurtScorer:
        def __init__(self, checkpoint: str) -> None:
            assert Path(checkpoint).name == "BLEURT-20"

        def score(self, *, references: list[str], candidates: list[str]) -> list[float]:
            sizes.append(len(candidates))
            pairs = zip(references, candidates, strict=True)
            return [0.75 if r == c else -0.25 for r, c in pairs]

    package, module = ModuleType("bleurt"), ModuleType("bleurt.score")
    module.BleurtScorer = BleurtScorer  # type: ignore[attr-defined]
    package.score = module  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bleurt", package)
    monkeypatch.setitem(sys.modules, "bleurt.score", module)
    return sizes


def test_a_checkpoint_scores_and_its_name_is_in_the_signature(
    calls: list[int], checkpoint: Path
) -> None:
    scores = score(OTHERS, TEXTS, "sacrebleu", bleurt=checkpoint)
    assert scores["BLEURT"].value == pytest.approx(25.0)  # mean of 75 and -25
    assert "checkpoint:BLEURT-20|mean:sentences" in scores["BLEURT"].signature
    assert scores.unavailable == {}
    assert calls == [2], "all sentences in one call"


def test_a_checkpoint_without_the_package_says_which_package(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Path
) -> None:
    monkeypatch.setitem(sys.modules, "bleurt", None)
    with pytest.raises(UserError, match="package `bleurt` is not installed"):
        score(OTHERS, TEXTS, "sacrebleu", bleurt=checkpoint)


def test_of_several_references_the_best_counts(calls: list[int], checkpoint: Path) -> None:
    several = {"a": ("rain in the west", OTHERS["a"]), "b": ("snow", "ice")}
    scores = score(OTHERS, several, "sacrebleu", bleurt=checkpoint)
    assert scores["BLEURT"].value == pytest.approx(25.0)  # a: best of -25 and 75; b: -25
    assert "nrefs:2|refs:best" in scores["BLEURT"].signature
    assert calls == [4]


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """A small BERT with random weights that gives one number for two texts."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "rain", "in", "the", "west", "east"]
    folder = tmp_path / "bleurt-drawn"
    BertTokenizer(vocab={word: place for place, word in enumerate(words)}).save_pretrained(folder)
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
        num_labels=1,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def test_a_checkpoint_of_transformers_needs_no_other_package(
    monkeypatch: pytest.MonkeyPatch, bert: Path
) -> None:
    monkeypatch.setitem(sys.modules, "bleurt", None)
    scores = score(OTHERS, TEXTS, "sacrebleu", bleurt=bert)
    tokenizer = AutoTokenizer.from_pretrained(bert)
    model = BertForSequenceClassification.from_pretrained(bert)
    values = []
    for i in ("a", "b"):  # one by one, as a pair of reference and candidate
        given = tokenizer(TEXTS[i], OTHERS[i], return_tensors="pt")
        values.append(model(**given).logits[0, 0].item())
    assert scores["BLEURT"].value == pytest.approx(100 * sum(values) / 2, abs=1e-4)
    assert "checkpoint:bleurt-drawn|mean:sentences|version:transformers-" in (
        scores["BLEURT"].signature
    )


def test_a_text_beyond_the_model_is_cut(bert: Path) -> None:
    long = {"a": "rain " * 500}
    assert score(long, long, "sacrebleu", bleurt=bert)["BLEURT"].value != 0


def test_a_model_that_tells_classes_apart_is_no_bleurt(bert: Path) -> None:
    config = json.loads((bert / "config.json").read_text())
    config |= {"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}}
    (bert / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="bleurt-drawn: it tells 2 classes apart"):
        score(OTHERS, TEXTS, "sacrebleu", bleurt=bert)


def test_a_checkpoint_that_transformers_does_not_know_is_named(bert: Path) -> None:
    (bert / "config.json").write_text('{"model_type": "bleurt"}')
    with pytest.raises(UserError, match="bleurt-drawn: transformers does not load it"):
        score(OTHERS, TEXTS, "sacrebleu", bleurt=bert)


def test_a_folder_that_is_no_checkpoint_is_refused(calls: list[int], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither the config\.json of .* nor a bleurt_config"):
        score(OTHERS, TEXTS, "sacrebleu", bleurt=tmp_path)
