"""A small real LLM, pre-trained on a corpus's training texts, for runs without a large one.

``python -m signfuse_dist.synthetic.tiny_llm --text TABLE --split train --out DIR`` trains a
byte-level BPE tokenizer and a Llama from nothing, or a T5 (``--encoder-decoder``), and writes an
ordinary Hugging Face folder.

Paper: a frozen LLaMA-2 7B, which knows the target language and follows its context. Here: one of
about a million parameters that has seen the training texts. Because: a frozen LLM must know the
language it writes, and a demonstration has a minute for that.

It learns from samples of three kinds: the text alone; the prompt and the text; and, before the
prompt, some of the text's own words, shuffled and repeated, where sign embeddings will stand. The
last kind teaches what a large LLM can do anyway, which is to write a sentence about its context.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from signfuse_dist.answer import answer
from signfuse_dist.config import ModelConfig
from signfuse_dist.corpora.tables import read_lines
from signfuse_dist.data.manifest_files import load_index, load_manifest
from signfuse_dist.errors import UserError, raise_together
from signfuse_dist.files import part_of
from signfuse_dist.model.llm import without_bars
from signfuse_dist.progress import Progress

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
IGNORED = -100
# Shares of the first two kinds of sample, and of a text's words that the third kind leaves out.
ALONE, PROMPTED, LEFT_OUT = 0.25, 0.10, 0.10

Sample = tuple[list[int], list[int]]


def read_texts(table: Path, split: str) -> list[str]:
    """Return the texts of ``split`` in a table with the columns ``text`` and ``split``.

    The table is read as the packer reads it; a folder is that of packed splits. Raises
    :class:`UserError` for a table that is missing or lacks a column, for lines that are malformed,
    and for a split that has no text in it.
    """
    if table.is_dir():
        packed = load_manifest(table / split)
        indexes = [load_index(table / split, shard) for shard in packed.shards]
        return [sample.text for index in indexes for sample in index.samples]
    if not table.is_file():
        raise UserError(
            f"there is no table {table}; --text names a table with columns text, split, or the "
            "folder of packed splits"
        )
    read = read_lines(table, ("text", "split"))
    malformed = [f"line {number}: {what}" for number, what in read.lines if isinstance(what, str)]
    raise_together(malformed, f"table {table}: malformed lines")
    rows = [(fields["split"], fields["text"]) for _, fields in read.fields]
    texts = [text for name, text in rows if name == split and text]
    if not texts:
        known = ", ".join(sorted({name for name, _ in rows})) or "no row"
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
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
    )
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


_RECORD = "pretraining.json"


@dataclass(frozen=True)
class TokenLoss:
    """Mean cross-entropy per token of text and EOS: of the text alone, and after its words."""

    alone: float
    after_words: float

    def __str__(self) -> str:
        """Say both losses with their perplexities."""
        return (
            f"{self.alone:.3f} (perplexity {math.exp(self.alone):.2f}) alone, "
            f"{self.after_words:.3f} ({math.exp(self.after_words):.2f}) after its words"
        )


def _rate(size: TinyLLM, progress: float) -> float:
    warm = min(1.0, progress / size.warmup)
    return size.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * progress))


def pretrain(model: TinyModel, samples: Samples, size: TinyLLM, minutes: float) -> int:
    """Train in place and return the number of steps.

    Ends after ``size.steps``, or earlier when ``minutes`` have passed; the learning rate falls
    with whichever is nearer, so a slow machine ends at rate 0 too. Where time does not bind, the
    result depends on the seed alone.
    """
    start, done = time.monotonic(), 0
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=size.learning_rate, weight_decay=size.weight_decay
    )
    model.train()
    with Progress("pre-training the tiny LLM", size.steps, "step") as progress:
        while done < size.steps:
            spent = (time.monotonic() - start) / (60 * minutes)
            if spent >= 1:
                break
            for group in optimizer.param_groups:
                group["lr"] = _rate(size, max((done + 1) / (size.steps + 1), spent))
            loss, _ = mean_loss(model, samples.draw(size.batch_size))
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            done += 1
            progress.advance()
    return done


@torch.no_grad()
def measure(model: TinyModel, samples: Samples, texts: Sequence[str]) -> TokenLoss:
    """Return the loss per token of ``texts``, each alone and after its own words."""
    model.train(False)
    means = []
    for make in (samples.alone, samples.after_words):
        batches = [texts[i : i + 64] for i in range(0, len(texts), 64)]
        losses = [mean_loss(model, [make(text) for text in batch]) for batch in batches]
        means.append(sum(x.item() * n for x, n in losses) / sum(n for _, n in losses))
    return TokenLoss(*means)


def _record(texts: Sequence[str], prompt: str, size: TinyLLM) -> dict[str, Any]:
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    return {"version": 1, "texts_sha256": digest, "prompt": prompt, "size": asdict(size)}


def _difference(written: Any, record: dict[str, Any]) -> str:
    """Say which entries of a record that was read are not those of ``record``."""
    if not isinstance(written, dict) or not isinstance(written.get("size"), dict):
        return f"its {_RECORD} cannot be read"
    there, wanted = ({**r, **r["size"]} for r in (written, record))
    return "; ".join(
        f"{name} was {there.get(name)!r}, is {wanted.get(name)!r}"
        for name in sorted(there.keys() | wanted.keys())
        if name != "size" and there.get(name) != wanted.get(name)
    )


def _is_there(out: Path, record: dict[str, Any]) -> bool:
    """Tell whether ``out`` holds this LLM; refuse a folder that holds anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    path = out / _RECORD
    if not path.is_file():
        raise UserError(f"{out} holds something else than a tiny LLM; give another folder")
    try:
        written = json.loads(path.read_bytes())
    except ValueError:
        written = None
    if written != record:
        raise UserError(
            f"{out} holds another tiny LLM ({_difference(written, record)}); "
            "delete that folder or give another"
        )
    return True


def _save(
    out: Path, model: TinyModel, tokenizer: PreTrainedTokenizerFast, record: dict[str, Any]
) -> None:
    with part_of(out) as part:
        with without_bars():
            model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        (part / _RECORD).write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", "utf-8")


def write_tiny_llm(
    out: Path,
    texts: Sequence[str],
    held_out: Sequence[str],
    *,
    prompt: str,
    size: TinyLLM,
    minutes: float,
) -> tuple[TokenLoss, TokenLoss] | None:
    """Pre-train an LLM on ``texts`` and write it to ``out``; None when it is there already.

    ``held_out`` is measured and never trained on. Returns the losses of both. The folder appears
    whole or not at all. Raises :class:`UserError` when ``out`` holds something else.
    """
    if minutes <= 0:
        raise UserError(f"minutes is {minutes}; it must be more than 0")
    record = _record(texts, prompt, size)
    if _is_there(out, record):
        return None
    tokenizer = train_tokenizer(texts, prompt, size.vocab_size)
    model = build(size, tokenizer)
    samples = Samples(
        texts,
        prompt,
        tokenizer,
        context=size.context,
        context_words=size.context_words,
        seed=size.seed,
    )
    done = pretrain(model, samples, size, minutes)
    if done < size.steps:
        print(f"stopped after {minutes:g} minutes at step {done} of {size.steps}")
    losses = measure(model, samples, texts), measure(model, samples, held_out)
    _save(out, model, tokenizer, record)
    return losses


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m signfuse_dist.synthetic.tiny_llm",
        description="Pre-train a small Llama or T5 on the texts of a corpus.",
    )
    parser.add_argument(
        "--text",
        type=Path,
        required=True,
        metavar="TSV",
        help="table of a corpus, or the folder of its packed splits",
    )
    parser.add_argument("--split", default="train", help="trained on (default: %(default)s)")
    parser.add_argument("--held-out", default="dev", help="measured only (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--prompt", default=ModelConfig.prompt, help="default: the model's prompt")
    parser.add_argument("--steps", type=int, default=TinyLLM.steps, help="default: %(default)s")
    parser.add_argument(
        "--hidden-size", type=int, default=TinyLLM.hidden_size, help="default: %(default)s"
    )
    parser.add_argument(
        "--num-layers", type=int, default=TinyLLM.num_layers, help="default: %(default)s"
    )
    parser.add_argument(
        "--encoder-decoder", action="store_true", help="a T5, with --num-layers in each half"
    )
    parser.add_argument("--seed", type=int, default=TinyLLM.seed, help="default: %(default)s")
    parser.add_argument(
        "--minutes", type=float, default=2.0, help="longest time (default: %(default)s)"
    )
    return parser


def _size(given: argparse.Namespace) -> TinyLLM:
    """Return the size that was asked for, its feed-forward part twice as wide as the rest."""
    if given.hidden_size < 1 or given.hidden_size % TinyLLM.num_heads or given.num_layers < 1:
        raise UserError(
            f"--hidden-size {given.hidden_size} --num-layers {given.num_layers}: a multiple of "
            f"{TinyLLM.num_heads} and at least one layer are needed"
        )
    return TinyLLM(
        encoder_decoder=given.encoder_decoder,
        hidden_size=given.hidden_size,
        intermediate_size=2 * given.hidden_size,
        num_layers=given.num_layers,
        steps=given.steps,
        seed=given.seed,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status (2 for an error of the user's)."""
    given = _parser().parse_args(arguments)
    return answer(lambda: _run(given))


def _run(given: argparse.Namespace) -> int:
    texts, held_out = (read_texts(given.text, s) for s in (given.split, given.held_out))
    losses = write_tiny_llm(
        given.out,
        texts,
        held_out,
        prompt=given.prompt,
        minutes=given.minutes,
        size=_size(given),
    )
    if losses is None:
        print(f"{given.out} is already there")
    else:
        names = (given.split, given.held_out)
        for name, loss in zip(names, losses, strict=True):
            print(f"loss per token, {name}: {loss}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
