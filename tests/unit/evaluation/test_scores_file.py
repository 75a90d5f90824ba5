"""``scores.json``: read as it was written, and a damaged one refused with every error in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from signfuse_dist.errors import UserError
from signfuse_dist.evaluation.scores import (
    NearAttention,
    Score,
    Scores,
    SplitScores,
    format_split_scores,
    read_split_scores,
    score_with_intervals,
    write_split_scores,
)

SCORES = Scores(
    "sacrebleu", 3, {"BLEU-4": Score(1.5, "s")}, {}, (), (), {"BLEU-4": (1.0, 2.0)}, "bs:1000"
)
SPLIT_SCORES = SplitScores(SCORES, {"shuffled": SCORES}, {"blank": "no pictures"}, {"num_beams": 4})
Edit = Callable[[dict[str, Any]], object]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "scores.json"


def damage(path: Path, edit: Edit) -> str:
    """Write a file of scores with one edit; return what its reader says."""
    write_split_scores(path, SPLIT_SCORES)
    raw = json.loads(path.read_text(encoding="utf-8"))
    edit(raw)
    path.write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(UserError) as refused:
        read_split_scores(path)
    return str(refused.value)


def test_scores_are_read_as_they_were_written(path: Path) -> None:
    references = {"a": "today rain comes", "b": "fog in the north"}
    scores = score_with_intervals(dict.fromkeys(references, "today fog"), references, "unisign")
    assert scores.intervals != {}
    near = NearAttention({"visual_from_skeletal": 0.5}, 0.25, 8)
    attending = SplitScores(scores, near_attention=near)
    assert "step of its own: 0.50 visual_from_skeletal; 0.25" in format_split_scores(attending)
    for split_scores in (SplitScores(scores), SPLIT_SCORES, attending):
        write_split_scores(path, split_scores)
        assert read_split_scores(path) == split_scores


def test_a_file_from_before_there_were_intervals_is_read(path: Path) -> None:
    write_split_scores(path, SPLIT_SCORES)
    raw = json.loads(path.read_text(encoding="utf-8"))
    for scores in (raw["scores"], raw["controls"]["shuffled"]):
        del scores["resampling"], scores["metrics"]["BLEU-4"]["interval"]
    path.write_text(json.dumps(raw), encoding="utf-8")
    scores = read_split_scores(path).scores
    assert (scores.intervals, scores.resampling) == ({}, "")
    assert scores["BLEU-4"] == SCORES["BLEU-4"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not JSON (Expecting value"),
        ("{torn", "not JSON (Expecting property name"),
        ("[" * 100_000, "not JSON (it is nested too deep"),
        ("[1]", "not a file of scores (1)\n  - expected a mapping of version, got [1]"),
        ("{}", "not a file of scores (1)\n  - version: missing"),
        ('{"version": 1}', "version 1, this program reads 2: evaluate again"),
    ],
)
def test_another_file_is_not_taken_for_scores(path: Path, text: str, said: str) -> None:
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as refused:
        read_split_scores(path)
    assert f"{path}: {said}" in str(refused.value)


def test_a_file_that_is_not_there_is_named(path: Path) -> None:
    with pytest.raises(UserError, match=r"scores\.json: cannot be read \(No such file"):
        read_split_scores(path)


@pytest.mark.parametrize(
    "key", ["preset", "num_samples", "metrics", "unavailable", "empty", "notes"]
)
@pytest.mark.parametrize("part", ["scores", "controls.shuffled"])
def test_a_missing_key_of_scores_is_named(path: Path, part: str, key: str) -> None:
    def remove(raw: dict[str, Any]) -> None:
        outer = raw
        for step in part.split("."):
            outer = outer[step]
        del outer[key]

    assert f"- {part}.{key}: missing" in damage(path, remove)


@pytest.mark.parametrize("key", ["version", "scores", "controls", "inapplicable", "decoding"])
def test_a_missing_part_is_named(path: Path, key: str) -> None:
    assert f"- {key}: missing" in damage(path, lambda raw: raw.pop(key))


def metric(**values: Any) -> Edit:
    return lambda raw: raw["scores"]["metrics"]["BLEU-4"].update(values)


def scores(**values: Any) -> Edit:
    return lambda raw: raw["scores"].update(values)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (metric(value="x"), "scores.metrics.BLEU-4.value: 'x' is not a number"),
        (metric(value="1.5"), "scores.metrics.BLEU-4.value: '1.5' is not a number"),
        (metric(value=None), "scores.metrics.BLEU-4.value: None is not a number"),
        (metric(value=float("nan")), "scores.metrics.BLEU-4.value: nan is not a finite number"),
        (metric(signature=3), "scores.metrics.BLEU-4.signature: 3 is not a str"),
        (metric(interval=[1.0]), "scores.metrics.BLEU-4.interval.entry 2: missing"),
        (metric(interval=[1.0, 2.0, 3.0]), "BLEU-4.interval: [1.0, 2.0, 3.0] does not have"),
        (metric(interval=[1.0, float("inf")]), "interval.entry 2: inf is not a finite number"),
        (scores(metrics=[1]), "scores.metrics: [1] is not a mapping"),
        (scores(metrics={"BLEU-4": 3}), "metrics.BLEU-4: expected a mapping of value, signature"),
        (scores(num_samples="many"), "scores.num_samples: 'many' is not an int"),
        (scores(num_samples=3.7), "scores.num_samples: 3.7 is not an int"),
        (scores(notes=None), "scores.notes: None is not a list"),
        (scores(empty="ab"), "scores.empty: 'ab' is not a list"),
        (lambda raw: raw.update(scores=None), "scores: expected a mapping of preset"),
        (lambda raw: raw.update(controls=[]), "controls: [] is not a mapping"),
        (lambda raw: raw.update(inapplicable=[1]), "inapplicable: [1] is not a mapping"),
        (lambda raw: raw.update(inapplicable={"blank": 3}), "inapplicable.blank: 3 is not a str"),
        (lambda raw: raw.update(decoding=[]), "decoding: [] is not a mapping"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(path: Path, edit: Edit, said: str) -> None:
    message = damage(path, edit)
    assert message.startswith(f"{path}: not a file of scores (1)\n  - ")
    assert said in message


def test_all_errors_of_a_file_come_together(path: Path) -> None:
    def edit(raw: dict[str, Any]) -> None:
        raw["scores"]["num_samples"] = None
        raw["controls"]["shuffled"] = None

    message = damage(path, edit)
    assert "not a file of scores (2)" in message
    assert "scores.num_samples" in message
    assert "controls.shuffled" in message


def test_keys_of_a_later_version_are_ignored(path: Path) -> None:
    write_split_scores(path, SPLIT_SCORES)
    raw = json.loads(path.read_text(encoding="utf-8"))
    raw["later"] = raw["scores"]["later"] = 1
    path.write_text(json.dumps(raw), encoding="utf-8")
    assert read_split_scores(path) == SPLIT_SCORES
