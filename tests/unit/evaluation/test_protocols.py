"""Scoring protocols are a data file, and a wrong record of it is refused by name."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import pytest
import yaml

from signfuse_dist.evaluation.protocols import PRESETS, normalize, read_presets

TEXT = (files("signfuse_dist.evaluation") / "presets.yaml").read_text(encoding="utf-8")


def changed(**values: Any) -> str:
    raw = yaml.safe_load(TEXT)
    raw["presets"]["char"].update(values)
    return yaml.safe_dump(raw)


def test_the_protocols_that_evaluation_needs_are_there() -> None:
    assert {"sacrebleu", "neccam", "twostream", "unisign", "char"} <= set(PRESETS)
    assert (PRESETS["neccam"].rouge_l, PRESETS["neccam"].lowercase) == (1.2, True)
    assert (PRESETS["twostream"].rouge_l, PRESETS["char"].rouge_l) == ("p/r", 1.0)
    assert PRESETS["unisign"].rouge_l == "package"


def test_another_record_of_the_file_is_another_protocol() -> None:
    _, presets = read_presets(changed(rouge_l=2.5, lowercase=True))
    assert (presets["char"].rouge_l, presets["char"].lowercase) == (2.5, True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"tokenizer": "14a"},
        {"lowercase": "no"},
        {"punctuation": "full"},
        {"smoothing": "add-k"},
        {"effective_order": 1},
        {"rouge_l": 0.0},
        {"rouge_l": "1.2"},
        {"about": None},
        {"beta": 1.0},
    ],
    ids=str,
)
def test_a_wrong_value_or_key_is_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="preset 'char'"):
        read_presets(changed(**wrong))


def test_only_the_punctuation_of_the_protocol_is_changed() -> None:
    text = "\uff0c\uff1f\u3002,?"
    assert normalize(text, PRESETS["unisign"]) == ",?\u3002,?"
    assert normalize(text, PRESETS["char"]) == text
