"""Fixtures for all tests."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

# A shell lets what it starts in the background ignore ctrl-C, and all that the tests start with it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real inputs, which is no part of the repository; skips where it is absent."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("SIGNFUSE_SHARED", beside))
    if not (folder / "data").is_dir():
        pytest.skip(f"real inputs are absent: set SIGNFUSE_SHARED ({folder} has no folder data)")
    return folder
