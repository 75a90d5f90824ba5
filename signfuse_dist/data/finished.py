"""What lies in a folder before and after packing: shards that are whole, and those that are not.

A shard is whole when it agrees with its index, and when it holds the rows that it is to hold: so a
shard that was torn, edited, or put in another's place is made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from signfuse_dist.corpora import ClipRow, Corpus
from signfuse_dist.data.manifest import (
    MANIFEST_NAME,
    Packing,
    ShardError,
    ShardIndex,
    VersionError,
    index_name,
)
from signfuse_dist.data.manifest_files import read_index, read_manifest
from signfuse_dist.errors import UserError
from signfuse_dist.files import checksum
from signfuse_dist.system_errors import refuse_machine


class PackError(UserError):
    """A split cannot be packed, or not to its end."""


@dataclass(frozen=True)
class ShardTask:
    """The rows of one shard."""

    name: str
    rows: tuple[ClipRow, ...]


def shard_tasks(rows: Corpus, clips_per_shard: int) -> list[ShardTask]:
    """Divide the rows of a corpus into shards."""
    starts = range(0, len(rows.rows), clips_per_shard)
    return [
        ShardTask(f"shard-{i:06d}.tar", rows.rows[start : start + clips_per_shard])
        for i, start in enumerate(starts)
    ]


def refuse_other(out: Path, packing: Packing) -> None:
    """Raise :class:`PackError` when ``out`` holds shards that this call would overwrite.

    Raises :class:`~signfuse_dist.errors.MachineError` when its disk cannot say.
    """
    if (out / MANIFEST_NAME).exists():
        try:
            _refuse_difference(out, read_manifest(out).packing, packing)
        except VersionError as error:
            raise PackError(f"{out}: {error}") from error
        except ShardError as error:
            refuse_machine(error, out / MANIFEST_NAME)
            raise PackError(
                f"{out / MANIFEST_NAME}: {error.what}; remove it, and packing will go on from the "
                "shards that are whole"
            ) from error
    for path in sorted(out.glob("shard-*.index.json")):
        try:
            index = read_index(out, path.name.removesuffix(".index.json") + ".tar")
        except VersionError as error:
            raise PackError(f"{out}: {error}") from error
        except ShardError as error:
            refuse_machine(error, path)
            continue  # an index that cannot be read makes its shard an unfinished one
        _refuse_difference(out, index.packing, packing)


def _refuse_difference(out: Path, there: Packing, asked: Packing) -> None:
    differences = there.differences(asked)
    if differences:
        raise PackError(
            f"{out} holds another packing ({'; '.join(differences)}); choose another folder, or "
            "remove this one"
        )


def find_shard(
    out: Path, task: ShardTask, packing: Packing, compare_bytes: bool = True
) -> tuple[ShardIndex | None, str]:
    """Return the index of a shard that is finished and holds its rows, else None and why.

    A shard that was never finished has no reason: "". Raises
    :class:`~signfuse_dist.errors.MachineError` when the disk cannot say.
    """
    index_there = False
    try:
        index_there = (out / index_name(task.name)).exists()
        index = read_index(out, task.name)
        damage = _damage(out, task, packing, index, compare_bytes)
    except ShardError as error:
        refuse_machine(error, out / task.name)
        return None, error.what if index_there else ""
    except OSError as error:
        refuse_machine(error, out / task.name)
        return None, f"its tar cannot be read ({error.strerror})"
    return (None, damage) if damage else (index, "")


def _damage(
    out: Path, task: ShardTask, packing: Packing, index: ShardIndex, compare_bytes: bool
) -> str:
    """Return how a shard departs from its index and from its rows, "" where it does not."""
    size = (out / task.name).stat().st_size
    if size != index.size:
        return f"torn: {size} of {index.size} bytes are there"
    if index.packing != packing:
        return "it is of another packing"
    if not _holds_rows(index, task):
        return "it holds other clips than its rows"
    if compare_bytes and checksum(out / task.name) != index.sha256:
        return "its content does not agree with its checksum"
    return ""


def _holds_rows(index: ShardIndex, task: ShardTask) -> bool:
    """Return whether a shard holds its rows in their order, but for those that were dropped."""
    texts = index.packing.contents == "clips"
    dropped = {(row.row, row.id) for row in index.dropped}
    planned = [(r.id, r.text if texts else "") for r in task.rows if (r.row, r.id) not in dropped]
    return planned == [(sample.id, sample.text) for sample in index.samples] and len(
        index.samples
    ) + len(dropped) == len(task.rows)


def finished_indexes(
    tasks: Sequence[ShardTask], out: Path, packing: Packing, own: Sequence[ShardIndex]
) -> list[ShardIndex]:
    """Return the indexes of all finished shards in order, those of other tasks included.

    ``own`` are those that this task found or made. Raises :class:`PackError` when one of them is
    not whole any more.
    """
    there = [find_shard(out, task, packing, compare_bytes=False)[0] for task in tasks]
    indexes = {index.shard: index for index in there if index is not None}
    lost = [index.shard for index in own if indexes.get(index.shard) != index]
    if lost:
        raise PackError(
            f"{out}: {', '.join(lost)} was whole and is gone or changed since: something else "
            "works in this folder. Run the same command again to make what is missing"
        )
    return list(indexes.values())
