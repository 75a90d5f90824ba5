"""The one place where a report reads packed data: a split's facts, and key frames of a clip."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO

from signfuse_dist.data.manifest import (
    Manifest,
    SampleEntry,
    load_index,
    load_manifest,
    manifest_bytes,
)
from signfuse_dist.data.shard import read_clip
from signfuse_dist.data.show import sheet, spread
from signfuse_dist.data.storage import Folder, open_folder
from signfuse_dist.errors import UserError

NUM_KEY_FRAMES = 6
_COLUMNS = 3
_QUALITY = 85


@dataclass(frozen=True)
class Sheet:
    """Key frames side by side as one JPEG; ``about`` says which they are."""

    jpeg: bytes
    about: str
    seconds: float | None
    """Length of the clip, None where its record does not say its rate."""


class PackedSplit:
    """A packed split on the disk."""

    def __init__(self, folder: Folder, manifest: Manifest) -> None:
        self._folder, self._manifest = folder, manifest

    def facts(self) -> dict[str, str]:
        """Return where the data comes from, in words for people."""
        manifest, packing = self._manifest, self._manifest.packing
        settings = packing.settings
        rate = "that of the videos" if settings.fps is None else f"{settings.fps:g} a second"
        return {
            "corpus": packing.corpus,
            "split": packing.split,
            "clips packed": f"{manifest.num_samples:,} of {manifest.num_rows:,} rows",
            "clips dropped": f"{manifest.num_dropped:,} (named in dropped.tsv)",
            "clips flagged": f"{manifest.num_flagged:,}",
            "frames": f"{manifest.num_frames:,}",
            "frame rate": rate,
            "frame size": f"{settings.frame_size} x {settings.frame_size}",
            "extractor": f"{packing.extractor} {packing.extractor_version}",
            "joint layout": packing.joint_layout,
            "packed by": f"signfuse_dist {manifest.signfuse_version}",
            "fingerprint of the rows": packing.rows_sha256,
            "fingerprint of the manifest": hashlib.sha256(manifest_bytes(manifest)).hexdigest(),
        }

    def signers(self) -> dict[str, str | None]:
        """Return the signer of each clip by id, None where the corpus names none."""
        return {name: entry.signer for name, (_, entry) in self._places.items()}

    def seconds(self) -> dict[str, float]:
        """Return the length of each clip by id; empty where clips have rates of their own."""
        fps = self._manifest.packing.settings.fps
        if fps is None:
            return {}
        return {name: entry.num_frames / fps for name, (_, entry) in self._places.items()}

    def key_frames(self, clip_id: str) -> Sheet:
        """Return evenly spaced frames of a clip with the skeleton drawn over them.

        Raises :class:`UserError` when the split has no such clip, or its shard is damaged.
        """
        if clip_id not in self._places:
            raise UserError(f"{self._folder} holds no clip of this id")
        shard, entry = self._places[clip_id]
        chosen = spread(entry.num_frames, NUM_KEY_FRAMES)
        clip = read_clip(self._folder, shard, entry.members, chosen)
        numbers = ", ".join(str(i + 1) for i in chosen)
        buffer = BytesIO()
        sheet(clip, _COLUMNS).save(buffer, format="JPEG", quality=_QUALITY)
        seconds = _seconds(entry.num_frames, clip.record.get("fps"))
        return Sheet(buffer.getvalue(), f"frames {numbers} of {entry.num_frames}", seconds)

    @cached_property
    def _places(self) -> dict[str, tuple[str, SampleEntry]]:
        """The shard and entry of each clip, from the indexes, read when first asked for."""
        indexes = [load_index(self._folder, shard) for shard in self._manifest.shards]
        return {entry.id: (index.shard, entry) for index in indexes for entry in index.samples}


def _seconds(num_frames: int, rate: object) -> float | None:
    """Return a clip's length; None where its record, anybody's, holds no rate."""
    if not isinstance(rate, (int, float)) or not math.isfinite(rate) or rate <= 0:
        return None
    return num_frames / rate


def open_packed(location: str) -> PackedSplit:
    """Open a packed split; raise :class:`UserError` when it is not there or not whole."""
    folder = open_folder(location)
    return PackedSplit(folder, load_manifest(folder))
