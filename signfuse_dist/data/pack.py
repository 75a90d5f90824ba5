"""Packing a split of a corpus into shards, and extracting the joints of a packed split again.

Both make the same kind of set: tars with an index beside each, and a manifest when all are whole.
A set of clips lies in DIR, a pose set in ``DIR/poses/NAME/`` with one tar of joints for each tar of
clips; the frames are not touched, so a pose set can be added, compared and removed by itself.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from signfuse_dist import __version__
from signfuse_dist.corpora import Box, ClipRow, Corpus, Rejected
from signfuse_dist.data.columns import write_columns
from signfuse_dist.data.crop import is_box
from signfuse_dist.data.encode import encode_clip, encode_pose
from signfuse_dist.data.faults import Places, reason_of
from signfuse_dist.data.finished import (
    PackError,
    ShardTask,
    finished_indexes,
    refuse_other,
    shard_tasks,
)
from signfuse_dist.data.joints import JointsFile, NoJoints, PoseExtractor
from signfuse_dist.data.manifest import (
    MANIFEST_NAME,
    Manifest,
    PackConfig,
    Packing,
    ShardIndex,
    pose_path,
)
from signfuse_dist.data.manifest_files import load_index, load_manifest, manifest_bytes
from signfuse_dist.data.mediapipe import choose_extractor
from signfuse_dist.data.pack_summary import PackSummary, commonest_reason
from signfuse_dist.data.pack_workers import ClipError, Division, Encoder, make_shards
from signfuse_dist.data.planned import PlannedRows, forget, plan_rows
from signfuse_dist.data.shard import EncodedClip, EncodedPose, read_record
from signfuse_dist.data.tracks import TrackJoints
from signfuse_dist.files import write_bytes
from signfuse_dist.locks import Share, held_share
from signfuse_dist.skeleton import JOINT_LAYOUT
from signfuse_dist.system_errors import machine_error, machine_fault, what_helps

__all__ = ["ClipEncoder", "PackConfig", "PackError", "PackSummary", "pack"]

DROPPED_NAME = "dropped.tsv"
ORPHANS_NAME = "orphans.tsv"


def pack(
    corpus: str,
    root: Path,
    split: str,
    out: Path,
    config: PackConfig,
    *,
    workers: int = 1,
    task_id: int = 0,
    num_tasks: int = 1,
    extractor: PoseExtractor | None = None,
    poses: str | None = None,
    retry_dropped: bool = False,
) -> PackSummary:
    """Pack ``split`` of the corpus at ``root`` into the folder ``out``.

    ``workers``, ``task_id`` and ``num_tasks`` are those of a
    :class:`~signfuse_dist.data.pack_workers.Division`; the task that completes the set writes the
    manifest. Shards that are there already are kept when their checksums agree and they hold their
    rows; with ``retry_dropped``, those with dropped rows are made again. Without an ``extractor``,
    joints are those that the corpus brings, else MediaPipe's; ``poses`` says as which published
    files it brings them.

    Raises :class:`PackError` when ``out`` holds something else, when no clip could be packed, when
    a worker process died (after all other shards are done), and when a shard is lost on the way; a
    corpus error when there is nothing to read; :class:`~signfuse_dist.errors.MachineError`, and
    drops nothing, when a disk, a mount or the memory fails. A clip that cannot be packed is a
    dropped row of the summary, no error.
    """
    division = Division(workers, task_id, num_tasks)
    with ExitStack() as planning:
        planned = planning.enter_context(plan_rows(corpus, root, split, out, num_tasks, poses))
        rows = planned.rows
        extractor = extractor or _own_or_mediapipe(rows)
        _refuse_no_crop(rows, config, extractor)
        packing = _packing(planned, config, extractor)
        tasks = shard_tasks(rows, config.clips_per_shard)

        def summarise(indexes: Sequence[ShardIndex], complete: bool) -> PackSummary:
            summary = PackSummary.of(rows, indexes, complete, len(tasks))
            if complete:
                _write_tables(out, summary)
            return summary

        encoder = ClipEncoder(packing, extractor, Places.of(root, rows.rows))
        with writing_alone(out, packing, division, len(tasks)):
            refuse_other(out, packing)
            with writing(out):
                planning.close()  # the other tasks may read what was planned
            return make_set(tasks, out, encoder, division, summarise, retry_dropped)


def extract_poses(
    corpus: str,
    root: Path,
    split: str,
    shards: Path,
    name: str,
    *,
    workers: int = 1,
    task_id: int = 0,
    num_tasks: int = 1,
    extractor: PoseExtractor | None = None,
    poses: str | None = None,
) -> PackSummary:
    """Extract the joints of the clips packed in ``shards`` again, into the pose set ``name``.

    Frame settings and the division into shards are those of ``shards``; clips that were dropped
    there are left out. Workers, tasks, kept shards and the extractor are as in
    :func:`pack`.

    Raises :class:`PackError` when the rows are not those that were packed, when the name has
    another extraction, and, after all that can be done is done, when a clip cannot be read again,
    has another number of frames, or ended a worker; ShardError when ``shards`` is no whole split;
    MachineError as :func:`pack` does.
    """
    division, out = Division(workers, task_id, num_tasks), shards / pose_path(name)
    manifest = load_manifest(shards)
    with ExitStack() as planning:
        planned = planning.enter_context(plan_rows(corpus, root, split, out, num_tasks, poses))
        rows = planned.rows
        _refuse_other_rows(shards, manifest.packing, planned)
        extractor = extractor or _own_or_mediapipe(rows)
        packing = manifest.packing.of_poses(*_source(rows, extractor))
        tasks, num_frames = _packed_rows(shards, manifest, rows)
        boxes = _packed_boxes(shards, manifest)

        def summarise(indexes: Sequence[ShardIndex], complete: bool) -> PackSummary:
            title = f"{split}, poses {name}"
            return PackSummary.of_set(title, len(num_frames), indexes, complete, len(tasks))

        encoder = PoseEncoder(packing, extractor, num_frames, boxes, Places.of(root, rows.rows))
        with writing_alone(out, packing, division, len(tasks)):
            refuse_other(out, packing)
            with writing(out):
                planning.close()  # the other tasks may read what was planned
            return make_set(tasks, out, encoder, division, summarise)


def make_set(
    tasks: Sequence[ShardTask],
    out: Path,
    encoder: Encoder,
    division: Division,
    summarise: Callable[[Sequence[ShardIndex], bool], PackSummary],
    retry_dropped: bool = False,
) -> PackSummary:
    """Make this task's share of a set of shards, and its manifest where that completes the set.

    ``summarise`` returns the summary of the finished shards, and is told whether they are all.
    """
    began = time.perf_counter()
    results = make_shards(tasks, out, encoder, division, retry_dropped)
    indexes = finished_indexes(tasks, out, encoder.packing, [r.index for r in results])
    complete = len(indexes) == len(tasks)
    with writing(out):
        summary = summarise(indexes, complete)
        if complete:
            _write_manifest(out, encoder.packing, summary, indexes)
            forget(out)
    return summary.timed(time.perf_counter() - began, [r for r in results if not r.skipped])


@contextmanager
def writing_alone(
    out: Path, packing: Packing, division: Division, num_shards: int
) -> Iterator[None]:
    """Hold this task's shards in ``out``, which is made: nobody else makes one of them meanwhile.

    Tasks that make other shards of the same set work beside this one.
    """
    if out.exists() and not out.is_dir():
        raise PackError(f"{out}: is a file, not a folder; choose another place")
    what = json.dumps(asdict(packing), sort_keys=True)
    about = hashlib.sha256(what.encode()).hexdigest()
    share = Share(division.task_id, division.num_tasks, num_shards)
    with ExitStack() as until_end:
        with writing(out):
            until_end.enter_context(held_share(out, share, f"the set in {out}", about=about))
        yield


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Let what cannot be written in ``out`` be an error that names it."""
    try:
        yield
    except OSError as error:
        if machine_fault(error):
            raise machine_error(error, out) from error
        raise PackError(
            f"{out}: cannot be written ({error.strerror}); {what_helps(error)}"
        ) from error


def _own_or_mediapipe(rows: Corpus) -> PoseExtractor | None:
    """Return None for a corpus that brings its own joints, else MediaPipe with its own models."""
    return None if rows.has_joints else choose_extractor()


def _source(rows: Corpus, extractor: PoseExtractor | None) -> tuple[str, str]:
    """Return name and version of what the joints come from."""
    if extractor is not None:
        return extractor.name, extractor.version
    if rows.pose_format is not None:
        return rows.pose_format, TrackJoints.version
    return JointsFile.name, JointsFile.version


def _refuse_no_crop(rows: Corpus, config: PackConfig, extractor: PoseExtractor | None) -> None:
    """Raise :class:`PackError` where there is nothing that any clip could be cropped by."""
    if config.crop == "signer" and isinstance(extractor, NoJoints):
        raise PackError(
            "crop signer: the square is cut around joints, and with the extractor none there are "
            "none; leave --extractor out, or --crop"
        )
    if config.crop == "box" and not any(row.box for row in rows.rows):
        raise PackError(
            f"crop box: no row of {rows.name}, {rows.root}, split {rows.split} has a box; give the "
            "table a column `box`, or use --crop signer"
        )


def _packing(planned: PlannedRows, config: PackConfig, extractor: PoseExtractor | None) -> Packing:
    rows = planned.rows
    source, version = _source(rows, extractor)
    return Packing(
        corpus=rows.name,
        root=rows.root,
        split=rows.split,
        joint_layout=JOINT_LAYOUT,
        extractor=source,
        extractor_version=version,
        settings=config,
        rows_sha256=planned.digest,
    )


def _refuse_other_rows(shards: Path, packed: Packing, planned: PlannedRows) -> None:
    rows = planned.rows
    if packed.contents != "clips":
        raise PackError(f"{shards}: holds a pose set; name the folder with the clips")
    there = (packed.corpus, packed.split, packed.rows_sha256)
    if there != (rows.name, rows.split, planned.digest):
        raise PackError(
            f"{shards} was packed from other rows (corpus {packed.corpus}, {packed.root}, split "
            f"{packed.split}) than {rows.name}, {rows.root}, split {rows.split} has now: joints "
            "would not belong to its frames. Give the same table, or pack again into a new folder"
        )


def _packed_rows(
    shards: Path, manifest: Manifest, rows: Corpus
) -> tuple[list[ShardTask], dict[str, int]]:
    """Return the rows of each shard that were packed, and the frames of each clip."""
    num_frames: dict[str, int] = {}
    tasks = []
    divided = {t.name: t for t in shard_tasks(rows, manifest.packing.settings.clips_per_shard)}
    for entry in manifest.shards:
        packed = {s.id: s.num_frames for s in load_index(shards, entry).samples}
        planned = divided.get(entry.name, ShardTask(entry.name, ()))
        kept = [row for row in planned.rows if row.id in packed]
        if [row.id for row in kept] != list(packed):
            raise PackError(
                f"{shards / entry.name} holds other clips than its rows; run `signfuse verify` on "
                "the folder"
            )
        num_frames |= packed
        tasks.append(ShardTask(entry.name, tuple(kept)))
    return tasks, num_frames


def _packed_boxes(shards: Path, manifest: Manifest) -> dict[str, Box]:
    """Return the square of each clip that was cut around its signer, by id."""
    if manifest.packing.settings.crop != "signer":
        return {}
    boxes: dict[str, Box] = {}
    for entry in manifest.shards:
        for sample in load_index(shards, entry).samples:
            record = read_record(shards, entry.name, sample.members)
            if sample.id != record["id"] or not is_box(record.get("box"), sample.flags):
                raise PackError(
                    f"{shards / entry.name}: clip {sample.id!r} does not say how it was cropped; "
                    "run `signfuse verify` on the folder"
                )
            if record["box"] is not None:
                boxes[sample.id] = Box(*record["box"])
    return boxes


def _write_tables(out: Path, summary: PackSummary) -> None:
    """Write what was dropped and what is on one side only; refuse a split without clips."""
    write_bytes(out / DROPPED_NAME, summary.dropped_table().encode("utf-8"))
    write_bytes(out / ORPHANS_NAME, summary.orphans_table().encode("utf-8"))
    if not summary.num_packed:
        raise PackError(
            f"none of the {summary.num_rows} rows could be packed: "
            f"{commonest_reason(summary.dropped)}; {out / DROPPED_NAME} names them all. Put that "
            f"right and pack again with --retry-dropped; after a change of the table, remove {out}"
        )


def _write_manifest(
    out: Path, packing: Packing, summary: PackSummary, indexes: Sequence[ShardIndex]
) -> None:
    """Write what says that a set of shards is finished."""
    manifest = Manifest(
        packing=packing,
        shards=tuple(index.entry() for index in indexes),
        num_rows=summary.num_rows,
        num_samples=summary.num_packed,
        num_frames=summary.num_frames,
        num_dropped=len(summary.dropped),
        num_flagged=len({id for ids in summary.flagged.values() for id in ids}),
        signfuse_version=__version__,
        num_failed_frames=summary.num_failed_frames,
    )
    write_columns(out, manifest, indexes)
    write_bytes(out / MANIFEST_NAME, manifest_bytes(manifest))


@dataclass(frozen=True)
class ClipEncoder:
    """Encodes whole clips; whatever is wrong with one concerns its row only."""

    packing: Packing
    extractor: PoseExtractor | None
    places: Places = field(default_factory=Places)

    @property
    def pose_seconds(self) -> float:
        """Time spent inside the pose model so far."""
        return self.extractor.seconds if self.extractor else 0.0

    def encode(self, row: ClipRow) -> EncodedClip | Rejected:
        """Return the clip, or why its row is dropped; raise MachineError where it is not."""
        try:
            return encode_clip(row, self.packing, self.extractor)
        except Exception as error:
            return Rejected(row.row, row.id, reason_of(error, row, self.places))


@dataclass(frozen=True)
class PoseEncoder:
    """Encodes the joints of clips that are packed; each must give as many frames as it has there.

    A clip that cannot be read again stands in the way of its shard: a set is for all clips.
    """

    packing: Packing
    extractor: PoseExtractor | None
    num_frames: Mapping[str, int]
    """Frames of each clip by its id, as packed."""
    boxes: Mapping[str, Box]
    """The square that was cut around the signer, of the clips that have one, by id."""
    places: Places = field(default_factory=Places)

    @property
    def pose_seconds(self) -> float:
        """Time spent inside the pose model so far."""
        return self.extractor.seconds if self.extractor else 0.0

    def encode(self, row: ClipRow) -> EncodedPose:
        """Return the clip's joints; raise ClipError when they are not those of its frames."""
        clip = f"clip {row.id!r} (row {row.row})"
        try:
            encoded = encode_pose(row, self.packing, self.extractor, box=self.boxes.get(row.id))
        except Exception as error:
            raise ClipError(f"{clip}: {reason_of(error, row, self.places)}") from error
        frames, packed = encoded.record["num_frames"], self.num_frames[row.id]
        if frames != packed:
            raise ClipError(
                f"{clip}: {row.source} has {frames} frames now and had {packed} when it was packed"
            )
        return encoded
