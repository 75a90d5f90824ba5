"""A packed split as the loader holds it: columns of numbers, so that a million clips are small."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from signfuse_dist.config import DataConfig
from signfuse_dist.data.manifest import (
    NO_EXTRACTOR,
    Manifest,
    SampleEntry,
    load_index,
    load_manifest,
    manifest_bytes,
    pose_path,
)
from signfuse_dist.data.storage import Folder, RangeCache, is_local, open_folder
from signfuse_dist.errors import UserError, raise_together

_DIGESTED = ("text", "pictures_sha256", "joints_sha256")  # of each clip in an index


@dataclass(frozen=True)
class SplitContent:
    """What training sees of a split, as checksums: packed again to the bit, it has the same.

    They are over what the indexes say, so that no tar is read. Those of pictures and joints are
    None where an index of an earlier version does not have them of every clip; there the tars'
    checksums, ``shards`` and ``pose_set``, have to do.
    """

    clips: str
    """Ids and lengths, in their order."""
    texts: str
    pictures: str | None
    joints: str | None
    """Of the pose set in use, else of the clips' own."""
    shards: str
    """The tars of the clips: they also hold what training does not see."""
    pose_set: str | None
    """The tars of the pose set in use; None without one."""


@dataclass(frozen=True)
class Split:
    """A packed split: where each clip lies, without its text and pictures.

    Arrays have one row a clip, in the order of the shards.
    """

    folder: Folder
    manifest: Manifest
    cache: RangeCache | None
    ids: tuple[str, ...]
    lengths: NDArray[np.int32]
    """Frames as stored, ``[clips]``."""
    shards: NDArray[np.int32]
    """Place of the clip's shard in the manifest, ``[clips]``."""
    members: NDArray[np.int64]
    """Offset and size of each member in the tar, in bytes, ``[clips, members, 2]``."""
    text_hashes: NDArray[np.int64]
    """Python's ``hash`` of each clip's text in the index, ``[clips]``; holds in this process alone.

    With the id and the frames it tells whether a record in a tar is the one that is indexed.
    """
    own_content: SplitContent
    """That of these shards by themselves; :attr:`content` has the joints in use."""
    poses: Split | None = None
    """The pose set whose joints take the place of the clips' own: the same clips in its order."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def content(self) -> SplitContent:
        """What training sees of the split, with the joints of the pose set in use."""
        if self.poses is None:
            return self.own_content
        joints = self.poses.own_content
        return replace(self.own_content, joints=joints.joints, pose_set=joints.shards)

    @property
    def extraction(self) -> tuple[str, str]:
        """Name and version of what found the joints in use."""
        packing = (self.poses or self).manifest.packing
        return packing.extractor, packing.extractor_version

    @property
    def frame_size(self) -> int:
        """Side of the stored square, in pixels."""
        return self.manifest.packing.settings.frame_size

    @cached_property
    def has_pictures(self) -> NDArray[np.bool_]:
        """Whether each clip has frames and not joints alone, ``[clips]``."""
        names = self.manifest.packing.members
        if "jpegs" not in names:
            return np.zeros(len(self), dtype=np.bool_)
        return np.asarray(self.members[:, names.index("jpegs"), 1] > 0)

    @property
    def has_joints(self) -> bool:
        """Whether anybody has looked for joints, in these shards or for the pose set in use."""
        return self.extraction[0] != NO_EXTRACTOR

    def locate(self, place: int) -> tuple[Split, int]:
        """Return the split of a clip, and its place there, as a blend does: it is this one."""
        return self, place

    def name_of(self, place: int) -> str:
        """Return the name of a clip."""
        return self.ids[place]

    def tracked(self, places: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether anybody has looked for joints in each of these clips, ``[clips]``."""
        return np.full(len(places), self.has_joints)

    def shard_of(self, place: int) -> str:
        """Return the name of the tar that holds a clip."""
        return self.manifest.shards[int(self.shards[place])].name

    def members_of(self, place: int) -> dict[str, tuple[int, int]]:
        """Return (offset, size) of each member of a clip."""
        spans = self.members[place].tolist()
        names = self.manifest.packing.members
        return {name: (span[0], span[1]) for name, span in zip(names, spans, strict=True)}

    def entries(self) -> Iterator[SampleEntry]:
        """Read the indexes again and yield all that they say of each clip, its text too."""
        for shard in self.manifest.shards:
            yield from load_index(self.folder, shard).samples


def open_split(location: str | Path, data: DataConfig) -> Split:
    """Read a split's manifest and indexes and compare its packing with the configuration.

    Raises UserError when it, or the pose set that is asked for, is not packed, damaged, or packed
    with other settings.
    """
    folder = open_folder(str(location))
    manifest = load_manifest(folder)
    settings, errors = manifest.packing.settings, []
    if settings.frame_size != data.frame_size:
        errors.append(f"packed at frame_size {settings.frame_size}, asked {data.frame_size}")
    if settings.fps != data.fps:
        errors.append(f"packed at fps {settings.fps}, asked {data.fps}")
    if settings.crop != data.crop:
        errors.append(f"packed with crop {settings.crop}, asked {data.crop}")
    raise_together(errors, f"{folder}: change data.* or pack again")
    if not manifest.num_samples:
        raise UserError(f"{folder}: the split has no clips (see its dropped.tsv)")
    split = read_split(folder, manifest, None if is_local(folder) else _cache(manifest, data))
    return split if data.poses is None else replace(split, poses=_open_poses(split, data))


def _open_poses(split: Split, data: DataConfig) -> Split:
    """Read the pose set ``data.poses`` and compare it with the clips it is to serve."""
    name = str(data.poses)
    try:
        folder = split.folder / pose_path(name)
        manifest = load_manifest(folder)
    except UserError as error:
        raise UserError(f"data.poses={name}: {error}") from error
    poses = read_split(folder, manifest, split.cache and _cache(manifest, data))
    extraction = (manifest.packing.extractor, manifest.packing.extractor_version)
    if split.manifest.packing.of_poses(*extraction) != manifest.packing or (
        (poses.ids, poses.lengths.tolist()) != (split.ids, split.lengths.tolist())
    ):
        raise UserError(
            f"data.poses={name}: {folder} belongs to other clips; `signfuse verify` says how they "
            "differ, `signfuse pose` extracts them again"
        )
    return poses


def read_split(folder: Folder, manifest: Manifest, cache: RangeCache | None) -> Split:
    """Read one index after the other into columns that have their size from the manifest.

    Raises :class:`~signfuse_dist.data.manifest.ShardError` for an index that is damaged.
    """
    count, num_members = manifest.num_samples, len(manifest.packing.members)
    lengths, shards = np.zeros(count, np.int32), np.zeros(count, np.int32)
    members = np.zeros((count, num_members, 2), np.int64)
    text_hashes = np.zeros(count, np.int64)
    ids: list[str] = []
    digests = {name: hashlib.sha256() for name in _DIGESTED}
    lacking: set[str] = set()
    for number, shard in enumerate(manifest.shards):
        index = load_index(folder, shard)
        rows = slice(len(ids), len(ids) + len(index.samples))
        ids += [sample.id for sample in index.samples]
        lengths[rows], shards[rows] = index.num_frames, number
        members[rows] = index.spans
        text_hashes[rows] = [hash(sample.text) for sample in index.samples]
        for name, digest in digests.items():
            values = [getattr(sample, name) for sample in index.samples]
            lacking |= {name} if None in values else set()
            # As JSON no value runs into the next; a line a clip does not show the shards.
            digest.update("".join(f"{json.dumps(value)}\n" for value in values).encode())
    of_all = {name: digests[name].hexdigest() for name in digests if name not in lacking}
    content = SplitContent(
        clips=_sha256("\n".join(ids), lengths.astype("<i8").tobytes()),
        texts=digests["text"].hexdigest(),
        pictures=of_all.get("pictures_sha256"),
        joints=of_all.get("joints_sha256"),
        shards=_sha256("\n".join(shard.sha256 for shard in manifest.shards)),
        pose_set=None,
    )
    return Split(
        folder, manifest, cache, tuple(ids), lengths, shards, members, text_hashes, content
    )


def _sha256(text: str, more: bytes = b"") -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass") + b"\0" + more).hexdigest()


def _cache(manifest: Manifest, data: DataConfig) -> RangeCache:
    """Copies are kept under the manifest's digest: shards that are packed again are read again."""
    namespace = hashlib.sha256(manifest_bytes(manifest)).hexdigest()
    return RangeCache(Path(data.shard_cache), int(data.shard_cache_gb * 1e9), namespace)
