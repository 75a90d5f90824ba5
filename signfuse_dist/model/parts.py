"""The components of a model from its configuration."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from signfuse_dist.config import SCALES, ModelConfig
from signfuse_dist.model.cmfa import CrossModalFusion
from signfuse_dist.model.hta import TemporalAggregation, TemporalPooling
from signfuse_dist.model.norm import BatchNorm, StepNorm
from signfuse_dist.model.skeletal import SkeletalStream
from signfuse_dist.model.visual import FrameBudget, ResNet, VisualStream


def visual_stream(config: ModelConfig) -> VisualStream:
    """Return Eq. 2-3."""
    backbone = ResNet(config.visual_backbone, config.visual_width, config.visual_norm)
    if config.visual_compile:
        backbone.compile(dynamic=True)  # in place: the names of its parameters stay
    budget = FrameBudget(
        config.visual_chunk, config.visual_checkpoint, config.visual_channels_last
    )  # fmt: skip
    return VisualStream(
        backbone, config.dim, config.visual_kernel, config.visual_stride,
        _step_norm(config)(config.dim), budget,
    )  # fmt: skip


def skeletal_stream(config: ModelConfig) -> SkeletalStream:
    """Return Eq. 4-5."""
    return SkeletalStream(
        config.skeletal_channels, config.skeletal_strides, config.skeletal_kernel,
        _step_norm(config),
    )  # fmt: skip


def fusion(config: ModelConfig) -> CrossModalFusion:
    """Return Eq. 6-12."""
    return CrossModalFusion(
        config.dim, config.fusion_layers, config.num_heads, config.ffn_multiplier * config.dim,
        config.fusion, config.fusion_gain,
    )  # fmt: skip


def temporal(config: ModelConfig) -> TemporalAggregation | TemporalPooling:
    """Return Eq. 13-17 with the scales there are, or plain pooling without any."""
    if not config.scales:
        return TemporalPooling(config.pooled_length)
    places = [SCALES.index(name) for name in config.scales]
    return TemporalAggregation(
        config.dim, [config.scale_kernels[i] for i in places],
        [config.scale_strides[i] for i in places], config.pooled_length, config.num_heads,
    )  # fmt: skip


def _step_norm(config: ModelConfig) -> Callable[[int], nn.Module]:
    return StepNorm if config.norm == "layer" else partial(BatchNorm, policy=config.norm)
