"""Characters of texts and names: blanks, what cannot be seen, what steers a terminal, scripts."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import cache

BLANKS = " \t\r\n\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
BLANKS += "\u2028\u2029\u202f\u205f\u3000"
"""Unicode's spaces and line breaks: what goes from the ends of a cell."""

# Format characters (category Cf) without a meaning of their own: soft hyphen, zero-width space,
# byte order mark, bidi controls ... Those left out are seen (signs of Arabic, Syriac and Kaithi
# numbers) or place what is seen (hieroglyphs, shorthand, music); U+FFF9 to U+FFFB are controls.
_INVISIBLE = re.compile(
    "[\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff"
    "\U000e0001\U000e0020-\U000e007f]"
)
_NO_LETTERS = bytes(code for code in range(128) if not chr(code).isalpha())
_LETTER = re.compile("[A-Za-z]")
_JOINERS = "\u200c\u200d"
_CONTROL = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufff9-\ufffb\ud800-\udfff]")
_NOT_PLAIN = re.compile(f"{_CONTROL.pattern}|[\t\n\r\u2028\u2029]|{_INVISIBLE.pattern}")
# What is a letter, a sign or a mark to Unicode and shows nothing when it stands alone.
_FILLERS = BLANKS + "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\ufe0e\ufe0f\uffa0"
# Scripts whose letters have one shape, so that a joiner between them says nothing.
_UNJOINED = frozenset((
    "LATIN", "GREEK", "CYRILLIC", "HAN", "KANA", "HANGUL", "ARMENIAN", "GEORGIAN", "HEBREW", "THAI",
    "LAO", "ETHIOPIC", "BOPOMOFO", "MODIFIER", "COMBINING", "VARIATION",
))  # fmt: skip


def visible(text: str) -> str:
    """Return ``text`` without the characters that cannot be seen and mean nothing.

    Joiners stay where they shape what is read: between letters of Arabic or Indic scripts and in
    emoji. So do the tags of a flag and the vowel separator of Mongolian.
    """
    if text.isascii() or not _INVISIBLE.search(text):
        return text
    return _INVISIBLE.sub(lambda found: found[0] * _has_meaning(text, found.start()), text)


def is_plain_text(text: str) -> bool:
    """Say whether a text holds no control, no line break and nothing invisible."""
    if text.isascii():
        return text.isprintable()
    return not _NOT_PLAIN.search(text)


def find_control(text: str) -> str | None:
    """Return the first character that no text may hold, None where there is none.

    Controls but for tabs and line ends, interlinear marks, and halves of a character.
    """
    found = _CONTROL.search(text)
    return found[0] if found else None


def is_blank(text: str) -> bool:
    """Say whether nothing of ``text`` would be seen on a page."""
    return not visible(text).strip(_FILLERS)


def is_plain_name(name: str) -> bool:
    """Say whether a name holds no control, no line end, no half and nothing invisible."""
    if name.isascii() and name.isprintable():  # nearly all of them
        return True
    wrong = ("Cc", "Cs", "Zl", "Zp")
    return visible(name) == name and not any(unicodedata.category(c) in wrong for c in name)


def code_point(letter: str) -> str:
    """Return a character as U+200B."""
    return f"U+{ord(letter):04X}"


def script_of(text: str) -> str | None:
    """Return the script most letters of ``text`` belong to (LATIN, HAN, KANA ...), None if none."""
    if text.isascii():  # a short way for most texts of most tables, and another for most others
        return "LATIN" if _LETTER.search(text) else None
    if 2 * len(text.encode("ascii", "ignore").translate(None, _NO_LETTERS)) > len(text):
        return "LATIN"
    counts: Counter[str] = Counter()
    for letter, count in Counter(text).items():
        if letter.isalpha():
            counts[_script(letter)] += count
    return max(counts, key=lambda name: (counts[name], name)) if counts else None


@cache  # a table of a million texts has some thousand letters
def _script(letter: str) -> str:
    plain = unicodedata.normalize("NFKC", letter)[0]  # full-width and styled letters
    first = unicodedata.name(plain, "UNNAMED").replace("-", " ").split()[0]
    renamed = {"CJK": "HAN", "IDEOGRAPHIC": "HAN", "HIRAGANA": "KANA", "KATAKANA": "KANA"}
    return renamed.get(first, first)


def _has_meaning(text: str, place: int) -> bool:
    """Say whether the format character at ``place`` shapes what is read around it."""
    letter, before, after = text[place], text[place - 1 : place], text[place + 1 : place + 2]
    if letter in _JOINERS and (_is_joined(before) or _is_joined(after)):
        return True
    if letter == "\u200d":
        return _is_emoji(before) and _is_emoji(after)
    if letter == "\u180e":
        return before != "" and _script(before) == "MONGOLIAN"
    if "\U000e0020" <= letter <= "\U000e007f":  # black flag and tags: the flag of a region
        return text[:place].rstrip("".join(map(chr, range(0xE0020, 0xE0080))))[-1:] == "\U0001f3f4"
    return False


def _is_joined(letter: str) -> bool:
    """Say whether ``letter`` is of a script in which neighbours shape each other."""
    return (
        letter != ""
        and unicodedata.category(letter)[0] in "LM"
        and (_script(letter) not in _UNJOINED)
    )


def _is_emoji(letter: str) -> bool:
    return letter != "" and (unicodedata.category(letter) in ("So", "Sk") or letter == "\ufe0f")
