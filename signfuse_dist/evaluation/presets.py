"""Scoring protocols as data: which tokens, which case, which punctuation, which ROUGE-L.

Scores of one set of translations differ by points through these choices alone, so each published
protocol is one frozen record and every score carries its signature. A piece of a protocol that
this project cannot compute as published is named in ``unavailable`` and is not scored; it is never
replaced by a look-alike.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from signfuse_dist.errors import UserError

Tokenizer = Literal["13a", "zh", "char", "none"]
Smoothing = Literal["exp", "floor"]
Beta = float | Literal["p/r"]

BLEU_NAMES = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4")
METRICS = (*BLEU_NAMES, "chrF", "ROUGE-L", "METEOR")


def in_order(names: Iterable[str]) -> list[str]:
    """Return metric names in the usual order, unknown ones last."""
    return sorted(names, key=lambda n: (METRICS.index(n) if n in METRICS else len(METRICS), n))


# The two marks that differ between CSL-Daily's annotation and the output of a half-width tokenizer.
_HALF_WIDTH = (("\uff0c", ","), ("\uff1f", "?"))
PUNCTUATION: Mapping[str, tuple[tuple[str, str], ...]] = MappingProxyType(
    {"kept": (), "half-width": _HALF_WIDTH}
)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One protocol.

    ``tokenizer`` is sacrebleu's name and cuts the tokens of every word metric alike: ``none`` means
    at white space, ``char`` at every character (white space dropped). ``punctuation`` is a key of
    :data:`PUNCTUATION` and is applied to both sides. ``smoothing`` and ``effective_order`` are
    sacrebleu's; ``floor`` is used with the value 0, that is without smoothing.
    """

    name: str
    tokenizer: Tokenizer
    lowercase: bool
    punctuation: Literal["kept", "half-width"] = "kept"
    smoothing: Smoothing = "exp"
    effective_order: bool = False
    rouge_beta: Beta | None = 1.0
    about: str = ""
    unavailable: Mapping[str, str] = field(default_factory=dict)

    @property
    def units(self) -> Literal["words", "characters"]:
        """What ROUGE-L and METEOR count."""
        return "characters" if self.tokenizer == "char" else "words"


_ALL = (
    Preset(
        name="sacrebleu", tokenizer="13a", lowercase=False,
        about="sacrebleu's defaults; with the tokenizer `zh` for Chinese",
    ),
    Preset(
        name="neccam", tokenizer="none", lowercase=True, smoothing="floor", effective_order=True,
        rouge_beta=1.2,
        about="Camgoz et al., Sign Language Transformers: text lower-cased and cut at white space, "
        "a trailing ' .' kept, ROUGE-L with beta 1.2",
    ),
    Preset(
        name="twostream", tokenizer="none", lowercase=False, smoothing="floor",
        effective_order=True, rouge_beta="p/r",
        about="Chen et al., Two-Stream Network, words: cut at white space, ROUGE-L with beta = P/R",
    ),
    Preset(
        name="twostream-char", tokenizer="char", lowercase=False, smoothing="floor",
        effective_order=True, rouge_beta="p/r",
        about="Chen et al., Two-Stream Network, characters (Chinese), ROUGE-L with beta = P/R",
    ),
    Preset(
        name="unisign", tokenizer="char", lowercase=False, punctuation="half-width",
        rouge_beta=None,
        about="Li et al., Uni-Sign on Chinese: characters, comma and question mark half-width",
        unavailable={
            "ROUGE-L": "the protocol takes it from the Python package `rouge`, whose score is "
            "another one; the preset `char` gives ROUGE-L with beta 1"
        },
    ),
    Preset(
        name="char", tokenizer="char", lowercase=False,
        about="characters, text as it is, ROUGE-L with beta 1",
    ),
)  # fmt: skip

PRESETS: Mapping[str, Preset] = MappingProxyType({preset.name: preset for preset in _ALL})


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
    for mark, replacement in PUNCTUATION[preset.punctuation]:
        text = text.replace(mark, replacement)
    return text
