"""Sentences that training has seen: the others are scored apart.

A corpus whose test sentences also occur in training rewards a system that has learned its
sentences by heart. How many there are, and what is left without them, stands beside the scores.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from signfuse_dist.corpora.characters import visible
from signfuse_dist.corpora.tables import read_lines
from signfuse_dist.data.manifest_files import load_index, load_manifest
from signfuse_dist.data.storage import Folder
from signfuse_dist.errors import UserError
from signfuse_dist.evaluation.protocols import Preset, Reference, texts_of
from signfuse_dist.evaluation.scores import Scores, score
from signfuse_dist.system_errors import unreadable


def packed_texts(folder: Folder) -> set[str]:
    """Return the texts of a packed split, from its indexes; raise UserError as they do."""
    shards = load_manifest(folder).shards
    return {sample.text for shard in shards for sample in load_index(folder, shard).samples}


def read_texts(place: Path) -> set[str]:
    """Return the texts of training: of a packed split, of a table's column `text`, or a line each.

    A file that ends with ``.txt`` has a sentence a line. Raises :class:`UserError` where there is
    none of these.
    """
    if place.is_dir():
        return packed_texts(place)
    if place.suffix.lower() == ".txt":
        try:
            lines = place.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise unreadable_texts(place, error) from error
        return {line for line in lines if line.strip()}
    return {fields["text"] for _, fields in read_lines(place, ("text",)).fields}


def unreadable_texts(place: Path, error: OSError | UnicodeDecodeError) -> Exception:
    """Return the error of a file of texts that cannot be read."""
    if isinstance(error, OSError):
        return unreadable(error, str(place), UserError)
    return UserError(f"{place}: is not UTF-8; save it as UTF-8")


def unseen_ids(references: Mapping[str, Reference], trained: Collection[str]) -> list[str]:
    """Return the ids of sentences none of whose references is among the texts of training.

    Texts are compared as for scoring: in NFC, and without invisible characters.
    """
    known = {_comparable(text) for text in trained}
    return sorted(
        i
        for i, reference in references.items()
        if not any(_comparable(text) in known for text in texts_of(reference))
    )


def _comparable(text: str) -> str:
    return unicodedata.normalize("NFC", visible(text)).strip()


def score_unseen(
    hypotheses: Mapping[str, str],
    references: Mapping[str, Reference],
    trained: Collection[str],
    preset: str | Preset,
    language: str | None = None,
) -> Scores | None:
    """Score the sentences that training has not seen; None where it has seen none, or all."""
    unseen = unseen_ids(references, trained)
    if not unseen or len(unseen) == len(references):
        return None
    scores = score(
        {i: hypotheses[i] for i in unseen}, {i: references[i] for i in unseen}, preset, language
    )
    seen = len(references) - len(unseen)
    note = f"{seen} of {len(references)} references are sentences of the training split"
    return replace(scores, notes=(note, *scores.notes))
