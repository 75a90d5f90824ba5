"""How near cross-attention stays to its own moment, over the maps of several clips."""

from __future__ import annotations

import numpy as np
import pytest

from signfuse_dist.evaluation.evaluate import near_attention


def test_shares_are_means_over_the_clips_by_direction() -> None:
    even, own = np.full((4, 4), 0.25, dtype=np.float32), np.eye(4, dtype=np.float32)
    maps = {"to/a": even, "fro/a": own, "to/b/c": own, "fro/b/c": own}
    found = near_attention(maps)
    assert found is not None
    assert found.shares == {"to": pytest.approx((10 / 16 + 1) / 2), "fro": 1.0}
    assert found.chance == pytest.approx(10 / 16)
    assert found.clips == 2


def test_a_fusion_that_does_not_attend_has_none() -> None:
    assert near_attention({}) is None
