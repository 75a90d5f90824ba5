"""What the tiny LLM learns from: its tokenizer, and samples of a corpus's training texts.

A sample is of one of three kinds: the text alone; the prompt and the text; and, before the
prompt, some of the text's own words, shuffled and repeated, where sign embeddings will stand. The
last kind teaches what a large LLM can do anyway, which is to write a sentence about its context.
"""

from __future__ import annotations

import csv
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from signfuse_dist.errors import UserError

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
IGNORED = -100
# Shares of the first two kinds of sample, and of a text's words that the third kind leaves out.
ALONE, PROMPTED, LEFT_OUT = 0.25, 0.10, 0.10

Sample = tuple[list[int], list[int]]


def read_texts(table: Path, split: str) -> list[str]:
    """Return the texts of ``split`` in a table with the columns ``text`` and ``split``.

    Raises :class:`UserError` for a table that is missing or lacks a column, and for a split that
    has no text in it.
    """
    if not table.is_file():
        raise UserError(f"there is no table {table}; --text names a TSV with columns text, split")
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t")
            missing = {"text", "split"} - set(reader.fieldnames or ())
            if missing:
                raise UserError(
                    f"{table} has no column {' or '.join(sorted(missing))}; it has "
                    f"{', '.join(reader.fieldnames or ()) or 'none'}"
                )
            rows = [(row["split"], (row["text"] or "").strip()) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table} is not a UTF-8 table: {error}") from error
    texts = [text for name, text in rows if name == split and text]
    if not texts:
        known = ", ".join(sorted({str(name) for name, _ in rows})) or "no row"
        raise UserError(f"{table} has no text in split {split!r}; its splits: {known}")
    return texts


def train_tokenizer(texts: Sequence[str], prompt: str, vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer; every script encodes, and nothing is added to a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, prompt, prompt], trainer)
    fast: Any = PreTrainedTokenizerFast  # its constructor has no types
    wrapped: PreTrainedTokenizerFast = fast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    return wrapped


class Samples:
    """Draws pre-training samples: token ids, and labels that are -100 before the text."""

    def __init__(
        self,
        texts: Sequence[str],
        prompt: str,
        tokenizer: PreTrainedTokenizerFast,
        *,
        context: int,
        context_words: int,
        seed: int,
    ) -> None:
        """Prepare samples of at most ``context`` tokens.

        At most ``context_words`` come before the prompt; the order of the draws follows ``seed``.
        """
        self.texts, self.tokenizer = list(texts), tokenizer
        self.context, self.context_words = context, context_words
        self.prompt = self.encode(prompt)
        self.bos, self.eos = tokenizer.get_vocab()[BOS], tokenizer.get_vocab()[EOS]
        self.random = random.Random(seed)

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text`` alone, without BOS or EOS."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _words(self, text: str) -> list[int]:
        """Return the text's words, one in ten left out, shuffled, each repeated in place."""
        words = [word for word in text.split() if self.random.random() > LEFT_OUT]
        self.random.shuffle(words)
        spare = self.random.randint(0, max(0, self.context_words - len(words)))
        repeats = Counter(self.random.choices(range(len(words)), k=spare)) if words else Counter()
        ids = [t for i, w in enumerate(words) for t in self.encode(f" {w}") * (1 + repeats[i])]
        return ids[: self.context_words]

    def alone(self, text: str) -> Sample:
        """Return the text after BOS alone."""
        return self._sample([self.bos], text)

    def prompted(self, text: str) -> Sample:
        """Return the text after BOS and the prompt."""
        return self._sample([self.bos, *self.prompt], text)

    def after_words(self, text: str) -> Sample:
        """Return the text after words of its own and the prompt, as sign embeddings come."""
        return self._sample([*self._words(text), *self.prompt], text)

    def _sample(self, before: list[int], text: str) -> Sample:
        written = [*self.encode(text), self.eos]
        ids, labels = before + written, [IGNORED] * len(before) + written
        return ids[: self.context], labels[: self.context]

    def draw(self, batch_size: int) -> list[Sample]:
        """Return a batch of one kind of sample, so that little of it is padding."""
        kind = self.random.random()
        after = ALONE + PROMPTED
        make = self.alone if kind < ALONE else self.prompted if kind < after else self.after_words
        return [make(text) for text in self.random.choices(self.texts, k=batch_size)]
