"""What `signfuse verify` leaves behind where it found nothing: that this content was verified.

The stamp names the manifest by its checksum. A manifest names every shard by its own, so shards
that were packed again have no stamp. A shard that rots on the disk afterwards keeps its stamp.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

from signfuse_dist.corpora import Rejected, key_of
from signfuse_dist.data.storage import Folder, file_size, is_local, read_file
from signfuse_dist.errors import UserError, raise_together
from signfuse_dist.files import digest, write_text
from signfuse_dist.skeleton import JOINT_LAYOUT


class ShardError(UserError):
    """A packed split is damaged; the message names the file, the clip and what is wrong."""

    remedy = (
        "run `signfuse verify` on the folder to see all that is wrong, and `signfuse pack` again "
        "to repair it"
    )

    def __init__(self, shard: str, key: str, what: str) -> None:
        self.shard, self.key, self.what = shard, key, what
        where = f"{shard}, clip {key}" if key else shard
        super().__init__(f"{where}: {what}; {self.remedy}")

    def __reduce__(self) -> tuple[type[ShardError], tuple[str, str, str]]:
        return type(self), (self.shard, self.key, self.what)


class VersionError(ShardError):
    """A file is whole, and of a version of the format that this program does not read."""

    remedy = "pack the split again, into another folder or after removing this one"


class Fields:
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
        return self._unicode(name, self._get(name, str))

    def _unicode(self, name: str, value: object) -> str:
        """Return a text that can be written again; JSON can spell halves of a character."""
        if not isinstance(value, str):
            self.refuse(f"field {name!r} is of the wrong kind")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            self.refuse(f"field {name!r} is no Unicode text")
        return value

    def optional_text(self, name: str) -> str | None:
        return None if self._value.get(name) is None else self.text(name)

    def count(self, name: str) -> int:
        value = int(self._get(name, int))
        if value < 0:
            self.refuse(f"field {name!r} is negative")
        return value

    def optional_number(self, name: str) -> float | None:
        if self._value.get(name) is None:
            return None
        try:
            return float(self._get(name, int, float))
        except OverflowError:
            self.refuse(f"field {name!r} is beyond all numbers")

    def texts(self, name: str) -> tuple[str, ...]:
        return tuple(self._unicode(name, value) for value in self._get(name, list))

    def span(self, name: str, size: int) -> tuple[int, int]:
        value = self._get(name, list)
        if len(value) != 2 or any(type(n) is not int or n < 0 for n in value):
            self.refuse(f"member {name!r} needs an offset and a size")
        if value[0] + value[1] > size:
            self.refuse(f"member {name!r} reaches beyond the end of the tar")
        return value[0], value[1]

    def inside(self, name: str) -> Fields:
        return Fields(self._get(name, dict), self._file)

    def items(self, name: str) -> list[Fields]:
        return [Fields(value, self._file) for value in self._get(name, list)]


FORMAT_VERSION = 2
MANIFEST_NAME = "manifest.json"
Contents = Literal["clips", "poses"]
"""What a set of shards holds: whole clips, or joints that were extracted again."""
MEMBERS = ("json", "jpegs", "offsets.npy", "pose.npy", "mask.npy")
POSE_MEMBERS = ("json", "pose.npy", "mask.npy")
POSES_FOLDER = "poses"
"""Folder inside a split's folder with one pose set a name."""
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SHARD_NAME = re.compile(r"shard-[0-9]{6,}\.tar")


@dataclass(frozen=True)
class PackConfig:
    """How clips are stored. Raises :class:`UserError` listing every value that cannot be."""

    frame_size: int = field(
        default=224,
        metadata={"help": "side of the stored square in pixels (default: %(default)s)"},
    )
    """What ResNet-50 reads (section 3.2)."""
    fps: float | None = field(
        default=None,
        metadata={
            "help": "stored frames a second (default: each video's own rate, or the corpus's)"
        },
    )
    jpeg_quality: int = field(default=90, metadata={"help": "default: %(default)s"})
    clips_per_shard: int = field(default=128, metadata={"help": "default: %(default)s"})

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
    contents: Contents = "clips"

    @property
    def members(self) -> tuple[str, ...]:
        """Return the members of one clip, in the order of the tar."""
        return MEMBERS if self.contents == "clips" else POSE_MEMBERS

    def differences(self, other: Packing) -> list[str]:
        """Say where ``other`` (what is asked for) departs from this (what is there)."""
        here, there = _flat(asdict(self)), _flat(asdict(other))
        return [f"{k} is {here[k]!r}, asked {there[k]!r}" for k in here if here[k] != there[k]]

    def of_poses(self, extractor: str, extractor_version: str) -> Packing:
        """Return the packing of a pose set that belongs to these clips."""
        return replace(
            self, contents="poses", extractor=extractor, extractor_version=extractor_version
        )


@dataclass(frozen=True)
class SampleEntry:
    """A clip in a shard; ``members`` maps a member to its (offset, size) in the tar, in bytes.

    A pose set has no text and no signer: there they are "" and None.
    """

    key: str
    id: str
    num_frames: int
    text: str
    signer: str | None
    flags: tuple[str, ...]
    members: Mapping[str, tuple[int, int]]
    failed_frames: int = 0
    """Frames at which the extractor failed; all their joints are masked."""


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
        failed = sum(sample.failed_frames for sample in self.samples)
        return ShardEntry(self.shard, self.sha256, self.size, len(self.samples), frames, failed)


@dataclass(frozen=True)
class ShardEntry:
    """A shard as the manifest lists it; ``size`` in bytes."""

    name: str
    sha256: str
    size: int
    num_samples: int
    num_frames: int
    num_failed_frames: int = 0


@dataclass(frozen=True)
class Manifest:
    """A finished set of shards."""

    packing: Packing
    shards: tuple[ShardEntry, ...]
    num_rows: int
    num_samples: int
    num_frames: int
    num_dropped: int
    num_flagged: int
    signfuse_version: str
    num_failed_frames: int = 0


def index_name(shard: str) -> str:
    """Return the name of the index beside a tar."""
    return f"{shard.removesuffix('.tar')}.index.json"


def pose_path(name: str) -> str:
    """Return where the pose set ``name`` lies inside its split's folder.

    Raises :class:`UserError` when the name is more than a name, such as a path.
    """
    if not _PLAIN_NAME.fullmatch(name):
        raise UserError(
            f"pose set {name!r}: a name is at most 100 letters, digits, '.', '_' and '-', and "
            "begins with a letter or digit"
        )
    return f"{POSES_FOLDER}/{name}"


def manifest_bytes(manifest: Manifest) -> bytes:
    """Return the manifest as it is written."""
    fields = asdict(manifest)
    return _json({"version": FORMAT_VERSION, **fields.pop("packing"), **fields})


def index_bytes(index: ShardIndex) -> bytes:
    """Return a shard's index as it is written."""
    fields = asdict(index)
    if index.packing.contents == "poses":
        for sample in fields["samples"]:
            del sample["text"], sample["signer"]
    return _json({"version": FORMAT_VERSION, **fields})


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
        num_failed_frames=fields.count("num_failed_frames"),
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
    size, packing = fields.count("size"), _packing(fields.inside("packing"))
    index = ShardIndex(
        shard=fields.text("shard"),
        sha256=fields.text("sha256"),
        size=size,
        packing=packing,
        samples=tuple(_sample(item, size, packing) for item in fields.items("samples")),
        dropped=tuple(_dropped(item) for item in fields.items("dropped")),
    )
    if index.shard != shard:
        fields.refuse(f"names the shard {index.shard!r}")
    if len({sample.key for sample in index.samples}) != len(index.samples):
        fields.refuse("names a clip twice")
    return index


def _load(path: Folder, absent: str) -> Fields:
    try:
        value = json.loads(read_file(path).decode("utf-8"))
    except FileNotFoundError as error:
        raise ShardError(str(path), "", f"no such file, {absent}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ShardError(path.name, "", f"cannot be read as JSON ({error})") from error
    fields = Fields(value, path.name)
    version = fields.count("version")
    if version != FORMAT_VERSION:
        what = f"is of version {version} of the format, this program reads {FORMAT_VERSION}"
        raise VersionError(path.name, "", what)
    return fields


def _packing(fields: Fields) -> Packing:
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
    return Packing(
        **texts,
        settings=config,
        rows_sha256=fields.text("rows_sha256"),
        contents=_contents(fields),
    )


def _contents(fields: Fields) -> Contents:
    contents = fields.text("contents")
    if contents not in ("clips", "poses"):
        fields.refuse(f"contents {contents!r} are neither 'clips' nor 'poses'")
    return "clips" if contents == "clips" else "poses"


def _entry(fields: Fields) -> ShardEntry:
    name = fields.text("name")
    if not _SHARD_NAME.fullmatch(name):
        fields.refuse(f"{name!r} is no name of a shard")
    counts = ("size", "num_samples", "num_frames", "num_failed_frames")
    return ShardEntry(name, fields.text("sha256"), *map(fields.count, counts))


def _sample(fields: Fields, size: int, packing: Packing) -> SampleEntry:
    members, clips = fields.inside("members"), packing.contents == "clips"
    sample = SampleEntry(
        key=fields.text("key"),
        id=fields.text("id"),
        num_frames=fields.count("num_frames"),
        text=fields.text("text") if clips else "",
        signer=fields.optional_text("signer") if clips else None,
        flags=fields.texts("flags"),
        members={name: members.span(name, size) for name in packing.members},
        failed_frames=fields.count("failed_frames"),
    )
    if sample.key != key_of(sample.id) or not sample.key:
        fields.refuse(f"key {sample.key!r} is not the key of id {sample.id!r}")
    if not sample.num_frames:
        fields.refuse(f"clip {sample.key} has no frames")
    if sample.failed_frames > sample.num_frames:
        fields.refuse(f"clip {sample.key} has more failed frames than frames")
    return sample


def _dropped(fields: Fields) -> Rejected:
    return Rejected(fields.count("row"), fields.text("id"), fields.text("reason"))


def _check_totals(manifest: Manifest) -> None:
    names = [shard.name for shard in manifest.shards]
    if len(set(names)) != len(names):
        raise ShardError(MANIFEST_NAME, "", "lists a shard twice")
    samples = sum(shard.num_samples for shard in manifest.shards)
    frames = sum(shard.num_frames for shard in manifest.shards)
    failed = sum(shard.num_failed_frames for shard in manifest.shards)
    totals = (manifest.num_samples, manifest.num_frames, manifest.num_failed_frames)
    if (samples, frames, failed) != totals:
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


STAMP_NAME = "verified.json"


def write_stamp(folder: Folder) -> bool:
    """Say that the content of a folder was verified; return whether that could be written."""
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
        said = json.loads(read_file(folder / STAMP_NAME).decode("utf-8"))
        return isinstance(said, dict) and said.get("manifest") == _checksum(folder)
    except (OSError, ValueError):
        return False


def _checksum(folder: Folder) -> str:
    return digest(io.BytesIO(read_file(folder / MANIFEST_NAME)))
