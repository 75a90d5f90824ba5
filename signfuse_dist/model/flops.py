"""Floating-point operations of a step by component, from the lengths of a batch on the host.

What is counted are matrix products and convolutions, two operations a multiplication with an
addition, as ``torch.utils.flop_counter`` counts them: for real frames, steps and tokens only, and
once, whatever ``visual_chunk`` or ``visual_checkpoint`` compute again. A product of an input and a
weight costs its forward pass again for the gradient of the weight, where that trains, and again for
the gradient of the input, where one is needed: a frozen LLM has the second and not the first, a
frozen encoder before everything that trains has neither. The losses are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers.pytorch_utils import Conv1D

from signfuse_dist.batch import SignBatch
from signfuse_dist.model.cmfa import CrossAttention, FusionLayer
from signfuse_dist.model.hta import TemporalAggregation, TimeScale
from signfuse_dist.model.llm import LanguageModel, attention_blocks
from signfuse_dist.model.signfuse import SignFuse
from signfuse_dist.model.skeletal import SkeletalStream, SpatialTemporalBlock
from signfuse_dist.model.visual import ResNet, VisualStream
from signfuse_dist.skeleton import NUM_JOINTS

_CROSSING = ("EncDecAttention", "encoder_attn", "crossattention")
_KEYS_AND_VALUES = ("k", "v", "k_proj", "v_proj", "key", "value")


class LanguageModelFlops:
    """Cost of the LLM's forward and backward pass, from its linear layers and their places.

    A layer of the encoder runs over sign tokens and prompt, a layer of the decoder over the text, a
    causal LM over all of them; keys and values of cross-attention run over the encoder's positions,
    the output layer over the text alone. All of them pass a gradient on to the sign tokens.
    Attention counts every pair of positions, as FlopCounterMode and common MFU figures do.
    """

    def __init__(self, language: LanguageModel) -> None:
        self._causal = not language.is_encoder_decoder
        self._prompt = len(language.prompt)
        head = language.model.get_output_embeddings()
        self._head = _numel(head)
        self._per_position = {"encoder": [0.0, 0.0], "decoder": [0.0, 0.0]}
        for name, layer in _llm_linears(language.model):
            if layer is not head:
                side = self._side(name)
                trains = layer.weight.requires_grad
                self._per_position[side][0] += 2 * _numel(layer)
                self._per_position[side][1] += 2 * _numel(layer) * (1 + int(trains))
        self._blocks = self._attention(language.model)
        self._width = _attention_width(language.model.config)

    def __call__(self, num_sign_tokens: int, tokens: NDArray[np.int64]) -> tuple[float, float]:
        """Return operations of the forward and backward pass for texts of so many tokens each."""
        prefix = num_sign_tokens + self._prompt
        text = float(tokens.sum())
        encoder = float(prefix * len(tokens))
        decoder = encoder + text if self._causal else text
        forward = backward = 0.0
        for side, positions in (("encoder", encoder), ("decoder", decoder)):
            forward += self._per_position[side][0] * positions
            backward += self._per_position[side][1] * positions
        head = 2 * self._head * (text + len(tokens) if self._causal else text)
        pairs = self._pairs(prefix, tokens)
        attention = 4 * self._width * pairs
        return forward + head + attention, backward + head + 2 * attention

    def _side(self, name: str) -> str:
        if self._causal:
            return "decoder"
        if any(part in name for part in _CROSSING) and _inside(name, _KEYS_AND_VALUES):
            return "encoder"
        return "encoder" if _inside(name, ("encoder",)) else "decoder"

    def _attention(self, model: nn.Module) -> dict[str, int]:
        """Count the attention blocks of the encoder, of the decoder, and those between them."""
        counts = {"encoder": 0, "decoder": 0, "between": 0}
        for name in attention_blocks(model):
            if any(part in name for part in _CROSSING):
                counts["between"] += 1
            else:
                counts["decoder" if self._causal else self._side(name)] += 1
        return counts

    def _pairs(self, prefix: int, tokens: NDArray[np.int64]) -> float:
        """Return the pairs of a query and a key over all attention blocks and clips."""
        own = tokens + prefix if self._causal else tokens
        return float(
            self._blocks["decoder"] * (own * own).sum()
            + self._blocks["encoder"] * prefix * prefix * len(tokens)
            + self._blocks["between"] * (prefix * tokens).sum()
        )


def _inside(name: str, parts: tuple[str, ...]) -> bool:
    return any(part in parts for part in name.split("."))


def _llm_linears(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield every linear layer once by its full name, quantized ones and LoRA's among them."""
    for name, layer in model.named_modules():
        if isinstance(layer, (nn.Linear, Conv1D)):
            yield name, layer


def _numel(layer: Any) -> float:
    """Return inputs times outputs; the packed weight of a quantized layer would be smaller."""
    if isinstance(layer, Conv1D):
        return float(layer.weight.numel())
    return float(layer.in_features * layer.out_features)


def _attention_width(config: Any) -> int:
    """Return heads times channels of a head, under the names that configurations have for it."""
    heads = int(getattr(config, "num_attention_heads", None) or config.num_heads)
    each = getattr(config, "d_kv", None) or getattr(config, "head_dim", None)
    return heads * int(each) if each else int(config.hidden_size)


Lengths = NDArray[np.int64]
COMPONENTS = ("visual", "skeletal", "fusion", "language_model")


class Flops(NamedTuple):
    """Operations of a forward and of its backward pass."""

    forward: float
    backward: float

    @property
    def total(self) -> float:
        """Return both together."""
        return self.forward + self.backward

    def plus(self, other: Flops) -> Flops:
        """Return the sum of two costs."""
        return Flops(self.forward + other.forward, self.backward + other.backward)

    def times(self, count: float) -> Flops:
        """Return the cost of so many of the same."""
        return Flops(self.forward * count, self.backward * count)


NOTHING = Flops(0.0, 0.0)


def components(model: SignFuse) -> dict[str, tuple[nn.Module, ...]]:
    """Return the modules whose calls make up each of :data:`COMPONENTS` of a model."""
    language = () if model.language_model is None else (model.language_model.model,)
    adapter = () if model.adapter is None else (model.adapter,)
    found: dict[str, tuple[nn.Module, ...]] = {
        "visual": () if model.visual is None else (model.visual,),
        "skeletal": () if model.skeletal is None else (model.skeletal,),
        "fusion": (model.fusion, model.temporal, *adapter),
        "language_model": language,
    }
    return {name: modules for name, modules in found.items() if modules}


class StepFlops:
    """What a step of one stage costs; called with each batch before it goes to the device."""

    def __init__(self, model: SignFuse, contrastive_features: str | None, language: bool) -> None:
        """Take a model whose stage is prepared: what trains decides what a backward pass is.

        The other arguments are those of :meth:`SignFuse.forward`.
        """
        self._model, self._features, self._language = model, contrastive_features, language
        self._llm = None
        self._of_frames: dict[tuple[int, int], tuple[Flops, Flops]] = {}
        if language and model.language_model is not None:
            self._llm = LanguageModelFlops(model.language_model)

    def __call__(self, batch: SignBatch) -> dict[str, Flops]:
        """Return the cost of each component for a batch; clips of weight zero count as nothing."""
        model, real = self._model, batch.weight.numpy() > 0
        frames = batch.frame_lengths.numpy()[real].astype(np.int64)
        steps = -(-frames // model.stride)
        found = {"fusion": self._fusion(steps)}
        if batch.visual is None and batch.skeletal is None:
            if model.visual is not None:
                found["visual"] = self._visual(model.visual, batch.frames.shape, frames, steps)
            if model.skeletal is not None:
                found["skeletal"] = _skeletal(model.skeletal, frames)
        if self._llm is not None and batch.text_lengths is not None:
            tokens = batch.text_lengths.numpy()[real].astype(np.int64)
            found["language_model"] = Flops(*self._llm(model.built_from.num_sign_tokens, tokens))
        return {name: found[name] for name in COMPONENTS if name in found}

    def _visual(
        self, stream: VisualStream, shape: torch.Size, frames: Lengths, steps: Lengths
    ) -> Flops:
        """Frames are alike, so the layers are walked through once for each size of a picture."""
        size = (shape[2], shape[3])
        if size not in self._of_frames:
            self._of_frames[size] = _visual(stream, size)
        a_frame, a_step = self._of_frames[size]
        return a_frame.times(float(frames.sum())).plus(a_step.times(float(steps.sum())))

    def _fusion(self, steps: Lengths) -> Flops:
        """CMFA as often as the stage runs it, then HTA and SLA where there is a language loss."""
        model = self._model
        streams = [part for part in (model.visual, model.skeletal) if part is not None]
        grad = any(p.requires_grad for part in streams for p in part.parameters())
        cost = NOTHING
        if self._features == "unimodal":
            once = _stack(model, steps, grad)
            cost = cost.plus(once).plus(once)
        elif self._features == "attended":
            layer = cast(FusionLayer, model.fusion.layers[0])
            cost = cost.plus(_crossings(layer, steps, grad))
        if not self._language or model.adapter is None:
            return cost
        cost = cost.plus(_stack(model, steps, grad))
        cost = cost.plus(_temporal(model.temporal, steps))
        return cost.plus(_linears(model.adapter, model.adapter.num_sign_tokens * len(steps)))


def product(macs: float, module: nn.Module | None, input_grad: bool, graph: bool = True) -> Flops:
    """Return the cost of ``macs`` multiplications of an input with a module's weight.

    ``module`` None: with another input instead (attention), which needs a gradient as well.
    """
    trains = input_grad if module is None else cast(Any, module).weight.requires_grad
    return Flops(2 * macs, 2 * macs * (int(trains) + int(input_grad)) if graph else 0.0)


def _linears(part: nn.Module, positions: float, input_grad: bool = True) -> Flops:
    """Return the cost of every linear layer of ``part`` at so many positions."""
    cost = NOTHING
    for layer in part.modules():
        if isinstance(layer, nn.Linear):
            macs = positions * layer.in_features * layer.out_features
            cost = cost.plus(product(macs, layer, input_grad))
    return cost


def _visual(stream: VisualStream, size: tuple[int, int]) -> tuple[Flops, Flops]:
    """Return the cost of one frame through the ResNet, and of one step through Eq. 3."""
    graph = any(p.requires_grad for p in stream.parameters())
    backbone = any(p.requires_grad for p in stream.backbone.parameters())
    conv = stream.conv
    macs = float(conv.in_channels * conv.out_channels * conv.kernel_size[0])
    return _resnet(stream.backbone, size, graph), product(macs, conv, backbone, graph)


def _resnet(net: ResNet, size: tuple[int, int], graph: bool) -> Flops:
    """Follow the size of one frame's feature maps through the network."""
    cost, size = _conv(net.conv1, size, False, graph)
    size = _strided(size, 2)  # the max pooling
    for block in (*net.layer1, *net.layer2, *net.layer3, *net.layer4):
        inner = size
        for name in ("conv1", "conv2", "conv3"):
            if (conv := getattr(block, name, None)) is not None:
                one, inner = _conv(conv, inner, True, graph)
                cost = cost.plus(one)
        if block.downsample is not None:
            cost = cost.plus(_conv(block.downsample[0], size, True, graph)[0])
        size = inner
    return cost


def _conv(
    conv: nn.Conv2d, size: tuple[int, int], input_grad: bool, graph: bool
) -> tuple[Flops, tuple[int, int]]:
    """Return the cost of a padded convolution without dilation, and the size of its maps."""
    out = _strided(size, int(conv.stride[0]))
    taps = conv.kernel_size[0] * conv.kernel_size[1]
    macs = out[0] * out[1] * conv.in_channels * conv.out_channels * taps / conv.groups
    return product(macs, conv, input_grad, graph), out


def _strided(size: tuple[int, int], stride: int) -> tuple[int, int]:
    return -(-size[0] // stride), -(-size[1] // stride)


def _skeletal(stream: SkeletalStream, frames: Lengths) -> Flops:
    graph = any(p.requires_grad for p in stream.parameters())
    # The norm of the joints comes first: where its gains train, the first layer's input needs a
    # gradient as well.
    first = any(p.requires_grad for p in stream.input_norm.parameters())
    cost, lengths = NOTHING, frames
    for number, block in enumerate(stream.blocks):
        layer = cast(SpatialTemporalBlock, block)
        cost = cost.plus(_block(layer, lengths, first or number > 0, graph))
        lengths = -(-lengths // layer.stride)
    return cost


def _block(block: SpatialTemporalBlock, frames: Lengths, grad: bool, graph: bool) -> Flops:
    here, after = float(frames.sum()), float((-(-frames // block.stride)).sum())
    weight, temporal = block.spatial.weight, block.temporal
    channels = weight.in_channels // len(block.spatial.adjacency)
    # Gathering the neighbours is a product with the adjacency, which never trains.
    gather = 2 * here * NUM_JOINTS * weight.in_channels * NUM_JOINTS
    cost = Flops(gather, gather * int(grad and graph))
    cost = cost.plus(
        product(here * NUM_JOINTS * weight.in_channels * weight.out_channels, weight, grad, graph)
    )
    square = temporal.in_channels * temporal.out_channels * temporal.kernel_size[0]
    cost = cost.plus(product(after * NUM_JOINTS * square, temporal, True, graph))
    if isinstance(block.residual, nn.Conv2d):
        macs = after * NUM_JOINTS * channels * block.residual.out_channels
        cost = cost.plus(product(macs, block.residual, grad, graph))
    return cost


def _stack(model: SignFuse, steps: Lengths, input_grad: bool) -> Flops:
    """Return the cost of CMFA; only the first layer's inputs may need no gradient."""
    cost = NOTHING
    for number, module in enumerate(model.fusion.layers):
        layer = cast(FusionLayer, module)
        grad = input_grad or number > 0
        cost = cost.plus(_crossings(layer, steps, grad))
        positions = float(steps.sum())
        if layer.gate is not None:
            cost = cost.plus(_linears(layer.gate, positions))
        if layer.concat is not None:
            cost = cost.plus(_linears(layer.concat, positions, grad))
        cost = cost.plus(_linears(layer.ffn, positions))
    return cost


def _crossings(layer: FusionLayer, steps: Lengths, input_grad: bool) -> Flops:
    cost = NOTHING
    for part in (layer.visual_from_skeletal, layer.skeletal_from_visual):
        if isinstance(part, CrossAttention):
            for name in ("query", "key", "value"):
                cost = cost.plus(_linears(getattr(part, name), float(steps.sum()), input_grad))
            cost = cost.plus(_linears(part.output, float(steps.sum())))
            pairs = float((steps * steps).sum())
            cost = cost.plus(product(2 * pairs * part.output.in_features, None, True))
    return cost


def _temporal(part: nn.Module, steps: Lengths) -> Flops:
    if not isinstance(part, TemporalAggregation):
        return NOTHING  # pooling alone: its width is known to the call, and it is next to nothing
    cost, pooled = NOTHING, part.pooled_length
    for module in part.scales:
        scale = cast(TimeScale, module)
        lengths = -(-steps // scale.stride)
        there, dim = float(lengths.sum()), scale.pointwise.out_channels
        kernel = scale.depthwise.kernel_size[0]
        cost = cost.plus(product(there * dim * kernel, scale.depthwise, True))
        cost = cost.plus(product(there * dim * dim, scale.pointwise, True))
        pooling = 2 * there * pooled * dim
        cost = cost.plus(Flops(pooling, pooling))
    for layer in (part.combine, part.query_key_value, part.output):
        cost = cost.plus(_linears(layer, pooled * len(steps)))
    return cost.plus(product(2 * len(steps) * pooled**2 * part.output.in_features, None, True))
