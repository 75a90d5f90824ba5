"""Scoring protocols as data: which tokens, which case, which punctuation, which ROUGE-L.

Scores of one set of translations differ by points through these choices alone, so each published
protocol is one record of ``presets.yaml`` and every score carries its signature.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from types import MappingProxyType
from typing import Any, Literal, get_args

import yaml

from signfuse_dist.errors import UserError

Tokenizer = Literal["13a", "zh", "char", "none"]
Smoothing = Literal["exp", "floor"]
Beta = float | Literal["p/r"]
RougeL = float | Literal["p/r", "package"]

BLEU_NAMES = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4")
METRICS = (*BLEU_NAMES, "chrF", "ROUGE-L", "METEOR", "BLEURT")


def in_order(names: Iterable[str]) -> list[str]:
    """Return metric names in the usual order, unknown ones last."""
    return sorted(names, key=lambda n: (METRICS.index(n) if n in METRICS else len(METRICS), n))


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One protocol; ``presets.yaml`` says what its fields mean."""

    name: str
    tokenizer: Tokenizer
    lowercase: bool
    punctuation: str
    smoothing: Smoothing
    effective_order: bool
    rouge_l: RougeL
    about: str

    @property
    def units(self) -> Literal["words", "characters"]:
        """What ROUGE-L and METEOR count."""
        return "characters" if self.tokenizer == "char" else "words"


def read_presets(text: str) -> tuple[dict[str, dict[str, str]], dict[str, Preset]]:
    """Return the sets of punctuation and the presets of a file like ``presets.yaml``.

    Raises ValueError naming the record that has another set of keys, or a value of a wrong kind.
    """
    raw = yaml.safe_load(text)
    punctuation = {name: dict(marks) for name, marks in raw["punctuation"].items()}
    presets = {name: _read(name, record, punctuation) for name, record in raw["presets"].items()}
    return punctuation, presets


def _read(name: str, record: dict[str, Any], punctuation: Mapping[str, Any]) -> Preset:
    keys = {field.name for field in dataclasses.fields(Preset)} - {"name"}
    if set(record) != keys:
        raise ValueError(f"preset {name!r}: its keys are not {sorted(keys)}")
    rouge_l = record["rouge_l"]
    right = {
        "tokenizer": record["tokenizer"] in get_args(Tokenizer),
        "lowercase": isinstance(record["lowercase"], bool),
        "punctuation": record["punctuation"] in punctuation,
        "smoothing": record["smoothing"] in get_args(Smoothing),
        "effective_order": isinstance(record["effective_order"], bool),
        "rouge_l": rouge_l in ("p/r", "package") or (isinstance(rouge_l, float) and rouge_l > 0),
        "about": isinstance(record["about"], str),
    }
    for key, fits in right.items():
        if not fits:
            raise ValueError(f"preset {name!r}: {key} is {record[key]!r}")
    return Preset(name=name, **record)


_PUNCTUATION, _PRESETS = read_presets(
    (files("signfuse_dist.evaluation") / "presets.yaml").read_text(encoding="utf-8")
)
PRESETS: Mapping[str, Preset] = MappingProxyType(_PRESETS)


def find_preset(name: str, tokenizer: str | None = None) -> Preset:
    """Return the preset ``name``; ``tokenizer`` (13a, zh, char) chooses that of `sacrebleu`.

    The other presets name a published protocol, and their tokenizer is part of it: there the
    argument changes nothing, and the signatures show the protocol's own. Raises
    :class:`UserError` for an unknown name or tokenizer.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"no metric preset {name!r}{hint}. There are: {', '.join(PRESETS)}")
    preset = PRESETS[name]
    if tokenizer is None or name != "sacrebleu":
        return preset
    for known in ("13a", "zh", "char"):
        if tokenizer == known:
            return dataclasses.replace(preset, tokenizer=known)
    raise UserError(f"no BLEU tokenizer {tokenizer!r}. There are: 13a, zh, char")


def normalize(text: str, preset: Preset) -> str:
    """Return ``text`` with the preset's punctuation; case is left to each metric."""
    for mark, replacement in _PUNCTUATION[preset.punctuation].items():
        text = text.replace(mark, replacement)
    return text
