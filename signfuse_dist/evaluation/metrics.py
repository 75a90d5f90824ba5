"""Corpus scores, each with the signature that says how it was computed.

BLEU and chrF are sacrebleu's, with sacrebleu's signature; METEOR is nltk's; ROUGE-L is
:mod:`signfuse_dist.evaluation.rouge`. Which tokens, case and punctuation they see is a
:class:`~signfuse_dist.evaluation.presets.Preset`. References are the annotation's own text, joined
to the hypotheses by id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
from sacrebleu.tokenizers.tokenizer_char import TokenizerChar
from sacrebleu.tokenizers.tokenizer_none import NoneTokenizer
from sacrebleu.tokenizers.tokenizer_zh import TokenizerZh

from signfuse_dist import __version__
from signfuse_dist.errors import UserError, raise_together
from signfuse_dist.evaluation import files
from signfuse_dist.evaluation.presets import BLEU_NAMES, METRICS, Preset, find_preset, normalize
from signfuse_dist.evaluation.rouge import rouge_l

# How many ids an error or a table names before it goes on with a count.
NAMED_IDS = 10
_TOKENIZERS = {"13a": Tokenizer13a, "zh": TokenizerZh, "char": TokenizerChar, "none": NoneTokenizer}


class Score(NamedTuple):
    """A value in 0..100 and how it was computed."""

    value: float
    signature: str


@dataclass(frozen=True)
class Scores:
    """The scores of one set of translations under one preset, by metric name.

    ``unavailable`` gives the reason for each metric of the protocol that was not computed, and
    ``empty`` the ids of empty hypotheses, which are scored as they are.
    """

    preset: str
    num_samples: int
    scores: Mapping[str, Score]
    unavailable: Mapping[str, str] = field(default_factory=dict)
    empty: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __getitem__(self, metric: str) -> Score:
        return self.scores[metric]


def score(
    hypotheses: Mapping[str, str],
    references: Mapping[str, str],
    preset: str | Preset,
    language: str | None = None,
) -> Scores:
    """Score translations against references of the same ids.

    ``language`` (a tag such as ``de``; None when unknown) decides only whether METEOR may use the
    English WordNet. Raises :class:`UserError` naming missing and unknown ids, empty references,
    an unknown preset, or that there is nothing to score.
    """
    protocol = find_preset(preset) if isinstance(preset, str) else preset
    _check_ids(hypotheses, references)
    ids = sorted(references)
    ours = [normalize(hypotheses[i], protocol) for i in ids]
    theirs = [normalize(references[i], protocol) for i in ids]
    values = {
        **_bleu(ours, theirs, protocol),
        "chrF": _library_score(CHRF(lowercase=protocol.lowercase), ours, theirs, protocol),
        **_token_scores(ours, theirs, protocol, language),
    }
    return Scores(
        preset=protocol.name,
        num_samples=len(ids),
        scores={name: values[name] for name in METRICS if name in values},
        unavailable=dict(protocol.unavailable),
        empty=tuple(i for i in ids if not hypotheses[i].strip()),
        notes=_notes(theirs, protocol),
    )


def score_files(hypotheses: Path, references: Path | None, preset: str) -> Scores:
    """Score files of the formats of :mod:`signfuse_dist.evaluation.files`.

    ``references`` None means that the hypotheses' file holds them too. Raises :class:`UserError`
    as :func:`score` and :func:`signfuse_dist.evaluation.files.read_pairs` do.
    """
    find_preset(preset)
    ours, theirs = files.read_pairs(hypotheses, references)
    return score(ours, theirs, preset)


def format_scores(scores: Scores) -> str:
    """Return a table for the terminal, with what was not scored and which hypotheses are empty."""
    width = max(len(name) for name in (*scores.scores, *scores.unavailable, "metric"))
    lines = [f"preset {scores.preset}, {scores.num_samples} sentences", ""]
    lines.append(f"{'metric':<{width}}  {'score':>6}  signature")
    for name, (value, signature) in scores.scores.items():
        lines.append(f"{name:<{width}}  {value:6.2f}  {signature}")
    for name, reason in scores.unavailable.items():
        lines.append(f"{name:<{width}}  {'-':>6}  not scored: {reason}")
    if scores.empty:
        count = len(scores.empty)
        lines += ["", f"empty hypotheses, scored as empty: {count} ({name_ids(scores.empty)})"]
    lines += [f"note: {note}" for note in scores.notes]
    return "\n".join(lines)


def name_ids(ids: Iterable[str]) -> str:
    """Return the first ids in words, and how many more there are."""
    ids = list(ids)
    more = len(ids) - NAMED_IDS
    return ", ".join(map(repr, ids[:NAMED_IDS])) + (f" and {more} more" if more > 0 else "")


def sentence_chrf(hypothesis: str, reference: str) -> float:
    """Return sacrebleu's chrF2 of one sentence, 0..100: for ordering, not for comparison."""
    return float(CHRF().sentence_score(hypothesis, [reference]).score)


def tokens(text: str, preset: Preset) -> list[str]:
    """Return the tokens that ROUGE-L and METEOR count, in the preset's case."""
    cased = text.lower() if preset.lowercase else text
    return list(_tokenizer(preset.tokenizer)(cased.strip()).split())


@cache
def _tokenizer(name: str) -> Callable[[str], str]:
    tokenize: Callable[[str], str] = _TOKENIZERS[name]()
    return tokenize


def _check_ids(hypotheses: Mapping[str, str], references: Mapping[str, str]) -> None:
    if not references:
        raise UserError("there are no references to score against")
    missing = sorted(set(references) - set(hypotheses))
    unknown = sorted(set(hypotheses) - set(references))
    blank = sorted(i for i, text in references.items() if not text.strip())
    errors = []
    if missing:
        errors.append(f"{len(missing)} ids have no hypothesis: {name_ids(missing)}")
    if unknown:
        errors.append(f"{len(unknown)} ids have no reference: {name_ids(unknown)}")
    if blank:
        errors.append(f"{len(blank)} references are empty: {name_ids(blank)}; leave those rows out")
    raise_together(errors, "hypotheses and references do not fit together")


def _bleu(ours: Sequence[str], theirs: Sequence[str], preset: Preset) -> dict[str, Score]:
    """Return BLEU-1..4; each order is a BLEU of its own with its own brevity penalty."""
    metrics = {
        name: BLEU(
            lowercase=preset.lowercase,
            tokenize=preset.tokenizer,
            smooth_method=preset.smoothing,
            smooth_value=0.0 if preset.smoothing == "floor" else None,
            effective_order=preset.effective_order,
            max_ngram_order=order,
            force=True,  # silences a warning per order about ' .', which `notes` gives once
        )
        for order, name in enumerate(BLEU_NAMES, start=1)
    }
    return {name: _library_score(m, ours, theirs, preset) for name, m in metrics.items()}


def _library_score(
    metric: Any, ours: Sequence[str], theirs: Sequence[str], preset: Preset
) -> Score:
    value = float(metric.corpus_score(ours, [theirs]).score)
    signature = str(metric.get_signature())
    if preset.punctuation != "kept":  # changed before the library saw it, so it cannot say so
        signature += f"|punct:{preset.punctuation}"
    return Score(value, signature)


def _token_scores(
    ours: Sequence[str], theirs: Sequence[str], preset: Preset, language: str | None
) -> dict[str, Score]:
    # Imported here: nltk takes a second to import, which the other users of this module need not.
    from signfuse_dist.evaluation.meteor import find_wordnet, meteor, nltk_version

    hypotheses = [tokens(text, preset) for text in ours]
    references = [tokens(text, preset) for text in theirs]
    # One character is no English word: WordNet would only be asked in vain.
    synonyms, steps = find_wordnet("char" if preset.units == "characters" else language)
    cut = "space" if preset.tokenizer == "none" else preset.tokenizer
    case = "lc" if preset.lowercase else "mixed"
    base = f"tok:{cut}|punct:{preset.punctuation}"
    found = {
        "METEOR": Score(
            meteor(hypotheses, references, synonyms),
            f"nrefs:1|case:lc|{base}|match:{steps}|mean:sentences|version:nltk-{nltk_version()}",
        )
    }
    if preset.rouge_beta is not None:
        found["ROUGE-L"] = Score(
            rouge_l(hypotheses, references, preset.rouge_beta),
            f"nrefs:1|case:{case}|{base}|beta:{preset.rouge_beta}|mean:sentences"
            f"|version:signfuse-{__version__}",
        )
    return found


def _notes(references: Sequence[str], preset: Preset) -> tuple[str, ...]:
    count = sum(text.endswith(" .") for text in references)
    if 2 * count < len(references):
        return ()
    return (
        f"{count} of {len(references)} references end in ' .', a token that is easily matched: "
        "do not compare with scores of text without it",
    )
