"""Characters that references hold and a system's tokenizer cannot write, told from its sentences.

A tokenizer that puts text into Unicode's form NFKC writes full-width marks as half-width ones, so
that a perfect translation of Chinese loses points for each; one with a small vocabulary leaves
characters out. Scores do not show it, so it is said beside them.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping

from signfuse_dist.evaluation.metrics import build_measures
from signfuse_dist.evaluation.protocols import Preset, Reference, normalize, prepare, texts_of

_FEW = 20  # sentences; from fewer nothing can be told
_OFTEN = 0.1  # share of references that hold a character which is worth a word
_SHOWN = 10


def explain_unwritten(
    hypotheses: Mapping[str, str], references: Mapping[str, Reference], preset: Preset
) -> list[str]:
    """Return what the sentences never write although the references do; empty where nothing.

    Named are characters that stand in a tenth of the references, and those that the hypotheses have
    in another form (NFKC) alone, with the BLEU-4 that a perfect translation in that form gets. What
    the protocol reads alike is not named.
    """
    if len(references) < _FEW:
        return []
    ours = _counts(([text] for text in hypotheses.values()), preset)
    theirs = _counts(map(texts_of, references.values()), preset)
    if not ours:
        return []
    absent = sorted(letter for letter in theirs if letter not in ours)
    forms = {letter: unicodedata.normalize("NFKC", letter) for letter in absent}
    other = {
        letter: form
        for letter, form in forms.items()
        if form != letter and all(c in ours and c not in theirs for c in form.strip())
    }
    often = [
        letter
        for letter in absent
        if letter not in other and theirs[letter] >= _OFTEN * len(references)
    ]
    notes = []
    if other:
        most = _perfect(references, other, preset)
        notes.append(
            f"no hypothesis writes {_named(other)} of the references, but "
            f"{_named(dict.fromkeys(other.values()))}: the system's tokenizer may be unable to. A "
            f"perfect translation so written scores BLEU-4 {most:.2f}"
        )
    if often:
        notes.append(
            f"no hypothesis writes {_named(often)}, which a tenth of the references or more hold: "
            "the system's tokenizer may be unable to"
        )
    return notes


def _counts(sentences: Iterable[Iterable[str]], preset: Preset) -> Counter[str]:
    """Return how many sentences hold each visible character, as the protocol reads them."""
    counts: Counter[str] = Counter()
    for texts in sentences:
        letters: set[str] = set()
        for text in texts:
            read = normalize(text, preset)
            letters |= set(read.lower() if preset.lowercase else read)
        counts.update(letter for letter in letters if not letter.isspace())
    return counts


def _perfect(
    references: Mapping[str, Reference], forms: Mapping[str, str], preset: Preset
) -> float:
    """Return BLEU-4 of the references themselves, written with other characters."""
    every = list(references.values())
    table = str.maketrans(dict(forms))
    written = [texts_of(reference)[0].translate(table) for reference in every]
    prepared = prepare([written], every, preset)
    measure = build_measures(preset, None)["BLEU-4"]
    return float(measure.metric.corpus_score(prepared.systems[0], prepared.streams).score)


def _named(letters: Iterable[str]) -> str:
    letters = list(letters)
    more = len(letters) - _SHOWN
    return ", ".join(map(repr, letters[:_SHOWN])) + (f" and {more} more" if more > 0 else "")
