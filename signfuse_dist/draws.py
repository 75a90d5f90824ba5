"""Numbers that follow from where they are drawn, by a hash: seed, kind, clip, and how often before.

No generator has to be brought to a place first, so any process draws for its own clips what any
other would have drawn, and a run that goes on what it would have drawn. Imports no torch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIXERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))
# What is drawn: no two share numbers.
SUBSET, CLIPS, NUMBERS, KEYS, LOST, SPANS = range(1, 7)


def mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the finaliser of splitmix64 (Steele et al., 2014) of each."""
    x = (x ^ (x >> _SHIFTS[0])) * _MIXERS[0]
    x = (x ^ (x >> _SHIFTS[1])) * _MIXERS[1]
    return x ^ (x >> _SHIFTS[2])


def hashed(seed: int, kind: int, *parts: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return a key for each row of ``parts``, ``[n]`` or ``[n, k]`` by numpy's broadcasting."""
    words: NDArray[np.uint64] = np.random.SeedSequence([seed, kind]).generate_state(1, np.uint64)  # type: ignore[assignment]
    for part in parts:
        words = mixed((words + GOLDEN) ^ mixed(part.astype(np.uint64) * GOLDEN + GOLDEN))
    return words


def uniform(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Return a number from 0 up to 1 for each key."""
    return np.asarray((words >> np.uint64(11)).astype(np.float64) * 2.0**-53)
