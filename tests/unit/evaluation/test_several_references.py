"""Sentences with several references: how they are read, and that the best of them counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sacrebleu import corpus_bleu, corpus_chrf

from signfuse_dist.errors import UserError
from signfuse_dist.evaluation.compare import compare, read_systems
from signfuse_dist.evaluation.protocols import find_preset
from signfuse_dist.evaluation.scores import score, score_files
from signfuse_dist.evaluation.significance import Resampling
from signfuse_dist.evaluation.translations import read_pairs, read_scored

OURS = {"a": "rain comes from the west", "b": "it is cold in the north", "c": "good evening"}
FIRST = {
    "a": "tomorrow it rains in the west",
    "b": "it is cold up in the north",
    "c": "good evening",
}
SECOND = {"a": "rain comes from the western side", "c": "hello to all of you"}


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Hypotheses, first references, and second references of two of three."""
    hypotheses = [{"id": i, "hypothesis": text} for i, text in OURS.items()]
    first = [{"id": i, "reference": text} for i, text in FIRST.items()]
    second = [{"id": i, "text": text} for i, text in reversed(SECOND.items())]
    return (
        write(tmp_path / "h.jsonl", lines(hypotheses)),
        write(tmp_path / "r1.jsonl", lines(first)),
        write(tmp_path / "r2.json", json.dumps(second)),
    )


def test_several_files_and_a_list_say_the_same(files: tuple[Path, Path, Path]) -> None:
    hypotheses, first, second = files
    ours, theirs = read_scored(hypotheses, [first, second])
    assert (ours, theirs["b"]) == (OURS, FIRST["b"])
    assert theirs["a"] == (FIRST["a"], SECOND["a"])
    rows = [
        {"id": i, "hypothesis": OURS[i], "reference": list(texts)}
        for i, texts in (("a", theirs["a"]), ("b", [FIRST["b"]]), ("c", theirs["c"]))
    ]
    one = write(hypotheses.with_name("one.jsonl"), lines(rows))
    assert read_scored(one, []) == (ours, theirs)


def test_bleu_and_chrf_of_several_references_are_sacrebleus(files: tuple[Path, Path, Path]) -> None:
    hypotheses, first, second = files
    scores = score_files(hypotheses, [first, second], "sacrebleu")
    ids = sorted(OURS)
    streams = [[FIRST[i] for i in ids], [SECOND.get(i) for i in ids]]
    texts = [OURS[i] for i in ids]
    assert scores["BLEU-4"].value == corpus_bleu(texts, streams).score
    assert scores["chrF"].value == corpus_chrf(texts, streams).score
    assert scores["BLEU-4"].signature.startswith("nrefs:var|")
    assert "the sentences have 1 to 2 references, 1 of 3 fewer than 2" in scores.notes


def test_of_several_references_the_best_counts_for_rouge_and_meteor() -> None:
    theirs = {i: (FIRST[i], SECOND.get(i, "x")) for i in OURS}
    both = score(OURS, theirs, "sacrebleu")
    for name in ("ROUGE-L", "METEOR"):
        alone = [
            [score({i: OURS[i]}, {i: text}, "sacrebleu")[name].value for text in theirs[i]]
            for i in OURS
        ]
        assert both[name].value == pytest.approx(sum(map(max, alone)) / len(alone))
        assert both[name].signature.startswith("nrefs:2|refs:best|")
    assert score(OURS, FIRST, "sacrebleu")["ROUGE-L"].signature.startswith("nrefs:1|case:")


def test_plain_files_of_references_are_matched_line_by_line(tmp_path: Path) -> None:
    hypotheses = write(tmp_path / "h.txt", "one\ntwo\n")
    first = write(tmp_path / "r1.txt", "eins\nzwei\n")
    second = write(tmp_path / "r2.txt", "one\n\n")
    _, theirs = read_scored(hypotheses, [first, second])
    assert theirs == {"1": ("eins", "one"), "2": "zwei"}
    short = write(tmp_path / "r3.txt", "one\n")
    with pytest.raises(UserError, match=r"h\.txt has 2 lines and .*r3\.txt has 1"):
        read_scored(hypotheses, [first, short])


def test_an_id_of_a_further_file_alone_is_refused(files: tuple[Path, Path, Path]) -> None:
    hypotheses, first, second = files
    write(second, json.dumps([{"id": "z", "reference": "x"}]))
    with pytest.raises(UserError, match=r"r2\.json: 1 ids are not in .*r1\.jsonl: 'z'"):
        read_scored(hypotheses, [first, second])


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ([], "is a list without a text, or with an empty one"),
        (["x", " "], "is a list without a text, or with an empty one"),
        (["x", 3], "is neither a text nor a list of texts"),
        ({"a": "x"}, "is neither a text nor a list of texts"),
        (None, "is neither a text nor a list of texts"),
        (["x", "\ud800"], "holds half of a surrogate pair"),
    ],
    ids=str,
)
def test_a_reference_that_is_none_is_named(tmp_path: Path, reference: Any, said: str) -> None:
    row = {"id": "a", "hypothesis": "x", "reference": reference}
    for name, text in (("h.jsonl", lines([row])), ("h.json", json.dumps([row]))):
        with pytest.raises(UserError) as refused:
            read_scored(write(tmp_path / name, text), [])
        place = "line 1" if name == "h.jsonl" else "entry 1"
        assert f"{place}: reference: " in str(refused.value)
        assert said in str(refused.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [("{}", "holds no list of objects"), ("[1]", "entry 1: expected"), ("[", "not JSON")],
)
def test_json_that_is_no_list_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_scored(write(tmp_path / "h.json", text), [])


def test_a_run_has_one_reference_a_sentence(tmp_path: Path) -> None:
    row = {"id": "a", "hypothesis": "x", "reference": ["x", "y"]}
    with pytest.raises(UserError, match="'a' has several references"):
        read_pairs(write(tmp_path / "h.jsonl", lines([row])), None)


def test_systems_are_compared_on_several_references(files: tuple[Path, Path, Path]) -> None:
    hypotheses, first, second = files
    other = [{"id": i, "hypothesis": f"{text} today"} for i, text in OURS.items()]
    paths = [hypotheses, write(hypotheses.with_name("other.jsonl"), lines(other))]
    systems = read_systems(paths, None, [first, second], allow_empty=False)
    compared = compare(systems, find_preset("sacrebleu"), Resampling(num_samples=100))
    alone = score_files(hypotheses, [first, second], "sacrebleu")
    assert compared.scores["BLEU-4"][0].value == pytest.approx(alone["BLEU-4"].value)
    assert compared.signatures["BLEU-4"].startswith("nrefs:var|")
    assert any("1 to 2 references" in note for note in compared.notes)
