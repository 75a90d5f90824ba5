"""Sentences as the LLM's tokens and back, with the prompt that stands around the signs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from signfuse_dist.config import ModelConfig
from signfuse_dist.errors import UserError
from signfuse_dist.model.llm_identity import not_found

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TextTokenizer:
    """The LLM's tokenizer as this project uses it.

    Attributes:
        end: the token that ends a text.
        opening: what stands before the sign tokens.
        prompt: what stands behind them.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompt: str,
        start_token: str = "after",
        leading_space: bool = False,
    ) -> None:
        """Take ``model.prompt``, ``model.start_token`` and ``model.leading_space``.

        Raises UserError for a tokenizer without an end token, and for a start token that is to
        stand before the sign tokens and is not there.
        """
        self._tokenizer = tokenizer
        self._before = " " if leading_space and not _marks_first_words(tokenizer) else ""
        if tokenizer.eos_token_id is None:
            raise UserError(f"{tokenizer.name_or_path}: its tokenizer has no end-of-text token")
        self.end: int = tokenizer.eos_token_id
        # With the special tokens the LLM has around a text: <s> before it for LLaMA, </s> after it
        # for T5.
        self.prompt: list[int] = tokenizer(prompt).input_ids
        self.opening: list[int] = []
        if start_token == "before":
            if self.prompt[:1] != [tokenizer.bos_token_id]:
                raise UserError(
                    f"model.start_token=before: the tokenizer of {tokenizer.name_or_path} puts no "
                    "start token before a text; write model.start_token=after"
                )
            self.opening, self.prompt = self.prompt[:1], self.prompt[1:]

    def save(self, folder: Path) -> None:
        """Write its files, as transformers reads them."""
        self._tokenizer.save_pretrained(folder)

    def ask(self, prompt: str) -> list[int]:
        """Return the tokens of a prompt in the place of :attr:`prompt`, behind :attr:`opening`."""
        tokens: list[int] = self._tokenizer(prompt).input_ids
        return tokens[len(self.opening) :]

    def encode(self, text: str) -> list[int]:
        """Return the target tokens of a sentence with the end token, without a start token.

        An empty text is the end token alone: the model is taught to say nothing.
        """
        tokens = self._tokenizer(self._spaced(text), add_special_tokens=False).input_ids
        return [*tokens, self.end]

    def decode(self, tokens: list[int]) -> str:
        """Return the text up to the first end token; padding may share the end token's id."""
        if self.end in tokens:
            tokens = tokens[: tokens.index(self.end)]
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True)).strip()

    @cached_property
    def fingerprint(self) -> str | None:
        """A SHA-256 of all that decides how a text is cut into tokens.

        None for a tokenizer in Python code, of which no file says all.
        """
        if not self._tokenizer.is_fast:
            return None
        import tokenizers

        rules = [
            tokenizers.__version__,
            type(self._tokenizer).__name__,
            self._before,
            self._tokenizer.unk_token_id,
            self._tokenizer.backend_tokenizer.to_str(),
        ]
        return hashlib.sha256(json.dumps(rules).encode()).hexdigest()

    def find_unfit(
        self, texts: Mapping[str, str], room: int | None
    ) -> tuple[list[str], list[str], int]:
        """Return what is wrong with texts, by id: those too long, and those not all known.

        And how many tokens the longest has with its end token, 0 without a text.

        Args:
            texts: by clip id.
            room: most tokens that a text may have with its end token; None = no limit.
        """
        too_long, unknown, longest = [], [], 0
        spaced = [self._spaced(text) for text in texts.values()]
        rows = self._tokenizer(spaced, add_special_tokens=False).input_ids
        for name, tokens in zip(texts, rows, strict=True):
            longest = max(longest, len(tokens) + 1)
            if room is not None and len(tokens) + 1 > room:
                too_long.append(f"{name}: {len(tokens) + 1} tokens, and there is room for {room}")
            if self._tokenizer.unk_token_id in tokens:
                unknown.append(name)
        return too_long, unknown, longest

    def _spaced(self, text: str) -> str:
        return f"{self._before}{text}" if text else text


def _marks_first_words(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether a word has the same tokens at the beginning of a text and inside it.

    SentencePiece's tokenizers put a space before a text by themselves.
    """
    alone, twice = (
        tokenizer(text, add_special_tokens=False).input_ids for text in ("the", "the the")
    )
    return bool(twice == alone * 2)


def load_tokenizer(config: ModelConfig) -> TextTokenizer:
    """Load the LLM's tokenizer; raise :class:`UserError` when it is not there."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(config.llm, revision=config.llm_revision)
        return TextTokenizer(tokenizer, config.prompt, config.start_token, config.leading_space)
    except (OSError, ValueError, ImportError) as e:
        raise not_found(config, e) from e
