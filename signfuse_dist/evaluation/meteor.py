"""METEOR through nltk, with WordNet where it is installed and said where it is not.

nltk reads WordNet from the folders of ``NLTK_DATA`` and raises LookupError without it. Here the
synonym step is then left out and the signature says so; nothing is downloaded.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from typing import Any

import nltk
from nltk.corpus import wordnet
from nltk.translate.meteor_score import single_meteor_score

from signfuse_dist.errors import UserError


class _NoSynonyms:
    """Stands in for the WordNet reader: no word has a synonym but itself."""

    def synsets(self, word: str) -> list[Any]:
        return []


def find_wordnet(language: str | None) -> tuple[Any, str]:
    """Return the synonym source and how the signature names the matching steps.

    ``language`` is a tag such as ``en`` or ``de-DE``, None when unknown: nltk's WordNet is English,
    so it serves English and unknown text only. Raises :class:`UserError` when WordNet is there but
    cannot be read, because leaving it out then would change scores without a word.
    """
    if language is not None and language.lower().replace("_", "-").split("-")[0] != "en":
        return _NoSynonyms(), "exact+stem"
    try:
        wordnet.ensure_loaded()
        version = wordnet.get_version()
    except LookupError:
        return _NoSynonyms(), "exact+stem"
    except (OSError, ValueError, zipfile.BadZipFile) as e:
        raise UserError(
            f"METEOR: nltk finds a WordNet but cannot read it ({e}). "
            "Replace corpora/wordnet.zip under NLTK_DATA, or remove it to score without synonyms"
        ) from e
    return wordnet, f"exact+stem+wordnet{version}"


def sentence_meteor(hypothesis: Sequence[str], reference: Sequence[str], synonyms: Any) -> float:
    """Return METEOR of one sentence's tokens in 0..1; 0.0 for an empty hypothesis."""
    if not hypothesis:
        return 0.0
    return float(single_meteor_score(reference, hypothesis, wordnet=synonyms))


def nltk_version() -> str:
    """Return the version that the signature names."""
    return str(nltk.__version__)
