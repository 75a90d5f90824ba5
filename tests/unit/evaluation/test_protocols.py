"""Scoring protocols are a data file, and a wrong record of it is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from typing import Any

import pytest
import yaml

from signfuse_dist.errors import UserError
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
    presets = read_presets(changed(rouge_l=2.5, lowercase=True)).presets
    assert (presets["char"].rouge_l, presets["char"].lowercase) == (2.5, True)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"tokenizer": "14a"}, "tokenizer: '14a' is not one of 13a, zh, char, none; did you mean"),
        ({"lowercase": "no"}, "lowercase: 'no' is not a bool"),
        ({"lowercase": 1}, "lowercase: 1 is not a bool"),
        ({"punctuation": "full"}, "punctuation: there is no 'full'"),
        (
            {"punctuation": "halfwidth"},
            "punctuation: there is no 'halfwidth'; did you mean 'half-width'?",
        ),
        ({"punctuation": ["kept"]}, "punctuation: ['kept'] is not a str"),
        ({"smoothing": "add-k"}, "smoothing: 'add-k' is not one of exp, floor"),
        ({"effective_order": 1}, "effective_order: 1 is not a bool"),
        ({"rouge_l": 0.0}, "rouge_l: 0.0 is neither a beta above 0"),
        ({"rouge_l": -1.0}, "rouge_l: -1.0 is neither"),
        ({"rouge_l": 1}, "rouge_l: 1 is neither"),
        ({"rouge_l": True}, "rouge_l: True is neither"),
        ({"rouge_l": float("nan")}, "rouge_l: nan is neither"),
        ({"rouge_l": "1.2"}, "rouge_l: '1.2' is neither"),
        ({"rouge_l": None}, "rouge_l: None is neither"),
        ({"words": "how2sign"}, "words: there is no 'how2sign'; did you mean 'how2sign-reduced'?"),
        ({"append": None}, "append: None is not a str"),
        ({"seeds": 0}, "seeds: 0 is not at least 1"),
        ({"seeds": 3.0}, "seeds: 3.0 is not an int"),
        ({"about": None}, "about: None is not a str"),
        ({"beta": 1.0}, "unknown key 'beta'"),
        ({"name": "char"}, "unknown key 'name'"),
        ({"lowercse": True}, "unknown key 'lowercse'; did you mean 'lowercase'?"),
    ],
    ids=str,
)
def test_a_wrong_value_or_key_is_refused_by_name(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as refused:
        read_presets(changed(**wrong))
    assert f"- preset 'char': {said}" in str(refused.value)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda raw: raw["presets"]["char"].pop("about"), "preset 'char': about: missing"),
        (lambda raw: raw["presets"].update(char=[]), "preset 'char': expected a mapping of token"),
        (lambda raw: raw.pop("presets"), "presets: missing"),
        (lambda raw: raw.pop("punctuation"), "punctuation: missing"),
        (lambda raw: raw.update(punctuation=[]), "punctuation: [] is not a mapping"),
        (
            lambda raw: raw["punctuation"].update(kept={"a": 3}),
            "punctuation.kept.a: 3 is not a str",
        ),
        (lambda raw: raw.update(preset={}), "unknown key 'preset'; did you mean 'presets'?"),
    ],
)
def test_a_damaged_file_is_refused_by_name(edit: Callable[[Any], object], said: str) -> None:
    raw = yaml.safe_load(TEXT)
    edit(raw)
    with pytest.raises(UserError) as refused:
        read_presets(yaml.safe_dump(raw))
    assert f"- {said}" in str(refused.value)


def test_every_error_of_the_file_is_told_at_once() -> None:
    with pytest.raises(UserError) as refused:
        read_presets(changed(tokenizer="14a", smoothing="x"))
    assert "no file of presets (2)" in str(refused.value)


def test_only_the_punctuation_of_the_protocol_is_changed() -> None:
    text = "\uff0c\uff1f\u3002,?"
    assert normalize(text, PRESETS["unisign"]) == ",?\u3002,?"
    assert normalize(text, PRESETS["char"]) == text
