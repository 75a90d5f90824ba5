"""What the engine asks of a batch and of what it minimises; it knows no model and no data."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Batch(Protocol):
    """What the loop asks of a batch."""

    @property
    def ids(self) -> tuple[str, ...]: ...
    @property
    def frame_lengths(self) -> Tensor: ...
    @property
    def weight(self) -> Tensor: ...
    @property
    def faults(self) -> tuple[str, ...]: ...
    def to(self, device: torch.device) -> Any: ...


class Objective(Protocol):
    """Named losses as sums, and what each is averaged over."""

    weights: dict[str, float]

    def counts(self, batch: Any) -> dict[str, float]: ...
    def __call__(self, model: nn.Module, batch: Any) -> dict[str, Tensor]: ...
    def report(self, means: dict[str, float]) -> dict[str, float]: ...
