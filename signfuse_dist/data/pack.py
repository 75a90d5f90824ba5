"""Packing a split: a corpus's videos become shards, in worker processes, restartable.

How the work is divided and kept is in :mod:`signfuse_dist.data.work`; here is what a split's
shards are made of, and the files that say that the split is finished.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from signfuse_dist import __version__
from signfuse_dist.data.corpora import Corpus, Rejected, Row, read_corpus
from signfuse_dist.data.encode import encode_clip
from signfuse_dist.data.manifest import (
    MANIFEST_NAME,
    Manifest,
    PackConfig,
    Packing,
    ShardIndex,
    manifest_bytes,
)
from signfuse_dist.data.pose import JointsFile, PoseExtractor
from signfuse_dist.data.pose_mediapipe import choose_extractor
from signfuse_dist.data.shard import EncodedClip
from signfuse_dist.data.summary import PackSummary
from signfuse_dist.data.work import (
    Division,
    PackError,
    finished_indexes,
    make_shards,
    refuse_other,
    shard_tasks,
)
from signfuse_dist.errors import UserError
from signfuse_dist.files import write_alike
from signfuse_dist.skeleton import JOINT_LAYOUT

__all__ = ["ClipEncoder", "PackConfig", "PackError", "PackSummary", "pack", "rows_digest"]

DROPPED_NAME = "dropped.tsv"
ORPHANS_NAME = "orphans.tsv"


@dataclass(frozen=True)
class ClipEncoder:
    """Encodes whole clips; whatever is wrong with one concerns its row only."""

    packing: Packing
    extractor: PoseExtractor | None

    @property
    def pose_seconds(self) -> float:
        """Time spent inside the pose model so far."""
        return self.extractor.seconds if self.extractor else 0.0

    def encode(self, row: Row) -> EncodedClip | Rejected:
        """Return the clip, or why its row is dropped."""
        try:
            return encode_clip(row, self.packing, self.extractor)
        except UserError as error:
            return Rejected(row.row, row.id, str(error))
        except MemoryError:
            raise
        except Exception as error:  # decoders and MediaPipe raise types of their own on bad input
            return Rejected(row.row, row.id, f"not packable: {words_of(error, row)}")


def words_of(error: Exception, row: Row) -> str:
    """Return an error's type and first line, the video as the table names it."""
    words = str(error).replace(str(row.video.absolute()), row.source).splitlines()
    return f"{type(error).__name__} {words[0] if words else ''}".strip()


def pack(
    corpus: str,
    root: Path,
    split: str,
    out: Path,
    config: PackConfig,
    workers: int = 1,
    task_id: int = 0,
    num_tasks: int = 1,
    extractor: PoseExtractor | None = None,
) -> PackSummary:
    """Pack ``split`` of the corpus at ``root`` into the folder ``out``.

    ``workers``, ``task_id`` and ``num_tasks`` are those of a
    :class:`~signfuse_dist.data.work.Division`; the task that completes the set writes the
    manifest. Shards that are there already are kept when their checksums agree. Without an
    ``extractor``, joints are those that the corpus brings, else MediaPipe's.

    Raises :class:`PackError` when ``out`` holds something else, when no clip could be packed, and
    when a worker process died (after all other shards are done); a corpus error when there is
    nothing to read. A clip that cannot be packed is a dropped row of the summary, no error.
    """
    division = Division(workers, task_id, num_tasks)
    rows = read_corpus(corpus, root, split)
    extractor = extractor or own_or_mediapipe(rows)
    packing = _packing(rows, config, extractor)
    refuse_other(out, packing)
    out.mkdir(parents=True, exist_ok=True)
    tasks = shard_tasks(rows, config.clips_per_shard)
    began = time.perf_counter()
    results = make_shards(tasks, out, ClipEncoder(packing, extractor), division)
    indexes = finished_indexes(tasks, out, packing, results)
    complete = len(indexes) == len(tasks)
    summary = PackSummary.of(rows, indexes, complete, len(tasks))
    if complete:
        _write_end(out, packing, summary, indexes)
    return summary.timed(time.perf_counter() - began, [r for r in results if not r.skipped])


def own_or_mediapipe(rows: Corpus) -> PoseExtractor | None:
    """Return None for a corpus that brings its own joints, else MediaPipe with its own models."""
    return None if rows.has_joints else choose_extractor()


def _packing(rows: Corpus, config: PackConfig, extractor: PoseExtractor | None) -> Packing:
    source = extractor or JointsFile
    return Packing(
        corpus=rows.name,
        root=rows.root,
        split=rows.split,
        joint_layout=JOINT_LAYOUT,
        extractor=source.name,
        extractor_version=source.version,
        settings=config,
        rows_sha256=rows_digest(rows),
    )


def rows_digest(rows: Corpus) -> str:
    """Return a digest of all that the shards take from the table."""
    accepted = [
        [r.row, r.id, r.source, r.text, r.start, r.end, r.signer, r.language, r.flags]
        + ([list(r.folder)] if r.folder else [])
        for r in rows.rows
    ]
    rejected = [[r.row, r.id, r.reason] for r in rows.rejected]
    return hashlib.sha256(json.dumps([accepted, rejected]).encode()).hexdigest()


def _write_end(
    out: Path, packing: Packing, summary: PackSummary, indexes: Sequence[ShardIndex]
) -> None:
    write_alike(out / DROPPED_NAME, summary.dropped_table().encode("utf-8"))
    write_alike(out / ORPHANS_NAME, summary.orphans_table().encode("utf-8"))
    if not summary.num_packed:
        raise PackError(
            f"none of the {summary.num_rows} rows could be packed; {out / DROPPED_NAME} says why. "
            f"Put that right, remove {out} and pack again"
        )
    write_manifest(out, packing, summary, indexes)


def write_manifest(
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
    write_alike(out / MANIFEST_NAME, manifest_bytes(manifest))
