"""An average of the weights over the last steps (EMA), kept beside those that train."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from signfuse_dist.engine.checkpoint import trained_state


class WeightAverage:
    """Keeps a running mean of what trains and of its buffers, whole on every process.

    After step t it is d a + (1 - d) w with d = min(decay, (1 + t) / (10 + t)): at the start the
    mean forgets faster, or the first weights would stay in it for 1 / (1 - decay) steps. Every
    process has the same weights after a step, under ZeRO-2 as under DDP, and so the same mean.
    Numbers that are no floats, such as counts, are those of the last step.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """``model`` is the bare one, after it was prepared: its tensors may have moved."""
        self._model, self._decay = model, decay
        self.tensors = {name: value.clone() for name, value in trained_state(model).items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after ``step`` steps, from 1."""
        share = 1 - min(self._decay, (1 + step) / (10 + step))
        for name, value in self._live():
            mean = self.tensors[name]
            if mean.is_floating_point():
                mean.lerp_(value, share)
            else:
                mean.copy_(value)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the tensors of a checkpoint, which were compared with the model's."""
        for name, mean in self.tensors.items():
            mean.copy_(tensors[name])

    @torch.no_grad()
    def apply(self) -> None:
        """Give the model the mean for good."""
        for name, value in self._live():
            value.copy_(self.tensors[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the model the mean until the end of the block, then what it had, to the bit."""
        kept = {name: value.clone() for name, value in self._live()}
        self.apply()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in self._live():
                    value.copy_(kept[name])

    def _live(self) -> Iterator[tuple[str, Tensor]]:
        for of in (self._model.named_parameters(), self._model.named_buffers()):
            for name, value in of:
                if name in self.tensors:
                    yield name, value.detach()
