"""What an objective is that compares no clips, for tests that train little models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn


class LoneObjective:
    """The part of an objective that gradient caching asks for, and that stays unused."""

    compares = False
    observed: tuple[str, ...] = ()

    def summarise(self, model: nn.Module, batch: Any) -> Any:
        raise AssertionError("nothing is compared")

    def compare(self, batches: Sequence[Any], summaries: Sequence[Any]) -> Sequence[Any]:
        raise AssertionError("nothing is compared")
