"""What lies beside the tars: the manifest of a split and the index of each shard, typed.

Both are read as hostile: names may not leave the folder, offsets may not leave the file, counts
must agree. This module imports no torch.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

from signfuse_dist.data.corpora import Rejected, key_of
from signfuse_dist.data.storage import Folder, file_size, read_file
from signfuse_dist.errors import UserError, raise_together
from signfuse_dist.skeleton import JOINT_LAYOUT

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
MEMBERS = ("json", "jpegs", "offsets.npy", "pose.npy", "mask.npy")
_SHARD_NAME = re.compile(r"shard-[0-9]{6,}\.tar")


class ShardError(UserError):
    """A packed split is damaged; the message names the file, the clip and what is wrong."""

    def __init__(self, shard: str, key: str, what: str) -> None:
        self.shard, self.key, self.what = shard, key, what
        where = f"{shard}, clip {key}" if key else shard
        super().__init__(
            f"{where}: {what}; run `signfuse verify` on the folder to see all that is wrong, "
            "and `signfuse pack` again to repair it"
        )

    def __reduce__(self) -> tuple[type[ShardError], tuple[str, str, str]]:
        return ShardError, (self.shard, self.key, self.what)


@dataclass(frozen=True)
class PackConfig:
    """How clips are stored. Raises :class:`UserError` listing every value that cannot be."""

    frame_size: int = 224
    """Side of the stored square in pixels: what ResNet-50 reads (section 3.2)."""
    fps: float | None = None
    """Stored frames per second; None keeps each video's own rate."""
    jpeg_quality: int = 90
    clips_per_shard: int = 128

    def __post_init__(self) -> None:
        wrong = []
        if not 16 <= self.frame_size <= 4096:
            wrong.append(f"frame_size {self.frame_size}: must lie between 16 and 4096")
        if self.fps is not None and not (math.isfinite(self.fps) and 0 < self.fps <= 1000):
            wrong.append(f"fps {self.fps}: must be above 0 and at most 1000")
        if not 1 <= self.jpeg_quality <= 100:
            wrong.append(f"jpeg_quality {self.jpeg_quality}: must lie between 1 and 100")
        if self.clips_per_shard < 1:
            wrong.append(f"clips_per_shard {self.clips_per_shard}: must be at least 1")
        raise_together(wrong, "packing settings")


@dataclass(frozen=True)
class Packing:
    """All that the bytes of a split depend on, besides the videos themselves."""

    corpus: str
    root: str
    split: str
    joint_layout: str
    extractor: str
    extractor_version: str
    settings: PackConfig
    rows_sha256: str
    """Digest of the accepted rows, so that a table that was edited is noticed."""

    def differences(self, other: Packing) -> list[str]:
        """Say where ``other`` (what is asked for) departs from this (what is there)."""
        here, there = _flat(asdict(self)), _flat(asdict(other))
        return [f"{k} is {here[k]!r}, asked {there[k]!r}" for k in here if here[k] != there[k]]


@dataclass(frozen=True)
class SampleEntry:
    """A clip in a shard; ``members`` maps a member to its (offset, size) in the tar, in bytes."""

    key: str
    id: str
    num_frames: int
    text: str
    signer: str | None
    flags: tuple[str, ...]
    members: Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class ShardIndex:
    """The index beside one tar."""

    shard: str
    sha256: str
    size: int
    packing: Packing
    samples: tuple[SampleEntry, ...]
    dropped: tuple[Rejected, ...]

    def entry(self) -> ShardEntry:
        """Return the shard's line of the manifest."""
        frames = sum(sample.num_frames for sample in self.samples)
        return ShardEntry(self.shard, self.sha256, self.size, len(self.samples), frames)


@dataclass(frozen=True)
class ShardEntry:
    """A shard as the manifest lists it; ``size`` in bytes."""

    name: str
    sha256: str
    size: int
    num_samples: int
    num_frames: int


@dataclass(frozen=True)
class Manifest:
    """A finished split."""

    packing: Packing
    shards: tuple[ShardEntry, ...]
    num_rows: int
    num_samples: int
    num_frames: int
    num_dropped: int
    num_flagged: int
    signfuse_version: str


def index_name(shard: str) -> str:
    """Return the name of the index beside a tar."""
    return f"{shard.removesuffix('.tar')}.index.json"


def manifest_bytes(manifest: Manifest) -> bytes:
    """Return the manifest as it is written."""
    fields = asdict(manifest)
    return _json({"version": FORMAT_VERSION, **fields.pop("packing"), **fields})


def index_bytes(index: ShardIndex) -> bytes:
    """Return a shard's index as it is written."""
    return _json({"version": FORMAT_VERSION, **asdict(index)})


def load_manifest(folder: Folder) -> Manifest:
    """Read and check the manifest of a packed split, and that its shards have their sizes.

    Raises :class:`ShardError` naming the file that is missing or wrong.
    """
    manifest = read_manifest(folder)
    for shard in manifest.shards:
        _check_size(folder, shard.name, shard.size)
    return manifest


def read_manifest(folder: Folder) -> Manifest:
    """Read the manifest by itself, without a look at the shards."""
    fields = _load(folder / MANIFEST_NAME, "no finished split is in this folder")
    manifest = Manifest(
        packing=_packing(fields),
        shards=tuple(_entry(item) for item in fields.items("shards")),
        num_rows=fields.count("num_rows"),
        num_samples=fields.count("num_samples"),
        num_frames=fields.count("num_frames"),
        num_dropped=fields.count("num_dropped"),
        num_flagged=fields.count("num_flagged"),
        signfuse_version=fields.text("signfuse_version"),
    )
    _check_totals(manifest)
    return manifest


def load_index(folder: Folder, entry: ShardEntry) -> ShardIndex:
    """Read the index of a shard and check it against the manifest's line and the tar's size.

    Raises :class:`ShardError` naming what disagrees.
    """
    index = read_index(folder, entry.name)
    if index.entry() != entry:
        raise ShardError(index_name(entry.name), "", "does not agree with manifest.json")
    _check_size(folder, index.shard, index.size)
    return index


def read_index(folder: Folder, shard: str) -> ShardIndex:
    """Read a shard's index by itself, as far as it can be checked without tar and manifest."""
    fields = _load(folder / index_name(shard), "the index of a shard is missing")
    size = fields.count("size")
    index = ShardIndex(
        shard=fields.text("shard"),
        sha256=fields.text("sha256"),
        size=size,
        packing=_packing(fields.inside("packing")),
        samples=tuple(_sample(item, size) for item in fields.items("samples")),
        dropped=tuple(_dropped(item) for item in fields.items("dropped")),
    )
    if index.shard != shard:
        fields.refuse(f"names the shard {index.shard!r}")
    if len({sample.key for sample in index.samples}) != len(index.samples):
        fields.refuse("names a clip twice")
    return index


class _Fields:
    """A JSON object from a file, read field by field."""

    def __init__(self, value: object, file: str) -> None:
        self._file = file
        if not isinstance(value, dict):
            self.refuse("holds something else than an object")
        self._value: dict[str, Any] = value

    def refuse(self, what: str) -> NoReturn:
        raise ShardError(self._file, "", what)

    def _get(self, name: str, *kinds: type) -> Any:
        value = self._value.get(name)
        if isinstance(value, bool) or not isinstance(value, kinds):
            self.refuse(f"field {name!r} is missing or of the wrong kind")
        return value

    def text(self, name: str) -> str:
        return str(self._get(name, str))

    def optional_text(self, name: str) -> str | None:
        return None if self._value.get(name) is None else self.text(name)

    def count(self, name: str) -> int:
        value = int(self._get(name, int))
        if value < 0:
            self.refuse(f"field {name!r} is negative")
        return value

    def optional_number(self, name: str) -> float | None:
        return None if self._value.get(name) is None else float(self._get(name, int, float))

    def texts(self, name: str) -> tuple[str, ...]:
        values = self._get(name, list)
        if not all(isinstance(value, str) for value in values):
            self.refuse(f"field {name!r} is of the wrong kind")
        return tuple(values)

    def span(self, name: str, size: int) -> tuple[int, int]:
        value = self._get(name, list)
        if len(value) != 2 or any(type(n) is not int or n < 0 for n in value):
            self.refuse(f"member {name!r} needs an offset and a size")
        if value[0] + value[1] > size:
            self.refuse(f"member {name!r} reaches beyond the end of the tar")
        return value[0], value[1]

    def inside(self, name: str) -> _Fields:
        return _Fields(self._get(name, dict), self._file)

    def items(self, name: str) -> list[_Fields]:
        return [_Fields(value, self._file) for value in self._get(name, list)]


def _load(path: Folder, absent: str) -> _Fields:
    try:
        value = json.loads(read_file(path))
    except FileNotFoundError as error:
        raise ShardError(str(path), "", f"no such file, {absent}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ShardError(path.name, "", f"cannot be read as JSON ({error})") from error
    fields = _Fields(value, path.name)
    if fields.count("version") != FORMAT_VERSION:
        fields.refuse(f"is of version {value['version']}, this program reads {FORMAT_VERSION}")
    return fields


def _packing(fields: _Fields) -> Packing:
    settings = fields.inside("settings")
    try:
        config = PackConfig(
            frame_size=settings.count("frame_size"),
            fps=settings.optional_number("fps"),
            jpeg_quality=settings.count("jpeg_quality"),
            clips_per_shard=settings.count("clips_per_shard"),
        )
    except ShardError:
        raise
    except UserError as error:
        fields.refuse(str(error))
    names = ("corpus", "root", "split", "joint_layout", "extractor", "extractor_version")
    texts = {name: fields.text(name) for name in names}
    if texts["joint_layout"] != JOINT_LAYOUT:
        fields.refuse(f"joints are laid out as {texts['joint_layout']!r}, not {JOINT_LAYOUT!r}")
    return Packing(**texts, settings=config, rows_sha256=fields.text("rows_sha256"))


def _entry(fields: _Fields) -> ShardEntry:
    name = fields.text("name")
    if not _SHARD_NAME.fullmatch(name):
        fields.refuse(f"{name!r} is no name of a shard")
    counts = (fields.count("size"), fields.count("num_samples"), fields.count("num_frames"))
    return ShardEntry(name, fields.text("sha256"), *counts)


def _sample(fields: _Fields, size: int) -> SampleEntry:
    members = fields.inside("members")
    sample = SampleEntry(
        key=fields.text("key"),
        id=fields.text("id"),
        num_frames=fields.count("num_frames"),
        text=fields.text("text"),
        signer=fields.optional_text("signer"),
        flags=fields.texts("flags"),
        members={name: members.span(name, size) for name in MEMBERS},
    )
    if sample.key != key_of(sample.id) or not sample.key:
        fields.refuse(f"key {sample.key!r} is not the key of id {sample.id!r}")
    if not sample.num_frames:
        fields.refuse(f"clip {sample.key} has no frames")
    return sample


def _dropped(fields: _Fields) -> Rejected:
    return Rejected(fields.count("row"), fields.text("id"), fields.text("reason"))


def _check_totals(manifest: Manifest) -> None:
    names = [shard.name for shard in manifest.shards]
    if len(set(names)) != len(names):
        raise ShardError(MANIFEST_NAME, "", "lists a shard twice")
    samples = sum(shard.num_samples for shard in manifest.shards)
    frames = sum(shard.num_frames for shard in manifest.shards)
    if (samples, frames) != (manifest.num_samples, manifest.num_frames):
        raise ShardError(MANIFEST_NAME, "", "its totals are not the sums over its shards")
    if manifest.num_rows != manifest.num_samples + manifest.num_dropped:
        raise ShardError(MANIFEST_NAME, "", "rows are not clips packed plus rows dropped")


def _check_size(folder: Folder, shard: str, size: int) -> None:
    try:
        found = file_size(folder / shard)
    except FileNotFoundError as error:
        raise ShardError(shard, "", "the shard is missing") from error
    except OSError as error:
        raise ShardError(shard, "", f"cannot be read ({error.strerror})") from error
    if found != size:
        raise ShardError(shard, "", f"torn: {found} of {size} bytes are there")


def _json(value: object) -> bytes:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, indent=1, allow_nan=False)
    return f"{text}\n".encode()


def _flat(fields: dict[str, Any]) -> dict[str, Any]:
    return {**fields.pop("settings"), **fields}
