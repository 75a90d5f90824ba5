"""Parameters and activations of a model by arithmetic, without torch.

``tests/unit/test_preflight_sizes.py`` compares the parameters with those of the model itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from signfuse_dist.config import SCALES, LossConfig, ModelConfig, StageName
from signfuse_dist.skeleton import NUM_JOINTS, PARTITIONS
from signfuse_dist.stage_parts import trained_parts

_DEPTHS = {"resnet10": (1, 1, 1, 1), "resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}


class _Conv(NamedTuple):
    """A convolution without bias and its norm; ``side`` is that of its output in pixels."""

    inputs: int
    outputs: int
    kernel: int
    side: int

    @property
    def parameters(self) -> int:
        return self.inputs * self.outputs * self.kernel**2 + 2 * self.outputs

    @property
    def activations(self) -> int:
        return self.outputs * self.side**2


def _half(side: int) -> int:
    return (side + 1) // 2


def _blocks(config: ModelConfig, frame_size: int) -> Iterator[list[_Conv]]:
    """Yield the convolutions of the stem and of each residual block."""
    width, bottleneck = config.visual_width, config.visual_backbone == "resnet50"
    side = _half(frame_size)
    yield [_Conv(3, width, 7, side)]
    side, planes = _half(side), width
    for layer, depth in enumerate(_DEPTHS[config.visual_backbone]):
        inner = width * 2**layer
        outer = inner * (4 if bottleneck else 1)
        for place in range(depth):
            before, side = side, _half(side) if layer and not place else side
            if bottleneck:
                block = [_Conv(planes, inner, 1, before), _Conv(inner, inner, 3, side),
                         _Conv(inner, outer, 1, side)]  # fmt: skip
            else:
                block = [_Conv(planes, inner, 3, side), _Conv(inner, outer, 3, side)]
            if before != side or planes != outer:
                block.append(_Conv(planes, outer, 1, side))
            yield block
            planes = outer


def frame_values(config: ModelConfig, frame_size: int) -> int:
    """Return how many numbers of one frame the ResNet holds for its backward pass.

    Of each convolution its output, and the norm's. By blocks (``model.visual_checkpoint``): each
    block's input, and all of the largest block with half as much again for its gradients.
    """
    blocks = [sum(2 * c.activations for c in block) for block in _blocks(config, frame_size)]
    if not config.visual_checkpoint:
        return sum(blocks)
    inputs = [block[0].inputs * _side_before(block) ** 2 for block in _blocks(config, frame_size)]
    return sum(inputs) + 3 * max(blocks) // 2


def _side_before(block: list[_Conv]) -> int:
    """Return the side of a block's input: a last 1x1 shortcut tells whether it halves."""
    first = block[0]
    halves = first.kernel == 7 or (first.kernel == 3 and len(block) == 3)
    return first.side * 2 if halves else first.side


def parameters(config: ModelConfig, llm_dim: int) -> dict[str, int]:
    """Return the parameters of each component, without the LLM and LoRA."""
    dim = config.dim
    counts = {
        "visual": _visual(config), "skeletal": _skeletal(config),
        "fusion": config.fusion_layers * _fusion_layer(config), "temporal": _temporal(config),
        "adapter": dim * llm_dim + llm_dim + llm_dim**2 + llm_dim + 2 * llm_dim,
    }  # fmt: skip
    absent = {"both": "", "visual": "skeletal", "skeletal": "visual"}[config.streams]
    return {name: count for name, count in counts.items() if name != absent}


def trained(
    config: ModelConfig, loss: LossConfig, stage: StageName, llm_dim: int, lora: int
) -> int:
    """Return how many parameters of a stage train; ``lora`` are those of LoRA."""
    counts = parameters(config, llm_dim) | {"lora": lora}
    # Of CMFA "attended" features reach the first layer's attention alone, named below it.
    return sum(
        counts.get(part, _attention(config.dim) if "." in part else 0)
        for part in trained_parts(stage, loss)
    )


def _visual(config: ModelConfig) -> int:
    blocks = list(_blocks(config, 64))
    resnet = sum(conv.parameters for block in blocks for conv in block)
    outputs = max(conv.outputs for conv in blocks[-1])
    return resnet + outputs * config.dim * config.visual_kernel + 2 * config.dim


def _skeletal(config: ModelConfig) -> int:
    count, before = 2 * 2 * NUM_JOINTS, 2
    for width, stride in zip(config.skeletal_channels, config.skeletal_strides, strict=True):
        count += len(PARTITIONS) * before * width + 2 * width
        count += width * width * config.skeletal_kernel + 2 * width
        if before != width or stride != 1:
            count += before * width + width
        before = width
    return count


def _attention(dim: int) -> int:
    return 4 * dim**2 + dim


def _fusion_layer(config: ModelConfig) -> int:
    dim, inner = config.dim, config.ffn_multiplier * config.dim
    directions = {"cmfa": 2, "no_gate": 2, "visual_from_skeletal": 1, "skeletal_from_visual": 1}
    mixing = directions.get(config.fusion, 0) * _attention(dim)
    if config.fusion in ("cmfa", "concat"):
        mixing += 2 * dim * dim + dim
    return mixing + 4 * dim + dim * inner + inner + inner * dim + dim


def _temporal(config: ModelConfig) -> int:
    dim, count = config.dim, 0
    if not config.scales:
        return 0
    for name in config.scales:
        count += dim * config.scale_kernels[SCALES.index(name)] + dim + dim * dim + dim
    count += len(config.scales) * dim * dim + dim
    return count + 3 * dim * dim + dim * dim + dim + 2 * dim
