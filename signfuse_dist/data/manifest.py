"""What says what a folder of shards holds: ``manifest.json``, and an index beside each tar.

The manifest lists the shards of a finished set with their sizes and checksums; an index lists the
clips of one tar and where their members lie in it. Both are anybody's files: they are validated
while they are parsed (:mod:`~signfuse_dist.data.manifest_files`).
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import chain
from operator import attrgetter, itemgetter
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from signfuse_dist.config import Crop
from signfuse_dist.corpora import Rejected
from signfuse_dist.data.clock import MAX_GAP
from signfuse_dist.data.storage import Folder
from signfuse_dist.errors import UserError, raise_together

FORMAT_VERSION = 2
MANIFEST_NAME = "manifest.json"
POSES_FOLDER = "poses"
"""Folder inside a split's folder with one pose set a name."""
FEATURES_FOLDER = "features"
"""Likewise with one feature set a name."""
MEMBERS = ("json", "jpegs", "offsets.npy", "pose.npy", "mask.npy")
POSE_MEMBERS = ("json", "pose.npy", "mask.npy")
VECTOR_MEMBERS = ("json", "vectors.npy")
NO_EXTRACTOR = "none"
"""The extractor of a set in which nobody has looked for joints."""
POSE_CONFIDENCE = 0.2
"""Below it a point of published poses is missing, unless something else is asked for."""
FEW_JOINTS = 0.5
"""Share of frames: with joints in fewer of them, somebody should look."""
Contents = Literal["clips", "poses", "features"]
"""What a set of shards holds: whole clips, joints that were extracted again, or a vector for each
frame."""

Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
FrameCount = Annotated[int, Field(ge=1, le=2**31 - 1)]
ShardName = Annotated[str, Field(pattern=r"^shard-[0-9]{6,}\.tar$")]
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
        of = {"clips": MEMBERS, "poses": POSE_MEMBERS, "features": VECTOR_MEMBERS}
        return of[self.contents]

    def differences(self, other: Packing) -> list[str]:
        """Say where ``other`` (what is asked for) departs from this (what is there)."""
        here, there = _flat(asdict(self)), _flat(asdict(other))
        return [f"{k} is {here[k]!r}, asked {there[k]!r}" for k in here if here[k] != there[k]]

    def of_poses(self, extractor: str, extractor_version: str) -> Packing:
        """Return the packing of a pose set that belongs to these clips."""
        return self.of("poses", extractor, extractor_version)

    def of(self, contents: Contents, extractor: str, extractor_version: str) -> Packing:
        """Return the packing of a set of something else that belongs to these clips."""
        return replace(
            self, contents=contents, extractor=extractor, extractor_version=extractor_version
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
    """Digest of the JPEGs and where each begins, or of the vectors in their place; None in pose
    sets, and in sets of before."""
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
        frames, failed = (
            int(self.num_frames.sum()),
            sum(map(attrgetter("failed_frames"), self.samples)),
        )
        return ShardEntry(self.shard, self.sha256, self.size, len(self.samples), frames, failed)

    @cached_property
    def num_frames(self) -> NDArray[np.int64]:
        """Frames of each clip, ``[clips]``."""
        return np.fromiter(map(attrgetter("num_frames"), self.samples), np.int64, len(self.samples))

    @cached_property
    def spans(self) -> NDArray[np.int64]:
        """Offset and size of each member in the tar, in bytes, ``[clips, members, 2]``."""
        in_order = itemgetter(*self.packing.members)
        spans = chain.from_iterable(map(in_order, map(attrgetter("members"), self.samples)))
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
    return _inside(POSES_FOLDER, "pose set", name)


def feature_path(name: str) -> str:
    """Return where the feature set ``name`` lies inside its split's folder.

    Raises :class:`UserError` when the name is more than a name, such as a path.
    """
    return _inside(FEATURES_FOLDER, "feature set", name)


def _inside(folder: str, what: str, name: str) -> str:
    if not is_plain_name(name):
        raise UserError(
            f"{what} {name!r}: a name is at most 100 letters, digits, '.', '_' and '-', and "
            "begins with a letter or digit"
        )
    return f"{folder}/{name}"


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


def _flat(fields: dict[str, Any]) -> dict[str, Any]:
    return {**fields.pop("settings"), **fields}
