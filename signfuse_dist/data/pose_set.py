"""Pose sets: the joints of a packed split extracted again, beside its frames.

``DIR/poses/NAME/`` holds one tar of joints for each tar of clips, with index and manifest as the
clips have them. The frames are not touched: a set can be added, compared and removed by itself.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from signfuse_dist.data.corpora import Corpus, Row, read_corpus
from signfuse_dist.data.encode import encode_pose
from signfuse_dist.data.manifest import Manifest, Packing, load_index, load_manifest, pose_path
from signfuse_dist.data.pack import own_or_mediapipe, rows_digest, words_of, write_manifest
from signfuse_dist.data.pose import JointsFile, PoseExtractor
from signfuse_dist.data.shard import EncodedPose
from signfuse_dist.data.summary import PackSummary
from signfuse_dist.data.work import (
    ClipError,
    Division,
    PackError,
    ShardTask,
    finished_indexes,
    make_shards,
    refuse_other,
    shard_tasks,
)
from signfuse_dist.errors import UserError


@dataclass(frozen=True)
class PoseEncoder:
    """Encodes the joints of clips that are packed; each must give as many frames as it has there.

    A clip that cannot be read again stands in the way of its shard: a set is for all clips.
    """

    packing: Packing
    extractor: PoseExtractor | None
    num_frames: Mapping[str, int]
    """Frames of each clip by its id, as packed."""

    @property
    def pose_seconds(self) -> float:
        """Time spent inside the pose model so far."""
        return self.extractor.seconds if self.extractor else 0.0

    def encode(self, row: Row) -> EncodedPose:
        """Return the clip's joints; raise ClipError when they are not those of its frames."""
        clip = f"clip {row.id!r} (row {row.row})"
        try:
            encoded = encode_pose(row, self.packing, self.extractor)
        except UserError as error:
            raise ClipError(f"{clip}: {error}") from error
        except MemoryError:
            raise
        except Exception as error:  # decoders and MediaPipe raise types of their own on bad input
            raise ClipError(f"{clip}: {words_of(error, row)}") from error
        found, packed = encoded.record["num_frames"], self.num_frames[row.id]
        if found != packed:
            raise ClipError(
                f"{clip}: {row.source} has {found} frames now and had {packed} when it was packed"
            )
        return encoded


def extract_poses(
    corpus: str,
    root: Path,
    split: str,
    shards: Path,
    name: str,
    workers: int = 1,
    task_id: int = 0,
    num_tasks: int = 1,
    extractor: PoseExtractor | None = None,
) -> PackSummary:
    """Extract the joints of the clips packed in ``shards`` again, into the pose set ``name``.

    Frame settings and the division into shards are those of ``shards``; clips that were dropped
    there are left out. Workers, tasks, kept shards and the extractor are as in
    :func:`~signfuse_dist.data.pack.pack`.

    Raises :class:`PackError` when the rows are not those that were packed, when the name has
    another extraction, and, after all that can be done is done, when a clip cannot be read again,
    has another number of frames, or ended a worker; ShardError when ``shards`` is no whole split.
    """
    division, out = Division(workers, task_id, num_tasks), shards / pose_path(name)
    manifest = load_manifest(shards)
    rows = read_corpus(corpus, root, split)
    _refuse_other_rows(shards, manifest.packing, rows)
    extractor = extractor or own_or_mediapipe(rows)
    source = extractor or JointsFile
    packing = manifest.packing.of_poses(source.name, source.version)
    refuse_other(out, packing)
    tasks, num_frames = _packed(shards, manifest, rows)
    out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    results = make_shards(tasks, out, PoseEncoder(packing, extractor, num_frames), division)
    indexes = finished_indexes(tasks, out, packing, results)
    complete = len(indexes) == len(tasks)
    summary = PackSummary.of_poses(name, split, len(num_frames), indexes, complete, len(tasks))
    if complete:
        write_manifest(out, packing, summary, indexes)
    return summary.timed(time.perf_counter() - began, [r for r in results if not r.skipped])


def _refuse_other_rows(shards: Path, packed: Packing, rows: Corpus) -> None:
    if packed.contents != "clips":
        raise PackError(f"{shards}: holds a pose set; name the folder with the clips")
    there = (packed.corpus, packed.split, packed.rows_sha256)
    if there != (rows.name, rows.split, rows_digest(rows)):
        raise PackError(
            f"{shards} was packed from other rows (corpus {packed.corpus}, {packed.root}, split "
            f"{packed.split}) than {rows.name}, {rows.root}, split {rows.split} has now: joints "
            "would not belong to its frames. Give the same table, or pack again into a new folder"
        )


def _packed(
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
