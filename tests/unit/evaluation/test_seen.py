"""Sentences that training has seen: the others are scored apart, in commands and in the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from signfuse_dist.cli import main
from signfuse_dist.evaluation.scores import (
    SplitScores,
    format_split_scores,
    read_split_scores,
    score,
    write_split_scores,
)
from signfuse_dist.evaluation.seen import read_texts, score_unseen, unseen_ids

REFERENCES = {"1": "JOHN WRITE", "2": "MARY LOVE JOHN", "3": "BOOK"}
OURS = {"1": "JOHN WRITE", "2": "MARY HATE JOHN", "3": "BOOK"}


def test_a_sentence_is_unseen_where_none_of_its_references_is_a_text_of_training() -> None:
    trained = {"JOHN\u200b WRITE", "cafe\u0301"}
    references = {**REFERENCES, "4": ("a", "caf\u00e9")}
    assert unseen_ids(references, trained) == ["2", "3"]


def test_the_others_are_scored_apart_and_the_note_counts_them() -> None:
    unseen = score_unseen(OURS, REFERENCES, {"JOHN WRITE", "BOOK"}, "glosses")
    assert unseen is not None
    assert unseen.num_samples == 1
    assert unseen["WER"].value == pytest.approx(100 / 3)
    assert unseen.notes[0] == "2 of 3 references are sentences of the training split"


@pytest.mark.parametrize("trained", [set(), set(REFERENCES.values())])
def test_where_all_or_none_are_seen_nothing_stands_apart(trained: set[str]) -> None:
    assert score_unseen(OURS, REFERENCES, trained, "glosses") is None


def test_scores_of_unseen_sentences_are_written_read_and_printed(tmp_path: Path) -> None:
    scores = score(OURS, REFERENCES, "glosses")
    unseen = score_unseen(OURS, REFERENCES, {"BOOK"}, "glosses")
    split_scores = SplitScores(scores, unseen=unseen)
    write_split_scores(tmp_path / "scores.json", split_scores)
    assert read_split_scores(tmp_path / "scores.json") == split_scores
    assert "no sentence of the training split" in format_split_scores(split_scores)
    write_split_scores(tmp_path / "scores.json", SplitScores(scores))
    assert "unseen" not in json.loads((tmp_path / "scores.json").read_text())


@pytest.mark.parametrize("name", ["t.txt", "t.tsv"])
def test_the_command_takes_the_texts_of_training(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        json.dumps({"id": i, "hypothesis": OURS[i], "reference": r}) for i, r in REFERENCES.items()
    ]
    (tmp_path / "h.jsonl").write_text("\n".join(lines))
    text = "BOOK\n" if name.endswith("txt") else "id\ttext\n1\tBOOK\n"
    (tmp_path / name).write_text(text)
    assert read_texts(tmp_path / name) == {"BOOK"}
    arguments = ["score", "--hypotheses", str(tmp_path / "h.jsonl"), "--preset", "glosses"]
    assert main([*arguments, "--trained", str(tmp_path / name)]) == 0
    printed = capsys.readouterr().out
    assert "1 of 3 references are sentences of the training split" in printed
    assert printed.count("WER") == 2


def test_what_was_trained_on_are_all_corpora_of_a_blend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from types import SimpleNamespace

    from signfuse_dist.evaluation import evaluate

    def part(name: str) -> SimpleNamespace:
        place = str(tmp_path / name)
        return SimpleNamespace(
            corpus=name,
            data=SimpleNamespace(train_split="t", place=lambda split: f"{place}/{split}"),
        )

    for name in ("one", "two"):
        (tmp_path / name / "t").mkdir(parents=True)
    monkeypatch.setattr(evaluate, "packed_texts", lambda folder: {folder.parent.name})
    run = SimpleNamespace(corpora=(part("one"), part("two")))
    assert evaluate._training_texts(run) == {"one", "two"}
    monkeypatch.undo()
    assert evaluate._training_texts(run) == set()
    assert "on two are not scored apart" in capsys.readouterr().out
