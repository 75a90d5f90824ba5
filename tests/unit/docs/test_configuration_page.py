"""docs/configuration.md lists every key as its field defines it."""

from __future__ import annotations

import dataclasses
import re
from typing import get_args

import pytest

from helpers.key_table import BEGIN, COMMAND, END, PAGE, SHOWN, rewritten, tables
from signfuse_dist.config import Property
from signfuse_dist.sections import SECTIONS, keys_with

TEXT = PAGE.read_text(encoding="utf-8")


def test_the_page_is_as_the_fields_are() -> None:
    assert rewritten(TEXT) == TEXT, f"run {COMMAND}"


def test_every_key_has_a_meaning_of_one_line_and_says_where_it_may_differ() -> None:
    rows = [line.split(" | ") for line in tables().splitlines() if line.startswith("| `")]
    keys = {cells[0].strip("| `"): cells for cells in rows if len(cells) == 5}
    names = [item.name for cls in SECTIONS.values() for item in dataclasses.fields(cls)]
    for name in names:
        assert re.search(r"[.)]$", keys[name][3]), name
    assert keys["visual_chunk"][4] == "resume, load, memory only |"
    assert keys["fusion_gain"][1:3] == ["`0.1`", "number of at least 0"]
    assert keys["llm_dtype"][1:3] == ["none", "`float32`, `bfloat16`, `float16`"]
    assert keys["hang_seconds"][2] == "number of at least 1, or null"


@pytest.mark.parametrize("word", SHOWN)
def test_the_words_of_the_last_column_are_explained_above_the_tables(word: str) -> None:
    assert word in get_args(Property)
    assert f"- **{word}**:" in TEXT.split(BEGIN)[0]


def test_a_page_without_the_marks_is_refused() -> None:
    with pytest.raises(LookupError, match="keys: begin"):
        rewritten(TEXT.replace(END, ""))


def test_what_changes_only_the_memory_changes_where_a_model_is_loaded() -> None:
    assert set(keys_with("memory only")) <= set(keys_with("load"))
