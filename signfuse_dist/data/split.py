"""A packed split as the loader holds it: columns of numbers, so that a million clips are small."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from signfuse_dist.config import DataConfig
from signfuse_dist.data.columns import Columns, Ids, SplitContent, open_columns
from signfuse_dist.data.manifest import (
    NO_EXTRACTOR,
    Contents,
    Manifest,
    Packing,
    SampleEntry,
    ShardError,
    feature_path,
    pose_path,
)
from signfuse_dist.data.manifest_files import load_index, load_manifest, manifest_bytes
from signfuse_dist.data.storage import Folder, RangeCache, is_local, open_folder, read_file
from signfuse_dist.errors import UserError, raise_together
from signfuse_dist.system_errors import refuse_machine
from signfuse_dist.vector_source import SOURCE_NAME, VectorSource, parse_source


@dataclass(frozen=True)
class Split:
    """A packed split: where each clip lies, without its text and pictures."""

    folder: Folder
    manifest: Manifest
    cache: RangeCache | None
    columns: Columns
    poses: Split | None = None
    """The pose set whose joints take the place of the clips' own: the same clips in its order."""
    vectors: tuple[VectorSplit, ...] = ()
    """The feature sets whose vectors take the place of the pictures, one beside the other."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def ids(self) -> Ids:
        """The clips' names, in the order of the shards."""
        return self.columns.ids

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Frames as stored, ``[clips]``."""
        return self.columns.lengths

    @property
    def content(self) -> SplitContent:
        """What training sees of the split, with the joints of the pose set in use."""
        own = self.columns.content
        if self.vectors:
            seen = [of.split.columns.content.pictures or "" for of in self.vectors]
            own = replace(own, pictures=hashlib.sha256("\n".join(seen).encode()).hexdigest())
        if self.poses is None:
            return own
        joints = self.poses.columns.content
        return replace(own, joints=joints.joints, pose_set=joints.shards)

    @property
    def manifests(self) -> list[Manifest]:
        """Those of the clips, and of the sets in use beside them."""
        beside = [*filter(None, [self.poses]), *(of.split for of in self.vectors)]
        return [self.manifest, *(split.manifest for split in beside)]

    @property
    def vector_dim(self) -> int:
        """Numbers of a frame in the feature sets in use, all together."""
        return sum(of.source.dim for of in self.vectors)

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
        """Whether each clip has frames and not joints alone, ``[clips]``.

        With feature sets in use: whether each of them has its vectors.
        """
        names = self.manifest.packing.members
        if self.vectors:
            there = [of.split.columns.members[:, 1, 1] > 0 for of in self.vectors]
            return np.asarray(np.all(there, axis=0))
        if "jpegs" not in names:
            return np.zeros(len(self), dtype=np.bool_)
        return np.asarray(self.columns.members[:, names.index("jpegs"), 1] > 0)

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
        return self.manifest.shards[int(self.columns.shards[place])].name

    def members_of(self, place: int) -> dict[str, tuple[int, int]]:
        """Return (offset, size) of each member of a clip."""
        spans = self.columns.members[place].tolist()
        names = self.manifest.packing.members
        return {name: (span[0], span[1]) for name, span in zip(names, spans, strict=True)}

    def entries(self) -> Iterator[SampleEntry]:
        """Read the indexes again and yield all that they say of each clip, its text too."""
        for shard in self.manifest.shards:
            yield from load_index(self.folder, shard).samples


@dataclass(frozen=True)
class VectorSplit:
    """A feature set of a split: its own shards of the same clips, and what its vectors are."""

    split: Split
    source: VectorSource


def open_split(location: str | Path, data: DataConfig, feature_sets: Sequence[str] = ()) -> Split:
    """Read a split's manifest and indexes and compare its packing with the configuration.

    Raises UserError when it, or the pose set or one of the ``feature_sets`` that are asked for, is
    not packed, damaged, or packed with other settings.
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
    vectors = tuple(_open_vectors(split, data, name) for name in feature_sets)
    poses = None if data.poses is None else _open_poses(split, data)
    return replace(split, poses=poses, vectors=vectors)


def _open_poses(split: Split, data: DataConfig) -> Split:
    """Read the pose set ``data.poses`` and compare it with the clips it is to serve."""
    name = str(data.poses)
    what = f"data.poses={name}"
    return _open_beside(split, data, "poses", lambda: pose_path(name), what, "`signfuse pose`")


def _open_vectors(split: Split, data: DataConfig, name: str) -> VectorSplit:
    """Read a feature set, compare it with the clips, and read what its vectors are."""
    what = f"model.visual_backbone=features:{name}"
    beside = _open_beside(
        split, data, "features", lambda: feature_path(name), what, "`signfuse features`"
    )
    try:
        return VectorSplit(beside, read_source(beside.folder, beside.manifest.packing))
    except UserError as error:
        raise UserError(f"{what}: {error}") from error


def _open_beside(
    split: Split,
    data: DataConfig,
    contents: Contents,
    path: Callable[[], str],
    what: str,
    maker: str,
) -> Split:
    """Read a set that lies beside a split's clips; raise UserError where it is of others."""
    try:
        folder = split.folder / path()
        manifest = load_manifest(folder)
    except ShardError as error:
        raise UserError(f"{what}: {error.shard}: {error.what}; {maker} makes it") from error
    except UserError as error:
        raise UserError(f"{what}: {error}") from error
    beside = read_split(folder, manifest, split.cache and _cache(manifest, data))
    extraction = (manifest.packing.extractor, manifest.packing.extractor_version)
    if split.manifest.packing.of(contents, *extraction) != manifest.packing or (
        beside.ids != split.ids or not np.array_equal(beside.lengths, split.lengths)
    ):
        raise UserError(
            f"{what}: {folder} belongs to other clips; `signfuse verify` says how they differ, "
            f"{maker} makes them again"
        )
    return beside


def read_source(folder: Folder, packing: Packing) -> VectorSource:
    """Read what a feature set is; raise UserError where that is not what its shards name."""
    path = folder / SOURCE_NAME
    try:
        source = parse_source(read_file(path), str(path))
    except OSError as error:
        refuse_machine(error, path)
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if (source.extractor, source.digest) != (packing.extractor, packing.extractor_version):
        raise UserError(f"{path}: is not the source of the vectors beside it")
    return source


def read_split(folder: Folder, manifest: Manifest, cache: RangeCache | None) -> Split:
    """Return the split with its columns, or what its indexes say where it has none.

    Raises :class:`~signfuse_dist.data.manifest.ShardError` for an index that is damaged.
    """
    return Split(folder, manifest, cache, open_columns(folder, manifest))


def _cache(manifest: Manifest, data: DataConfig) -> RangeCache:
    """Copies are kept under the manifest's digest: shards that are packed again are read again."""
    namespace = hashlib.sha256(manifest_bytes(manifest)).hexdigest()
    return RangeCache(Path(data.shard_cache), int(data.shard_cache_gb * 1e9), namespace)
