"""Verifying a set of shards: every file, every offset, every JPEG, joint or vector."""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from signfuse_dist.data.crop import is_box
from signfuse_dist.data.manifest import (
    FEATURES_FOLDER,
    MANIFEST_NAME,
    POSES_FOLDER,
    Manifest,
    SampleEntry,
    ShardEntry,
    ShardError,
    ShardIndex,
    index_name,
)
from signfuse_dist.data.manifest_files import read_index, read_manifest
from signfuse_dist.data.pack_workers import Death, Report, WorkerPool
from signfuse_dist.data.shard import (
    Clip,
    ClipPose,
    member_header,
    read_clip,
    read_pose,
    read_vectors,
    tar_end,
)
from signfuse_dist.data.split import read_source
from signfuse_dist.data.storage import Folder, file_size, open_file
from signfuse_dist.errors import UserError, printable
from signfuse_dist.files import digest
from signfuse_dist.progress import Progress
from signfuse_dist.system_errors import refuse_machine
from signfuse_dist.vector_source import SOURCE_NAME, VectorSource


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: in which file, with which clip (or ""), and what."""

    shard: str
    key: str
    what: str

    def __str__(self) -> str:
        at = f", clip {self.key}" if self.key else ""
        return printable(f"{self.shard}{at}: {self.what}")


def verify(folder: Folder, workers: int = 1) -> list[Fault]:
    """Return everything that is wrong with a set of shards; an empty list means it is whole.

    A set of poses or features in its place is compared with the clips that it belongs to as well.
    Shards are checked in ``workers`` processes (0: in this one). Raises :class:`UserError` only
    when there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of shards")
    if workers < 0:
        raise UserError(f"workers {workers}: must be 0 or more")
    try:
        manifest = read_manifest(folder)
    except ShardError as error:
        refuse_machine(error, folder / MANIFEST_NAME)
        return [Fault(MANIFEST_NAME, "", error.what)]
    faults = [*_check_shards(folder, manifest, workers), *_strays(folder, manifest)]
    faults += _estranged(folder, manifest)
    return sorted([*faults, *_repeated_ids(folder, manifest)], key=lambda f: (f.shard, f.key))


def _check_shards(folder: Folder, manifest: Manifest, workers: int) -> list[Fault]:
    faults: list[Fault] = []
    entries = manifest.shards
    with Progress(printable(folder.name), manifest.num_samples, "clip") as progress:
        pool: WorkerPool[ShardEntry, list[Fault]] = WorkerPool(
            partial(check_shard, folder=folder, manifest=manifest),
            min(workers, len(entries)),
            lambda _, finished: progress.advance(finished),
        )
        for number, outcome in pool.run(entries):
            if isinstance(outcome, Death):
                what = f"the checking process died here ({outcome.how})"
                faults.append(Fault(entries[number].name, outcome.at, what))
            else:
                faults += outcome
    return faults


def check_shard(
    entry: ShardEntry, report: Report, folder: Folder, manifest: Manifest
) -> list[Fault]:
    """Return the faults of one shard: its tar, its index, and each of its clips."""
    try:
        index = read_index(folder, entry.name)
    except ShardError as error:
        refuse_machine(error, folder / index_name(entry.name))
        report("", entry.num_samples)
        return [Fault(error.shard, error.key, error.what)]
    faults = list(_check_files(folder, entry, index, manifest))
    source = None
    if manifest.packing.contents == "features":
        try:
            source = read_source(folder, manifest.packing)
        except UserError as error:
            refuse_machine(error, folder / SOURCE_NAME)
            report("", entry.num_samples)
            return [*faults, Fault(SOURCE_NAME, "", str(error))]
    for sample in index.samples:
        report(sample.key, 0)
        faults += _check_clip(folder, index, sample, source)
        report("", 1)
    return faults


def _check_files(
    folder: Folder, entry: ShardEntry, index: ShardIndex, manifest: Manifest
) -> Iterator[Fault]:
    if index.entry() != entry:
        yield Fault(index_name(entry.name), "", "does not agree with the manifest")
    if index.packing != manifest.packing:
        differences = "; ".join(manifest.packing.differences(index.packing))
        yield Fault(index_name(entry.name), "", f"is of another packing ({differences})")
    try:
        size = file_size(folder / entry.name)
        if size != entry.size:
            yield Fault(entry.name, "", f"torn: {size} of {entry.size} bytes are there")
        elif _digest(folder / entry.name) != entry.sha256:
            yield Fault(entry.name, "", "its content does not agree with its checksum")
        yield from _check_members(folder, entry.name, index)
    except OSError as error:
        refuse_machine(error, folder / entry.name)
        yield Fault(entry.name, "", f"cannot be read ({error.strerror})")


def _digest(path: Folder) -> str:
    with open_file(path) as file:
        return digest(file)


def _check_members(folder: Folder, shard: str, index: ShardIndex) -> Iterator[Fault]:
    """Compare what stands around the members with what is written there.

    The tar is not parsed: in one that nobody vouches for, a header can lead anywhere.
    """
    position, end = 0, file_size(folder / shard)
    with open_file(folder / shard) as file:
        for sample in index.samples:
            for name in index.packing.members:
                offset, size = sample.members[name]
                if offset + size > end:
                    yield Fault(shard, "", f"torn: the tar ends within clip {sample.key}")
                    return
                header = member_header(sample.key, name, size)
                file.seek(position)
                if offset != position + len(header) or file.read(len(header)) != header:
                    yield Fault(shard, sample.key, f"member {name} is not where the index has it")
                position = offset + size + -size % tarfile.BLOCKSIZE
        file.seek(position)
        if file.read(tarfile.RECORDSIZE * 2) != tar_end(position):
            yield Fault(shard, "", "does not end after the last clip of the index")


def _check_clip(
    folder: Folder, index: ShardIndex, sample: SampleEntry, source: VectorSource | None
) -> list[Fault]:
    if source is not None:
        return _check_vectors(folder, index, sample, source)
    clips = index.packing.contents == "clips"
    size = index.packing.settings.frame_size
    try:
        clip: Clip | ClipPose = (
            read_clip(folder, index.shard, sample.members, frame_size=size)
            if clips
            else read_pose(folder, index.shard, sample.members)
        )
    except ShardError as error:
        refuse_machine(error, folder / index.shard)
        return [Fault(index.shard, sample.key, error.what)]
    what = [*_record_faults(clip.record, sample, index), *_joint_faults(clip, sample)]
    return [Fault(index.shard, sample.key, one) for one in what]


def _check_vectors(
    folder: Folder, index: ShardIndex, sample: SampleEntry, source: VectorSource
) -> list[Fault]:
    try:
        record, vectors = read_vectors(
            folder, index.shard, sample.members, source.dim, source.dtype
        )
    except ShardError as error:
        refuse_machine(error, folder / index.shard)
        return [Fault(index.shard, sample.key, error.what)]
    what = list(_record_faults(record, sample, index))
    if not np.isfinite(vectors).all():
        what.append("vectors that are not finite")
    return [Fault(index.shard, sample.key, one) for one in what]


def _record_faults(
    record: Mapping[str, Any], sample: SampleEntry, index: ShardIndex
) -> Iterator[str]:
    packing = index.packing
    expected = {
        "id": sample.id,
        "num_frames": sample.num_frames,
        "failed_frames": sample.failed_frames,
        "flags": list(sample.flags),
        "joint_layout": packing.joint_layout,
        "extractor": packing.extractor,
        "extractor_version": packing.extractor_version,
    }
    if sample.found_frames is not None:
        expected["found_frames"] = sample.found_frames
    if packing.contents == "clips":
        expected |= {"text": sample.text, "signer": sample.signer, "split": packing.split}
    crop, box = packing.settings.crop, record.get("box")
    if packing.contents == "clips" and not (
        box is None if crop == "none" else is_box(box, sample.flags)
    ):
        yield f"box of the record is {box!r}, in shards that were packed with crop {crop}"
    for name, value in expected.items():
        if record.get(name) != value:
            yield f"{name} of the record is {record.get(name)!r}, the index has {value!r}"


def _joint_faults(clip: Clip | ClipPose, sample: SampleEntry) -> Iterator[str]:
    found = int(clip.mask.any(axis=1).sum())
    if sample.found_frames not in (None, found):
        yield f"joints in {found} frames, the index has {sample.found_frames}"
    if not np.isfinite(clip.pose).all():
        yield "joints that are not finite"
    if clip.pose[~clip.mask].any():
        yield "joints that are masked but not 0"


def _estranged(folder: Folder, manifest: Manifest) -> Iterator[Fault]:
    """Compare a set of poses or features, where it is in its place, with the clips above it."""
    whole = folder.absolute()
    clips = whole.parent.parent
    contents = manifest.packing.contents
    places = {"poses": POSES_FOLDER, "features": FEATURES_FOLDER}
    if whole.parent.name != places.get(contents):
        return
    try:
        frames = _frames_of(folder, manifest)
    except ShardError:
        return  # named by the shard's own check
    try:
        there = read_manifest(clips)
        packing = there.packing.of(
            contents, manifest.packing.extractor, manifest.packing.extractor_version
        )
        if packing != manifest.packing:
            differences = "; ".join(packing.differences(manifest.packing))
            yield Fault(MANIFEST_NAME, "", f"belongs to other clips ({differences})")
        elif _frames_of(clips, there) != frames:
            yield Fault(MANIFEST_NAME, "", "clips or their frames are not those that are packed")
    except ShardError as error:
        yield Fault(MANIFEST_NAME, "", f"the clips it belongs to cannot be read ({error.what})")


def _frames_of(folder: Folder, manifest: Manifest) -> dict[str, int]:
    return {
        sample.id: sample.num_frames
        for entry in manifest.shards
        for sample in read_index(folder, entry.name).samples
    }


def _repeated_ids(folder: Folder, manifest: Manifest) -> Iterator[Fault]:
    counts: Counter[str] = Counter()
    for entry in manifest.shards:
        try:
            counts.update(sample.key for sample in read_index(folder, entry.name).samples)
        except ShardError:
            continue  # named by the shard's own check
    for key, count in counts.items():
        if count > 1:
            yield Fault(MANIFEST_NAME, key, f"the id is in {count} shards")


def _strays(folder: Folder, manifest: Manifest) -> Iterator[Fault]:
    known: Sequence[str] = [entry.name for entry in manifest.shards]
    for path in folder.glob("*.tar"):
        if path.name not in known:
            yield Fault(path.name, "", "a tar that the manifest does not name")
