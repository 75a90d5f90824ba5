"""Reading corpora into rows. Every row ends as accepted, or as rejected with a reason.

Each corpus has a module of its own, named as the corpus, and a page in ``shards/``. None of them
opens a video: reading says what is to be packed, and what does not fit together on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from signfuse_dist.corpora.csl_daily import read_csl_daily
from signfuse_dist.corpora.how2sign import read_how2sign, read_how2sign_precut
from signfuse_dist.corpora.phoenix14t import read_phoenix14t
from signfuse_dist.corpora.rows import (
    VIDEO_SUFFIXES,
    Box,
    ClipRow,
    Corpus,
    CorpusError,
    FolderFrames,
    Orphan,
    Rejected,
    boxed,
    key_of,
    script_of,
)
from signfuse_dist.corpora.table import read_synthetic, read_table

__all__ = [
    "CORPORA",
    "VIDEO_SUFFIXES",
    "Box",
    "ClipRow",
    "Corpus",
    "CorpusError",
    "FolderFrames",
    "Orphan",
    "Rejected",
    "boxed",
    "key_of",
    "read_corpus",
    "read_table",
    "script_of",
]

_READERS: Mapping[str, Callable[[Path, str], Corpus]] = {
    "table": read_table,
    "synthetic": read_synthetic,
    "phoenix14t": read_phoenix14t,
    "csl_daily": read_csl_daily,
    "how2sign": read_how2sign,
    "how2sign_precut": read_how2sign_precut,
}
CORPORA = tuple(_READERS)


def read_corpus(corpus: str, root: Path, split: str) -> Corpus:
    """Read the rows of ``split``. Raises :class:`CorpusError` when there is no such corpus."""
    if corpus not in _READERS:
        raise CorpusError(f"corpus {corpus!r}: unknown; known are {', '.join(CORPORA)}")
    return _READERS[corpus](root, split)
