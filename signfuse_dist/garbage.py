"""The garbage collector, kept still where much is made that is kept.

It looks through all that there is again and again while libraries are imported, rows are read or
plots drawn, and finds nothing: a sixth of the processor time of importing what training needs.
"""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_MANY = 100  # modules, from which on it is worth setting apart what they made


@contextmanager
def uncollected() -> Iterator[None]:
    """Keep the garbage collector still for a block, unless it is still already."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def importing() -> Iterator[None]:
    """Keep it still for a block of imports; it looks through what they made at the very end alone.

    Where little is imported, because it has been before, nothing is set apart: with it would go
    what a caller has thrown away.
    """
    before = len(sys.modules)
    with uncollected():
        yield
        if len(sys.modules) - before >= _MANY:
            gc.freeze()
            # At its end Python collects modules once more, and libraries count what is left.
            atexit.register(gc.unfreeze)
