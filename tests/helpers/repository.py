"""Where the clone lies that is being tested, and the real inputs that are no part of it."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REAL_INPUTS = Path(os.environ.get("SIGNFUSE_SHARED", ROOT.parent / "shared"))
"""A folder that may be absent."""
