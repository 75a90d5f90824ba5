"""Each metric as one of sacrebleu: BLEU, chrF, ROUGE-L, METEOR and WER; BLEURT is beside it.

sacrebleu's resampling and signatures thus serve them all. BLEU and chrF are sacrebleu's own.
ROUGE-L is computed here, or by the package `rouge` where a protocol takes it from there; METEOR is
nltk's, and imported when it is asked for.
"""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from typing import Any

import numpy as np
from sacrebleu.metrics.base import Metric, Score, Signature
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
from sacrebleu.tokenizers.tokenizer_char import TokenizerChar
from sacrebleu.tokenizers.tokenizer_none import NoneTokenizer
from sacrebleu.tokenizers.tokenizer_zh import TokenizerZh

from signfuse_dist import __version__
from signfuse_dist.errors import UserError
from signfuse_dist.evaluation.protocols import BLEU_NAMES, WER, Beta, Preset
from signfuse_dist.garbage import importing

# Of the table of a longest common subsequence: what the package `rouge` is given, and what is
# computed at all (a byte each).
_PACKAGE_CELLS, _MOST_CELLS = 1_000_000, 400_000_000
_TOKENIZERS = {"13a": Tokenizer13a, "zh": TokenizerZh, "char": TokenizerChar, "none": NoneTokenizer}


@dataclass(frozen=True)
class Measure:
    """A metric, and what was done to the text before it, which its signature cannot know."""

    metric: Metric
    suffix: str = ""

    def signature(self, given: Signature | None = None) -> str:
        """Return the signature in words; ``given`` is one that a test has added to."""
        return str(given or self.metric.get_signature()) + self.suffix


def build_measures(preset: Preset, language: str | None) -> dict[str, Measure]:
    """Return every metric of the protocol but BLEURT, by name.

    They take text that :func:`~signfuse_dist.evaluation.protocols.normalize` has been through.
    ``language`` (a tag such as ``de``; None when unknown) decides only whether METEOR may use the
    English WordNet.
    """
    suffix = "".join(f"|{name}:{value}" for name, value in preset.changes.items())
    measures = {
        name: Measure(_bleu(preset, order), suffix) for order, name in enumerate(BLEU_NAMES, 1)
    }
    measures["chrF"] = Measure(CHRF(lowercase=preset.lowercase), suffix)
    measures["ROUGE-L"] = Measure(_rouge_l(preset))
    measures["METEOR"] = Measure(_meteor(preset, language))
    if preset.word_errors:
        measures[WER] = Measure(WordErrors(preset))
    return measures


def tokens(text: str, preset: Preset) -> list[str]:
    """Return the tokens that ROUGE-L and METEOR count, in the preset's case."""
    cased = text.lower() if preset.lowercase else text
    return list(_tokenizer(preset.tokenizer)(cased.strip()).split())


@cache
def _tokenizer(name: str) -> Callable[[str], str]:
    tokenize: Callable[[str], str] = _TOKENIZERS[name]()
    return tokenize


class _FactsSignature(Signature):
    """sacrebleu's signature with the facts of a :class:`SentenceMean`."""

    def __init__(self, args: dict[str, Any]) -> None:
        super().__init__(args)
        if args["num_refs"] != 1:
            self.info["refs"] = "best"
        self.info.update(args["facts"])


class SentenceMean(Metric):
    """The mean over sentences of a score in 0..1, times 100; of several references the best counts.

    ``facts`` are the signature's entries beyond the number of references; ``version`` is one.
    """

    _SIGNATURE_TYPE = _FactsSignature

    def __init__(
        self, name: str, sentence: Callable[[str, str], float], facts: Mapping[str, str]
    ) -> None:
        super().__init__()
        self.name, self.facts = name, dict(facts)
        self._of = sentence

    def _preprocess_segment(self, sent: str) -> str:
        return sent

    def _extract_reference_info(self, refs: Sequence[str]) -> dict[str, Any]:
        return {"refs": refs}

    def _compute_segment_statistics(
        self, hypothesis: str, ref_kwargs: dict[str, Any]
    ) -> list[float]:
        return [100.0 * max(self._of(hypothesis, r) for r in ref_kwargs["refs"]), 1.0]

    def _compute_score_from_stats(self, stats: Any) -> Score:
        return Score(self.name, float(stats[0] / stats[1]))

    def _aggregate_and_compute(self, stats: Any) -> Score:
        return self._compute_score_from_stats(np.sum(np.asarray(stats, np.float64), axis=0))


class WordErrors(Metric):
    """The word error rate: edits that make a hypothesis of its reference, over reference words.

    Substitutions, deletions and insertions count one each, and sums are taken over the corpus
    before they are divided; times 100, and above 100 where more is written than was to be. Of
    several references the one with the lowest rate counts.
    """

    _SIGNATURE_TYPE = _FactsSignature

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        self.name, self._preset = WER, preset
        self.facts = {
            "case": "lc" if preset.lowercase else "mixed",
            **_cut(preset),
            "version": f"signfuse-{__version__}",
        }

    def _preprocess_segment(self, sent: str) -> str:
        return sent

    def _extract_reference_info(self, refs: Sequence[str]) -> dict[str, Any]:
        return {"refs": refs}

    def _compute_segment_statistics(
        self, hypothesis: str, ref_kwargs: dict[str, Any]
    ) -> list[float]:
        ours = tokens(hypothesis, self._preset)
        counted: list[list[float]] = []
        for reference in ref_kwargs["refs"]:
            words = tokens(reference, self._preset)
            counted.append([float(num_edits(words, ours)), float(len(words))])
        return min(counted, key=lambda one: (one[0] / max(one[1], 1.0), one[0]))

    def _compute_score_from_stats(self, stats: Any) -> Score:
        edits, words = map(float, stats)
        return Score(self.name, 100.0 * edits / max(words, 1.0))

    def _aggregate_and_compute(self, stats: Any) -> Score:
        return self._compute_score_from_stats(np.sum(np.asarray(stats, np.float64), axis=0))


def num_edits(a: Sequence[str], b: Sequence[str]) -> int:
    """Return the fewest substitutions, deletions and insertions that make ``b`` of ``a``.

    Levenshtein's recurrence, a row of the table at once, a row a token of the shorter list: what
    is cheapest from the row above is taken first, then what tokens of this row add from the left.
    """
    shorter, longer = sorted((a, b), key=len)
    numbers = {token: number for number, token in enumerate(dict.fromkeys((*shorter, *longer)))}
    other = np.array([numbers[token] for token in longer], dtype=np.int64)
    places = np.arange(len(longer) + 1)
    row = places.copy()
    for token in shorter:
        above = row
        row = above + 1
        row[1:] = np.minimum(row[1:], above[:-1] + (other != numbers[token]))
        row = np.minimum.accumulate(row - places) + places
    return int(row[-1])


def _bleu(preset: Preset, order: int) -> BLEU:
    """Return BLEU up to ``order``; each order is a BLEU of its own with its own brevity penalty.

    All share one tokenizer with ROUGE-L and METEOR, which remembers what it has cut: cutting with
    13a is half of the work.
    """
    bleu = BLEU(
        lowercase=preset.lowercase,
        tokenize=preset.tokenizer,
        smooth_method=preset.smoothing,
        smooth_value=0.0 if preset.smoothing == "floor" else None,
        effective_order=preset.effective_order,
        max_ngram_order=order,
        force=True,  # silences a warning per order about ' .', which `Scores.notes` gives once
    )
    bleu.tokenizer = _tokenizer(preset.tokenizer)
    return bleu


def _cut(preset: Preset) -> dict[str, str]:
    cut = "space" if preset.tokenizer == "none" else preset.tokenizer
    return {"tok": cut, "punct": preset.punctuation, **preset.changes}


def _on_tokens(
    of_tokens: Callable[[Sequence[str], Sequence[str]], float], preset: Preset
) -> Callable[[str, str], float]:
    def of_text(hypothesis: str, reference: str) -> float:
        return of_tokens(tokens(hypothesis, preset), tokens(reference, preset))

    return of_text


def _rouge_l(preset: Preset) -> SentenceMean:
    facts = {"case": "lc" if preset.lowercase else "mixed", **_cut(preset)}
    of_tokens: Callable[[Sequence[str], Sequence[str]], float]
    if preset.rouge_l == "package":
        of_tokens = package_rouge_l
        facts |= {"mean": "sentences", "version": f"rouge-{version('rouge')}"}
    else:
        of_tokens = partial(sentence_rouge_l, beta=preset.rouge_l)
        facts |= {"beta": str(preset.rouge_l), "mean": "sentences"}
        facts["version"] = f"signfuse-{__version__}"
    return SentenceMean("ROUGE-L", _on_tokens(of_tokens, preset), facts)


def rouge_l(
    hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[str]], beta: Beta
) -> float:
    """Return the mean ROUGE-L of a corpus, 0..100.

    Raises :class:`UserError` when beta is not positive, or there is nothing to score.
    """
    if not isinstance(beta, str) and not beta > 0:
        raise UserError(f"ROUGE-L: beta {beta!r} is not a positive number (or 'p/r')")
    if not hypotheses:
        raise UserError("ROUGE-L: there are no sentences to score")
    pairs = zip(hypotheses, references, strict=True)
    return 100.0 * sum(sentence_rouge_l(h, r, beta) for h, r in pairs) / len(hypotheses)


def sentence_rouge_l(hypothesis: Sequence[str], reference: Sequence[str], beta: Beta) -> float:
    """Return ROUGE-L of one sentence in 0..1; 0.0 for an empty hypothesis or reference."""
    if not hypothesis or not reference:
        return 0.0
    shared = lcs_length(hypothesis, reference)
    return f_measure(shared / len(hypothesis), shared / len(reference), beta)


def lcs_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Return the length of the longest common subsequence of two token lists.

    Bit-parallel: the row of the dynamic programme is one integer whose bit i is 0 where the row
    grows at ``a[i]``, so a row costs a few integer operations instead of ``len(a)`` comparisons.
    The integers are of the shorter list: one of 600,000 characters beside a sentence costs no more
    than its length.
    """
    if len(a) > len(b):
        a, b = b, a
    places: dict[str, int] = {}
    for i, token in enumerate(a):
        places[token] = places.get(token, 0) | 1 << i
    full = (1 << len(a)) - 1
    row = full
    for token in b:
        matches = row & places.get(token, 0)
        row = (row + matches | row - matches) & full
    return len(a) - row.bit_count()


def f_measure(precision: float, recall: float, beta: Beta) -> float:
    """Return the F measure in 0..1; 0.0 when nothing is shared."""
    if precision == 0.0 or recall == 0.0:
        return 0.0
    weight = (precision / recall) ** 2 if beta == "p/r" else beta**2
    return (1 + weight) * precision * recall / (recall + weight * precision)


def package_rouge_l(hypothesis: Sequence[str], reference: Sequence[str]) -> float:
    """Return the F1 of ROUGE-L in 0..1 by the package `rouge`.

    0.0 where hypothesis or reference holds nothing but full stops, which the package refuses. The
    package recurses once a token and keeps a table in a dictionary, so what is too long for it is
    computed here to the same end. Raises UserError where that would take gigabytes.
    """
    both = [" ".join(tokens) for tokens in (hypothesis, reference)]
    if not all(text.strip(". ") for text in both):
        return 0.0
    cells = len(hypothesis) * len(reference)
    if cells > _MOST_CELLS:
        raise UserError(
            f"ROUGE-L of the package `rouge`: a hypothesis of {len(hypothesis):,} and a reference "
            f"of {len(reference):,} tokens are too long for each other; take another preset"
        )
    if cells > _PACKAGE_CELLS:
        return long_package_rouge_l(*both)
    with _deeper(len(hypothesis) + len(reference)):
        (scores,) = _package().get_scores(*both)
    return float(scores["rouge-l"]["f"])


def long_package_rouge_l(hypothesis: str, reference: str) -> float:
    """Return what the package `rouge` gives for two texts, without its recursion.

    Sentences end at full stops. Of each pair of them one longest common subsequence is found, and
    distinct words of all count: of the hypothesis for precision, of the reference for recall.
    """
    ours, theirs = (
        [" ".join(part.split()).split(" ") for part in text.split(".") if part]
        for text in (hypothesis, reference)
    )
    shared = {word for their in theirs for our in ours for word in _common_subsequence(their, our)}
    precision, recall = (
        len(shared) / len({word for sentence in sentences for word in sentence})
        for sentences in (ours, theirs)
    )
    return 2.0 * ((precision * recall) / (precision + recall + 1e-8))


def _common_subsequence(x: Sequence[str], y: Sequence[str]) -> list[str]:
    """Return the longest common subsequence that the package `rouge` finds: from the ends, a step
    in ``x`` only where it loses less than one in ``y``."""
    words = np.array(y, dtype=object)
    full = (1 << len(y)) - 1
    row = full
    grows = np.zeros((len(x) + 1, len(y)), dtype=np.uint8)  # where a row of the table grows
    masks: dict[str, int] = {}
    for i, word in enumerate(x, start=1):
        if word not in masks:
            packed = np.packbits(words == word, bitorder="little")
            masks[word] = int.from_bytes(packed.tobytes(), "little")
        matches = row & masks[word]
        row = (row + matches | row - matches) & full
        flat = np.frombuffer((row ^ full).to_bytes(len(y) // 8 + 1, "little"), np.uint8)
        grows[i] = np.unpackbits(flat, bitorder="little")[: len(y)]
    found = []
    i, j = len(x), len(y)
    here, above = int(grows[i].sum()), int(grows[i - 1].sum())
    while i and j:
        left = here - int(grows[i, j - 1])
        if x[i - 1] == y[j - 1]:
            found.append(x[i - 1])
            i, j = i - 1, j - 1
        elif above > left:
            i -= 1
        else:
            here, above, j = left, above - int(grows[i - 1, j - 1]), j - 1
            continue
        if i:
            here, above = int(grows[i, :j].sum()), int(grows[i - 1, :j].sum())
    return found


@cache
def _package() -> Any:
    from rouge import Rouge

    return Rouge(metrics=["rouge-l"])


@contextmanager
def _deeper(num_tokens: int) -> Iterator[None]:
    """Let the package recurse once for each token of a long sentence."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(before + num_tokens)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def _meteor(preset: Preset, language: str | None) -> SentenceMean:
    # One character is no English word: WordNet would only be asked in vain.
    synonyms, steps = find_wordnet("char" if preset.units == "characters" else language)
    facts = {"case": "lc", **_cut(preset), "match": steps, "mean": "sentences"}
    facts["version"] = f"nltk-{version('nltk')}"
    of_tokens = partial(sentence_meteor, synonyms=synonyms)
    return SentenceMean("METEOR", _on_tokens(of_tokens, preset), facts)


def sentence_meteor(hypothesis: Sequence[str], reference: Sequence[str], synonyms: Any) -> float:
    """Return METEOR of one sentence's tokens in 0..1; 0.0 for an empty hypothesis."""
    if not hypothesis:
        return 0.0
    return float(_meteor_of_nltk()(reference, hypothesis, wordnet=synonyms))


@cache
def _meteor_of_nltk() -> Callable[..., float]:
    """Import nltk's METEOR without what it wants of scipy, where that is not there already.

    nltk wants statistics for a test of collocations and for aligning texts, sparse matrices for a
    parser, and does without where scipy is not installed; METEOR has no part in any. They take
    longer than scoring a split.
    """
    hidden = [name for name in ("scipy.stats", "scipy.sparse") if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        with importing():
            from nltk.translate.meteor_score import single_meteor_score
    finally:
        for name in hidden:
            del sys.modules[name]
    return single_meteor_score  # type: ignore[no-any-return]


def find_wordnet(language: str | None) -> tuple[Any, str]:
    """Return the synonym source and how the signature names the matching steps.

    ``language`` is a tag such as ``en`` or ``de-DE``, None when unknown: nltk's WordNet is English,
    so it serves English and unknown text only. Raises :class:`UserError` when WordNet is there but
    cannot be read, because leaving it out then would change scores without a word.
    """
    if language is not None and language.lower().replace("_", "-").split("-")[0] != "en":
        return _NoSynonyms(), "exact+stem"
    _meteor_of_nltk()  # imports nltk as it is wanted
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
        edition = wordnet.get_version()
    except LookupError:
        return _NoSynonyms(), "exact+stem"
    except (OSError, ValueError, zipfile.BadZipFile) as e:
        raise UserError(
            f"METEOR: nltk finds a WordNet but cannot read it ({e}). "
            "Replace corpora/wordnet.zip under NLTK_DATA, or remove it to score without synonyms"
        ) from e
    return wordnet, f"exact+stem+wordnet{edition}"


class _NoSynonyms:
    """Stands in for the WordNet reader: no word has a synonym but itself."""

    def synsets(self, word: str) -> list[Any]:
        return []
