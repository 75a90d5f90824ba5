"""Shards: one tar of clips, of joints or of vectors alone, written whole, read by offset.

A clip is the members KEY.json, .jpegs, .offsets.npy, .pose.npy and .mask.npy. All JPEGs of a clip
are one member: stock webdataset reads it, and a few frames are read without touching the others.
Joints alone are KEY.json, .pose.npy and .mask.npy; of a feature set there are KEY.json and
.vectors.npy.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from signfuse_dist.corpora import Rejected, key_of
from signfuse_dist.data.manifest import (
    Manifest,
    Packing,
    SampleEntry,
    ShardEntry,
    ShardError,
    ShardIndex,
    index_name,
)
from signfuse_dist.data.manifest_files import index_bytes, load_index, load_manifest, read_index
from signfuse_dist.data.storage import Folder, RangeCache, Read, open_ranges
from signfuse_dist.files import checksum, written_whole
from signfuse_dist.skeleton import NUM_JOINTS

__all__ = [
    "Clip",
    "ClipPose",
    "Encoded",
    "EncodedClip",
    "EncodedPose",
    "EncodedVectors",
    "Manifest",
    "ShardEntry",
    "ShardError",
    "ShardIndex",
    "load_index",
    "load_manifest",
    "read_clip",
    "read_index",
    "read_pose",
    "read_record",
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
    """A clip ready to be written: its record, a JPEG a frame, and its joints.

    Without any JPEG it is a clip of joints alone, and its record says ``pictures: false``.
    """

    record: Mapping[str, Any]
    jpegs: Sequence[bytes]
    pose: NDArray[np.float32]
    mask: NDArray[np.bool_]
    failure: str = ""
    """What the extractor said at the first frame at which it failed; not written."""

    def members(self) -> dict[str, bytes]:
        """Return the bytes of each member, in the order of the tar."""
        sizes = [len(jpeg) for jpeg in self.jpegs] or [0] * len(self.pose)
        offsets = np.cumsum([0, *sizes], dtype=np.int64)
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
class EncodedVectors:
    """The vectors of a clip ready to be written: ``[frames, dim]``, ``[0, dim]`` where it has none.

    A clip without pictures has none that a model could compute.
    """

    record: Mapping[str, Any]
    vectors: NDArray[np.floating[Any]]
    failure: str = ""

    def members(self) -> dict[str, bytes]:
        """Return the bytes of each member, in the order of the tar."""
        return {
            "json": _json(self.record),
            "vectors.npy": _npy(self.vectors) if len(self.vectors) else b"",
        }


@dataclass(frozen=True)
class Clip:
    """A clip as it is read: n chosen frames and their joints."""

    record: dict[str, Any]
    frames: NDArray[np.uint8]
    """uint8 ``[n, size, size, 3]``, RGB; ``[0, size, size, 3]`` of a clip of joints alone."""
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
    same clips give the same bytes, which are those of webdataset's own writer: that one is not
    called, because it brings torch, half a gigabyte, into each process that packs.
    """
    samples: list[SampleEntry] = []
    dropped: list[Rejected] = []
    with written_whole(path) as file:
        position = 0
        for clip in clips:
            if isinstance(clip, Rejected):
                dropped.append(clip)
                continue
            members = clip.members()
            key = key_of(clip.record["id"])
            places: dict[str, tuple[int, int]] = {}
            for name, content in members.items():
                header, size = member_header(key, name, len(content)), len(content)
                filling = -size % tarfile.BLOCKSIZE
                file.writelines((header, content, bytes(filling)))
                places[name] = (position + len(header), size)
                position += len(header) + size + filling
            samples.append(_entry(key, clip.record, places, members))
        file.write(tar_end(position))
    size = path.stat().st_size
    index = ShardIndex(path.name, checksum(path), size, packing, tuple(samples), tuple(dropped))
    with written_whole(path.with_name(index_name(path.name))) as file:
        file.write(index_bytes(index))
    return index


def _entry(
    key: str,
    record: Mapping[str, Any],
    places: dict[str, tuple[int, int]],
    members: Mapping[str, bytes],
) -> SampleEntry:
    return SampleEntry(
        key=key,
        id=record["id"],
        num_frames=record["num_frames"],
        text=record.get("text", ""),
        signer=record.get("signer"),
        flags=tuple(record["flags"]),
        members=places,
        failed_frames=record["failed_frames"],
        found_frames=record.get("found_frames"),
        pictures_sha256=(
            _digest_of(members, "jpegs", "offsets.npy") or _digest_of(members, "vectors.npy")
        ),
        joints_sha256=_digest_of(members, "pose.npy", "mask.npy"),
    )


def _digest_of(members: Mapping[str, bytes], *names: str) -> str | None:
    """Return the digest of members together, None where the clip has none of them."""
    if names[0] not in members:
        return None
    sha256 = hashlib.sha256()
    for name in names:
        sha256.update(members[name])
    return sha256.hexdigest()


def member_header(key: str, name: str, size: int) -> bytes:
    """Return what webdataset's writer puts before a member: nothing of the day or the host."""
    info = tarfile.TarInfo(f"{key}.{name}")
    info.size, info.mode, info.uname, info.gname = size, _MODE, _OWNER, _OWNER
    return info.tobuf(tarfile.PAX_FORMAT)


def tar_end(position: int) -> bytes:
    """Return what ends a tar after ``position`` bytes: two blocks, filled up to a whole record."""
    blocks = 2 * tarfile.BLOCKSIZE
    return bytes(blocks + -(position + blocks) % tarfile.RECORDSIZE)


def read_clip(
    folder: Folder,
    shard: str,
    members: Mapping[str, tuple[int, int]],
    frame_indices: Sequence[int] | None = None,
    frame_size: int | None = None,
    cache: RangeCache | None = None,
    into: NDArray[np.uint8] | None = None,
) -> Clip:
    """Read a clip by the offsets of its members, all frames or the chosen ones.

    ``members`` is :attr:`SampleEntry.members`; ``frame_indices`` may repeat and go in any order.
    Of a local shard only the bytes between the first and the last chosen frame are read; a clip of
    a remote one is fetched whole, through ``cache``. The frames are decoded ``into`` uint8
    ``[n, size, size, 3]`` where it is given, ``n`` being 0 for a clip of joints alone, and for one
    whose pictures are not wanted; else, with a ``frame_size``, frames of another one are refused
    before there is memory for them. Raises
    :class:`ShardError` naming shard, clip and damage.
    """
    try:
        with open_ranges(folder / shard, span_of(members), cache) as read:
            return _ClipReader(read, shard, members).read(frame_indices, frame_size, into)
    except OSError as error:
        raise ShardError(shard, "", f"cannot be read ({error.strerror})") from error


def read_pose(
    folder: Folder,
    shard: str,
    members: Mapping[str, tuple[int, int]],
    frame_indices: Sequence[int] | None = None,
    cache: RangeCache | None = None,
) -> ClipPose:
    """Read the joints of a clip, of a pose set or of whole clips, as :func:`read_clip` does."""
    try:
        with open_ranges(folder / shard, span_of(members), cache) as read:
            return _ClipReader(read, shard, members).read_pose(frame_indices)
    except OSError as error:
        raise ShardError(shard, "", f"cannot be read ({error.strerror})") from error


def read_vectors(
    folder: Folder,
    shard: str,
    members: Mapping[str, tuple[int, int]],
    dim: int,
    dtype: str,
    frame_indices: Sequence[int] | None = None,
    cache: RangeCache | None = None,
) -> tuple[dict[str, Any], NDArray[np.floating[Any]]]:
    """Read a clip's record, and its vectors ``[n, dim]`` of a feature set, by offsets.

    As :func:`read_clip` does; ``n`` is 0 for a clip that has none.
    """
    try:
        with open_ranges(folder / shard, span_of(members), cache) as read:
            return _ClipReader(read, shard, members).read_vectors(dim, dtype, frame_indices)
    except OSError as error:
        raise ShardError(shard, "", f"cannot be read ({error.strerror})") from error


def read_record(
    folder: Folder, shard: str, members: Mapping[str, tuple[int, int]]
) -> dict[str, Any]:
    """Read what is written of a clip beside its frames and joints, as :func:`read_clip` does."""
    offset, size = members["json"]
    try:
        with open_ranges(folder / shard, (offset, offset + size), None) as read:
            return _ClipReader(read, shard, members).record()
    except OSError as error:
        raise ShardError(shard, "", f"cannot be read ({error.strerror})") from error


def span_of(members: Mapping[str, tuple[int, int]]) -> tuple[int, int]:
    """Return the first and the last byte of a clip in its tar."""
    ends = [offset + size for offset, size in members.values()]
    return min(offset for offset, _ in members.values()), max(ends)


class _ClipReader:
    def __init__(self, read: Read, shard: str, members: Mapping[str, tuple[int, int]]) -> None:
        self._read, self._shard, self._members = read, shard, members
        self._key = f"at byte {members['json'][0]}"

    def read(
        self,
        frame_indices: Sequence[int] | None,
        frame_size: int | None,
        into: NDArray[np.uint8] | None,
    ) -> Clip:
        joints, chosen = self._joints(frame_indices)
        count = joints.record["num_frames"]
        offsets = self._array("offsets.npy", np.dtype("<i8"), (count + 1,))
        if not self._has_pictures(joints.record, offsets):
            side = (frame_size or 0) if into is None else into.shape[1]
            if into is not None and len(into):
                self._refuse(f"is joints alone, and {len(into)} frames of it are asked for")
            frames = np.empty((0, side, side, 3), dtype=np.uint8)
            return Clip(joints.record, frames, joints.pose, joints.mask)
        frames = self._frames(offsets, chosen, frame_size, into)
        return Clip(joints.record, frames, joints.pose, joints.mask)

    def _has_pictures(self, record: Mapping[str, Any], offsets: NDArray[np.int64]) -> bool:
        """Say whether the clip has pictures; record, JPEGs and offsets must say the same."""
        there = self._members["jpegs"][1] > 0
        if there is not record.get("pictures", True):
            self._refuse(
                f"pictures of the record is {record.get('pictures', True)!r}, and there are "
                f"{self._members['jpegs'][1]} bytes of JPEGs"
            )
        if not there and offsets.any():
            self._refuse("the offsets cut JPEGs that are not there")
        return there

    def read_pose(self, frame_indices: Sequence[int] | None) -> ClipPose:
        return self._joints(frame_indices)[0]

    def read_vectors(
        self, dim: int, dtype: str, frame_indices: Sequence[int] | None
    ) -> tuple[dict[str, Any], NDArray[np.floating[Any]]]:
        record, wanted = self.record(), np.dtype(dtype).newbyteorder("<")
        if not self._members["vectors.npy"][1]:
            return record, np.empty((0, dim), wanted)
        vectors = self._array("vectors.npy", wanted, (record["num_frames"], dim))
        return record, vectors if frame_indices is None else vectors[list(frame_indices)]

    def _joints(self, frame_indices: Sequence[int] | None) -> tuple[ClipPose, NDArray[np.int64]]:
        """Return the joints of the chosen frames, and which those are."""
        record = self.record()
        count = record["num_frames"]
        pose = self._array("pose.npy", np.dtype("<f4"), (count, NUM_JOINTS, 2))
        mask = self._array("mask.npy", np.dtype("?"), (count, NUM_JOINTS))
        chosen = np.arange(count) if frame_indices is None else np.asarray(frame_indices, np.int64)
        if not len(chosen) or chosen.min() < 0 or chosen.max() >= count:
            raise ValueError(f"frame indices {chosen.tolist()} of a clip of {count} frames")
        return ClipPose(record, pose[chosen], mask[chosen]), chosen

    def _bytes(self, member: str, start: int = 0, stop: int | None = None) -> bytes:
        if member not in self._members:
            self._refuse(f"has no member {member}; is this a pose set or a feature set?")
        offset, size = self._members[member]
        stop = size if stop is None else stop
        content = self._read(offset + start, offset + stop)
        if len(content) != stop - start:
            self._refuse(f"torn: {member} ends after {len(content)} of {stop - start} bytes")
        return content

    def _refuse(self, what: str) -> None:
        raise ShardError(self._shard, self._key, what)

    def record(self) -> dict[str, Any]:
        try:
            record = json.loads(self._bytes("json").decode("utf-8"))
            self._key = key_of(record["id"])
        except (ValueError, RecursionError, KeyError, TypeError) as error:
            raise ShardError(
                self._shard, self._key, "the record is no JSON object with an id"
            ) from error
        count, most = record.get("num_frames"), self._members.get("mask.npy", (0, 2**31 - 1))[1]
        if type(count) is not int or not 1 <= count <= most:
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
            actual = f"{header[:_SHOWN]!r} and {len(data)} bytes"
            self._refuse(f"{member} is {actual}, not {dtype} {list(shape)}")
        return np.frombuffer(data, dtype).reshape(shape)

    def _frames(
        self,
        offsets: NDArray[np.int64],
        chosen: NDArray[np.int64],
        frame_size: int | None,
        into: NDArray[np.uint8] | None,
    ) -> NDArray[np.uint8]:
        size = self._members["jpegs"][1]
        if offsets[0] != 0 or offsets[-1] != size or (offsets[1:] <= offsets[:-1]).any():
            self._refuse("the offsets do not cut the JPEGs")
        if into is not None and not len(into):
            return into
        starts, ends = offsets[chosen], offsets[chosen + 1]
        first = int(starts.min())
        blob = memoryview(self._bytes("jpegs", first, int(ends.max())))
        bounds = list(zip((starts - first).tolist(), (ends - first).tolist(), strict=True))
        if into is None:
            side = self._side(blob[slice(*bounds[0])], int(chosen[0]))
            if frame_size not in (None, side):
                self._refuse(f"frames of {side} pixels, not of {frame_size}")
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


def _json(record: Mapping[str, Any]) -> bytes:
    text = json.dumps(record, ensure_ascii=False, sort_keys=True, allow_nan=False)
    return text.encode("utf-8")
