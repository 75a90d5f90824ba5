"""Loading a frozen LLM: the Auto class of its architecture, dtype, quantization, attention."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BitsAndBytesConfig,
    PreTrainedModel,
)

from signfuse_dist.config import ModelConfig
from signfuse_dist.errors import UserError
from signfuse_dist.model.attention_choice import choose_backend


def load_frozen(config: ModelConfig) -> PreTrainedModel:
    """Load ``config.llm`` in its dtype, quantized and with the attention that is asked for.

    Raises UserError when it is not there, is of no known kind, or has no such attention.
    """
    quantization = _quantization(config)
    try:
        known = AutoConfig.from_pretrained(config.llm, revision=config.llm_revision)
        auto = AutoModelForSeq2SeqLM if known.is_encoder_decoder else AutoModelForCausalLM
        model: PreTrainedModel = auto.from_pretrained(
            config.llm,
            revision=config.llm_revision,
            dtype=getattr(torch, config.llm_dtype),
            **quantization,
        )
    except (OSError, ValueError, ImportError) as e:
        raise not_found(config, e) from e
    _set_attention(model, config)
    return model


def _quantization(config: ModelConfig) -> dict[str, Any]:
    """Return what from_pretrained needs: 4 bits are NF4, both compute in ``llm_dtype``."""
    if config.llm_quantization == "none":
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"model.llm_quantization={config.llm_quantization} needs the package bitsandbytes, "
            "which is not installed (pip install bitsandbytes)"
        )
    settings = BitsAndBytesConfig(
        load_in_8bit=config.llm_quantization == "8bit",
        load_in_4bit=config.llm_quantization == "4bit",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=getattr(torch, config.llm_dtype),
    )
    return {"quantization_config": settings}


def _set_attention(model: PreTrainedModel, config: ModelConfig) -> None:
    """Set the LLM's attention by transformers' names.

    `auto` leaves transformers' own choice: SDPA where the model has it. transformers has no
    variable-length kernel of torch, so `varlen` is SDPA in the LLM: it needs no mask there and
    reaches the same flash kernel.
    """
    if config.attention == "auto":
        return
    asked = "sdpa" if config.attention == "varlen" else config.attention
    if asked == "flash_attention_2":
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        shape = model.config
        head_dim = (
            getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
        )
        choose_backend(asked, device, getattr(torch, config.llm_dtype), head_dim)
    try:
        model.set_attn_implementation(asked)
    except (ValueError, ImportError) as e:
        raise _no_attention(config, model, first_line(e)) from e
    found = model.config._attn_implementation
    if found != asked:  # transformers may put another kernel in its place
        raise _no_attention(config, model, f"transformers took {found} in its place")


def _no_attention(config: ModelConfig, model: PreTrainedModel, why: str) -> UserError:
    return UserError(
        f"model.attention={config.attention}: not for the LLM {config.llm!r} "
        f"({type(model).__name__}): {why}. Choose auto, varlen, sdpa or eager"
    )


def not_found(config: ModelConfig, error: Exception) -> UserError:
    """Return the error for an LLM or a tokenizer that cannot be loaded."""
    return UserError(
        f"model.llm {config.llm!r} cannot be loaded: {first_line(error)}. It is a folder or a name "
        f"of the model hub; on a node without network, download it first (hf download "
        f"{config.llm}) or point model.llm at a folder"
    )


def first_line(error: Exception) -> str:
    """Return the first line of what an error says."""
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
