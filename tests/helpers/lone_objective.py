"""What an objective is that compares no clips, for tests that train little models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn


class LoneObjective:
    """One sum, `total`, over the clips' weights; what gradient caching asks for stays unused."""

    compares = False
    observed: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.weights = {"total": 1.0}

    def counts(self, batch: Any) -> dict[str, float]:
        return {"total": float(batch.weight.sum())}

    def report(self, means: dict[str, float]) -> dict[str, float]:
        return means

    def summarise(self, model: nn.Module, batch: Any) -> Any:
        raise AssertionError("nothing is compared")

    def compare(self, batches: Sequence[Any], summaries: Sequence[Any]) -> Sequence[Any]:
        raise AssertionError("nothing is compared")
