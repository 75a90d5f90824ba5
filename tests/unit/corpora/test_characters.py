"""What cannot be seen in a text, and where a joiner shapes what is read."""

from __future__ import annotations

import sys
import unicodedata

import pytest

from signfuse_dist.corpora.characters import find_control, is_blank, is_plain_name, visible

# Format characters that are seen, or that place what is seen.
MEANT = {0x6DD, 0x70F, 0x8E2, 0x110BD, 0x110CD, *range(0x600, 0x606), *range(0x890, 0x892)}
MEANT |= {*range(0x13430, 0x13440), *range(0x1BCA0, 0x1BCA4), *range(0x1D173, 0x1D17B)}


def test_every_format_character_is_removed_refused_or_known_to_mean_something():
    letters = map(chr, range(sys.maxunicode + 1))
    formats = [c for c in letters if unicodedata.category(c) == "Cf"]
    kept = {ord(c) for c in formats if visible(f"a{c}b") != "ab" and find_control(c) is None}
    assert len(formats) > 150
    assert kept == {ord(c) for c in formats} & MEANT


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("ه\u200d", "ه\u200d"),
        ("क्\u200dष", "क्\u200dष"),
        ("ශ්\u200dරී", "ශ්\u200dරී"),
        ("\u200cمن", "\u200cمن"),
        ("ab\u200c\u200dcd", "abcd"),
        ("\u0434\u200c\u0430", "\u0434\u0430"),
        ("中\u200d文", "中文"),
        ("👩\u200d🚀 \u2764\ufe0f\u200d🔥", "👩\u200d🚀 \u2764\ufe0f\u200d🔥"),
        ("👩\u200d", "👩"),
        ("\U0001f3f4\U000e0067\U000e0062\U000e007f", "\U0001f3f4\U000e0067\U000e0062\U000e007f"),
        ("a\U000e0067", "a"),
        ("ᠠ\u180eᠠ", "ᠠ\u180eᠠ"),
        ("\u2066a\u2069 \u200fb\ufeff", "a b"),
    ],
)
def test_joiners_stay_where_they_shape_what_is_read(text, seen):
    assert visible(text) == seen


@pytest.mark.parametrize("text", ["", " \u3000", "\u200b", "\u3164", "\u2800 \ufeff", "\u200d"])
def test_a_text_that_shows_nothing_is_blank(text):
    assert is_blank(text)


@pytest.mark.parametrize(
    ("name", "plain"),
    [("a b.mp4", True), ("grüße", True), ("a\u200b", False), ("a\u2028", False), ("a\x7f", False)],
)
def test_a_plain_name_holds_nothing_that_cannot_be_read_back(name, plain):
    assert is_plain_name(name) == plain
