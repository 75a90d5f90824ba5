"""Scoring protocols as data: which tokens, which case, which punctuation, which ROUGE-L.

Scores of one set of translations differ by points through these choices alone, so each published
protocol is one record of ``presets.yaml`` and every score carries its signature.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from importlib.resources import files
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import PlainValidator
from pydantic.dataclasses import dataclass

from signfuse_dist.errors import UserError, raise_together, suggest
from signfuse_dist.files import parse_yaml
from signfuse_dist.records import STRICT_KEYS, Flag, Place, build, dotted

Tokenizer = Literal["13a", "zh", "char", "none"]
Smoothing = Literal["exp", "floor"]
Beta = float | Literal["p/r"]
RougeL = float | Literal["p/r", "package"]

BLEU_NAMES = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4")
METRICS = (*BLEU_NAMES, "chrF", "ROUGE-L", "METEOR", "BLEURT")


def in_order(names: Iterable[str]) -> list[str]:
    """Return metric names in the usual order, unknown ones last."""
    return sorted(names, key=lambda n: (METRICS.index(n) if n in METRICS else len(METRICS), n))


def _check_rouge_l(value: object) -> object:
    if value in ("p/r", "package"):
        return value
    if isinstance(value, float) and 0 < value < math.inf:
        return value
    raise ValueError("is neither a beta above 0, with a decimal point, nor p/r, nor package")


@dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class _Protocol:
    """A record of ``presets.yaml``, which says what its fields mean."""

    tokenizer: Tokenizer
    lowercase: Flag
    punctuation: str
    smoothing: Smoothing
    effective_order: Flag
    rouge_l: Annotated[RougeL, PlainValidator(_check_rouge_l)]
    about: str


@dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class Preset(_Protocol):
    """One protocol with its name."""

    name: str

    @property
    def units(self) -> Literal["words", "characters"]:
        """What ROUGE-L and METEOR count."""
        return "characters" if self.tokenizer == "char" else "words"


@dataclass(frozen=True, config=STRICT_KEYS)
class _PresetFile:
    punctuation: dict[str, dict[str, str]]
    presets: dict[str, _Protocol]


def read_presets(text: str) -> tuple[dict[str, dict[str, str]], dict[str, Preset]]:
    """Return the sets of punctuation and the presets of a file like ``presets.yaml``.

    Raises :class:`UserError` with every record that has other keys, or a value of a wrong kind.
    """
    errors: list[str] = []
    file = build(_PresetFile, parse_yaml(text, "presets.yaml"), errors, _name_place)
    for name, record in file.presets.items() if file else ():
        if file and record.punctuation not in file.punctuation:
            near = suggest(record.punctuation, file.punctuation)
            errors.append(f"preset {name!r}: punctuation: there is no {record.punctuation!r}{near}")
    raise_together(errors, "no file of presets")
    assert file is not None
    return file.punctuation, {n: Preset(name=n, **vars(r)) for n, r in file.presets.items()}


def _name_place(place: Place) -> str:
    if place[:1] == ("presets",) and len(place) > 1:
        return ": ".join([f"preset {place[1]!r}", *map(str, place[2:])])
    return dotted(place)


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
        near = suggest(name, PRESETS)
        raise UserError(f"no metric preset {name!r}{near}. There are: {', '.join(PRESETS)}")
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
