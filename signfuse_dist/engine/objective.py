"""What the engine asks: of a batch, of what it minimises, and of a model that is metered."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class TrainingBatch(Protocol):
    """What the loop asks of a batch. ``work`` is what it needs, and with padding what it takes."""

    @property
    def ids(self) -> tuple[str, ...]: ...
    @property
    def frame_lengths(self) -> Tensor: ...
    @property
    def weight(self) -> Tensor: ...
    @property
    def faults(self) -> tuple[str, ...]: ...
    @property
    def work(self) -> tuple[float, float]: ...
    def to(self, device: torch.device) -> Any: ...


class Objective(Protocol):
    """Named losses as sums, and what each is averaged over.

    ``weights`` has those that are minimised; ``observed`` are others that are only logged.

    Where a loss ``compares`` the clips of a step with each other, gradient caching asks for it in
    three calls: ``summarise`` for every micro batch without a graph, ``compare`` for what each
    micro batch has of the loss over all of them, and the losses of a micro batch given that. Both
    runs of the model find the same seed, and must draw in the same order up to the summaries.
    """

    weights: dict[str, float]

    @property
    def observed(self) -> tuple[str, ...]: ...
    @property
    def compares(self) -> bool: ...
    def counts(self, batch: Any) -> dict[str, float]: ...
    def summarise(self, model: nn.Module, batch: Any) -> Any: ...
    def compare(self, batches: Sequence[Any], summaries: Sequence[Any]) -> Sequence[Any]: ...
    def __call__(self, model: nn.Module, batch: Any, compared: Any = None) -> dict[str, Tensor]: ...
    def report(self, means: dict[str, float]) -> dict[str, float]: ...


class Cost(Protocol):
    """Floating-point operations of a component for one batch."""

    @property
    def forward(self) -> float: ...
    @property
    def backward(self) -> float: ...


@dataclass(frozen=True)
class Meter:
    """The parts of a model that are metered; without any, time and operations are not divided.

    Attributes:
        components: the modules whose calls make up each part, by its name.
        cost: operations of each part for a batch on the host; None: not counted.
        peak: operations a second that one device can do at best; None: not known.
        constants: figures that stand in every line as they are.
        uncounted: why a part has no cost, by its name; where any has none, there is no total.
    """

    components: Mapping[str, Sequence[nn.Module]] = field(default_factory=dict)
    cost: Callable[[Any], Mapping[str, Cost]] | None = None
    peak: float | None = None
    constants: Mapping[str, float] = field(default_factory=dict)
    uncounted: Mapping[str, str] = field(default_factory=dict)


NOTHING = Meter()
