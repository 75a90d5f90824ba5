"""Table 1: the full configuration, built without memory, and its 65.9 M parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import yaml

from helpers.repository import ROOT
from signfuse_dist.config import ModelConfig
from signfuse_dist.model.signfuse import SignFuse, count_parameters
from signfuse_dist.skeleton import NUM_JOINTS

LLAMA_DIM = 4096
D, KERNEL, JOINTS_IN = 512, 9, 2


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    values: dict[str, Any] = yaml.safe_load((ROOT / "configs/model/llama2_7b.yaml").read_text())
    return ModelConfig(**values)


@pytest.fixture(scope="module")
def model(config: ModelConfig) -> SignFuse:
    with torch.device("meta"):
        return SignFuse(config, (LLAMA_DIM, 0.02))


def _linear(inputs: int, outputs: int, bias: bool = True) -> int:
    return inputs * outputs + bias * outputs


def _expected() -> dict[str, int]:
    """Each component counted from the table and the equations."""
    resnet50 = 23_508_032  # torchvision's 25,557,032 without its classifier
    norm = 2 * D
    visual = resnet50 + 3 * 2048 * D + norm
    skeletal = 2 * JOINTS_IN * NUM_JOINTS  # the norm of the coordinates
    for a, b, stride in ((JOINTS_IN, 64, 1), (64, 128, 1), (128, 256, 2), (256, D, 1)):
        spatial = 3 * a * b + 2 * b
        temporal = KERNEL * b * b + 2 * b
        residual = _linear(a, b) if a != b or stride != 1 else 0
        skeletal += spatial + temporal + residual
    attention = 6 * _linear(D, D, bias=False) + 2 * _linear(D, D)
    ffn = _linear(D, 4 * D) + _linear(4 * D, D)
    fusion = 3 * (attention + _linear(2 * D, D) + ffn + 2 * norm)
    scales = sum(k * D + D + _linear(D, D) for k in (1, 5, 11))
    temporal = scales + _linear(3 * D, D) + _linear(D, 3 * D, bias=False) + _linear(D, D) + norm
    adapter = _linear(D, LLAMA_DIM) + _linear(LLAMA_DIM, LLAMA_DIM) + 2 * LLAMA_DIM
    return {
        "visual": visual,
        "skeletal": skeletal,
        "fusion": fusion,
        "temporal": temporal,
        "adapter": adapter,
    }


def test_the_whole_is_within_one_percent_of_the_papers_total(model: SignFuse) -> None:
    total = sum(count_parameters(model).values())
    assert total == sum(p.numel() for p in model.parameters())
    assert total == pytest.approx(65.9e6, rel=0.01)


def test_each_component_has_the_parameters_of_its_equations(model: SignFuse) -> None:
    assert count_parameters(model) == _expected()


def test_it_is_built_without_memory(model: SignFuse) -> None:
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_the_defaults_are_table_1(config: ModelConfig) -> None:
    assert config.visual_backbone == "resnet50"
    assert config.visual_weights == "imagenet"
    assert (config.visual_kernel, config.visual_stride, config.dim) == (3, 2, 512)
    assert NUM_JOINTS == 75
    assert config.skeletal_channels == (64, 128, 256, 512)
    assert (config.skeletal_kernel, config.skeletal_strides) == (9, (1, 1, 2, 1))
    assert (config.fusion_layers, config.num_heads, config.ffn_multiplier) == (3, 8, 4)
    assert (config.scale_kernels, config.scale_strides) == ((1, 5, 11), (1, 2, 4))
    assert (config.pooled_length, config.num_sign_tokens) == (64, 32)
    assert (config.lora_rank, config.lora_alpha) == (16, 32)
    assert config.prompt == (
        "Translate the following sign language video into a spoken language sentence:"
    )


def test_the_built_model_has_the_shapes_of_table_1(model: Any) -> None:
    assert model.visual.backbone.output_dim == 2048
    assert model.visual.conv.weight.shape == (512, 2048, 3)
    assert [block.temporal.weight.shape[1:] for block in model.skeletal.blocks] == [
        (64, 9, 1),
        (128, 9, 1),
        (256, 9, 1),
        (512, 9, 1),
    ]
    assert [block.stride for block in model.skeletal.blocks] == [1, 1, 2, 1]
    assert [layer.ffn[0].out_features for layer in model.fusion.layers] == [2048] * 3
    assert model.adapter.mlp[2].weight.shape == (LLAMA_DIM, LLAMA_DIM)
