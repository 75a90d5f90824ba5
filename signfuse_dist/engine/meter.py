"""What the engine is told of a model so that it can say where time and operations go."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn


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
    """

    components: Mapping[str, Sequence[nn.Module]] = field(default_factory=dict)
    cost: Callable[[Any], Mapping[str, Cost]] | None = None
    peak: float | None = None
    constants: Mapping[str, float] = field(default_factory=dict)


NOTHING = Meter()
