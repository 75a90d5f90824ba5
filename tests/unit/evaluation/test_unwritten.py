"""What a system's tokenizer cannot write is told from its sentences, with what it costs."""

from __future__ import annotations

import unicodedata

import pytest

from signfuse_dist.evaluation.protocols import find_preset
from signfuse_dist.evaluation.scores import score
from signfuse_dist.evaluation.unwritten import explain_unwritten

REFERENCES = {
    f"s{i}": f"\u4ed6\u4eca\u5e74{chr(0x4E00 + i)}\u5c81\uff0c\u4f60\u5462\uff1f" for i in range(40)
}
HALF_WIDTH = {i: unicodedata.normalize("NFKC", text) for i, text in REFERENCES.items()}


def test_marks_that_an_nfkc_tokenizer_cannot_write_are_named_with_their_cost() -> None:
    scores = score(HALF_WIDTH, REFERENCES, "char")
    (note,) = scores.notes
    assert note.startswith(
        "no hypothesis writes '\uff0c', '\uff1f' of the references, but ',', '?'"
    )
    assert note.endswith(
        f"A perfect translation so written scores BLEU-4 {scores['BLEU-4'].value:.2f}"
    )
    assert scores["BLEU-4"].value < 75


def test_what_the_protocol_reads_alike_is_not_named() -> None:
    scores = score(HALF_WIDTH, REFERENCES, "unisign")
    assert scores["BLEU-4"].value == pytest.approx(100.0)
    assert scores.notes == ()
    upper = dict.fromkeys(REFERENCES, "Rain")
    lower = dict.fromkeys(REFERENCES, "rain")
    assert explain_unwritten(lower, upper, find_preset("sacrebleu-lc")) == []
    assert "'R'" in explain_unwritten(lower, upper, find_preset("sacrebleu"))[0]


def test_a_character_of_many_references_that_is_never_written_is_named() -> None:
    hypotheses = {i: text.replace("\u5462", "") for i, text in REFERENCES.items()}
    (note,) = explain_unwritten(hypotheses, REFERENCES, find_preset("char"))
    assert note.startswith("no hypothesis writes '\u5462', which a tenth of the references")


def test_rare_characters_few_sentences_and_empty_hypotheses_say_nothing() -> None:
    char = find_preset("char")
    rare = {**REFERENCES, "s0": "\u96e8"}
    hypotheses = {**REFERENCES, "s0": "\u5c81"}
    assert explain_unwritten(hypotheses, rare, char) == []
    few = dict(list(REFERENCES.items())[:10])
    assert explain_unwritten({i: HALF_WIDTH[i] for i in few}, few, char) == []
    assert explain_unwritten(dict.fromkeys(REFERENCES, ""), REFERENCES, char) == []
