"""Fixtures for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real inputs, which is no part of the repository; skips where it is absent."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("SIGNFUSE_SHARED", beside))
    if not (folder / "data").is_dir():
        pytest.skip(f"real inputs are absent: set SIGNFUSE_SHARED ({folder} has no folder data)")
    return folder
