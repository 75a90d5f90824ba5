"""``manifest.json`` and the index beside each tar, read with every error named, and written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from operator import attrgetter
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import NotRequired, TypedDict

from signfuse_dist.config import Crop
from signfuse_dist.corpora import Rejected, key_of
from signfuse_dist.data.manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    POSE_CONFIDENCE,
    Contents,
    Count,
    Manifest,
    PackConfig,
    Packing,
    SampleEntry,
    ShardEntry,
    ShardError,
    ShardIndex,
    ShardName,
    VersionError,
    index_name,
)
from signfuse_dist.data.storage import Folder, file_size, read_file
from signfuse_dist.errors import UserError
from signfuse_dist.skeleton import JOINT_LAYOUT
from signfuse_dist.system_errors import refuse_machine

T = TypeVar("T")
_SHOWN_ERRORS, _SHOWN_VALUE = 10, 80  # errors of a file, characters of a value
_OWN_LINE = b'\n "index_sha256": '


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
    keys, ids = list(map(attrgetter("key"), samples)), list(map(attrgetter("id"), samples))
    errors = [
        f"key {s.key!r} is not the key of id {s.id!r}"
        for s, key in zip(samples, map(key_of, ids), strict=True)
        if s.key != key or not key
    ]
    if len(set(keys)) != len(keys):
        errors.append("names a clip twice")
    failed = np.fromiter(map(attrgetter("failed_frames"), samples), np.int64, len(samples))
    for clip in np.flatnonzero(failed > index.num_frames).tolist():
        errors.append(f"clip {samples[clip].key!r} has more failed frames than frames")
    if clips and not all(map(attrgetter("text"), samples)):
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
        if index.packing.contents != "clips":
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
