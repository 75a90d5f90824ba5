"""``verified.json``: what `signfuse verify` leaves beside shards in which it found nothing."""

from __future__ import annotations

import io
import json
from pathlib import Path

from signfuse_dist.data.manifest import MANIFEST_NAME
from signfuse_dist.data.storage import Folder, is_local, read_file
from signfuse_dist.files import digest, write_text

STAMP_NAME = "verified.json"


def write_stamp(folder: Folder) -> bool:
    """Record that the content of a folder was verified; return whether that could be written.

    The stamp holds the checksum of the manifest, which has those of the shards: shards that were
    packed again have no stamp. A shard that rots on the disk afterwards keeps its stamp.
    """
    if not is_local(folder):
        return False
    try:
        write_text(Path(str(folder)) / STAMP_NAME, json.dumps({"manifest": _checksum(folder)}))
    except OSError:  # a folder of somebody else's, or a full disk
        return False
    return True


def remove_stamp(folder: Folder) -> None:
    """Take the stamp back, where there is one; raise OSError where that is not allowed."""
    if is_local(folder):
        (folder / STAMP_NAME).unlink(missing_ok=True)


def is_verified(folder: Folder) -> bool:
    """Return whether the content was verified as it is named by its manifest now."""
    try:
        stamp = json.loads(read_file(folder / STAMP_NAME).decode("utf-8"))
        return isinstance(stamp, dict) and stamp.get("manifest") == _checksum(folder)
    except (OSError, ValueError):
        return False


def _checksum(folder: Folder) -> str:
    return digest(io.BytesIO(read_file(folder / MANIFEST_NAME)))
