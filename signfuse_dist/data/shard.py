"""Shards: one tar of clips, or of joints alone, written whole, read by offset.

A clip is the members KEY.json, .jpegs, .offsets.npy, .pose.npy and .mask.npy. All JPEGs of a clip
are one member: stock webdataset reads it, and a few frames are read without touching the others.
Joints alone are KEY.json, .pose.npy and .mask.npy.
"""

from __future__ import annotations

import io
import json
import math
import os
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from signfuse_dist.data.corpora import Rejected, key_of
from signfuse_dist.data.manifest import (
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
from signfuse_dist.files import checksum, written_whole
from signfuse_dist.skeleton import NUM_JOINTS

__all__ = [
    "Clip",
    "ClipPose",
    "Encoded",
    "EncodedClip",
    "EncodedPose",
    "Manifest",
    "ShardEntry",
    "ShardError",
    "ShardIndex",
    "load_index",
    "load_manifest",
    "read_clip",
    "read_index",
    "read_pose",
    "write_shard",
]

_OWNER = "signfuse"
_MODE = 0o644
_MAX_SIDE = 4096  # pixels: above it a JPEG's header is a lie
_NPY_MAGIC = b"\x93NUMPY\x01\x00"
_SHOWN = 80  # characters of a wrong header that an error shows


class Encoded(Protocol):
    """What is ready to be written under one key."""

    @property
    def record(self) -> Mapping[str, Any]: ...
    @property
    def failure(self) -> str: ...
    def members(self) -> dict[str, bytes]: ...


@dataclass(frozen=True)
class EncodedClip:
    """A clip ready to be written: its record, a JPEG a frame, and its joints."""

    record: Mapping[str, Any]
    jpegs: Sequence[bytes]
    pose: NDArray[np.float32]
    mask: NDArray[np.bool_]
    failure: str = ""
    """What the extractor said at the first frame at which it failed; not written."""

    def members(self) -> dict[str, bytes]:
        """Return the bytes of each member, in the order of the tar."""
        offsets = np.cumsum([0, *(len(jpeg) for jpeg in self.jpegs)], dtype=np.int64)
        return {
            "json": _json(self.record),
            "jpegs": b"".join(self.jpegs),
            "offsets.npy": _npy(offsets),
            "pose.npy": _npy(self.pose),
            "mask.npy": _npy(self.mask),
        }


@dataclass(frozen=True)
class EncodedPose:
    """The joints of a clip ready to be written, without its frames."""

    record: Mapping[str, Any]
    pose: NDArray[np.float32]
    mask: NDArray[np.bool_]
    failure: str = ""
    """What the extractor said at the first frame at which it failed; not written."""

    def members(self) -> dict[str, bytes]:
        """Return the bytes of each member, in the order of the tar."""
        return {
            "json": _json(self.record),
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


@dataclass(frozen=True)
class ClipPose:
    """The joints of a clip as they are read from a pose set, of n chosen frames."""

    record: dict[str, Any]
    pose: NDArray[np.float32]
    """float32 ``[n, 75, 2]`` in units of the square frame, 0 where the mask is False."""
    mask: NDArray[np.bool_]
    """bool ``[n, 75]``, True where the landmark was found."""


def write_shard(path: Path, clips: Iterable[Encoded | Rejected], packing: Packing) -> ShardIndex:
    """Write a tar and the index beside it, each appearing whole or not at all.

    ``clips`` is consumed one at a time; rows that were dropped on the way go into the index. The
    same clips give the same bytes.
    """
    samples: list[SampleEntry] = []
    dropped: list[Rejected] = []
    with written_whole(path) as file:
        for clip in clips:
            if isinstance(clip, Rejected):
                dropped.append(clip)
            else:
                samples.append(_write_members(file, clip))
        file.write(tar_end(file.tell()))
    size = path.stat().st_size
    index = ShardIndex(path.name, checksum(path), size, packing, tuple(samples), tuple(dropped))
    with written_whole(path.with_name(index_name(path.name))) as file:
        file.write(index_bytes(index))
    return index


def _write_members(file: BinaryIO, clip: Encoded) -> SampleEntry:
    key, places = key_of(clip.record["id"]), {}
    for name, content in clip.members().items():
        file.write(member_header(key, name, len(content)))
        places[name] = (file.tell(), len(content))
        file.write(content)
        file.write(bytes(-len(content) % tarfile.BLOCKSIZE))
    return SampleEntry(
        key=key,
        id=clip.record["id"],
        num_frames=clip.record["num_frames"],
        text=clip.record.get("text", ""),
        signer=clip.record.get("signer"),
        flags=tuple(clip.record["flags"]),
        members=places,
        failed_frames=clip.record["failed_frames"],
    )


def member_header(key: str, name: str, size: int) -> bytes:
    """Return what stands before a member in the tar: nothing of the day, the user or the host."""
    info = tarfile.TarInfo(f"{key}.{name}")
    info.size, info.mode, info.uname, info.gname = size, _MODE, _OWNER, _OWNER
    return info.tobuf(tarfile.GNU_FORMAT)


def tar_end(position: int) -> bytes:
    """Return what ends a tar after ``position`` bytes: two blocks, filled up to a whole record."""
    blocks = 2 * tarfile.BLOCKSIZE
    return bytes(blocks + -(position + blocks) % tarfile.RECORDSIZE)


def read_clip(
    folder: Path,
    shard: str,
    members: Mapping[str, tuple[int, int]],
    frame_indices: Sequence[int] | None = None,
    frame_size: int | None = None,
) -> Clip:
    """Read a clip by the offsets of its members, all frames or the chosen ones.

    ``members`` is :attr:`SampleEntry.members`; ``frame_indices`` may repeat and go in any order.
    With a ``frame_size``, frames of another one are refused before there is memory for them.
    Only the span of bytes between the first and the last chosen frame is read. Raises
    :class:`ShardError` naming shard, clip and damage.
    """
    try:
        with (folder / shard).open("rb", buffering=0) as file:
            return _ClipReader(file, shard, members).read(frame_indices, frame_size)
    except OSError as error:
        raise ShardError(shard, "", f"cannot be read ({error.strerror})") from error


def read_pose(
    folder: Path,
    shard: str,
    members: Mapping[str, tuple[int, int]],
    frame_indices: Sequence[int] | None = None,
) -> ClipPose:
    """Read the joints of a clip from a shard of a pose set, as :func:`read_clip` reads a clip."""
    try:
        with (folder / shard).open("rb", buffering=0) as file:
            return _ClipReader(file, shard, members).read_pose(frame_indices)
    except OSError as error:
        raise ShardError(shard, "", f"cannot be read ({error.strerror})") from error


class _ClipReader:
    def __init__(self, file: BinaryIO | io.RawIOBase, shard: str, members: Any) -> None:
        self._descriptor, self._shard, self._members = file.fileno(), shard, members
        self._key = f"at byte {members['json'][0]}"

    def read(self, frame_indices: Sequence[int] | None, frame_size: int | None) -> Clip:
        joints, chosen = self._joints(frame_indices)
        count = joints.record["num_frames"]
        offsets = self._array("offsets.npy", np.dtype("<i8"), (count + 1,))
        frames = self._frames(offsets, chosen, frame_size)
        return Clip(joints.record, frames, joints.pose, joints.mask)

    def read_pose(self, frame_indices: Sequence[int] | None) -> ClipPose:
        return self._joints(frame_indices)[0]

    def _joints(self, frame_indices: Sequence[int] | None) -> tuple[ClipPose, NDArray[np.int64]]:
        """Return the joints of the chosen frames, and which those are."""
        record = self._record()
        count = record["num_frames"]
        pose = self._array("pose.npy", np.dtype("<f4"), (count, NUM_JOINTS, 2))
        mask = self._array("mask.npy", np.dtype("?"), (count, NUM_JOINTS))
        chosen = np.arange(count) if frame_indices is None else np.asarray(frame_indices, np.int64)
        if not len(chosen) or chosen.min() < 0 or chosen.max() >= count:
            raise ValueError(f"frame indices {chosen.tolist()} of a clip of {count} frames")
        return ClipPose(record, pose[chosen], mask[chosen]), chosen

    def _bytes(self, member: str, start: int = 0, stop: int | None = None) -> bytes:
        if member not in self._members:
            self._refuse(f"has no member {member}; is this a pose set?")
        offset, size = self._members[member]
        stop = size if stop is None else stop
        # An index may lie about a size; nothing is allocated for what the file does not have.
        there = os.fstat(self._descriptor).st_size - offset - start
        wanted = min(stop - start, there)
        content = os.pread(self._descriptor, wanted, offset + start) if wanted > 0 else b""
        if len(content) != stop - start:
            self._refuse(f"torn: {member} ends after {len(content)} of {stop - start} bytes")
        return content

    def _refuse(self, what: str) -> None:
        raise ShardError(self._shard, self._key, what)

    def _record(self) -> dict[str, Any]:
        try:
            record = json.loads(self._bytes("json").decode("utf-8"))
            self._key = key_of(record["id"])
        except (ValueError, RecursionError, KeyError, TypeError) as error:
            raise ShardError(
                self._shard, self._key, "the record is no JSON object with an id"
            ) from error
        count = record.get("num_frames")
        if type(count) is not int or not 1 <= count <= self._members["mask.npy"][1]:
            self._refuse(f"num_frames of the record is {count!r}")
        return dict(record)

    def _array(self, member: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """Read a .npy member that must have this type and shape.

        Its header is compared with the one such an array has, and never evaluated.
        """
        content = self._bytes(member)
        start = len(_NPY_MAGIC) + 2
        length = int.from_bytes(content[start - 2 : start], "little")
        if not content.startswith(_NPY_MAGIC) or len(content) < start + length:
            self._refuse(f"{member} is no array")
        header = content[start : start + length].decode("latin-1").strip()
        wanted = f"{{'descr': {dtype.str!r}, 'fortran_order': False, 'shape': {shape}, }}"
        data = content[start + length :]
        if header != wanted or len(data) != dtype.itemsize * math.prod(shape):
            found = f"{header[:_SHOWN]!r} and {len(data)} bytes"
            self._refuse(f"{member} is {found}, not {dtype} {list(shape)}")
        return np.frombuffer(data, dtype).reshape(shape)

    def _frames(
        self, offsets: NDArray[np.int64], chosen: NDArray[np.int64], frame_size: int | None
    ) -> NDArray[np.uint8]:
        size = self._members["jpegs"][1]
        if offsets[0] != 0 or offsets[-1] != size or (offsets[1:] <= offsets[:-1]).any():
            self._refuse("the offsets do not cut the JPEGs")
        first, last = int(offsets[chosen.min()]), int(offsets[chosen.max() + 1])
        blob = memoryview(self._bytes("jpegs", first, last))
        bounds = [(int(offsets[i]) - first, int(offsets[i + 1]) - first) for i in chosen]
        side = self._side(blob[slice(*bounds[0])], int(chosen[0]))
        if frame_size not in (None, side):
            self._refuse(f"frames of {side} pixels, not of {frame_size}")
        frames = np.empty((len(chosen), side, side, 3), dtype=np.uint8)
        for frame, (start, stop), index in zip(frames, bounds, chosen, strict=True):
            jpeg = blob[start:stop]
            if self._side(jpeg, int(index)) != side:
                self._refuse(f"frame {index} is not of the size of the others")
            self._decode(jpeg, frame, int(index))
        return frames

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
            simplejpeg.decode_jpeg(jpeg, colorspace="RGB", buffer=into)
        except ValueError as error:
            raise ShardError(
                self._shard, self._key, f"frame {index}: damaged JPEG ({error})"
            ) from error


def _npy(array: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(array), allow_pickle=False)
    return file.getvalue()


def _json(record: Mapping[str, Any]) -> bytes:
    text = json.dumps(record, ensure_ascii=False, sort_keys=True, allow_nan=False)
    return text.encode("utf-8")
