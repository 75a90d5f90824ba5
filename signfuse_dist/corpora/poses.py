"""Poses as others publish them: which ways of writing them there are, and which one a file has.

How each is read, and which of its points is which joint, is in ``data/`` (``openpose.py``,
``pose_files.py``, ``wholebody.py``, ``holistic.py``, ``boston104_tracks.py``). Here is what an
importer needs to know without opening any.
"""

from __future__ import annotations

from collections.abc import Iterable

from signfuse_dist.corpora.rows import CorpusError

OPENPOSE = "openpose"
"""A folder a clip with a JSON file a frame: body, face and hands, in pixels."""
POSE = "pose"
"""``.pose``, as the package pose-format writes it: MediaPipe Holistic of any choice of points."""
WHOLEBODY = "wholebody"
"""COCO-WholeBody, 133 points, as ``.npz`` or ``.pkl``: RTMPose, DWPose, HRNet."""
HOLISTIC = "holistic"
"""MediaPipe Holistic, 543 points, as ``.npz``, ``.npy`` or ``.parquet``."""
BOSTON104 = "boston104"
"""One table of both hands and the nose in every frame of every clip."""

POSE_FORMATS = (OPENPOSE, POSE, WHOLEBODY, HOLISTIC)
"""Those that may be asked for by name."""

POSE_ENDINGS = {
    ".pose": POSE,
    ".parquet": HOLISTIC,
    ".npy": HOLISTIC,
    ".pkl": WHOLEBODY,
    ".pickle": WHOLEBODY,
}


def pose_format(written: Iterable[str], asked: str | None, where: str) -> str:
    """Return how the files at the paths ``written`` are written: as asked, else by their endings.

    A path without an ending is a folder of OpenPose. Raises :class:`CorpusError` where the endings
    do not say it, or say several; ``where`` names the table.
    """
    if asked is not None:
        return asked
    endings = {_ending(path) for path in written}
    formats = {POSE_ENDINGS.get(ending) if ending else OPENPOSE for ending in endings}
    if len(formats) == 1 and None not in formats:
        return str(formats.pop())
    shown = ", ".join(repr(ending) for ending in sorted(endings)[:5])
    raise CorpusError(
        f"{where}: files of poses with the endings {shown} do not say one way of writing them; say "
        f"it, --poses {' or '.join(POSE_FORMATS)}, and keep one way a table"
    )


def _ending(path: str) -> str:
    name = path.rstrip("/").rpartition("/")[2]
    return f".{name.rpartition('.')[2].lower()}" if "." in name[1:] else ""
