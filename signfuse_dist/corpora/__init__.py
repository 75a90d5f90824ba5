"""Reading corpora into rows. Every row ends as accepted, or as rejected with a reason.

Each corpus has a module of its own, named as the corpus, and a page in ``shards/``. None of them
opens a video: reading says what is to be packed, and what does not fit together on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from signfuse_dist.corpora import (
    boston104,
    csl_daily,
    csl_news,
    how2sign,
    openasl,
    phoenix14t,
    subtitles,
)
from signfuse_dist.corpora.boston104 import read_boston104
from signfuse_dist.corpora.characters import script_of
from signfuse_dist.corpora.csl_daily import read_csl_daily
from signfuse_dist.corpora.csl_news import read_csl_news
from signfuse_dist.corpora.how2sign import (
    read_how2sign,
    read_how2sign_poses,
    read_how2sign_precut,
    read_how2sign_precut_poses,
)
from signfuse_dist.corpora.openasl import read_openasl
from signfuse_dist.corpora.phoenix14t import read_phoenix14t
from signfuse_dist.corpora.poses import POSE_FORMATS
from signfuse_dist.corpora.rows import (
    VIDEO_SUFFIXES,
    Box,
    ClipRow,
    Corpus,
    CorpusError,
    FolderFrames,
    Orphan,
    Rejected,
    Tree,
    boxed,
    key_of,
    picture_size,
)
from signfuse_dist.corpora.subtitles import read_subtitles
from signfuse_dist.corpora.table import read_synthetic, read_table, splits_of_table
from signfuse_dist.garbage import uncollected
from signfuse_dist.synthetic.language import SPLITS

__all__ = [
    "CORPORA",
    "POSE_FORMATS",
    "VIDEO_SUFFIXES",
    "Box",
    "ClipRow",
    "Corpus",
    "CorpusError",
    "FolderFrames",
    "Orphan",
    "Rejected",
    "Tree",
    "boxed",
    "key_of",
    "picture_size",
    "read_corpus",
    "read_table",
    "script_of",
    "splits_of",
]

_READERS: Mapping[str, Callable[[Path, str], Corpus]] = {
    "table": read_table,
    "synthetic": read_synthetic,
    "phoenix14t": read_phoenix14t,
    "csl_daily": read_csl_daily,
    "how2sign": read_how2sign,
    "how2sign_precut": read_how2sign_precut,
    "boston104": read_boston104,
    "openasl": read_openasl,
    "subtitles": read_subtitles,
    "csl_news": read_csl_news,
}
CORPORA = tuple(_READERS)

_WITH_POSES: Mapping[str, Callable[[Path, str, str], Corpus]] = {
    "table": lambda root, split, poses: read_table(root, split, poses=poses),
    "how2sign": read_how2sign_poses,
    "how2sign_precut": read_how2sign_precut_poses,
    "subtitles": read_subtitles,
    "csl_news": read_csl_news,
}


def read_corpus(corpus: str, root: Path, split: str, poses: str | None = None) -> Corpus:
    """Read the rows of ``split``, with ``poses`` as they are published for it where that is asked.

    Raises :class:`CorpusError` when there is no such corpus, or none of its own with such poses.
    """
    _refuse_unknown(corpus)
    with uncollected():  # rows hold no cycles
        if poses is None:
            return _READERS[corpus](root, split)
        if poses not in POSE_FORMATS:
            raise CorpusError(f"poses {poses!r}: unknown; known are {', '.join(POSE_FORMATS)}")
        if corpus not in _WITH_POSES:
            raise CorpusError(
                f"--poses {poses}: it is not known where {corpus} keeps such files; write a table "
                "with a column `poses` (shards/table.md)"
            )
        return _WITH_POSES[corpus](root, split, poses)


_SPLITS: Mapping[str, Callable[[Path], Sequence[str]]] = {
    "table": splits_of_table,
    "synthetic": lambda root: SPLITS,
    "phoenix14t": lambda root: tuple(phoenix14t.ROWS),
    "csl_daily": lambda root: tuple(csl_daily.ROWS),
    "how2sign": lambda root: tuple(how2sign.ROWS),
    "how2sign_precut": lambda root: tuple(how2sign.ROWS),
    "boston104": lambda root: tuple(boston104.ROWS),
    "openasl": lambda root: openasl.SPLITS,
    "subtitles": lambda root: subtitles.SPLITS,
    "csl_news": lambda root: csl_news.SPLITS,
}


def splits_of(corpus: str, root: Path) -> tuple[str, ...]:
    """Return the splits that a corpus has; those of a table are what its column ``split`` names.

    Raises :class:`CorpusError` when there is no such corpus, or none that lists its splits, and for
    a table without that column.
    """
    _refuse_unknown(corpus)
    if corpus not in _SPLITS:
        raise CorpusError(f"corpus {corpus!r}: does not list its splits; name one")
    return tuple(_SPLITS[corpus](root))


def _refuse_unknown(corpus: str) -> None:
    if corpus not in _READERS:
        raise CorpusError(f"corpus {corpus!r}: unknown; known are {', '.join(CORPORA)}")
