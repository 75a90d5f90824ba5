"""The language model, Eq. 20: any causal or encoder-decoder LM of transformers, frozen, with LoRA.

A causal LM reads [E_sign; e_prompt; text]. An encoder-decoder reads [E_sign; e_prompt] in its
encoder and writes the text with its decoder. Both give P(Y | V, S) of Eq. 20.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from signfuse_dist.batch import length_mask
from signfuse_dist.config import EvaluationConfig, ModelConfig
from signfuse_dist.errors import UserError
from signfuse_dist.model.llm_load import load_frozen, not_found
from signfuse_dist.model.lora import add_lora


class TextTokenizer:
    """The LLM's tokenizer as this project uses it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: str) -> None:
        self._tokenizer = tokenizer
        if tokenizer.eos_token_id is None:
            raise UserError(f"{tokenizer.name_or_path}: its tokenizer has no end-of-text token")
        self.end: int = tokenizer.eos_token_id
        # With the special tokens the LLM has around a text: <s> before it for LLaMA, </s> after it
        # for T5.
        self.prompt: list[int] = tokenizer(prompt).input_ids

    def encode(self, text: str) -> list[int]:
        """Return the target tokens of a sentence with the end token, without a start token.

        An empty text is the end token alone: the model is taught to say nothing.
        """
        return [*self._tokenizer(text, add_special_tokens=False).input_ids, self.end]

    def decode(self, tokens: list[int]) -> str:
        """Return the text up to the first end token; padding may share the end token's id."""
        if self.end in tokens:
            tokens = tokens[: tokens.index(self.end)]
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True)).strip()

    def find_unfit(self, texts: Mapping[str, str], room: int | None) -> tuple[list[str], list[str]]:
        """Return what is wrong with texts, by id: those too long, and those not all known.

        Args:
            texts: by clip id.
            room: most tokens that a text may have with its end token; None = no limit.
        """
        too_long, unknown = [], []
        rows = self._tokenizer(list(texts.values()), add_special_tokens=False).input_ids
        for name, tokens in zip(texts, rows, strict=True):
            if room is not None and len(tokens) + 1 > room:
                too_long.append(f"{name}: {len(tokens) + 1} tokens, and there is room for {room}")
            if self._tokenizer.unk_token_id in tokens:
                unknown.append(name)
        return too_long, unknown


class Candidate(NamedTuple):
    """One of the translations that beam search found."""

    tokens: list[int]
    score: float | None
    """Log-probability of the tokens over their number to the power of the length penalty; None
    where only the best was asked for."""


class LanguageModel(nn.Module):
    """The LLM around the sign tokens; its own weights never train.

    Paper: silent on the LLM's own dropout. Here: the frozen LLM stays in evaluation mode while its
    LoRA matrices train. Because: T5 has a dropout of 0.1, and noise in a frozen function would make
    a step depend on how the batch is shared out.
    """

    prompt: Tensor

    def __init__(self, model: PreTrainedModel, prompt: list[int]) -> None:
        super().__init__()
        self.model: Any = model.requires_grad_(False)
        self.register_buffer("prompt", torch.tensor(prompt), persistent=False)
        self.is_encoder_decoder = bool(model.config.is_encoder_decoder)
        self.start: int | None = getattr(model.config, "decoder_start_token_id", None)
        if self.is_encoder_decoder and self.start is None:
            raise UserError(f"{type(model).__name__}: its config has no decoder_start_token_id")
        # What some models bring along, such as a repetition penalty, would decode otherwise than
        # the configuration of the run says.
        model.generation_config = GenerationConfig()

    @property
    def llm_dim(self) -> int:
        """d_LLM, read from the embedding table."""
        return int(self._table.shape[1])

    @property
    def embedding_rms(self) -> float:
        """Root mean square of the embedding table."""
        return float(self._table.float().square().mean().sqrt())

    @property
    def attention(self) -> str:
        """The attention implementation of transformers that is in use."""
        return str(self.model.config._attn_implementation)

    @property
    def context(self) -> int | None:
        """How many positions the LLM knows; None where they are relative, as in T5."""
        limit = getattr(self.model.config, "max_position_embeddings", None)
        return None if limit is None else int(limit)

    @property
    def _table(self) -> Tensor:
        weight: Tensor = self.model.get_input_embeddings().weight
        return weight

    def train(self, mode: bool = True) -> LanguageModel:
        """Keep the LLM itself in evaluation mode whatever ``mode`` says."""
        super().train(mode)
        self.model.eval()
        return self

    def room(self, num_sign_tokens: int) -> int | None:
        """Return how many tokens of text the context leaves; None without a limit."""
        if self.context is None:
            return None
        left = self.context - num_sign_tokens - len(self.prompt)
        return self.context if self.is_encoder_decoder and left >= 0 else left

    def add_lora(self, config: ModelConfig) -> None:
        """Add trainable LoRA matrices of rank r and scale alpha / r (section 3.6)."""
        self.model = add_lora(self.model, config)

    def embed(self, tokens: Tensor) -> Tensor:
        """``[..., tokens]`` to ``[..., tokens, llm_dim]``."""
        embedded: Tensor = self.model.get_input_embeddings()(tokens)
        return embedded

    def negative_log_likelihood(
        self, sign_embeddings: Tensor, tokens: Tensor, text_lengths: Tensor
    ) -> Tensor:
        """Return -log P(Y | V, S) of Eq. 20, summed over each clip's real tokens: ``[batch]``.

        Labels are masked by length, never by id: the padding id may be the end token's. Padding
        comes last where tokens see only those before them, so no real position sees it.
        Raises UserError when the text does not fit into the context.
        """
        self._refuse_beyond_context(sign_embeddings.shape[1], tokens.shape[1], "a text")
        prefix = self._prefix(sign_embeddings)
        real = length_mask(text_lengths, tokens.shape[1])
        if self.is_encoder_decoder:
            logits = self._decoder_logits(prefix, tokens)
        else:
            logits = self._causal_logits(prefix, tokens, real)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        nll = F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")
        return (nll * real).sum(dim=1)

    def _causal_logits(self, prefix: Tensor, tokens: Tensor, real: Tensor) -> Tensor:
        embeds = torch.cat((prefix, self.embed(tokens).to(prefix.dtype)), dim=1)
        mask = None
        if self.attention == "flash_attention_2":  # it leaves padding out, told where that is
            mask = torch.cat((real.new_ones(prefix.shape[:2]), real), dim=1).long()
        logits: Tensor = self.model(
            inputs_embeds=embeds, attention_mask=mask, logits_to_keep=tokens.shape[1] + 1,
            use_cache=False,
        ).logits  # fmt: skip
        return logits[:, :-1]

    def _decoder_logits(self, prefix: Tensor, tokens: Tensor) -> Tensor:
        assert self.start is not None
        start = tokens.new_full((len(tokens), 1), self.start)
        logits: Tensor = self.model(
            inputs_embeds=prefix,
            attention_mask=_all_real(prefix),
            decoder_input_ids=torch.cat((start, tokens[:, :-1]), dim=1),
            use_cache=False,
        ).logits
        return logits

    def generate(self, sign_embeddings: Tensor, config: EvaluationConfig, end: int) -> list[Any]:
        """Return the best translation's tokens for each clip; see :meth:`candidates`."""
        return [found[0].tokens for found in self.candidates(sign_embeddings, config, end, 1)]

    @torch.no_grad()
    def candidates(
        self, sign_embeddings: Tensor, config: EvaluationConfig, end: int, count: int
    ) -> list[list[Candidate]]:
        """Return the ``count`` best translations of each clip, best first; nothing is sampled.

        Raises UserError when ``max_new_tokens`` do not fit into the context, or the beams are fewer
        than what is asked for.
        """
        self._refuse_beyond_context(
            sign_embeddings.shape[1], config.max_new_tokens, "evaluation.max_new_tokens"
        )
        if count > config.num_beams:
            raise UserError(
                f"{count} translations of a clip need as many beams, and evaluation.num_beams is "
                f"{config.num_beams}"
            )
        prefix = self._prefix(sign_embeddings)
        generation = GenerationConfig(
            do_sample=False,
            num_beams=config.num_beams,
            num_return_sequences=count,
            length_penalty=config.length_penalty,
            max_new_tokens=config.max_new_tokens,
            eos_token_id=end,
            pad_token_id=end,
            decoder_start_token_id=self.start,
            return_dict_in_generate=True,
            output_scores=count > 1,  # it keeps every step's logits: half a gigabyte for 8 clips
        )
        found = self.model.generate(
            inputs_embeds=prefix, attention_mask=_all_real(prefix), generation_config=generation
        )
        # A decoder's answer begins with its start token.
        rows = found.sequences[:, int(self.is_encoder_decoder) :].tolist()
        scores = found.sequences_scores.tolist() if count > 1 else [None] * len(rows)
        every = [Candidate(*pair) for pair in zip(rows, scores, strict=True)]
        return [every[i : i + count] for i in range(0, len(every), count)]

    def _prefix(self, sign_embeddings: Tensor) -> Tensor:
        prompt = self.embed(self.prompt).expand(len(sign_embeddings), -1, -1)
        return torch.cat((sign_embeddings.to(prompt.dtype), prompt), dim=1)

    def _refuse_beyond_context(self, num_sign_tokens: int, num_tokens: int, what: str) -> None:
        room = self.room(num_sign_tokens)
        if room is not None and num_tokens > room:
            raise UserError(
                f"{what} of {num_tokens} tokens does not fit: the LLM's context of {self.context} "
                f"leaves {room} after {num_sign_tokens} sign tokens and the prompt"
            )


def _all_real(embeds: Tensor) -> Tensor:
    return torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device)


def load_tokenizer(config: ModelConfig) -> TextTokenizer:
    """Load the LLM's tokenizer; raise :class:`UserError` when it is not there."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(config.llm, revision=config.llm_revision)
        return TextTokenizer(tokenizer, config.prompt)
    except (OSError, ValueError, ImportError) as e:
        raise not_found(config, e) from e


def load_language_model(config: ModelConfig, tokenizer: TextTokenizer) -> LanguageModel:
    """Load the frozen LLM; raise :class:`UserError` without it, or without room for a text."""
    llm = LanguageModel(load_frozen(config), tokenizer.prompt)
    room = llm.room(config.num_sign_tokens)
    if room is not None and room < 1:
        raise UserError(
            f"model.llm {config.llm!r} has a context of {llm.context}: model.num_sign_tokens "
            f"{config.num_sign_tokens} and the {len(tokenizer.prompt)} tokens of model.prompt "
            "leave no room for a text"
        )
    return llm
