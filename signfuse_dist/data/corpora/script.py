"""The script of a text, and the flag of rows that are in another one than their table."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from signfuse_dist.data.corpora.rows import Row

# Scripts that are written together: a row in the second is at home in a table of the first.
_MIXED_SCRIPTS = {"KANA": {"HAN"}, "HANGUL": {"HAN"}}


def script_of(text: str) -> str | None:
    """Return the script most letters of ``text`` belong to (LATIN, HAN, KANA ...), None if none."""
    counts = Counter(_script(letter) for letter in text if letter.isalpha())
    return max(counts, key=lambda name: (counts[name], name)) if counts else None


def _script(letter: str) -> str:
    plain = unicodedata.normalize("NFKC", letter)[0]  # full-width and styled letters
    first = unicodedata.name(plain, "UNNAMED").replace("-", " ").split()[0]
    renamed = {"CJK": "HAN", "IDEOGRAPHIC": "HAN", "HIRAGANA": "KANA", "KATAKANA": "KANA"}
    return renamed.get(first, first)


def flag_scripts(rows: Sequence[Row], texts: Iterable[str]) -> tuple[Row, ...]:
    """Flag the rows in another script than most of ``texts``, those of the whole table."""
    counts = Counter(script for script in map(script_of, texts) if script)
    if not counts:
        return tuple(rows)
    majority = max(counts, key=lambda name: (counts[name], name))
    home = {majority, *_MIXED_SCRIPTS.get(majority, ())}
    return tuple(_flagged(row, home) for row in rows)


def _flagged(row: Row, home: set[str]) -> Row:
    script = script_of(row.text)
    if script is None or script in home:
        return row
    return replace(row, flags=(f"script:{script}",))
