"""Typed records: what is wrong with YAML or JSON is said in full, with the place and the value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field
from pydantic.dataclasses import dataclass

from signfuse_dist.errors import UserError
from signfuse_dist.files import read_json, write_json
from signfuse_dist.records import STRICT_KEYS, Flag, NonBlank, Number, Whole, build, read_record


@dataclass(frozen=True, config=STRICT_KEYS)
class Leaf:
    name: NonBlank
    weight: Number = 1.0
    overrides: tuple[str, ...] = Field(default=(), validation_alias="words")


@dataclass(frozen=True, config=STRICT_KEYS)
class Tree:
    leaves: list[Leaf] = Field(min_length=1)
    by_name: dict[str, Leaf] | None = None
    side: Literal["above", "below"] = "above"
    count: Whole = Field(default=0, ge=0)
    is_big: Flag = False


def test_plain_containers_become_a_record() -> None:
    raw = {"leaves": [{"name": "a", "words": ["x"], "weight": 3}], "by_name": {"b": {"name": "b"}}}
    assert read_record(Tree, raw, "tree") == Tree(
        [Leaf(name="a", words=["x"], weight=3.0)],  # type: ignore[call-arg]
        {"b": Leaf(name="b")},
    )


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"leaves": []}, "leaves: [] does not have at least 1 entries"),
        ({"leaves": [{}]}, "leaves.entry 1.name: missing"),
        ({"leaves": [{"name": " "}]}, "leaves.entry 1.name: ' ' is not text"),
        ({"leaves": [{"name": 3}]}, "leaves.entry 1.name: 3 is not a str"),
        ({"leaves": [{"name": {"a": None}}]}, "is not a str; a text with : or {} needs"),
        ({"leaves": [[1]]}, "leaves.entry 1: expected a mapping of name, weight, words, got [1]"),
        ({"leaves": [{"name": "a", "wrds": 1}]}, "entry 1: unknown key 'wrds'; did you mean 'wo"),
        ({"leaves": [{"name": "a", "overrides": []}]}, "entry 1: unknown key 'overrides'"),
        ({"leaves": [{"name": "a", "weight": "1"}]}, "entry 1.weight: '1' is not a number"),
        ({"leaves": [{"name": "a", "weight": True}]}, "entry 1.weight: True is not a number"),
        ({"by_name": {"b": {"nam": 1, "name": "b"}}}, "by_name.b: unknown key 'nam'; did you mean"),
        ({"side": "belov"}, "side: 'belov' is not one of above, below; did you mean 'below'?"),
        ({"count": 1.0}, "count: 1.0 is not an int"),
        ({"count": -1}, "count: -1 is not at least 0"),
        ({"is_big": 1}, "is_big: 1 is not a bool"),
        ({3: 4}, "unknown key '3'"),
        ({"levaes": 1}, "unknown key 'levaes'; did you mean 'leaves'?"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(changed: dict[Any, Any], said: str) -> None:
    raw = {"leaves": [{"name": "a"}], **changed}
    with pytest.raises(UserError) as refused:
        read_record(Tree, raw, "tree.yaml: no tree")
    assert str(refused.value).startswith("tree.yaml: no tree (1)\n  - ")
    assert said in str(refused.value)


def test_every_error_is_recorded_and_no_record_made() -> None:
    errors = ["an earlier one"]
    raw = {"leaves": [{"name": 3}, {"name": "b", "weight": None}], "more": 1}
    assert build(Tree, raw, errors) is None
    assert len(errors) == 4


def test_a_long_value_is_cut_short_in_an_error() -> None:
    errors: list[str] = []
    build(Tree, ["x" * 10_000], errors)
    assert len(errors[0]) < 200


@pytest.mark.parametrize("folder", [".", "..", "there"])
def test_no_file_takes_the_place_of_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    (tmp_path / "inside" / "there").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "inside")
    with pytest.raises(IsADirectoryError):
        write_json(Path(folder), {})
    assert list(Path().iterdir()) == [Path("there")]


def test_json_is_written_whole_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "made" / "a.json"
    write_json(path, {"b": "ä", "a": [1.5, None]})
    assert (
        path.read_text(encoding="utf-8") == '{\n  "a": [\n    1.5,\n    null\n  ],\n  "b": "ä"\n}\n'
    )
    assert read_json(path) == {"a": [1.5, None], "b": "ä"}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, float("nan"))
    assert json.loads(path.read_text(encoding="utf-8"))["b"] == "ä"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{torn", "a.json: not JSON (Expecting"),
        (b"[" * 100_000, "a.json: not JSON (it is nested too deep"),
        (b'"\xff"', "a.json: not UTF-8 text (byte 1)"),
    ],
)
def test_a_file_that_is_no_json_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError) as refused:
        read_json(tmp_path / "a.json")
    assert said in str(refused.value)
    with pytest.raises(UserError, match=r"none\.json: cannot be read \(No such file"):
        read_json(tmp_path / "none.json")
