"""The one error type for what a user can put right, and how its message reaches the screen."""

from __future__ import annotations

import difflib
import os
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar


class UserError(ValueError):
    """Something in the user's input is wrong; the message names it and says what to do.

    The command line prints the message without a traceback and exits with ``status``.
    """

    status: ClassVar[int] = 2


class MachineError(UserError):
    """A disk, a mount, the memory or a limit of the machine failed, and no input is to blame.

    Work stops where it is and nothing is written down as the data's fault: the same command goes
    on when the cause is gone, which is what its status 75 says to batch systems.
    """

    status: ClassVar[int] = os.EX_TEMPFAIL


class DamagedError(UserError):
    """What this program once wrote is not what it was: the message names the file and its fault."""


def raise_together(errors: Sequence[str], headline: str) -> None:
    """Raise one :class:`UserError` with every message of ``errors``; do nothing when empty."""
    if errors:
        raise UserError("\n".join([f"{headline} ({len(errors)})", *(f"  - {e}" for e in errors)]))


def refuse_unknown(
    given: Iterable[str], known: Iterable[str], label: str, errors: list[str]
) -> None:
    """Record every name that is not known, with the nearest one that is."""
    known = list(known)
    for name in given:
        if name not in known:
            errors.append(f"{label}: unknown key {name!r}{suggest(str(name), known)}")


def suggest(name: str, known: Iterable[Any]) -> str:
    """Return "; did you mean ...?" when a known name is near, else nothing."""
    near = difflib.get_close_matches(name, [str(k) for k in known], n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def shortened(text: str, most: int = 80) -> str:
    """Return ``text``, of which no more than ``most`` characters are shown in an error."""
    return text if len(text) <= most else f"{text[:most]}… ({len(text)} characters)"


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, without its full stop."""
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__


def on_one_line(error: object) -> str:
    """Return all that an error of :func:`raise_together` says, in one line."""
    return str(error).replace("\n  - ", "; ")


_STEERING = ("Cc", "Cf", "Cs", "Zl", "Zp")
_JOINERS = "\u200c\u200d"  # of Persian, Indic scripts and emoji: they steer no terminal


def printable(text: str, several_lines: bool = False) -> str:
    """Return ``text`` with what steers a terminal, hides or cannot be encoded as escapes.

    Names, ids and texts of corpora are anybody's: an ESC among them becomes ``\\x1b``, and a line
    break ``\\n`` unless the text may have ``several_lines``.
    """
    if text.isascii() and text.isprintable():
        return text
    kept = _JOINERS + ("\n" if several_lines else "")
    return "".join(
        c.encode("unicode_escape").decode("ascii")
        if c not in kept and unicodedata.category(c) in _STEERING
        else c
        for c in text
    )
