"""Fixtures for all tests."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from helpers.repository import REAL_INPUTS

# A shell lets what it starts in the background ignore ctrl-C, and all that the tests start with it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real inputs, which is no part of the repository; skips where it is absent."""
    if not (REAL_INPUTS / "data").is_dir():
        pytest.skip(
            f"real inputs are absent: set SIGNFUSE_SHARED ({REAL_INPUTS} has no folder data)"
        )
    return REAL_INPUTS
