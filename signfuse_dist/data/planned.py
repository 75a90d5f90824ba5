"""The rows of a table, planned by one task of an array and read by the others.

Reading a table of a million rows and looking into the folders of its videos takes a minute, and
each task of an array needs all of its rows. So the first one leaves them beside the shards, in
``planned.jsonl``, until the set is complete: a line that says what was planned from what, with a
checksum of all after it, and the rows in lines of many.

The file is believed where it is whole, of this version, and of this very table (its place, size and
checksum), and where nothing was added to or taken from the folders of the videos since. Else it is
named, and the table is planned again. Paths are looked up as in a table: none leads out.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from signfuse_dist import __version__
from signfuse_dist.corpora import (
    Box,
    ClipRow,
    Corpus,
    FolderFrames,
    Orphan,
    Rejected,
    Tree,
    read_corpus,
)
from signfuse_dist.files import checksum, write_bytes
from signfuse_dist.garbage import uncollected
from signfuse_dist.locks import HeldError, held
from signfuse_dist.system_errors import refuse_machine

PLANNED_NAME = "planned.jsonl"
_LOCK_NAME = ".planning.lock"
_VERSION = 2
_ROWS_A_LINE = 1000
_WAIT_SECONDS = 600.0  # for a task that plans now

_Edges = tuple[float, float, float, float]
_Row = tuple[
    int,  # its line in the table
    str,  # id
    str,  # video, else joints, as the table writes it
    str,  # text
    float | None,  # start
    float | None,  # end
    str | None,  # signer
    str | None,  # language
    str | None,  # joints, relative to the table
    list[str],  # flags
    _Edges | None,  # box
    bool,  # whether there is a video
    float | None,  # frames a second, of a folder or of joints alone
    tuple[int, int] | None,  # size of the picture that the joints are in
    str | None,  # corpus
]
_ROWS = TypeAdapter(list[_Row])


@dataclass(frozen=True)
class _Head:
    """The first line: what was planned, from what."""

    version: int
    signfuse: str
    table: dict[str, str | int]
    split: str
    name: str
    root: str
    rows_sha256: str
    folders: dict[str, int | None]
    num_rows: int
    rejected: list[Rejected]
    has_joints: bool
    pose_format: str | None
    orphans: list[Orphan]
    notes: list[str]
    rest_sha256: str


_HEAD = TypeAdapter(_Head)


class _StaleError(Exception):
    """The file is not what this task would plan; the message says why."""


@dataclass(frozen=True)
class PlannedRows:
    """The rows of a split, and the digest of all that shards take from them."""

    rows: Corpus
    digest: str


@contextmanager
def plan_rows(
    corpus: str, root: Path, split: str, out: Path, num_tasks: int, poses: str | None = None
) -> Iterator[PlannedRows]:
    """Give the rows of a split: read from the table, or from what another task planned in ``out``.

    Where the body of the ``with`` ends without an error, what this task planned is left to the
    others. One task alone shares nothing, and neither does a corpus that is no table.

    Raises as :func:`~signfuse_dist.corpora.read_corpus` does, and
    :class:`~signfuse_dist.errors.MachineError` when the disk of ``out`` fails.
    """
    if num_tasks == 1 or corpus != "table" or not root.is_file() or not _is_place(out):
        rows = read_corpus(corpus, root, split, poses)
        yield PlannedRows(rows, rows_digest(rows))
        return
    with _one_at_a_time(out):
        table = _identity(root)
        try:
            planned = _read(out / PLANNED_NAME, table, root, split)
            if poses is not None and planned.rows.pose_format != poses:
                raise _StaleError("was planned for another way of writing poses")
        except FileNotFoundError:
            planned = None
        except _StaleError as why:
            print(f"{out / PLANNED_NAME}: {why}; the table is planned again", file=sys.stderr)
            planned = None
        if planned is not None:
            yield planned
            return
        began = time.time_ns()
        rows = read_corpus(corpus, root, split, poses)
        planned = PlannedRows(rows, rows_digest(rows))
        folders = _folders(rows.rows)
        yield planned
        unchanged = all(changed is None or changed < began for changed in folders.values())
        if unchanged and _identity(root) == table:
            _write(out / PLANNED_NAME, table, folders, root, planned)


def forget(out: Path) -> None:
    """Remove what was planned: the set is complete."""
    (out / PLANNED_NAME).unlink(missing_ok=True)


def rows_digest(rows: Corpus) -> str:
    """Return a digest of all that the shards take from the table."""
    sha256 = hashlib.sha256(b"[[")
    for start in range(0, len(rows.rows), _ROWS_A_LINE):
        accepted = [
            [r.row, r.id, r.source, r.text, r.start, r.end, r.signer, r.language, r.flags]
            + ([list(r.folder)] if r.folder else [])
            + ([{"box": list(r.box)}] if r.box else [])
            + ([{"corpus": r.corpus}] if r.corpus else [])
            + ([{"size": list(r.size)}] if r.size else [])
            for r in rows.rows[start : start + _ROWS_A_LINE]
        ]
        # A piece at a time: lists of a million rows would be looked through as garbage.
        sha256.update((", " if start else "").encode() + json.dumps(accepted)[1:-1].encode())
    rejected = [[r.row, r.id, r.reason] for r in rows.rejected]
    sha256.update(b"], " + json.dumps(rejected).encode() + b"]")
    return sha256.hexdigest()


def _is_place(out: Path) -> bool:
    """Return whether ``out`` is a folder, made where it is missing; what is wrong is said later."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(out, os.W_OK)


@contextmanager
def _one_at_a_time(out: Path) -> Iterator[None]:
    """Wait for a task that plans here; go on without it where it takes too long."""
    with ExitStack() as until_end:
        lock = held(out / _LOCK_NAME, f"the rows of {out}", patience=_WAIT_SECONDS)
        try:
            until_end.enter_context(lock)
        except HeldError:
            pass  # both come to the same rows
        except OSError as error:  # a place that cannot be written is named by who writes shards
            refuse_machine(error, out)
        yield


def _identity(table: Path) -> dict[str, str | int]:
    try:
        size = table.stat().st_size
        return {"path": str(table.resolve()), "size": size, "sha256": checksum(table)}
    except OSError as error:
        refuse_machine(error, table)
        return {"path": str(table), "size": -1, "sha256": ""}  # of no table; reading it says why


def _folders(rows: Sequence[ClipRow]) -> dict[str, int | None]:
    """Return when each folder of the rows' videos was changed last, in nanoseconds."""
    folders: dict[str, Path] = {}
    for row in rows:
        place = row.source.rpartition("/")[0]
        if place not in folders:
            folders[place] = row.named_file.parent
    return {place: _changed(folder) for place, folder in folders.items()}


def _changed(folder: Path) -> int | None:
    try:
        return folder.stat().st_mtime_ns
    except OSError as error:
        refuse_machine(error, folder)
        return None


def _write(
    path: Path,
    table: dict[str, str | int],
    folders: dict[str, int | None],
    root: Path,
    planned: PlannedRows,
) -> None:
    rows, skipped = planned.rows, len(str(root.parent)) + 1 if str(root.parent) != "." else 0
    lines = []
    for start in range(0, len(rows.rows), _ROWS_A_LINE):
        part = [_fields(row, skipped) for row in rows.rows[start : start + _ROWS_A_LINE]]
        lines.append(json.dumps(part).encode() + b"\n")
    sha256 = hashlib.sha256()
    for line in lines:
        sha256.update(line)
    head = _Head(
        version=_VERSION,
        signfuse=__version__,
        table=table,
        split=rows.split,
        name=rows.name,
        root=rows.root,
        rows_sha256=planned.digest,
        folders=folders,
        num_rows=len(rows.rows),
        rejected=list(rows.rejected),
        has_joints=rows.has_joints,
        pose_format=rows.pose_format,
        orphans=list(rows.orphans),
        notes=list(rows.notes),
        rest_sha256=sha256.hexdigest(),
    )
    first = json.dumps(_HEAD.dump_python(head, mode="json")).encode()
    own = hashlib.sha256(first).hexdigest().encode()
    write_bytes(path, b"".join([own, b" ", first, b"\n", *lines]))


def _fields(row: ClipRow, skipped: int) -> list[Any]:
    joints = None if row.joints is None else str(row.joints)[skipped:]
    box = None if row.box is None else list(row.box)
    return [
        *(row.row, row.id, row.source, row.text, row.start, row.end, row.signer, row.language),
        *(joints, list(row.flags), box, row.video is not None),
        *(row.folder and row.folder.fps, row.size, row.corpus),
    ]


def _read(path: Path, table: dict[str, str | int], root: Path, split: str) -> PlannedRows:
    """Return what another task planned; raise _StaleError where that is not to be believed."""
    try:
        first, _, rest = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        raise
    except OSError as error:
        refuse_machine(error, path)
        raise _StaleError(f"cannot be read ({error.strerror})") from error
    own, _, content = first.partition(b" ")
    if hashlib.sha256(content).hexdigest().encode() != own:
        raise _StaleError("is torn or was changed: its first line has another checksum")
    try:
        said = json.loads(content)
        if (said["version"], said["signfuse"]) != (_VERSION, __version__):
            raise _StaleError("is of another version")
        head = _HEAD.validate_json(content)
        if hashlib.sha256(rest).hexdigest() != head.rest_sha256:
            raise _StaleError("is torn or was changed: its rows have another checksum")
        if head.table != table or head.split != split:
            raise _StaleError("was planned from another table, or for another split")
        with uncollected():
            rows = _rows(rest, head, root)
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise _StaleError("is not in the form of this version") from error
    if _folders(rows) != head.folders:
        raise _StaleError("the folders of the videos have changed since")
    corpus = Corpus(
        name=head.name,
        root=head.root,
        split=head.split,
        rows=rows,
        rejected=tuple(head.rejected),
        has_joints=head.has_joints,
        pose_format=head.pose_format,
        orphans=tuple(head.orphans),
        notes=tuple(head.notes),
    )
    return PlannedRows(corpus, head.rows_sha256)


def _rows(rest: bytes, head: _Head, root: Path) -> tuple[ClipRow, ...]:
    tree, rows = Tree(root.parent), []
    for line in rest.splitlines():
        for fields in _ROWS.validate_json(line, strict=True):
            number, clip_id, source, text, start, end, signer, language = fields[:8]
            joints, flags, box, has_video, fps, size, name = fields[8:]
            rows.append(
                ClipRow(
                    row=number,
                    id=clip_id,
                    video=tree.find(source, "video") if has_video else None,
                    source=source,
                    text=text,
                    start=start,
                    end=end,
                    signer=signer,
                    language=language,
                    split=head.split,
                    joints=None if joints is None else tree.find(joints, "joints"),
                    flags=tuple(flags),
                    folder=None if fps is None else FolderFrames(fps, None),
                    box=None if box is None else Box(*box),
                    corpus=name,
                    size=size,
                )
            )
    if len(rows) != head.num_rows:
        raise _StaleError("does not hold as many rows as it says")
    return tuple(rows)
