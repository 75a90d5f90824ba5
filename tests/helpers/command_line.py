"""What the tests of every command ask of it."""

from __future__ import annotations

import pytest

from signfuse_dist.cli import main


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run a command that a user got wrong; return the one message."""
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert "Traceback" not in printed.err
    return printed.err
