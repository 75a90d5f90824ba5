"""Shards: one tar of clips, written whole, read by offset.

A clip is the members KEY.json, .jpegs, .offsets.npy, .pose.npy and .mask.npy. All JPEGs of a clip
are one member: stock webdataset reads it, and a few frames are read without touching the others.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from signfuse_dist.data.corpora import Rejected, key_of
from signfuse_dist.data.manifest import (
    MEMBERS,
    Manifest,
    Packing,
    SampleEntry,
    ShardEntry,
    ShardError,
    ShardIndex,
    index_bytes,
    index_name,
    load_index,
    load_manifest,
    read_index,
)
from signfuse_dist.data.storage import Folder, RangeCache, Read, open_ranges
from signfuse_dist.files import checksum, written_whole
from signfuse_dist.skeleton import NUM_JOINTS

__all__ = [
    "Clip",
    "EncodedClip",
    "Manifest",
    "ShardEntry",
    "ShardError",
    "ShardIndex",
    "load_index",
    "load_manifest",
    "read_clip",
    "read_index",
    "write_shard",
]

_OWNER = "signfuse"
_MODE = 0o644
_MAX_SIDE = 4096  # pixels: above it a JPEG's header is a lie


@dataclass(frozen=True)
class EncodedClip:
    """A clip ready to be written: its record, a JPEG a frame, and its joints."""

    record: Mapping[str, Any]
    jpegs: Sequence[bytes]
    pose: NDArray[np.float32]
    mask: NDArray[np.bool_]

    def members(self) -> dict[str, bytes]:
        """Return the bytes of each member, in the order of the tar."""
        record = json.dumps(self.record, ensure_ascii=False, sort_keys=True, allow_nan=False)
        offsets = np.cumsum([0, *(len(jpeg) for jpeg in self.jpegs)], dtype=np.int64)
        return {
            "json": record.encode("utf-8"),
            "jpegs": b"".join(self.jpegs),
            "offsets.npy": _npy(offsets),
            "pose.npy": _npy(self.pose),
            "mask.npy": _npy(self.mask),
        }


@dataclass(frozen=True)
class Clip:
    """A clip as it is read: n chosen frames and their joints."""

    record: dict[str, Any]
    frames: NDArray[np.uint8]
    """uint8 ``[n, size, size, 3]``, RGB."""
    pose: NDArray[np.float32]
    """float32 ``[n, 75, 2]`` in units of the square frame, 0 where the mask is False."""
    mask: NDArray[np.bool_]
    """bool ``[n, 75]``, True where the landmark was found."""


def write_shard(
    path: Path, clips: Iterable[EncodedClip | Rejected], packing: Packing
) -> ShardIndex:
    """Write a tar and the index beside it, each appearing whole or not at all.

    ``clips`` is consumed one at a time; rows that were dropped on the way go into the index. The
    same clips give the same bytes.
    """
    from webdataset.writer import TarWriter  # imports torch, which reading does without

    records: list[Mapping[str, Any]] = []
    dropped: list[Rejected] = []
    with (
        written_whole(path) as file,
        TarWriter(
            file, _OWNER, _OWNER, _MODE, compress=False, encoder=False, mtime=0, format="GNU_FORMAT"
        ) as writer,
    ):
        for clip in clips:
            if isinstance(clip, Rejected):
                dropped.append(clip)
                continue
            for name, content in clip.members().items():
                # A write of several members would sort them; the record is to come first.
                writer.write({"__key__": key_of(clip.record["id"]), name: content})
            records.append(clip.record)
    samples = _located(path, records)
    index = ShardIndex(
        path.name, checksum(path), path.stat().st_size, packing, samples, tuple(dropped)
    )
    with written_whole(path.with_name(index_name(path.name))) as file:
        file.write(index_bytes(index))
    return index


def read_clip(
    folder: Folder,
    shard: str,
    members: Mapping[str, tuple[int, int]],
    frame_indices: Sequence[int] | None = None,
    cache: RangeCache | None = None,
    into: NDArray[np.uint8] | None = None,
) -> Clip:
    """Read a clip by the offsets of its members, all frames or the chosen ones.

    ``members`` is :attr:`SampleEntry.members`; ``frame_indices`` may repeat and go in any order.
    Of a local shard only the bytes between the first and the last chosen frame are read; a clip of
    a remote one is fetched whole, through ``cache``. The frames are decoded ``into`` uint8
    ``[n, size, size, 3]`` where it is given. Raises :class:`ShardError` naming shard, clip and
    damage, and where frames are not of the size of ``into``.
    """
    ends = [offset + size for offset, size in members.values()]
    span = min(offset for offset, _ in members.values()), max(ends)
    try:
        with open_ranges(folder / shard, span, cache) as read:
            return _ClipReader(read, shard, members).read(frame_indices, into)
    except OSError as error:
        raise ShardError(shard, "", f"cannot be read ({error.strerror})") from error


class _ClipReader:
    def __init__(self, read: Read, shard: str, members: Mapping[str, tuple[int, int]]) -> None:
        self._read, self._shard, self._members = read, shard, members
        self._key = f"at byte {members['json'][0]}"

    def read(
        self, frame_indices: Sequence[int] | None, into: NDArray[np.uint8] | None = None
    ) -> Clip:
        record = self._record()
        count = record["num_frames"]
        offsets = self._array("offsets.npy", np.dtype("<i8"), (count + 1,))
        chosen = np.arange(count) if frame_indices is None else np.asarray(frame_indices, np.int64)
        if not len(chosen) or chosen.min() < 0 or chosen.max() >= count:
            raise ValueError(f"frame indices {chosen.tolist()} of a clip of {count} frames")
        pose = self._array("pose.npy", np.dtype("<f4"), (count, NUM_JOINTS, 2))
        mask = self._array("mask.npy", np.dtype("?"), (count, NUM_JOINTS))
        frames = self._frames(offsets, chosen, into)
        return Clip(record, frames, pose[chosen], mask[chosen])

    def _bytes(self, member: str, start: int = 0, stop: int | None = None) -> bytes:
        offset, size = self._members[member]
        stop = size if stop is None else stop
        content = self._read(offset + start, offset + stop)
        if len(content) != stop - start:
            self._refuse(f"torn: {member} ends after {len(content)} of {stop - start} bytes")
        return content

    def _refuse(self, what: str) -> None:
        raise ShardError(self._shard, self._key, what)

    def _record(self) -> dict[str, Any]:
        try:
            record = json.loads(self._bytes("json"))
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict) or not isinstance(record.get("id"), str):
            raise ShardError(self._shard, self._key, "the record is no JSON object with an id")
        self._key = key_of(record["id"])
        count = record.get("num_frames")
        if type(count) is not int or not 1 <= count <= self._members["offsets.npy"][1]:
            self._refuse(f"num_frames of the record is {count!r}")
        return record

    def _array(self, member: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """Read a .npy member that must have this type and shape; nothing else is allocated."""
        file = io.BytesIO(self._bytes(member))
        try:
            version = np.lib.format.read_magic(file)
            if version != (1, 0):
                raise ValueError(f"version {version}")
            found = np.lib.format.read_array_header_1_0(file)
        except (ValueError, TypeError, SyntaxError) as error:
            raise ShardError(self._shard, self._key, f"{member} is no array ({error})") from error
        content = file.read()
        if found != (shape, False, dtype) or len(content) != dtype.itemsize * int(np.prod(shape)):
            self._refuse(f"{member} is {found[2]} {list(found[0])}, not {dtype} {list(shape)}")
        return np.frombuffer(content, dtype).reshape(shape)

    def _frames(
        self, offsets: NDArray[np.int64], chosen: NDArray[np.int64], into: NDArray[np.uint8] | None
    ) -> NDArray[np.uint8]:
        size = self._members["jpegs"][1]
        if offsets[0] != 0 or offsets[-1] != size or (np.diff(offsets) <= 0).any():
            self._refuse("the offsets do not cut the JPEGs")
        starts, ends = offsets[chosen], offsets[chosen + 1]
        first = int(starts.min())
        blob = memoryview(self._bytes("jpegs", first, int(ends.max())))
        bounds = list(zip((starts - first).tolist(), (ends - first).tolist(), strict=True))
        if into is None:
            side = self._side(blob[slice(*bounds[0])], int(chosen[0]))
            into = np.empty((len(chosen), side, side, 3), dtype=np.uint8)
        for frame, (start, end), index in zip(into, bounds, chosen.tolist(), strict=True):
            self._decode(blob[start:end], frame, index)
        return into

    def _side(self, jpeg: memoryview, index: int) -> int:
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(jpeg)
        except ValueError as error:
            raise ShardError(self._shard, self._key, f"frame {index}: no JPEG ({error})") from error
        if height != width or not 1 <= width <= _MAX_SIDE:
            self._refuse(f"frame {index} is {width}x{height}, not a square")
        return int(width)

    def _decode(self, jpeg: memoryview, into: NDArray[np.uint8], index: int) -> None:
        try:
            decoded = simplejpeg.decode_jpeg(jpeg, colorspace="RGB", buffer=into)
        except ValueError as error:
            raise ShardError(
                self._shard, self._key, f"frame {index}: damaged JPEG ({error})"
            ) from error
        if decoded.shape != into.shape:
            height, width, _ = decoded.shape
            self._refuse(f"frame {index} is {width}x{height}, not {len(into)}x{len(into)}")


def _npy(array: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(array), allow_pickle=False)
    return file.getvalue()


def _located(path: Path, records: Sequence[Mapping[str, Any]]) -> tuple[SampleEntry, ...]:
    """Find each member's data in the tar that was just written."""
    with tarfile.open(path, "r:") as tar:
        places = [(member.offset_data, member.size) for member in tar]
    groups = [places[i : i + len(MEMBERS)] for i in range(0, len(places), len(MEMBERS))]
    return tuple(
        SampleEntry(
            key=key_of(record["id"]),
            id=record["id"],
            num_frames=record["num_frames"],
            text=record["text"],
            signer=record["signer"],
            flags=tuple(record["flags"]),
            members=dict(zip(MEMBERS, group, strict=True)),
        )
        for record, group in zip(records, groups, strict=True)
    )
