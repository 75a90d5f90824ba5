"""The parts of SignFuse before the LLM, each from the configuration."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from signfuse_dist.config import SCALES, ModelConfig
from signfuse_dist.errors import UserError
from signfuse_dist.model.attention import set_positions
from signfuse_dist.model.cmfa import CrossModalFusion
from signfuse_dist.model.hta import TemporalAggregation, TemporalPooling
from signfuse_dist.model.joint_channels import JointChannels
from signfuse_dist.model.norm import BatchNorm, StepNorm
from signfuse_dist.model.skeletal import SkeletalStream
from signfuse_dist.model.vision import VisionModel, load_configured
from signfuse_dist.model.visual import FrameBudget, GivenVectors, ResNet, VisualStream
from signfuse_dist.skeleton import choose_joints


def build_visual(
    config: ModelConfig, vector_dim: int | None = None, vision: VisionModel | None = None
) -> VisualStream:
    """Return Eq. 2-3; a vision model is loaded where it is not given.

    Raises UserError for feature sets of which nobody says how wide they are, and where a vision
    model cannot be loaded.
    """
    backbone: ResNet | VisionModel | GivenVectors
    if config.vision_model is not None:
        backbone = vision or load_configured(config)
    elif config.feature_sets:
        if vector_dim is None:
            raise UserError(
                f"model.visual_backbone={config.visual_backbone}: how many numbers a frame these "
                "sets have is not known here"
            )
        backbone = GivenVectors(vector_dim)
    else:
        backbone = ResNet(config.visual_backbone, config.visual_width, config.visual_norm)
    if config.visual_compile:
        backbone.compile(dynamic=True)  # in place: the names of its parameters stay
    # What `auto` means is decided where the run is known; a model by itself is run whole.
    chunk = None if config.visual_chunk == "auto" else config.visual_chunk
    last = None if config.visual_channels_last == "auto" else config.visual_channels_last
    budget = FrameBudget(chunk, config.visual_checkpoint, last)
    return VisualStream(
        backbone,
        config.dim,
        config.visual_kernel,
        config.visual_stride,
        _step_norm(config)(config.dim),
        budget,
    )


def build_skeletal(config: ModelConfig) -> SkeletalStream:
    """Return Eq. 4-5."""
    return SkeletalStream(
        config.skeletal_channels,
        config.skeletal_strides,
        config.skeletal_kernel,
        _step_norm(config),
        JointChannels.of(config),
        config.joint_statistics,
        choose_joints(config.joints),
        config.joint_pooling,
        config.joint_spread,
    )


def build_fusion(config: ModelConfig) -> CrossModalFusion:
    """Return Eq. 6-12."""
    fusion = CrossModalFusion(
        config.dim,
        config.fusion_layers,
        config.num_heads,
        config.ffn_multiplier * config.dim,
        config.fusion,
        config.fusion_gain,
    )
    set_positions(fusion, config.positions)
    return fusion


def build_temporal(config: ModelConfig) -> TemporalAggregation | TemporalPooling:
    """Return Eq. 13-17 with the scales there are, or plain pooling without any."""
    if not config.scales:
        return TemporalPooling(config.pooled_length)
    places = [SCALES.index(name) for name in config.scales]
    temporal = TemporalAggregation(
        config.dim,
        [config.scale_kernels[i] for i in places],
        [config.scale_strides[i] for i in places],
        config.pooled_length,
        config.num_heads,
    )
    set_positions(temporal, config.positions)
    return temporal


def _step_norm(config: ModelConfig) -> Callable[[int], nn.Module]:
    return StepNorm if config.norm == "layer" else partial(BatchNorm, policy=config.norm)
