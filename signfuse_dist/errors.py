"""The one error type for what a user can put right."""

from __future__ import annotations

from collections.abc import Sequence


class UserError(ValueError):
    """Something in the user's input is wrong; the message names it and says what to do.

    The command line prints the message without a traceback and exits with status 2.
    """


def raise_together(errors: Sequence[str], headline: str) -> None:
    """Raise one :class:`UserError` with every message of ``errors``; do nothing when empty."""
    if errors:
        raise UserError("\n".join([f"{headline} ({len(errors)})", *(f"  - {e}" for e in errors)]))
