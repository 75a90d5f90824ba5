"""Packing a split: a corpus's videos become shards, in worker processes, restartable.

The shard is the unit of work. Which rows a shard holds depends on the corpus and on
``clips_per_shard`` alone, never on the workers, and a clip's bytes depend on the clip alone: the
same input gives the same files, whoever packs them and however often it was interrupted.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from signfuse_dist import __version__
from signfuse_dist.data.corpora import Corpus, Rejected, Row, read_corpus
from signfuse_dist.data.encode import encode_clip
from signfuse_dist.data.manifest import (
    MANIFEST_NAME,
    Manifest,
    PackConfig,
    Packing,
    ShardError,
    ShardIndex,
    index_name,
    manifest_bytes,
    read_index,
    read_manifest,
)
from signfuse_dist.data.pool import Death, Report, WorkerPool
from signfuse_dist.data.pose import JointsFile, PoseExtractor, choose_extractor
from signfuse_dist.data.shard import EncodedClip, write_shard
from signfuse_dist.data.summary import PackSummary
from signfuse_dist.errors import UserError
from signfuse_dist.files import checksum, remove_leftovers, write_text, written_whole
from signfuse_dist.skeleton import JOINT_LAYOUT

__all__ = ["PackConfig", "PackError", "PackSummary", "pack"]

DROPPED_NAME = "dropped.tsv"
ORPHANS_NAME = "orphans.tsv"


class PackError(UserError):
    """A split cannot be packed, or not to its end."""


@dataclass(frozen=True)
class ShardTask:
    """The rows of one shard."""

    name: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class ShardResult:
    """A shard that is finished, and where the time for it went (seconds)."""

    index: ShardIndex
    skipped: bool
    seconds: float
    pose_seconds: float


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

    ``workers`` processes each pack whole shards (0: in this process). With ``num_tasks`` > 1 this
    call packs every ``num_tasks``-th shard, and the task that completes the set writes the
    manifest. Shards that are there already are kept when their checksums agree. ``extractor`` is
    MediaPipe with its built-in models by default; a corpus that brings its joints takes none.

    Raises :class:`PackError` when ``out`` holds something else, when no clip could be packed, and
    when a worker process died (after all other shards are done); a corpus error when there is
    nothing to read. A clip that cannot be packed is a dropped row of the summary, no error.
    """
    _check_division(workers, task_id, num_tasks)
    rows = read_corpus(corpus, root, split)
    extractor = _extractor(rows, extractor)
    packing = _packing(rows, config, extractor)
    _refuse_other(out, packing)
    out.mkdir(parents=True, exist_ok=True)
    tasks = _tasks(rows, config.clips_per_shard)
    began = time.perf_counter()
    results = _pack_shards(tasks[task_id::num_tasks], out, packing, extractor, workers)
    indexes = _finished(tasks, out, packing, results)
    complete = len(indexes) == len(tasks)
    summary = PackSummary.of(rows, indexes, complete, len(tasks))
    if complete:
        _write_end(out, packing, summary, indexes)
    return summary.timed(time.perf_counter() - began, [r for r in results if not r.skipped])


def _check_division(workers: int, task_id: int, num_tasks: int) -> None:
    if workers < 0:
        raise PackError(f"workers {workers}: must be 0 or more")
    if num_tasks < 1 or not 0 <= task_id < num_tasks:
        raise PackError(f"task {task_id} of {num_tasks}: must be from 0 to the number of tasks - 1")


def _extractor(rows: Corpus, extractor: PoseExtractor | None) -> PoseExtractor | None:
    if not rows.has_joints:
        return extractor or choose_extractor()
    if extractor is not None:
        raise PackError(
            f"{rows.root} brings its own joints; leave out the pose model, or the table's "
            "column `joints`"
        )
    return None


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
        rows_sha256=_digest(rows),
    )


def _digest(rows: Corpus) -> str:
    accepted = [
        [r.row, r.id, r.source, r.text, r.start, r.end, r.signer, r.language, r.flags]
        + ([list(r.folder)] if r.folder else [])
        for r in rows.rows
    ]
    rejected = [[r.row, r.id, r.reason] for r in rows.rejected]
    return hashlib.sha256(json.dumps([accepted, rejected]).encode()).hexdigest()


def _refuse_other(out: Path, packing: Packing) -> None:
    """Raise :class:`PackError` when ``out`` holds a split that this call would overwrite."""
    if out.exists() and not out.is_dir():
        raise PackError(f"{out}: is a file, not a folder; choose another place")
    if (out / MANIFEST_NAME).exists():
        try:
            _refuse_difference(out, read_manifest(out).packing, packing)
        except ShardError as error:
            raise PackError(
                f"{out / MANIFEST_NAME}: {error.what}; remove it, and packing will go on from the "
                "shards that are whole"
            ) from error
    for path in sorted(out.glob("shard-*.index.json")):
        try:
            index = read_index(out, path.name.removesuffix(".index.json") + ".tar")
        except ShardError:
            continue  # an index that cannot be read makes its shard an unfinished one
        _refuse_difference(out, index.packing, packing)


def _refuse_difference(out: Path, there: Packing, asked: Packing) -> None:
    differences = there.differences(asked)
    if differences:
        raise PackError(
            f"{out} holds another packing ({'; '.join(differences)}); choose another folder, or "
            "remove this one"
        )


def _tasks(rows: Corpus, clips_per_shard: int) -> list[ShardTask]:
    starts = range(0, len(rows.rows), clips_per_shard)
    return [
        ShardTask(f"shard-{i:06d}.tar", rows.rows[start : start + clips_per_shard])
        for i, start in enumerate(starts)
    ]


def _pack_shards(
    tasks: Sequence[ShardTask],
    out: Path,
    packing: Packing,
    extractor: PoseExtractor | None,
    workers: int,
) -> list[ShardResult]:
    results: list[ShardResult] = []
    deaths: list[str] = []
    clips = sum(len(task.rows) for task in tasks)
    interval = 0.2 if sys.stderr.isatty() else 10.0  # seconds; a log file wants fewer lines
    with tqdm(total=clips, unit="clip", desc=out.name, mininterval=interval) as bar:
        function = partial(pack_shard, out=out, packing=packing, extractor=extractor)
        pool: WorkerPool[ShardTask, ShardResult] = WorkerPool(
            function, min(workers, len(tasks)), lambda _, finished: bar.update(finished)
        )
        for number, outcome in pool.run(tasks):
            if isinstance(outcome, Death):
                at = f"at clip {outcome.at}" if outcome.at else "before its first clip"
                deaths.append(f"{tasks[number].name}: a worker process died ({outcome.how}) {at}")
            else:
                results.append(outcome)
    if deaths:
        raise PackError(
            "\n".join([*deaths, "all other shards are done; run the same command to try again"])
        )
    return results


def pack_shard(
    task: ShardTask, report: Report, out: Path, packing: Packing, extractor: PoseExtractor | None
) -> ShardResult:
    """Pack one shard, or leave it as it is when it is whole already."""
    began, pose_began = time.perf_counter(), extractor.seconds if extractor else 0.0
    tar = out / task.name
    for path in (tar, out / index_name(task.name)):
        remove_leftovers(path)
    index = _whole_index(out, task.name, packing)
    skipped = index is not None
    if index is None:
        index = write_shard(tar, _clips(task.rows, report, packing, extractor), packing)
    else:
        report("", len(task.rows))
    pose_seconds = extractor.seconds - pose_began if extractor else 0.0
    return ShardResult(index, skipped, time.perf_counter() - began, pose_seconds)


def _clips(
    rows: Sequence[Row], report: Report, packing: Packing, extractor: PoseExtractor | None
) -> Iterator[EncodedClip | Rejected]:
    for row in rows:
        report(f"{row.id!r} (row {row.row}, {row.source})", 0)
        yield _clip(row, packing, extractor)
        report("", 1)


def _clip(row: Row, packing: Packing, extractor: PoseExtractor | None) -> EncodedClip | Rejected:
    """Encode a clip; whatever is wrong with it concerns this row only."""
    try:
        return encode_clip(row, packing, extractor)
    except UserError as error:
        return Rejected(row.row, row.id, str(error))
    except MemoryError:
        raise
    except Exception as error:  # decoders and MediaPipe raise types of their own on bad input
        words = str(error).replace(str(row.video.absolute()), row.source).splitlines()
        cause = words[0] if words else ""
        return Rejected(row.row, row.id, f"not packable: {type(error).__name__} {cause}".strip())


def _whole_index(
    out: Path, shard: str, packing: Packing, compare_bytes: bool = True
) -> ShardIndex | None:
    """Return the index of a shard that is finished and undamaged, else None."""
    try:
        index = read_index(out, shard)
        whole = index.packing == packing and (out / shard).stat().st_size == index.size
    except (ShardError, OSError):
        return None
    if not whole or (compare_bytes and checksum(out / shard) != index.sha256):
        return None
    return index


def _finished(
    tasks: Sequence[ShardTask], out: Path, packing: Packing, results: Sequence[ShardResult]
) -> list[ShardIndex]:
    """Return the indexes of all finished shards in order, those of other tasks included."""
    own = {result.index.shard: result.index for result in results}
    found = [
        own.get(t.name) or _whole_index(out, t.name, packing, compare_bytes=False) for t in tasks
    ]
    return [index for index in found if index is not None]


def _write_end(
    out: Path, packing: Packing, summary: PackSummary, indexes: Sequence[ShardIndex]
) -> None:
    for name in (MANIFEST_NAME, DROPPED_NAME, ORPHANS_NAME):
        remove_leftovers(out / name)
    write_text(out / DROPPED_NAME, summary.dropped_table())
    write_text(out / ORPHANS_NAME, summary.orphans_table())
    if not summary.num_packed:
        raise PackError(
            f"none of the {summary.num_rows} rows could be packed; {out / DROPPED_NAME} says why. "
            f"Put that right, remove {out} and pack again"
        )
    manifest = Manifest(
        packing=packing,
        shards=tuple(index.entry() for index in indexes),
        num_rows=summary.num_rows,
        num_samples=summary.num_packed,
        num_frames=summary.num_frames,
        num_dropped=len(summary.dropped),
        num_flagged=len({id for ids in summary.flagged.values() for id in ids}),
        signfuse_version=__version__,
    )
    with written_whole(out / MANIFEST_NAME) as file:
        file.write(manifest_bytes(manifest))
