"""Whether the LLM's tokenizer can write the texts it is to learn and to be scored against.

A tokenizer that puts text into Unicode's form NFKC writes full-width marks as half-width ones, and
one with a small vocabulary leaves characters out: no training makes up for it. The tokenizer is
asked without transformers, through the library or the model file that is its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from signfuse_dist.errors import printable
from signfuse_dist.evaluation.protocols import Preset, normalize, prepare
from signfuse_dist.preflight.finding import Finding, error, ok, warning

Rewriter = Callable[[Sequence[str]], list[str]]
"""Texts as a tokenizer writes them, after it has read them."""

_PIECES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
_SHOWN = 10
_FIX = "Take another LLM, or a protocol that reads both alike (docs/evaluation.md, Presets)"


def check_writing(
    folder: Path, preset: Preset, texts: Iterable[str], scored: Sequence[str]
) -> list[Finding]:
    """Say which characters of texts the tokenizer in ``folder`` cannot write, and what that costs.

    Args:
        folder: of the LLM's files.
        preset: the run's protocol; what it reads alike is not named.
        texts: of every split.
        scored: of the split that the cost is told of, empty where there is none.

    Nothing is found where the tokenizer has neither a ``tokenizer.json`` nor a model of
    SentencePiece.
    """
    what = f"tokenizer of {folder}"
    try:
        rewrite = _load(folder)
    except Exception as e:  # the libraries raise no narrower class
        return [error(what, f"cannot be read ({e})", "Fetch the LLM again")]
    if rewrite is None:
        return []
    sample = _with_every_letter(texts)
    lost: Counter[str] = Counter()
    for text, written in zip(sample, rewrite(sample), strict=True):
        lost.update((_letters(text, preset) - _letters(written, preset)).keys())
    if not lost:
        return [ok(what, "writes every character of the texts")]
    letters = sorted(lost)
    more = len(letters) - _SHOWN
    shown = ", ".join(map(repr, letters[:_SHOWN])) + (f" and {more} more" if more > 0 else "")
    holding = sum(any(letter in text for letter in letters) for text in scored)
    cost = ""
    if holding:
        cost = (
            f", which {holding} of {len(scored)} test texts hold: a perfect translation scores "
            f"BLEU-4 {_perfect(scored, rewrite, preset):.2f} under {preset.name}"
        )
    return [warning(what, printable(f"cannot write {shown}{cost}"), _FIX)]


def _load(folder: Path) -> Rewriter | None:
    fast = folder / "tokenizer.json"
    if fast.is_file():
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(fast))
        tokenizer.no_truncation()
        tokenizer.no_padding()

        def rewrite(texts: Sequence[str]) -> list[str]:
            rows = tokenizer.encode_batch(list(texts), add_special_tokens=False)
            return list(tokenizer.decode_batch([row.ids for row in rows]))

        return rewrite
    for name in _PIECES:
        if (folder / name).is_file():
            from sentencepiece import SentencePieceProcessor

            pieces = SentencePieceProcessor(model_file=str(folder / name))
            unknown = pieces.unk_id()
            return lambda texts: [
                pieces.decode([i for i in row if i != unknown])
                for row in pieces.encode(list(texts))
            ]
    return None


def _with_every_letter(texts: Iterable[str]) -> list[str]:
    """Return few of the texts that hold every character of all of them."""
    known: set[str] = set()
    sample = []
    for text in texts:
        if not known.issuperset(text):
            known.update(text)
            sample.append(text)
    return sample


def _letters(text: str, preset: Preset) -> Counter[str]:
    """Count the visible characters of a text as the protocol reads them."""
    read = normalize(text, preset)
    letters = Counter(read.lower() if preset.lowercase else read)
    return Counter({letter: n for letter, n in letters.items() if not letter.isspace()})


def _perfect(texts: Sequence[str], rewrite: Rewriter, preset: Preset) -> float:
    """Return BLEU-4 of the texts against themselves, as the tokenizer writes them."""
    from signfuse_dist.evaluation.metrics import build_measures

    prepared = prepare([rewrite(texts)], texts, preset)
    metric = build_measures(preset, None)["BLEU-4"].metric
    return float(metric.corpus_score(prepared.systems[0], prepared.streams).score)
