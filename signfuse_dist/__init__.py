"""signfuse_dist: gloss-free sign language translation with SignFuse, trained at scale.

``from signfuse_dist import SignFuse, SignFuseConfig`` gives the model; torch is imported then, not
before.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "SignFuse": "signfuse_dist.model.signfuse",
    "SignFuseConfig": "signfuse_dist.model.saved",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
