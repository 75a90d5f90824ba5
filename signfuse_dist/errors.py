"""The one error type for what a user can put right, and what it says of a misspelt name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any


class UserError(ValueError):
    """Something in the user's input is wrong; the message names it and says what to do.

    The command line prints the message without a traceback and exits with status 2.
    """


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
