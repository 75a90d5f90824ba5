"""What a frame takes in a vision model, counted on tensors without memory. This imports torch."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from signfuse_dist.config import ModelConfig
from signfuse_dist.errors import raise_together
from signfuse_dist.model.vision import VisionModel, load_configured
from signfuse_dist.preflight.aside import answer_aside
from signfuse_dist.preflight.vision_files import FrameMemory
from signfuse_dist.sections import build_section

_FRAMES = 64  # beside which what does not grow with them is lost


class Held(TorchDispatchMode):
    """Counts the bytes of fake tensors that operations inside the block make, until they are gone.

    Attributes:
        now: bytes that are alive.
        peak: the most that were alive at once.
    """

    def __init__(self, device: str) -> None:
        """``device``: the type of the device whose tensors are counted."""
        super().__init__()
        self.now = self.peak = 0
        self._device = device
        self._alive: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation and add what it made."""
        out = func(*args, **(kwargs or {}))
        given = {x.untyped_storage()._cdata for x in self._counted((args, kwargs))}
        for made in self._counted(out):
            if made.untyped_storage()._cdata not in given:  # else it is a view of an operand
                self._add(made)
        return out

    def _counted(self, values: Any) -> Iterator[FakeTensor]:
        for leaf in tree_leaves(values):
            if isinstance(leaf, FakeTensor) and leaf.fake_device.type == self._device:
                yield leaf

    def _add(self, tensor: FakeTensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return

        def gone(_: Any) -> None:
            del self._alive[key]
            self.now -= size

        self._alive[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def measure(model: VisionModel, frame_size: int, bf16: bool) -> FrameMemory:
    """Return the bytes of a frame in a vision model on the meta device.

    Frames are squares of ``frame_size`` pixels. What is counted does not grow with their number:
    it is the difference of two numbers of them. The operations are a CPU's, which autocast runs in
    bfloat16 as CUDA's but for layer norms (docs/benchmarks.md).
    """

    def held(frames: int, trains: bool) -> tuple[int, int]:
        model.requires_grad_(trains)
        with Held("cpu") as bytes_held:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                vectors = model(torch.empty(frames, 3, frame_size, frame_size))
            kept = bytes_held.now
            if trains:
                vectors.float().sum().backward()
        return kept, bytes_held.peak

    with torch.device("cpu"), FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        kept, most = (
            (two - one) / _FRAMES
            for one, two in zip(held(_FRAMES, True), held(2 * _FRAMES, True), strict=True)
        )
        frozen = (held(2 * _FRAMES, False)[1] - held(_FRAMES, False)[1]) / _FRAMES
    return FrameMemory(model.output_dim, kept, most, frozen)


def _of_question(asked: Mapping[str, Any]) -> FrameMemory:
    """Return what :func:`~signfuse_dist.preflight.vision_files.frame_memory` asks."""
    errors: list[str] = []
    config = build_section("model", ModelConfig, asked["model"], errors)
    raise_together(errors, "the model cannot be built")
    assert config is not None
    with torch.device("meta"):
        model = load_configured(config)
    return measure(model, asked["frame_size"], asked["bf16"])


if __name__ == "__main__":
    answer_aside(_of_question)
