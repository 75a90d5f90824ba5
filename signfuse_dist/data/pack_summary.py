"""What became of a corpus's rows: counted, named, and printed at the end of packing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from signfuse_dist.corpora import Corpus, Orphan, Rejected
from signfuse_dist.data.manifest import FEW_JOINTS, NO_EXTRACTOR, SampleEntry, ShardIndex
from signfuse_dist.errors import printable

_SHOWN = 5  # rows named for each kind; the files name them all


class _Timed(Protocol):
    @property
    def index(self) -> ShardIndex: ...
    @property
    def seconds(self) -> float: ...
    @property
    def pose_seconds(self) -> float: ...
    @property
    def failure(self) -> str: ...
    @property
    def damage(self) -> str: ...


@dataclass(frozen=True)
class PackSummary:
    """The end of a packing; ``str()`` of it is what the user is shown."""

    title: str
    """The split, or the split and a set beside its clips."""
    num_rows: int
    num_packed: int
    num_frames: int
    dropped: tuple[Rejected, ...]
    flagged: Mapping[str, tuple[str, ...]]
    """Ids of the packed clips that bear each flag."""
    num_shards: int
    num_finished: int
    """Shards that are whole in the folder, of ``num_shards``."""
    complete: bool
    """True when the manifest is written; False while shards of other tasks are missing."""
    orphans: tuple[Orphan, ...] = ()
    notes: tuple[str, ...] = ()
    failed_clips: tuple[str, ...] = ()
    """Ids of the clips with frames at which the extractor failed."""
    num_failed_frames: int = 0
    failure: str = ""
    """Of the frames that this call packed, the first at which the extractor failed, and how."""
    seldom_found: tuple[tuple[str, int, int], ...] = ()
    """Clips with joints in less than half of their frames, worst first: id, such frames, frames."""
    num_found_frames: int | None = None
    """Frames with joints; None where nobody looked, or not everywhere."""
    made_again: tuple[str, ...] = ()
    """Shards that were there and damaged, each with what was wrong."""
    new_frames: int = 0
    """Frames packed by this call; the other shards were there already."""
    seconds: float = 0.0
    clip_seconds: float = 0.0
    """Time spent packing, summed over workers."""
    pose_seconds: float = 0.0
    """The part of ``clip_seconds`` spent inside the pose model."""

    @classmethod
    def of(
        cls, rows: Corpus, indexes: Sequence[ShardIndex], complete: bool, num_shards: int
    ) -> PackSummary:
        """Count what is in ``indexes``, and the rows the table itself was rejected for."""
        num_rows = len(rows.rows) + len(rows.rejected)
        dropped = [*rows.rejected, *(row for index in indexes for row in index.dropped)]
        counted = cls._counted(rows.split, num_rows, dropped, indexes, complete, num_shards)
        return replace(counted, orphans=rows.orphans, notes=rows.notes)

    @classmethod
    def of_set(
        cls,
        title: str,
        num_clips: int,
        indexes: Sequence[ShardIndex],
        complete: bool,
        num_shards: int,
    ) -> PackSummary:
        """Count what is in the ``indexes`` of a set beside clips, whose rows are the packed clips.

        ``title`` names it: ``train, poses NAME``.
        """
        return cls._counted(title, num_clips, [], indexes, complete, num_shards)

    @classmethod
    def _counted(
        cls,
        title: str,
        num_rows: int,
        dropped: Sequence[Rejected],
        indexes: Sequence[ShardIndex],
        complete: bool,
        num_shards: int,
    ) -> PackSummary:
        samples = [sample for index in indexes for sample in index.samples]
        flags = sorted({flag for sample in samples for flag in sample.flags})
        looked = {index.packing.extractor for index in indexes} - {NO_EXTRACTOR}
        found = [s.found_frames for s in samples if s.found_frames is not None] if looked else []
        return cls(
            title=title,
            num_rows=num_rows,
            num_packed=len(samples),
            num_frames=sum(sample.num_frames for sample in samples),
            dropped=tuple(sorted(dropped, key=lambda row: row.row)),
            flagged={f: tuple(s.id for s in samples if f in s.flags) for f in flags},
            num_shards=num_shards,
            num_finished=len(indexes),
            complete=complete,
            failed_clips=tuple(s.id for s in samples if s.failed_frames),
            num_failed_frames=sum(sample.failed_frames for sample in samples),
            seldom_found=_seldom_found(samples) if looked else (),
            num_found_frames=sum(found) if samples and len(found) == len(samples) else None,
        )

    def timed(self, seconds: float, results: Sequence[_Timed]) -> PackSummary:
        """Add the times of the shards that this call packed."""
        return replace(
            self,
            seconds=seconds,
            new_frames=sum(s.num_frames for r in results for s in r.index.samples),
            clip_seconds=sum(result.seconds for result in results),
            pose_seconds=sum(result.pose_seconds for result in results),
            failure=next((result.failure for result in results if result.failure), ""),
            made_again=tuple(f"{r.index.shard} ({r.damage})" for r in results if r.damage),
        )

    @property
    def reasons(self) -> Counter[str]:
        """Return how often each kind of fault dropped a row."""
        return Counter(_kind(row) for row in self.dropped)

    def dropped_table(self) -> str:
        """Return dropped.tsv: line number, id and reason of every row that was not packed."""
        lines = [
            f"{row.row}\t{printable(row.id)}\t{printable(row.reason)}\n" for row in self.dropped
        ]
        return "".join(["row\tid\treason\n", *lines])

    def orphans_table(self) -> str:
        """Return orphans.tsv: what is on the disk only, or annotated only."""
        lines = [f"{printable(orphan.id)}\t{printable(orphan.reason)}\n" for orphan in self.orphans]
        return "".join(["id\treason\n", *lines])

    def __str__(self) -> str:
        lines = [self._headline()]
        for reason, count in sorted(self.reasons.items()):
            lines.append(f"  dropped, {reason}: {count}")
            examples = [row for row in self.dropped if _kind(row) == reason][:_SHOWN]
            lines += [f"    row {r.row} {printable(r.id)}: {printable(r.reason)}" for r in examples]
            lines += [f"    and {count - _SHOWN} more"] if count > _SHOWN else []
        for flag, ids in self.flagged.items():
            lines.append(f"  packed, flagged {flag}: {len(ids)} ({_some(ids)})")
        if self.num_failed_frames:
            lines.append(self._failures())
        if self.seldom_found:
            lines.append(self._few_joints())
        for kind in sorted(set(map(_kind, self.orphans))):
            orphans = [orphan.id for orphan in self.orphans if _kind(orphan) == kind]
            lines.append(f"  orphans, {kind}: {len(orphans)} ({_some(orphans)})")
        lines += [f"  note: {printable(note)}" for note in self.notes]
        if self.made_again:
            lines.append(f"  made again: {_some(self.made_again)}")
        if self.clip_seconds and self.new_frames:
            rate = self.new_frames / self.clip_seconds
            line = f"  {self.new_frames} frames in {self.seconds:.1f} s; {rate:.1f} a worker-second"
            if self.pose_seconds:
                line += f", {self.pose_seconds / self.clip_seconds:.1%} of it in the pose model"
            lines.append(line)
        return "\n".join(lines)

    def _failures(self) -> str:
        line = (
            f"  the extractor failed at {self.num_failed_frames} of {self.num_frames} frames, in "
            f"{len(self.failed_clips)} clips; they are packed with all joints masked"
        )
        return f"{line} (the first: {printable(self.failure)})" if self.failure else line

    def _few_joints(self) -> str:
        line = (
            f"  warning: joints were found in less than half of the frames of "
            f"{len(self.seldom_found)} of {self.num_packed} clips"
        )
        if self.num_found_frames is not None:
            line += f", and in {self.num_found_frames / self.num_frames:.1%} of all frames"
        worst = [f"{clip_id}: {found} of {n}" for clip_id, found, n in self.seldom_found]
        return f"{line} (worst: {_some(worst)})"

    def _headline(self) -> str:
        if not self.complete:
            return (
                f"{self.title}: {self.num_finished} of {self.num_shards} shards are whole; the "
                "task that finishes last writes the manifest"
            )
        return (
            f"{self.title}: {self.num_rows} rows = {self.num_packed} packed + "
            f"{len(self.dropped)} dropped; {self.num_frames} frames in {self.num_shards} shards"
        )


def _kind(row: Rejected | Orphan) -> str:
    return row.reason.partition(":")[0]


def commonest_reason(dropped: Sequence[Rejected]) -> str:
    """Return the kind of fault that most rows have, how many, and one of them as an example."""
    kind, count = Counter(map(_kind, dropped)).most_common(1)[0]
    row = next(row for row in dropped if _kind(row) == kind)
    return f"{kind} ({count} of {len(dropped)}), such as row {row.row}, {row.id!r}: {row.reason}"


def _seldom_found(samples: Sequence[SampleEntry]) -> tuple[tuple[str, int, int], ...]:
    """Return the clips with joints in few frames, worst first."""
    counted = [(s.id, s.found_frames, s.num_frames) for s in samples if s.found_frames is not None]
    few = [clip for clip in counted if clip[1] < FEW_JOINTS * clip[2]]
    return tuple(sorted(few, key=lambda clip: clip[1] / clip[2]))


def _some(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return f"{', '.join(map(printable, ids[:_SHOWN]))}{more}"
