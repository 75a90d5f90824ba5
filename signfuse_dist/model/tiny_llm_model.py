"""The tiny LLM itself: its size, its architecture, and its loss over samples of text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from signfuse_dist.config import ModelConfig
from signfuse_dist.model.tiny_llm_text import IGNORED, Sample

TinyModel = LlamaForCausalLM | T5ForConditionalGeneration


@dataclass(frozen=True)
class TinyLLM:
    """The size of the LLM and of its pre-training."""

    # A T5, as Flan-T5 is, with `num_layers` in each half; else a Llama.
    encoder_decoder: bool = False
    vocab_size: int = 512
    hidden_size: int = 128
    intermediate_size: int = 256
    num_layers: int = 4
    num_heads: int = 4
    context: int = 512
    steps: int = 500
    batch_size: int = 16
    learning_rate: float = 2e-3
    # A large Llama has 0.02; at this width that leaves attention flat for most of the run.
    initializer_range: float = 0.05
    # Word vectors an LLM of this width can tell apart in Eq. 22: at 0.05, the squared distance
    # between two sentences is a hundredth of the language loss and teaches nothing.
    embedding_std: float = 0.5
    warmup: float = 0.05
    weight_decay: float = 0.01
    # How many positions the shuffled words fill: as many as there are sign tokens.
    context_words: int = ModelConfig.num_sign_tokens
    seed: int = 0


def build(size: TinyLLM, tokenizer: PreTrainedTokenizerFast) -> TinyModel:
    """Return an untrained LLM for ``tokenizer``, fp32."""
    torch.manual_seed(size.seed)
    model = _t5(size, tokenizer) if size.encoder_decoder else _llama(size, tokenizer)
    table: Any = model.get_input_embeddings()
    torch.nn.init.normal_(table.weight, std=size.embedding_std)
    return model


def _llama(size: TinyLLM, tokenizer: PreTrainedTokenizerFast) -> TinyModel:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden_size,
        intermediate_size=size.intermediate_size,
        num_hidden_layers=size.num_layers,
        num_attention_heads=size.num_heads,
        num_key_value_heads=size.num_heads,
        max_position_embeddings=size.context,
        initializer_range=size.initializer_range,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def _t5(size: TinyLLM, tokenizer: PreTrainedTokenizerFast) -> TinyModel:
    values: dict[str, Any] = {  # the constructor's types do not know all of them
        "vocab_size": len(tokenizer),
        "d_model": size.hidden_size,
        "d_kv": size.hidden_size // size.num_heads,
        "d_ff": size.intermediate_size,
        "num_layers": size.num_layers,
        "num_heads": size.num_heads,
        "dropout_rate": 0.0,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "decoder_start_token_id": tokenizer.pad_token_id,
    }
    return T5ForConditionalGeneration(T5Config(**values))


def mean_loss(model: TinyModel, batch: Sequence[Sample]) -> tuple[Tensor, int]:
    """Return the mean loss per labelled token, and how many there are.

    What comes before the text goes through the encoder of a model that has one, and the text alone
    through its decoder.
    """
    rows, labels = [ids for ids, _ in batch], [labels for _, labels in batch]
    if model.config.is_encoder_decoder:
        before = [row.count(IGNORED) for row in labels]
        rows = [ids[:n] for ids, n in zip(rows, before, strict=True)]
        labels = [row[n:] for row, n in zip(labels, before, strict=True)]
    output = model(
        input_ids=_pad(rows, model.config.pad_token_id or 0),
        attention_mask=_pad([[1] * len(row) for row in rows], 0),
        labels=_pad(labels, IGNORED),
    )
    return output.loss, sum(token != IGNORED for row in labels for token in row)


def _pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    padded = torch.full((len(rows), max(map(len, rows))), value)
    for place, row in enumerate(rows):
        padded[place, : len(row)] = torch.tensor(row)
    return padded
