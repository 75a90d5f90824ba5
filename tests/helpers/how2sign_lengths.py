"""How long the clips of How2Sign's published val and test tables are."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FPS = 24


def real_lengths(shared: Path) -> NDArray[np.int64]:
    """Return the frames of each clip at 24 a second.

    One clip of 58 s alone holds more frames than its process's share of 8 average ones: it is cut
    to the 45.8 s of the longest training clip.
    """
    rows = []
    for name in ("val", "test"):
        path = shared / "data" / "text" / f"how2sign_realigned_{name}.csv"
        with path.open(encoding="utf-8", newline="") as file:
            rows += list(csv.DictReader(file))
    seconds = [float(r["END_REALIGNED"]) - float(r["START_REALIGNED"]) for r in rows]
    return np.array([max(1, round(FPS * min(s, 45.8))) for s in seconds])
