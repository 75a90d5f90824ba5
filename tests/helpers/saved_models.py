"""Models to save, whose LLM lies in a folder."""

from __future__ import annotations

from pathlib import Path

import torch

from helpers.model_factory import scramble, small_config, tiny_llama, tiny_tokenizer
from signfuse_dist.config import LossConfig, ModelConfig
from signfuse_dist.model import saved
from signfuse_dist.model.signfuse import SignFuse
from signfuse_dist.objective import prepare

MAX_FRAMES = 9


def write_llm(folder: Path, seed: int = 0) -> None:
    tiny_llama(seed=seed).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def config_of(llm: Path) -> ModelConfig:
    """Write a tiny LLM to the folder ``llm``; return a small model with it."""
    write_llm(llm)
    return small_config(llm=str(llm), prompt="translate the sign")


def untrained(config: ModelConfig, language: bool = True) -> SignFuse:
    return saved.build(config, language, MAX_FRAMES)[0]


def finetuned(config: ModelConfig) -> SignFuse:
    """A model of the last stage, LoRA included, with no weight at its start."""
    torch.manual_seed(0)
    model = untrained(config)
    prepare(model, "finetune", LossConfig())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    for name, part in model.named_children():
        if name not in ("adapter", "language_model"):
            scramble(part)
    return model.eval()
