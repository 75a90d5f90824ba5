"""The language model, Eq. 20: any causal LM of transformers, frozen, with PEFT LoRA in stage 3."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from signfuse_dist.batch import length_mask
from signfuse_dist.config import EvaluationConfig, ModelConfig
from signfuse_dist.errors import UserError


class TextTokenizer:
    """The LLM's tokenizer as this project uses it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: str) -> None:
        self._tokenizer = tokenizer
        if tokenizer.eos_token_id is None:
            raise UserError(f"{tokenizer.name_or_path}: its tokenizer has no end-of-text token")
        self.end: int = tokenizer.eos_token_id
        # With the special tokens the LLM begins a text with (<s> for LLaMA).
        self.prompt: list[int] = tokenizer(prompt).input_ids

    def encode(self, text: str) -> list[int]:
        """Return the target tokens of a sentence with the end token, without a start token."""
        return [*self._tokenizer(text, add_special_tokens=False).input_ids, self.end]

    def decode(self, tokens: list[int]) -> str:
        """Return the text up to the first end token; padding may share the end token's id."""
        if self.end in tokens:
            tokens = tokens[: tokens.index(self.end)]
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True)).strip()


class LanguageModel(nn.Module):
    """A causal LM that reads [E_sign; e_prompt; text] (Eq. 20); its own weights never train."""

    prompt: Tensor

    def __init__(self, model: PreTrainedModel, prompt: list[int]) -> None:
        super().__init__()
        self.model: Any = model.requires_grad_(False)
        self.register_buffer("prompt", torch.tensor(prompt), persistent=False)

    @property
    def llm_dim(self) -> int:
        """d_LLM, read from the embedding table."""
        return int(self._table.shape[1])

    @property
    def embedding_rms(self) -> float:
        """Root mean square of the embedding table."""
        return float(self._table.float().square().mean().sqrt())

    @property
    def _table(self) -> Tensor:
        weight: Tensor = self.model.get_input_embeddings().weight
        return weight

    def add_lora(self, config: ModelConfig) -> None:
        """Add trainable LoRA matrices of rank r and scale alpha / r (section 3.6)."""
        lora = LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_alpha,
            target_modules=list(config.lora_targets),
            task_type="CAUSAL_LM",
        )
        try:
            self.model = get_peft_model(self.model, lora)
        except ValueError as e:
            raise UserError(f"model.lora_targets {list(config.lora_targets)}: {e}") from e

    def embed(self, tokens: Tensor) -> Tensor:
        """``[..., tokens]`` to ``[..., tokens, llm_dim]``."""
        embedded: Tensor = self.model.get_input_embeddings()(tokens)
        return embedded

    def negative_log_likelihood(
        self, sign_embeddings: Tensor, tokens: Tensor, text_lengths: Tensor
    ) -> Tensor:
        """Return -log P(Y | V, S) of Eq. 20, summed over each clip's real tokens: ``[batch]``.

        Labels are masked by length, never by id: the padding id may be the end token's. Padding
        comes last in a causal model, so no real position sees it and no mask is needed.
        """
        prefix = self._prefix(sign_embeddings)
        embeds = torch.cat((prefix, self.embed(tokens).to(prefix.dtype)), dim=1)
        keep = tokens.shape[1] + 1
        logits = self.model(inputs_embeds=embeds, logits_to_keep=keep, use_cache=False).logits
        logits = logits[:, :-1].to(torch.promote_types(logits.dtype, torch.float32))
        nll = F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")
        return (nll * length_mask(text_lengths, tokens.shape[1])).sum(dim=1)

    @torch.no_grad()
    def generate(self, sign_embeddings: Tensor, config: EvaluationConfig, end: int) -> list[Any]:
        """Return the best translation's tokens for each clip; nothing is sampled."""
        prefix = self._prefix(sign_embeddings)
        generation = GenerationConfig(
            do_sample=False,
            num_beams=config.num_beams,
            length_penalty=config.length_penalty,
            max_new_tokens=config.max_new_tokens,
            eos_token_id=end,
            pad_token_id=end,
        )
        tokens = self.model.generate(
            inputs_embeds=prefix,
            attention_mask=torch.ones(prefix.shape[:2], dtype=torch.long, device=prefix.device),
            generation_config=generation,
        )
        return list(tokens.tolist())

    def _prefix(self, sign_embeddings: Tensor) -> Tensor:
        prompt = self.embed(self.prompt).expand(len(sign_embeddings), -1, -1)
        return torch.cat((sign_embeddings.to(prompt.dtype), prompt), dim=1)


def load_tokenizer(config: ModelConfig) -> TextTokenizer:
    """Load the LLM's tokenizer; raise :class:`UserError` when it is not there."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(config.llm, revision=config.llm_revision)
        return TextTokenizer(tokenizer, config.prompt)
    except (OSError, ValueError) as e:
        raise _not_found(config, e) from e


def load_language_model(config: ModelConfig, tokenizer: TextTokenizer) -> LanguageModel:
    """Load the frozen LLM in its dtype; raise :class:`UserError` when it is not there."""
    try:
        model = AutoModelForCausalLM.from_pretrained(
            config.llm,
            revision=config.llm_revision,
            dtype=getattr(torch, config.llm_dtype),
            attn_implementation=config.attention,
        )
    except (OSError, ValueError) as e:
        raise _not_found(config, e) from e
    return LanguageModel(model, tokenizer.prompt)


def _not_found(config: ModelConfig, error: Exception) -> UserError:
    first = str(error).strip().splitlines()[0]
    return UserError(
        f"model.llm {config.llm!r} cannot be loaded: {first}. It is a folder or a name of the "
        f"model hub; on a node without network, download it first (hf download {config.llm}) or "
        f"point model.llm at a folder"
    )
