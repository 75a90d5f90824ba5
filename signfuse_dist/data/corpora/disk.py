"""What lies on the disk beside the annotations: where a corpus begins, and who has no row."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from signfuse_dist.data.corpora.rows import CorpusError, Orphan, Row

_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)


def find_anchor(corpus: str, root: Path, folders: Sequence[str], file: str) -> Path:
    """Return the first of ``folders`` under ``root`` that holds the annotation ``file``.

    Raises :class:`CorpusError` naming every path that was looked for.
    """
    anchors = [root / folder for folder in folders]
    for anchor in anchors:
        if (anchor / file).is_file():
            return anchor
    looked = ", ".join(str(anchor / file) for anchor in anchors)
    raise CorpusError(
        f"{corpus}: no annotations under {root}; looked for {looked}. --root is the folder that "
        f"was unpacked, see shards/{corpus.removesuffix('_precut')}.md"
    )


def refuse_split(corpus: str, split: str, splits: Sequence[str]) -> None:
    """Raise :class:`CorpusError` when the corpus was not published with such a split."""
    if split not in splits:
        raise CorpusError(f"split {split!r}: {corpus} has {', '.join(splits)}")


def names_in(folder: Path, suffix: str | None = None) -> set[str]:
    """Return the names of the folders in ``folder``, or of what ends with ``suffix``.

    A folder that is not there holds nothing. Raises :class:`CorpusError` when it cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            if suffix is None:
                return {entry.name for entry in entries if _is_folder(entry)}
            return {entry.name for entry in entries if entry.name.endswith(suffix)}
    except OSError as error:
        if error.errno in _ABSENT:
            return set()
        raise CorpusError(f"folder {folder}: cannot be read ({error.strerror})") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads round in a circle
        return False


def unmatched(
    rows: Iterable[Row], on_disk: Collection[str], named: Collection[str], place: str
) -> list[Orphan]:
    """Return the videos in no row, and the rows without a video.

    ``on_disk`` are names in the folder ``place``, ``named`` those that any row has.
    """
    strays = [Orphan(f"no row: it lies in {place}, and no row names it", name)
              for name in on_disk if name not in named]  # fmt: skip
    missing = [Orphan(f"no video: {row.source} is not there", row.id)
               for row in rows if row.video.name not in on_disk]  # fmt: skip
    return [*strays, *missing]


def count_note(corpus: str, split: str, found: int, published: int | None) -> list[str]:
    """Return a note when a split has another number of rows than was published, else nothing."""
    if published is None or found == published:
        return []
    return [f"{split} has {found} rows here; the published {corpus} has {published}"]
