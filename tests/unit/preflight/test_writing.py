"""What the LLM's tokenizer cannot write is named before a training, with what it costs."""

from __future__ import annotations

from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from signfuse_dist.evaluation.protocols import PRESETS, find_preset
from signfuse_dist.evaluation.scores import score
from signfuse_dist.preflight.writing import check_writing

TEXTS = [f"\u4ed6\u4eca\u5e74{chr(0x4E00 + i)}\u5c81\uff0c\u4f60\u5462\uff1f" for i in range(20)]
CHAR = PRESETS["char"]


def save(folder: Path, texts: list[str], *, nfkc: bool) -> Path:
    """A tokenizer of characters that knows those of the texts as it reads them."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    if nfkc:
        tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    trainer = trainers.BpeTrainer(special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_a_tokenizer_that_writes_all_is_in_order(tmp_path: Path) -> None:
    (finding,) = check_writing(save(tmp_path, TEXTS, nfkc=False), CHAR, TEXTS, TEXTS)
    assert (finding.level, finding.value) == ("ok", "writes every character of the texts")


def test_full_width_marks_under_nfkc_are_named_with_their_cost(tmp_path: Path) -> None:
    folder = save(tmp_path, TEXTS, nfkc=True)
    (finding,) = check_writing(folder, CHAR, TEXTS, TEXTS)
    half = {
        str(i): text.replace("\uff0c", ",").replace("\uff1f", "?") for i, text in enumerate(TEXTS)
    }
    most = score(half, {str(i): text for i, text in enumerate(TEXTS)}, "char")["BLEU-4"].value
    assert finding.level == "warning"
    assert "cannot write '\uff0c', '\uff1f', which 20 of 20 test texts hold" in finding.value
    assert f"scores BLEU-4 {most:.2f} under char" in finding.value
    (other,) = check_writing(folder, PRESETS["unisign"], TEXTS, TEXTS)
    assert other.level == "ok", "the protocol reads both alike"


def test_characters_that_are_not_in_the_vocabulary_are_named(tmp_path: Path) -> None:
    folder = save(tmp_path, TEXTS, nfkc=False)
    (finding,) = check_writing(folder, CHAR, [*TEXTS, "\u96e8\u96ea"], TEXTS)
    assert finding.value == "cannot write '\u96e8', '\u96ea'", "no test text holds them"


def test_a_model_of_sentencepiece_is_asked_too(tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(TEXTS * 5), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(texts),
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=60,
        hard_vocab_limit=False,
        character_coverage=1.0,
        minloglevel=2,
    )
    (finding,) = check_writing(tmp_path, CHAR, [*TEXTS, "\u96e8"], TEXTS)
    assert "cannot write '\u96e8', '\uff0c', '\uff1f'" in finding.value


def test_case_that_the_protocol_ignores_is_not_named(tmp_path: Path) -> None:
    folder = save(tmp_path, ["rain"], nfkc=False)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.save(str(folder / "tokenizer.json"))
    assert check_writing(folder, PRESETS["sacrebleu-lc"], ["Rain"], [])[0].level == "ok"
    (finding,) = check_writing(folder, find_preset("sacrebleu"), ["Rain"], [])
    assert finding.value == "cannot write 'R'"


def test_a_tokenizer_that_cannot_be_asked_says_nothing_and_a_broken_one_is_named(
    tmp_path: Path,
) -> None:
    (tmp_path / "vocab.json").write_text("{}")
    assert check_writing(tmp_path, CHAR, TEXTS, TEXTS) == []
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    (finding,) = check_writing(tmp_path, CHAR, TEXTS, TEXTS)
    assert finding.level == "error"
    assert "cannot be read" in finding.value


@pytest.mark.parametrize("texts", [[], ["", " "]])
def test_no_text_is_no_fault(tmp_path: Path, texts: list[str]) -> None:
    (finding,) = check_writing(save(tmp_path, TEXTS, nfkc=True), CHAR, texts, texts)
    assert finding.level == "ok"
