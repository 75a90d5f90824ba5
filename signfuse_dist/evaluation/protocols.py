"""Scoring protocols as data: which tokens, case, punctuation, words, ending, and which ROUGE-L.

Scores of one set of translations differ by points through these choices alone, so each published
protocol is one record of ``presets.yaml`` and every score carries its signature.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from importlib.resources import files
from types import MappingProxyType
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, PlainValidator
from pydantic.dataclasses import dataclass

from signfuse_dist.errors import UserError, raise_together, suggest
from signfuse_dist.files import parse_yaml
from signfuse_dist.records import STRICT_KEYS, Flag, Place, build, dotted

Tokenizer = Literal["13a", "zh", "char", "none"]
Smoothing = Literal["exp", "floor"]
Beta = float | Literal["p/r"]
Reference = str | tuple[str, ...]
"""What a translation is compared with: one text, or several that are equally good."""
RougeL = float | Literal["p/r", "package"]

BLEU_NAMES = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4")
_ALL_WORDS = "all"
WER = "WER"
METRICS = (WER, *BLEU_NAMES, "chrF", "ROUGE-L", "METEOR", "BLEURT")
ERRORS = frozenset((WER,))
"""Metrics that count what is wrong: lower is better, and more than 100 is possible."""


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
    words: str
    append: str
    seeds: Annotated[int, Field(strict=True, ge=1)]
    about: str
    word_errors: Flag = False


@dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class Preset(_Protocol):
    """One protocol with its name."""

    name: str

    @property
    def units(self) -> Literal["words", "characters"]:
        """What ROUGE-L and METEOR count."""
        return "characters" if self.tokenizer == "char" else "words"

    @property
    def changes(self) -> dict[str, str]:
        """What the protocol does to text before it is cut, as entries of a signature."""
        done = {"punct": self.punctuation, "words": self.words, "append": repr(self.append)}
        nothing = {"punct": "kept", "words": _ALL_WORDS, "append": repr("")}
        return {name: value for name, value in done.items() if value != nothing[name]}


@dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class Vocabulary:
    """Which words a protocol counts; ``presets.yaml`` says what the fields mean."""

    without: str
    capitals_kept: str
    marks: str

    @cached_property
    def left_out(self) -> frozenset[str]:
        """The words that are left out, in every form."""
        lower = self.without.split()
        kept = self.capitals_kept.split()
        return frozenset([*lower, *(word.capitalize() for word in lower if word not in kept)])

    def reduce(self, text: str) -> str:
        """Return the words of ``text`` that count, with a space between."""
        if not self.left_out:
            return text
        plain = text.translate(dict.fromkeys(map(ord, self.marks)))
        return " ".join(word for word in plain.split() if word not in self.left_out)


@dataclass(frozen=True, config=STRICT_KEYS)
class _PresetFile:
    punctuation: dict[str, dict[str, str]]
    vocabularies: dict[str, Vocabulary]
    presets: dict[str, _Protocol]


class Protocols(NamedTuple):
    """The presets of a file by name, with the sets of marks and words that they name."""

    punctuation: dict[str, dict[str, str]]
    vocabularies: dict[str, Vocabulary]
    presets: dict[str, Preset]


def read_presets(text: str) -> Protocols:
    """Return what a file like ``presets.yaml`` holds.

    Raises :class:`UserError` with every record that has other keys, or a value of a wrong kind.
    """
    errors: list[str] = []
    file = build(_PresetFile, parse_yaml(text, "presets.yaml"), errors, _name_place)
    for name, record in file.presets.items() if file else ():
        assert file is not None
        for key, named, known in (
            ("punctuation", record.punctuation, file.punctuation),
            ("words", record.words, file.vocabularies),
        ):
            if named not in known:
                near = suggest(named, known)
                errors.append(f"preset {name!r}: {key}: there is no {named!r}{near}")
    raise_together(errors, "no file of presets")
    assert file is not None
    presets = {n: Preset(name=n, **vars(r)) for n, r in file.presets.items()}
    return Protocols(file.punctuation, file.vocabularies, presets)


def _name_place(place: Place) -> str:
    if place[:1] == ("presets",) and len(place) > 1:
        return ": ".join([f"preset {place[1]!r}", *map(str, place[2:])])
    return dotted(place)


_FILE = read_presets(
    (files("signfuse_dist.evaluation") / "presets.yaml").read_text(encoding="utf-8")
)
PRESETS: Mapping[str, Preset] = MappingProxyType(_FILE.presets)


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
    """Return ``text`` with the preset's punctuation, words and ending; case is left to each metric.

    An ending that is there already is not put there twice: some loaders of PHOENIX-2014T have it.
    """
    for mark, replacement in _FILE.punctuation[preset.punctuation].items():
        text = text.replace(mark, replacement)
    text = _FILE.vocabularies[preset.words].reduce(text)
    return text if text.endswith(preset.append) else text + preset.append


def texts_of(reference: Reference) -> tuple[str, ...]:
    """Return every text of a reference."""
    return (reference,) if isinstance(reference, str) else reference


def is_counted(text: str, preset: Preset) -> bool:
    """Say whether a reference holds a word that the protocol counts."""
    return bool(_FILE.vocabularies[preset.words].reduce(text).strip())


class PreparedTexts(NamedTuple):
    """Texts as a protocol compares them.

    ``streams`` are as many lists as a sentence has references at most, None where one has fewer
    (sacrebleu takes it, and its types say str), in the order of ``places``: those of the sentences
    that are compared.
    """

    systems: list[list[str]]
    streams: list[list[str]]
    places: list[int]


def prepare(
    systems: Sequence[Sequence[str]], references: Sequence[Reference], preset: Preset
) -> PreparedTexts:
    """Return the translations of each system and their references as the protocol compares them.

    A reference of which nothing is left is no reference, and a sentence without any is left out.
    Raises :class:`UserError` when no sentence is left.
    """
    kept = [
        tuple(normalize(text, preset) for text in texts_of(reference) if is_counted(text, preset))
        for reference in references
    ]
    places = [place for place, texts in enumerate(kept) if texts]
    if not places:
        raise UserError(
            f"preset {preset.name}: no reference holds a word that it counts ({preset.words})"
        )
    most = max(len(kept[place]) for place in places)
    padded = [(*kept[place], *(None,) * (most - len(kept[place]))) for place in places]
    return PreparedTexts(
        [[normalize(texts[place], preset) for place in places] for texts in systems],
        typing.cast("list[list[str]]", [list(stream) for stream in zip(*padded, strict=True)]),
        places,
    )
