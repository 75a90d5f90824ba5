"""A small real LLM, pre-trained on a corpus's training texts, for runs without a large one.

``python -m signfuse_dist.model.tiny_llm --text TABLE --split train --out DIR`` trains a byte-level
BPE tokenizer and a Llama from nothing, or a T5 (``--encoder-decoder``), and writes an ordinary
Hugging Face folder.

Paper: a frozen LLaMA-2 7B, which knows the target language and follows its context. Here: one of
about a million parameters that has seen the training texts. Because: a frozen LLM must know the
language it writes, and a demonstration has a minute for that. What it is trained on is in
:mod:`signfuse_dist.model.tiny_llm_text`, what it is in :mod:`signfuse_dist.model.tiny_llm_model`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from signfuse_dist.config import ModelConfig
from signfuse_dist.errors import UserError
from signfuse_dist.model.tiny_llm_model import TinyLLM, TinyModel, build, mean_loss
from signfuse_dist.model.tiny_llm_text import Samples, read_texts, train_tokenizer

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
    with tqdm(total=size.steps, desc="pre-training the tiny LLM", unit="step") as bar:
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
            bar.update()
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
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


def _difference(found: Any, record: dict[str, Any]) -> str:
    """Say which entries of a record that was read are not those of ``record``."""
    if not isinstance(found, dict) or not isinstance(found.get("size"), dict):
        return f"its {_RECORD} cannot be read"
    there, wanted = ({**r, **r["size"]} for r in (found, record))
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
        found = json.loads(path.read_bytes())
    except ValueError:
        found = None
    if found != record:
        raise UserError(
            f"{out} holds another tiny LLM ({_difference(found, record)}); "
            "delete that folder or give another"
        )
    return True


def _save(
    out: Path, model: TinyModel, tokenizer: PreTrainedTokenizerFast, record: dict[str, Any]
) -> None:
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    model.save_pretrained(part)
    tokenizer.save_pretrained(part)
    (part / _RECORD).write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", "utf-8")
    part.replace(out)


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
        texts, prompt, tokenizer,
        context=size.context, context_words=size.context_words, seed=size.seed,
    )  # fmt: skip
    done = pretrain(model, samples, size, minutes)
    if done < size.steps:
        tqdm.write(f"stopped after {minutes:g} minutes at step {done} of {size.steps}")
    losses = measure(model, samples, texts), measure(model, samples, held_out)
    _save(out, model, tokenizer, record)
    return losses


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m signfuse_dist.model.tiny_llm",
        description="Pre-train a small Llama or T5 on the texts of a corpus.",
    )
    parser.add_argument("--text", type=Path, required=True, metavar="TSV", help="table of a corpus")
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
        encoder_decoder=given.encoder_decoder, hidden_size=given.hidden_size,
        intermediate_size=2 * given.hidden_size, num_layers=given.num_layers,
        steps=given.steps, seed=given.seed,
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status (2 for an error of the user's)."""
    given = _parser().parse_args(arguments)
    try:
        texts, held_out = (read_texts(given.text, s) for s in (given.split, given.held_out))
        losses = write_tiny_llm(
            given.out, texts, held_out, prompt=given.prompt, minutes=given.minutes,
            size=_size(given),
        )  # fmt: skip
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if losses is None:
        print(f"{given.out} is already there")
    else:
        names = (given.split, given.held_out)
        for name, loss in zip(names, losses, strict=True):
            print(f"loss per token, {name}: {loss}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
