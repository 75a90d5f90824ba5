"""Steps of models of the paper's size (Table 1) on a GPU that is not there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    GPT2Config,
    PreTrainedConfig,
)

from benchmarks.fake_cuda import FakeCuda, batch_on_cuda
from signfuse_dist.batch import SignBatch
from signfuse_dist.config import LossConfig, ModelConfig, StageName
from signfuse_dist.model.llm import LanguageModel
from signfuse_dist.model.signfuse import SignFuse
from signfuse_dist.objective import StageObjective, prepare, set_mode
from signfuse_dist.skeleton import NUM_JOINTS
from signfuse_dist.stages import needs_language_model
from signfuse_dist.synthetic.llm_shapes import llm_shape

PROMPT = list(range(15))


def llm_config(name: str, layers: int = 2) -> PreTrainedConfig:
    """Return an LLM of the width of those of configs/model, and of families near them."""
    families: dict[str, Any] = {
        "llama": lambda: llm_shape("llama2_7b", num_hidden_layers=layers),
        "mistral": lambda: llm_shape("mistral_7b", num_hidden_layers=layers),
        "qwen2": lambda: llm_shape("qwen2_5_7b", num_hidden_layers=layers),
        "gpt2": lambda: GPT2Config(n_embd=1600, n_head=25, n_layer=layers),
        "t5": lambda: llm_shape("flan_t5_xl", num_layers=layers),
        "mt5": lambda: llm_shape("mt5_xl", num_layers=layers),
        "bart": lambda: BartConfig(
            encoder_layers=layers, decoder_layers=layers, decoder_start_token_id=2
        ),
    }
    return families[name]()  # type: ignore[no-any-return]


def table1(**changes: Any) -> ModelConfig:
    """Return the paper's model."""
    values = {"llm": "x", "llm_dtype": "bfloat16", "lora_targets": None, "attention": "sdpa"}
    return ModelConfig(**{**values, **changes})


def language_model(config: PreTrainedConfig) -> LanguageModel:
    """Return a frozen LLM in bfloat16; inside ``torch.device("meta")`` it takes no memory."""
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    return LanguageModel(auto.from_config(config, dtype=torch.bfloat16), PROMPT)


def build(
    stage: StageName, config: ModelConfig, llm: PreTrainedConfig | None, loss: LossConfig
) -> SignFuse:
    """Return the model of a stage, without memory and without values."""
    with (
        torch.device("meta"),
        mock.patch.object(LanguageModel, "embedding_rms", 1.0),  # a value, of which there are none
    ):
        language = None
        if needs_language_model(stage):
            assert llm is not None
            language = language_model(llm)
        model = SignFuse(config, language)
        prepare(model, stage, loss)
    set_mode(model, stage)
    return model


def clips(lengths: Sequence[int], tokens: int = 30, size: int = 224) -> SignBatch:
    """Return a batch on the host, whose values nobody reads."""
    count, longest = len(lengths), max(lengths)
    return SignBatch(
        ids=tuple(map(str, range(count))),
        frames=torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(sum(lengths), 3, size, size),
        pose=torch.zeros(count, longest, NUM_JOINTS, 2),
        joint_mask=torch.ones(count, longest, NUM_JOINTS, dtype=torch.bool),
        frame_lengths=torch.tensor(lengths),
        weight=torch.ones(count),
        tokens=torch.zeros(count, tokens, dtype=torch.long),
        text_lengths=torch.full((count,), tokens),
        draws=torch.arange(count),
    )


def take_step(
    mode: FakeCuda, model: SignFuse, stage: StageName, batch: SignBatch, loss: LossConfig
) -> dict[str, Tensor]:
    """Run forward and backward passes under autocast; return the losses."""
    objective = StageObjective(stage, loss)
    with torch.autocast("cuda", torch.bfloat16):
        sums = objective(model, batch_on_cuda(batch))
    terms = [objective.weights[name] * value for name, value in sums.items()]
    mode.backward(torch.stack(terms).sum())
    return sums
