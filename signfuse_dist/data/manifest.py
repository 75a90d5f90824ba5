"""What says what a folder of shards holds: ``manifest.json``, and an index beside each tar.

The manifest lists the shards of a finished set with their sizes and checksums; an index lists the
clips of one tar and where their members lie in it. Both are anybody's files: they are validated
while they are parsed, and a file's errors are named together.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import chain
from operator import attrgetter, itemgetter
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import NotRequired, TypedDict

from signfuse_dist.config import Crop
from signfuse_dist.corpora import Rejected, key_of
from signfuse_dist.data.clock import MAX_GAP
from signfuse_dist.data.storage import Folder, file_size, read_file
from signfuse_dist.errors import UserError, raise_together
from signfuse_dist.files import refuse_machine
from signfuse_dist.skeleton import JOINT_LAYOUT

FORMAT_VERSION = 2
MANIFEST_NAME = "manifest.json"
POSES_FOLDER = "poses"
"""Folder inside a split's folder with one pose set a name."""
MEMBERS = ("json", "jpegs", "offsets.npy", "pose.npy", "mask.npy")
POSE_MEMBERS = ("json", "pose.npy", "mask.npy")
NO_EXTRACTOR = "none"
"""The extractor of a set in which nobody has looked for joints."""
POSE_CONFIDENCE = 0.2
"""Below it a point of published poses is missing, unless something else is asked for."""
FEW_JOINTS = 0.5
"""Share of frames: with joints in fewer of them, somebody should look."""
Contents = Literal["clips", "poses"]
"""What a set of shards holds: whole clips, or joints that were extracted again."""

Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
FrameCount = Annotated[int, Field(ge=1, le=2**31 - 1)]
ShardName = Annotated[str, Field(pattern=r"^shard-[0-9]{6,}\.tar$")]
T = TypeVar("T")
_SHOWN_ERRORS, _SHOWN_VALUE = 10, 80  # errors of a file, characters of a value
_KEY, _ID, _TEXT = attrgetter("key"), attrgetter("id"), attrgetter("text")
_MEMBERS_OF = attrgetter("members")
_NUM_FRAMES, _FAILED_FRAMES = attrgetter("num_frames"), attrgetter("failed_frames")
_OWN_LINE = b'\n "index_sha256": '
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


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
    max_gap: float = field(
        default=MAX_GAP,
        metadata={
            "help": "seconds for which a picture stays where the next is missing; a row with a "
            "longer gap is dropped by name (default: %(default)s)"
        },
    )
    clips_per_shard: int = field(default=128, metadata={"help": "default: %(default)s"})
    crop: Crop = field(
        default="none",
        metadata={
            "help": "what is stored of each picture: `none`, all of it in a black square; "
            "`signer`, one square a clip around the joints that are found; `box`, one around the "
            "table's column `box` (default: %(default)s)"
        },
    )
    """Shards that were packed before there was a choice hold whole pictures."""
    pose_confidence: float = field(
        default=POSE_CONFIDENCE,
        metadata={
            "help": "a point of published poses whose confidence is below it is missing (default: "
            "%(default)s)"
        },
    )

    def __post_init__(self) -> None:
        wrong = []
        if not 16 <= self.frame_size <= 4096:
            wrong.append(f"frame_size {self.frame_size}: must lie between 16 and 4096")
        if self.fps is not None and not (math.isfinite(self.fps) and 0 < self.fps <= 1000):
            wrong.append(f"fps {self.fps}: must be above 0 and at most 1000")
        if not 1 <= self.jpeg_quality <= 100:
            wrong.append(f"jpeg_quality {self.jpeg_quality}: must lie between 1 and 100")
        if not (math.isfinite(self.max_gap) and self.max_gap >= 0):
            wrong.append(f"max_gap {self.max_gap}: must be 0 or more seconds")
        if self.clips_per_shard < 1:
            wrong.append(f"clips_per_shard {self.clips_per_shard}: must be at least 1")
        if not (math.isfinite(self.pose_confidence) and 0 <= self.pose_confidence <= 1):
            wrong.append(f"pose_confidence {self.pose_confidence}: must lie between 0 and 1")
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
    num_frames: FrameCount
    flags: tuple[str, ...]
    members: dict[str, tuple[Count, Count]]
    failed_frames: Count
    """Frames at which the extractor failed; all their joints are masked."""
    text: str = ""
    signer: str | None = None
    found_frames: Count | None = None
    """Frames in which any joint was found; None in sets of before this was counted."""
    pictures_sha256: str | None = None
    """Digest of the JPEGs and where each begins; None in pose sets, and in sets of before."""
    joints_sha256: str | None = None
    """Digest of the joints and their mask; None in sets of before there was one."""

    @property
    def has_pictures(self) -> bool:
        """Whether there are frames; a pose set, and a clip of joints alone, has none."""
        return self.members.get("jpegs", (0, 0))[1] > 0


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
        frames, failed = int(self.num_frames.sum()), sum(map(_FAILED_FRAMES, self.samples))
        return ShardEntry(self.shard, self.sha256, self.size, len(self.samples), frames, failed)

    @cached_property
    def num_frames(self) -> NDArray[np.int64]:
        """Frames of each clip, ``[clips]``."""
        return np.fromiter(map(_NUM_FRAMES, self.samples), np.int64, len(self.samples))

    @cached_property
    def spans(self) -> NDArray[np.int64]:
        """Offset and size of each member in the tar, in bytes, ``[clips, members, 2]``."""
        in_order = itemgetter(*self.packing.members)
        spans = chain.from_iterable(map(in_order, map(_MEMBERS_OF, self.samples)))
        shape = (len(self.samples), len(self.packing.members), 2)
        return np.fromiter(chain.from_iterable(spans), np.int64, math.prod(shape)).reshape(shape)


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


# Names ------------------------------------------------------------------------------------------


def index_name(shard: str) -> str:
    """Return the name of the index beside a tar."""
    return f"{shard.removesuffix('.tar')}.index.json"


def is_plain_name(name: str) -> bool:
    """Return whether a name may be that of a folder: no path, nothing that a shell reads."""
    return _PLAIN_NAME.fullmatch(name) is not None


def pose_path(name: str) -> str:
    """Return where the pose set ``name`` lies inside its split's folder.

    Raises :class:`UserError` when the name is more than a name, such as a path.
    """
    if not is_plain_name(name):
        raise UserError(
            f"pose set {name!r}: a name is at most 100 letters, digits, '.', '_' and '-', and "
            "begins with a letter or digit"
        )
    return f"{POSES_FOLDER}/{name}"


def split_folders(folder: Folder) -> list[Folder]:
    """Return the folder itself where it is a set of shards, else those sets that lie in it.

    A set of which the manifest is missing is among them, for an error that names it; where there
    is none at all, that is the folder itself.
    """
    if not folder.is_dir() or _holds_shards(folder):
        return [folder]
    inside = sorted((f for f in folder.iterdir() if _holds_shards(f)), key=lambda f: f.name)
    return inside or [folder]


def _holds_shards(folder: Folder) -> bool:
    return (folder / MANIFEST_NAME).is_file() or (
        folder.is_dir() and next(iter(folder.glob("shard-*.index.json")), None) is not None
    )


# Reading ----------------------------------------------------------------------------------------


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
    content = _content(folder / MANIFEST_NAME, "no finished split is in this folder")
    fields = _parse_versioned(_MANIFEST, content, MANIFEST_NAME)
    manifest = Manifest(
        packing=_packing(fields, MANIFEST_NAME),
        shards=tuple(ShardEntry(**shard) for shard in fields["shards"]),
        num_rows=fields["num_rows"],
        num_samples=fields["num_samples"],
        num_frames=fields["num_frames"],
        num_dropped=fields["num_dropped"],
        num_flagged=fields["num_flagged"],
        signfuse_version=fields["signfuse_version"],
        num_failed_frames=fields["num_failed_frames"],
    )
    _refuse(MANIFEST_NAME, _total_errors(manifest))
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
    name = index_name(shard)
    content = _content(folder / name, "the index of a shard is missing")
    fields = _parse_versioned(_INDEX, content, name)
    index = ShardIndex(
        shard=fields["shard"],
        sha256=fields["sha256"],
        size=fields["size"],
        packing=_packing(fields["packing"], name),
        samples=fields["samples"],
        dropped=tuple(Rejected(**row) for row in fields["dropped"]),
    )
    errors = [] if index.shard == shard else [f"names the shard {index.shard!r}"]
    errors += _sample_errors(index)
    if not _agrees(content, fields.get("index_sha256")):
        errors.append("does not agree with its own checksum")
    _refuse(name, errors)
    return index


def _agrees(content: bytes, own: str | None) -> bool:
    """Return whether an index has its own checksum, or none: that of all its other lines."""
    if own is None:
        return True
    start = content.find(_OWN_LINE)
    end = content.find(b"\n", start + 1)
    sha256 = hashlib.sha256(content[:start])
    sha256.update(content[end:])
    return start >= 0 and end >= 0 and sha256.hexdigest() == own


def _packing(fields: _Packing, file: str) -> Packing:
    errors = []
    if fields["joint_layout"] != JOINT_LAYOUT:
        errors.append(f"joints are laid out as {fields['joint_layout']!r}, not {JOINT_LAYOUT!r}")
    try:
        settings = PackConfig(**fields["settings"])
    except UserError as error:
        errors.append(str(error))
    _refuse(file, errors)
    return Packing(
        corpus=fields["corpus"],
        root=fields["root"],
        split=fields["split"],
        joint_layout=fields["joint_layout"],
        extractor=fields["extractor"],
        extractor_version=fields["extractor_version"],
        settings=settings,
        rows_sha256=fields["rows_sha256"],
        contents=fields["contents"],
    )


def _total_errors(manifest: Manifest) -> list[str]:
    shards, errors = manifest.shards, []
    if len({shard.name for shard in shards}) != len(shards):
        errors.append("lists a shard twice")
    samples = sum(shard.num_samples for shard in shards)
    frames = sum(shard.num_frames for shard in shards)
    failed = sum(shard.num_failed_frames for shard in shards)
    totals = (manifest.num_samples, manifest.num_frames, manifest.num_failed_frames)
    if (samples, frames, failed) != totals:
        errors.append("its totals are not the sums over its shards")
    if manifest.num_rows != manifest.num_samples + manifest.num_dropped:
        errors.append("rows are not clips packed plus rows dropped")
    return errors


def _sample_errors(index: ShardIndex) -> list[str]:
    """Return what is wrong with clips, each of which is of the right kind.

    Every clip of a training set comes here when it is opened: what is well costs a microsecond.
    """
    samples, clips = index.samples, index.packing.contents == "clips"
    keys, ids = list(map(_KEY, samples)), list(map(_ID, samples))
    errors = [
        f"key {s.key!r} is not the key of id {s.id!r}"
        for s, key in zip(samples, map(key_of, ids), strict=True)
        if s.key != key or not key
    ]
    if len(set(keys)) != len(keys):
        errors.append("names a clip twice")
    failed = np.fromiter(map(_FAILED_FRAMES, samples), np.int64, len(samples))
    for clip in np.flatnonzero(failed > index.num_frames).tolist():
        errors.append(f"clip {samples[clip].key!r} has more failed frames than frames")
    if clips and not all(map(_TEXT, samples)):
        errors += [f"field 'text' of clip {s.key!r} is missing" for s in samples if not s.text]
    return [*errors, *_span_errors(index)]


def _span_errors(index: ShardIndex) -> list[str]:
    samples, names = index.samples, index.packing.members
    try:
        outside = index.spans[..., 0] > index.size - index.spans[..., 1]
    except KeyError:
        absent = ((s.key, name) for s in samples for name in names if name not in s.members)
        return [f"member {name!r} of clip {key!r} is missing" for key, name in absent]
    return [
        f"member {names[member]!r} of clip {samples[clip].key!r} reaches beyond the end of the tar"
        for clip, member in np.argwhere(outside).tolist()
    ]


def _check_size(folder: Folder, shard: str, size: int) -> None:
    try:
        there = file_size(folder / shard)
    except FileNotFoundError as error:
        raise ShardError(shard, "", "the shard is missing") from error
    except OSError as error:
        raise ShardError(shard, "", f"cannot be read ({error.strerror})") from error
    if there != size:
        raise ShardError(shard, "", f"torn: {there} of {size} bytes are there")


def parse_json(adapter: TypeAdapter[T], content: bytes, file: str) -> T:
    """Validate a JSON file while it is parsed; a key that the type does not have is passed over.

    Values are taken as they are: neither a numeral in quotes nor ``true`` is a number. Raises
    :class:`ShardError` with every error of the file.
    """
    try:
        return adapter.validate_json(content, strict=True)
    except ValidationError as error:
        _refuse(file, [_explained(dict(one)) for one in error.errors(include_url=False)])
        raise AssertionError("a validation error without errors") from error


def _explained(error: Mapping[str, Any]) -> str:
    """Return one error of pydantic with the place and the value."""
    place, about = ".".join(map(str, error["loc"])), error.get("ctx", {})
    value = repr(error["input"])
    value = value if len(value) <= _SHOWN_VALUE else f"{value[:_SHOWN_VALUE]}..."
    match error["type"]:
        case "json_invalid":
            return f"cannot be read as JSON ({about['error']})"
        case "missing":
            return f"field {place!r} is missing"
        case "greater_than_equal":
            return f"field {place!r} is {value}, below {about['ge']}"
        case "less_than_equal":
            return f"field {place!r} is {value}, above {about['le']}"
        case _ if not place:
            return f"holds something else than an object: {value}"
        case _:
            return f"field {place!r} is of the wrong kind, {value}: {error['msg']}"


def _refuse(file: str, errors: list[str]) -> None:
    """Raise one :class:`ShardError` with the errors of a file; do nothing where there is none."""
    if errors:
        more = len(errors) - _SHOWN_ERRORS
        rest = [f"and {more} more"] if more > 0 else []
        raise ShardError(file, "", "; ".join([*errors[:_SHOWN_ERRORS], *rest]))


def _parse_versioned(adapter: TypeAdapter[T], content: bytes, file: str) -> T:
    """Parse a file of this format; raise :class:`VersionError` for one of another version."""
    try:
        return parse_json(adapter, content, file)
    except ShardError:
        version = parse_json(_VERSION, content, file)["version"]
        if version != FORMAT_VERSION:
            what = f"is of version {version} of the format, this program reads {FORMAT_VERSION}"
            raise VersionError(file, "", what) from None
        raise


def _content(path: Folder, absent: str) -> bytes:
    try:
        return read_file(path)
    except FileNotFoundError as error:
        raise ShardError(str(path), "", f"no such file, {absent}") from error
    except OSError as error:
        refuse_machine(error, path)
        raise ShardError(path.name, "", f"cannot be read ({error.strerror})") from error


# The files' own shape: every key must be there, but for what is None where it is not. -------------


_This = Annotated[int, Field(ge=FORMAT_VERSION, le=FORMAT_VERSION)]


class _Settings(TypedDict):
    frame_size: Count
    fps: NotRequired[float | None]
    jpeg_quality: Count
    max_gap: NotRequired[float]
    clips_per_shard: Count
    crop: NotRequired[Crop]
    pose_confidence: NotRequired[float]


class _Packing(TypedDict):
    corpus: str
    root: str
    split: str
    joint_layout: str
    extractor: str
    extractor_version: str
    settings: _Settings
    rows_sha256: str
    contents: Contents


class _Shard(TypedDict):
    name: ShardName
    sha256: str
    size: Count
    num_samples: Count
    num_frames: Count
    num_failed_frames: Count


class _Version(TypedDict):
    version: Count


class _Manifest(_Packing):
    version: _This
    shards: list[_Shard]
    num_rows: Count
    num_samples: Count
    num_frames: Count
    num_dropped: Count
    num_flagged: Count
    signfuse_version: str
    num_failed_frames: Count


class _Dropped(TypedDict):
    row: Count
    id: str
    reason: str


class _Index(TypedDict):
    version: _This
    shard: str
    sha256: str
    index_sha256: NotRequired[str]
    size: Count
    packing: _Packing
    samples: tuple[SampleEntry, ...]
    dropped: list[_Dropped]


_VERSION, _MANIFEST, _INDEX = TypeAdapter(_Version), TypeAdapter(_Manifest), TypeAdapter(_Index)


# Writing ----------------------------------------------------------------------------------------


def manifest_bytes(manifest: Manifest) -> bytes:
    """Return the manifest as it is written."""
    fields = asdict(manifest)
    packing = _written(fields.pop("packing"))
    return _json({"version": FORMAT_VERSION, **packing, **fields})


def index_bytes(index: ShardIndex) -> bytes:
    """Return a shard's index as it is written."""
    fields = asdict(index)
    _written(fields["packing"])
    for sample in fields["samples"]:
        if index.packing.contents == "poses":
            del sample["text"], sample["signer"]
        for name in ("pictures_sha256", "joints_sha256"):
            if sample[name] is None:  # an index of before there was one stays what it was
                del sample[name]
    content = _json({"version": FORMAT_VERSION, **fields})
    own = hashlib.sha256(content).hexdigest()
    return _json({"version": FORMAT_VERSION, "index_sha256": own, **fields})


def _written(packing: dict[str, Any]) -> dict[str, Any]:
    """Leave out the crop of whole pictures, and the usual threshold of published poses.

    Such shards are those of before there was a choice.
    """
    if packing["settings"]["crop"] == "none":
        del packing["settings"]["crop"]
    if packing["settings"]["pose_confidence"] == POSE_CONFIDENCE:
        del packing["settings"]["pose_confidence"]
    return packing


def _json(value: object) -> bytes:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, indent=1, allow_nan=False)
    return f"{text}\n".encode()


def _flat(fields: dict[str, Any]) -> dict[str, Any]:
    return {**fields.pop("settings"), **fields}
