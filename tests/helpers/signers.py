"""Extractors that find a signer where a test wants one."""

from __future__ import annotations

import numpy as np

from signfuse_dist.data.joints import FrameTracker
from signfuse_dist.skeleton import NUM_JOINTS


class InTheMiddle(FrameTracker):
    """Finds a signer in the middle of every picture; nobody with ``found`` False."""

    name, version = "middle", "1"

    def __init__(self, found: bool = True) -> None:
        self._found = found

    def restart(self, after_failure: bool) -> None:
        """Remember nothing."""

    def find(self, picture: np.ndarray, number: int) -> np.ndarray:
        """Return joints on a line between 0.4 and 0.6 of the picture."""
        if not self._found:
            return np.full((NUM_JOINTS, 2), np.nan)
        return np.linspace(0.4, 0.6, NUM_JOINTS)[:, None].repeat(2, axis=1)
