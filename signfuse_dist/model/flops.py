"""Floating-point operations of a step by component, from the lengths of a batch on the host.

Counted are matrix products and convolutions, two operations a multiplication with an addition, by
the formulas of :mod:`torch.utils.flop_counter`, while the model's own code runs on a copy without
memory (the meta device): one component and one clip at a time. So a fusion or an LLM that this
module has never heard of is counted like any other. A product costs its forward pass again for each
operand that needs a gradient: a frozen LLM passes one on to its inputs and has none for its
weights, a frozen encoder has neither. FlopCounterMode over the backward pass finds the same and
takes three times as long; but of a depthwise convolution (Eq. 13-15) it counts the weights'
gradient once for every channel.

What is counted is that of real frames, steps and tokens, and once, whatever ``visual_chunk`` or
``visual_checkpoint`` compute again; attention has every pair of positions, as in common MFU
figures. The losses are left out.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from signfuse_dist.batch import SignBatch
from signfuse_dist.model.attention import set_backend
from signfuse_dist.model.signfuse import SignFuse, Streams
from signfuse_dist.model.visual import WHOLE
from signfuse_dist.skeleton import NUM_JOINTS

COMPONENTS = ("visual", "skeletal", "fusion", "language_model")
_META = torch.device("meta")
_AFTER_A_BIAS = (torch.ops.aten.addmm, torch.ops.aten.baddbmm)


class Flops(NamedTuple):
    """Operations of a forward and of its backward pass."""

    forward: float
    backward: float

    @property
    def total(self) -> float:
        """Return both together."""
        return self.forward + self.backward


def components(model: SignFuse) -> dict[str, tuple[nn.Module, ...]]:
    """Return the modules whose calls make up each of :data:`COMPONENTS` of a model."""
    language = None if model.language_model is None else model.language_model.model
    parts: dict[str, tuple[nn.Module | None, ...]] = {
        "visual": (model.visual,),
        "skeletal": (model.skeletal,),
        "fusion": (model.fusion, model.temporal, model.adapter),
        "language_model": (language,),
    }
    present = {name: tuple(m for m in parts[name] if m is not None) for name in COMPONENTS}
    return {name: modules for name, modules in present.items() if modules}


class StepFlops:
    """What a step of one stage costs; called with each batch before it goes to the device.

    Attributes:
        uncounted: why a component cannot be counted, by its name: its code looks into values, which
            a model without memory does not have. Such a component has no cost.
    """

    def __init__(self, model: SignFuse, contrastive_features: str | None, language: bool) -> None:
        """Take a model whose stage is prepared: what trains decides what a backward pass is.

        The other arguments are those of :meth:`SignFuse.forward`.
        """
        self._features, self._language = contrastive_features, language
        self._model, self._counter = _without_memory(model), _Counter()
        self._looked_into = FakeTensorMode(allow_non_fake_inputs=True)
        _count_each_kind_once(self._model, self._counter)
        self._visual: dict[tuple[int, ...], _ByLength] = {}
        self._skeletal = self._by_length(self._run_skeletal, self._shortening)
        self._fusion = self._by_length(self._run_fusion, model.built_from.scale_strides)
        self._text = self._by_length(self._run_text, ())
        self.uncounted: dict[str, str] = {}
        tried = {"fusion": self._fusion}
        if model.vision is not None:
            side = model.vision.picture.side
            tried["visual"] = self._visual_of((side, side))
        if language and model.language_model is not None:
            tried["language_model"] = self._text
        for name, costs in tried.items():
            try:
                costs.sum([1])
            except RuntimeError as e:
                self.uncounted[name] = str(e).strip().partition("\n")[0] or type(e).__name__

    def __call__(self, batch: SignBatch) -> dict[str, Flops]:
        """Return the cost of each component for a batch; clips of weight zero count as nothing."""
        model, real = self._model, batch.weight.numpy() > 0
        frames = batch.frame_lengths.numpy()[real].tolist()
        costs: dict[str, Flops] = {}
        if batch.visual is None and batch.skeletal is None:
            if model.visual is not None and "visual" not in self.uncounted:
                shown = _some(batch.has_visual, frames, real)
                size = () if batch.frame_vectors is not None else tuple(batch.frames.shape[2:])
                costs["visual"] = self._visual_of(size).sum(shown)
            if model.skeletal is not None:
                costs["skeletal"] = self._skeletal.sum(_some(batch.has_skeletal, frames, real))
        if "fusion" not in self.uncounted:
            costs["fusion"] = self._fusion.sum([-(-n // model.stride) for n in frames])
        if not self._language or model.language_model is None or batch.text_lengths is None:
            return costs
        if "language_model" not in self.uncounted:
            costs["language_model"] = self._text.sum(batch.text_lengths.numpy()[real].tolist())
        return costs

    @property
    def _shortening(self) -> list[int]:
        """Strides by which the layers of an encoder may shorten a clip, one after the other."""
        return [s for s in range(2, self._model.stride + 1) if self._model.stride % s == 0]

    def _by_length(self, run: Callable[[int], None], strides: Sequence[int]) -> _ByLength:
        def count(length: int) -> Flops:
            self._counter.forward = self._counter.backward = 0.0
            with self._counter:
                run(length)
            return Flops(self._counter.forward, self._counter.backward)

        return _ByLength(count, strides)

    def _visual_of(self, size: tuple[int, ...]) -> _ByLength:
        if size not in self._visual:
            run = partial(self._run_visual, size=size)
            self._visual[size] = self._by_length(run, self._shortening)
        return self._visual[size]

    def _run_visual(self, frames: int, size: tuple[int, ...]) -> None:
        """Run the stream over pictures of this size; of size () over vectors in their place."""
        stream = self._model.visual
        assert stream is not None
        lengths, weight = torch.full((1,), frames, device=_META), torch.ones(1, device=_META)
        features = torch.empty(frames, stream.backbone.output_dim, device=_META)
        if size:
            pictures = torch.empty(frames, 3, *size, dtype=torch.uint8, device=_META)
            features = stream.frame_features(pictures, lengths, weight)
        stream.shorten(features[None], lengths, weight)

    def _run_skeletal(self, frames: int) -> None:
        stream = self._model.skeletal
        assert stream is not None
        lengths, weight = torch.full((1,), frames, device=_META), torch.ones(1, device=_META)
        pose = torch.empty(1, frames, NUM_JOINTS, 2, device=_META)
        stream(pose, torch.empty(pose.shape[:3], dtype=torch.bool, device=_META), lengths, weight)

    def _run_fusion(self, steps: int) -> None:
        """CMFA as often as the stage runs it, then HTA and SLA where there is a language loss."""
        model, features = self._model, []
        for stream in (model.visual, model.skeletal):
            if stream is not None:
                trains = any(p.requires_grad for p in stream.parameters())
                shape = (1, steps, model.built_from.dim)
                features.append(torch.empty(shape, device=_META, requires_grad=trains))
        streams = Streams(features[0], features[-1], torch.full((1,), steps, device=_META))
        if self._features is not None:
            model.summarise(streams, self._features)
        if self._language and model.adapter is not None:
            model.embed_signs(streams)

    def _run_text(self, tokens: int) -> None:
        language = self._model.language_model
        assert language is not None
        shape = (1, self._model.built_from.num_sign_tokens, language.llm_dim)
        # transformers looks into tensors, but for those that it knows to be empty.
        with self._looked_into:
            signs = torch.empty(shape, device=_META, requires_grad=True)
            text = torch.zeros(1, tokens, dtype=torch.long, device=_META)
            lengths = torch.full((1,), tokens, device=_META)
            language.negative_log_likelihood(signs, text, lengths)


def _some(has: Tensor | None, lengths: list[int], real: NDArray[np.bool_]) -> list[int]:
    """Return those of the real clips' lengths whose clip has a stream."""
    if has is None:
        return lengths
    return [n for n, there in zip(lengths, has.numpy()[real], strict=True) if there]


class _ByLength:
    """What one clip costs by its length: counted, or between counted lengths by a polynomial.

    The cost of a length n is a sum of 1, n, n^2 and ceil(n / stride), whose weights the first few
    lengths settle. Their weights are used when one length more agrees with them, and never beyond
    the shortest and the longest that was counted; otherwise every length is counted.
    """

    def __init__(self, count: Callable[[int], Flops], strides: Sequence[int]) -> None:
        self._count = count
        self._strides = sorted({stride for stride in strides if stride > 1})
        self._counted: dict[int, Flops] = {}
        self._known: dict[int, Flops] = {}

    def sum(self, lengths: Sequence[int]) -> Flops:
        """Return the cost of clips of these lengths together."""
        for length in lengths:
            if length not in self._known:
                self._known[length] = self._between(length) or self._counted_at(length)
        costs = [self._known[length] for length in lengths]
        return Flops(sum(c.forward for c in costs), sum(c.backward for c in costs))

    def _counted_at(self, length: int) -> Flops:
        self._counted[length] = self._count(length)
        return self._counted[length]

    def _between(self, length: int) -> Flops | None:
        """Return the cost of a length from those that were counted, or None where it must be."""
        counted = np.array(sorted(self._counted))
        if not len(counted) or not counted[0] < length < counted[-1]:
            return None
        terms, costs = self._terms(counted), np.array([self._counted[n] for n in counted])
        scale = terms.max(axis=0)
        weights, _, rank, _ = np.linalg.lstsq(terms / scale, costs, rcond=1e-12)
        if rank < terms.shape[1] or len(counted) == rank:
            return None
        if not np.allclose(terms / scale @ weights, costs, rtol=1e-9, atol=0.0):
            return None
        (cost,) = self._terms(np.array([length])) / scale @ weights
        return Flops(*cost.round().tolist())

    def _terms(self, lengths: NDArray[np.int64]) -> NDArray[np.float64]:
        terms = [lengths**0, lengths, lengths**2]
        terms += [-(-lengths // stride) for stride in self._strides]
        matrix: NDArray[np.float64] = np.stack(terms, axis=1).astype(np.float64)
        return matrix


class _Counter(TorchDispatchMode):
    """Adds up operations, forward and backward, of what runs while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.forward = self.backward = 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and count it."""
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            operations = float(formula(*args, **(kwargs or {}), out_val=out))
            operands = args[1:3] if func.overloadpacket in _AFTER_A_BIAS else args[:2]
            self.forward += operations
            self.backward += operations * sum(operand.requires_grad for operand in operands)
        return out


def _without_memory(model: SignFuse) -> SignFuse:
    """Return a copy of a model on the meta device, which computes nothing twice.

    A quantized layer becomes a plain one: its packed weight is of another shape.
    """
    memo: dict[int, Any] = {id(model.tokenizer): model.tokenizer}
    for layer in model.modules():
        if isinstance(layer, nn.Linear) and type(layer) is not nn.Linear:
            dtype = layer.weight.dtype
            if not dtype.is_floating_point:
                dtype = getattr(torch, model.built_from.llm_dtype)
            bias = layer.bias is not None
            plain = nn.Linear(layer.in_features, layer.out_features, bias, _META, dtype)
            memo[id(layer)] = plain.requires_grad_(layer.weight.requires_grad)
    for parameter in model.parameters():
        empty = torch.empty_like(parameter, device=_META)
        memo.setdefault(id(parameter), nn.Parameter(empty, parameter.requires_grad))
    for buffer in model.buffers():
        memo.setdefault(id(buffer), torch.empty_like(buffer, device=_META))
    empty_model = copy.deepcopy(model, memo).eval()
    set_backend(empty_model, "eager")
    if empty_model.visual is not None:
        empty_model.visual.budget, empty_model.visual.backbone.recompute_blocks = WHOLE, False
    if empty_model.vision is not None:
        empty_model.vision.network.set_attn_implementation("eager")
    if empty_model.language_model is not None:
        empty_model.language_model.model.set_attn_implementation("eager")
    return empty_model


def _count_each_kind_once(model: nn.Module, counter: _Counter) -> None:
    """Let layers of one kind, such as the 32 of an LLM, run once for each shape of their inputs.

    The others return what the first returned, and count what it counted.
    """
    ran: dict[Any, Any] = {}
    for parent in model.modules():
        if isinstance(parent, (nn.ModuleList, nn.Sequential)):
            for layer in parent:
                if next(layer.children(), None) is not None:
                    layer.forward = _Once(layer, counter, ran)


class _Once:
    """The forward pass of a layer, which another of its kind may have run."""

    def __init__(self, layer: nn.Module, counter: _Counter, ran: dict[Any, Any]) -> None:
        self._forward, self._counter, self._ran = layer.forward, counter, ran
        parts = tuple((type(part), part.extra_repr()) for part in layer.modules())
        self._kind = parts, tuple((p.shape, p.requires_grad) for p in layer.parameters())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the layer returns, without memory."""
        given = tuple(_shape_of(value) for value in tree_leaves((args, kwargs)))
        if (self._kind, given) in self._ran:
            out, cost = self._ran[self._kind, given]
            self._counter.forward += cost.forward
            self._counter.backward += cost.backward
            return out
        before = Flops(self._counter.forward, self._counter.backward)
        out = self._forward(*args, **kwargs)
        after = self._counter
        cost = Flops(after.forward - before.forward, after.backward - before.backward)
        self._ran[self._kind, given] = out, cost
        return out


def _shape_of(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.shape, value.dtype, value.requires_grad
    return value if isinstance(value, (bool, int, float)) else type(value)
