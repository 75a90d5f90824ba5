"""The metrics of a protocol as objects of sacrebleu's kind, so that its tests serve all of them.

BLEU and chrF are sacrebleu's own. ROUGE-L, METEOR and BLEURT are means over sentences:
:class:`SentenceMean` gives sacrebleu their sentences' scores as statistics, whose sum over any
resampled corpus is that corpus's score.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
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
from signfuse_dist.evaluation.presets import BLEU_NAMES, Preset
from signfuse_dist.evaluation.rouge import package_rouge_l, package_version, sentence_rouge_l

_TOKENIZERS = {"13a": Tokenizer13a, "zh": TokenizerZh, "char": TokenizerChar, "none": NoneTokenizer}


class _FactsSignature(Signature):
    """sacrebleu's signature with the facts of a :class:`SentenceMean`."""

    def __init__(self, args: dict[str, Any]) -> None:
        super().__init__(args)
        self.info.update(args["facts"])


class SentenceMean(Metric):
    """The mean over sentences of a score in 0..1, times 100.

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
        (reference,) = ref_kwargs["refs"]
        return [100.0 * self._of(hypothesis, reference), 1.0]

    def _compute_score_from_stats(self, stats: Any) -> Score:
        return Score(self.name, float(stats[0] / stats[1]))

    def _aggregate_and_compute(self, stats: Any) -> Score:
        return self._compute_score_from_stats(np.sum(np.asarray(stats, np.float64), axis=0))


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

    They take text that :func:`~signfuse_dist.evaluation.presets.normalize` has been through.
    ``language`` (a tag such as ``de``; None when unknown) decides only whether METEOR may use the
    English WordNet.
    """
    suffix = "" if preset.punctuation == "kept" else f"|punct:{preset.punctuation}"
    measures = {
        name: Measure(_bleu(preset, order), suffix) for order, name in enumerate(BLEU_NAMES, 1)
    }
    measures["chrF"] = Measure(CHRF(lowercase=preset.lowercase), suffix)
    measures["ROUGE-L"] = Measure(_rouge_l(preset))
    measures["METEOR"] = Measure(_meteor(preset, language))
    return measures


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


def _bleu(preset: Preset, order: int) -> BLEU:
    """Return BLEU up to ``order``; each order is a BLEU of its own with its own brevity penalty."""
    return BLEU(
        lowercase=preset.lowercase,
        tokenize=preset.tokenizer,
        smooth_method=preset.smoothing,
        smooth_value=0.0 if preset.smoothing == "floor" else None,
        effective_order=preset.effective_order,
        max_ngram_order=order,
        force=True,  # silences a warning per order about ' .', which `Scores.notes` gives once
    )


def _rouge_l(preset: Preset) -> SentenceMean:
    facts = {"case": "lc" if preset.lowercase else "mixed", **_cut(preset)}
    of_tokens: Callable[[Sequence[str], Sequence[str]], float]
    if preset.rouge_l == "package":
        of_tokens = package_rouge_l
        facts |= {"mean": "sentences", "version": f"rouge-{package_version()}"}
    else:
        of_tokens = partial(sentence_rouge_l, beta=preset.rouge_l)
        facts |= {"beta": str(preset.rouge_l), "mean": "sentences"}
        facts["version"] = f"signfuse-{__version__}"
    return SentenceMean("ROUGE-L", _on_tokens(of_tokens, preset), facts)


def _meteor(preset: Preset, language: str | None) -> SentenceMean:
    # Imported here: nltk takes a second to import, which other users of this module need not.
    from signfuse_dist.evaluation.meteor import find_wordnet, nltk_version, sentence_meteor

    # One character is no English word: WordNet would only be asked in vain.
    synonyms, steps = find_wordnet("char" if preset.units == "characters" else language)
    facts = {"case": "lc", **_cut(preset), "match": steps, "mean": "sentences"}
    facts["version"] = f"nltk-{nltk_version()}"
    of_tokens = partial(sentence_meteor, synonyms=synonyms)
    return SentenceMean("METEOR", _on_tokens(of_tokens, preset), facts)


def _cut(preset: Preset) -> dict[str, str]:
    cut = "space" if preset.tokenizer == "none" else preset.tokenizer
    return {"tok": cut, "punct": preset.punctuation}


def _on_tokens(
    of_tokens: Callable[[Sequence[str], Sequence[str]], float], preset: Preset
) -> Callable[[str, str], float]:
    def of_text(hypothesis: str, reference: str) -> float:
        return of_tokens(tokens(hypothesis, preset), tokens(reference, preset))

    return of_text
