"""The rows that one task of an array plans, and the others read."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.little_clips import write_corpus, write_table
from signfuse_dist.corpora import Corpus, CorpusError, read_corpus
from signfuse_dist.data import planned as module
from signfuse_dist.data.manifest import PackConfig
from signfuse_dist.data.pack import PackError, pack
from signfuse_dist.data.planned import PLANNED_NAME, plan_rows, rows_digest
from signfuse_dist.errors import MachineError

COLUMNS = ("id", "video", "text", "start", "end", "signer", "joints", "box")
CONFIG = PackConfig(frame_size=32, clips_per_shard=2)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table with all that a row can hold, a row that is rejected, and an orphan."""
    folder = tmp_path / "corpus"
    (folder / "u\u0308ber").mkdir(parents=True)  # decomposed on the disk, composed in the table
    for name in ("a.mp4", "stray.mp4", "u\u0308ber/b.mp4"):
        (folder / name).touch()
    rows = [
        ("a", "a.mp4", "regen", "0.1", "2", "S1", "a.npz", "0 0 0.5 1"),
        ("b", "\u00fcber/b.mp4", "\u5929\u6c14", "", "", "", "\u00fcber/b.npz", ""),
        ("c", "missing.mp4", "sonne", "", "3.25", "", "c.npz", ""),
        ("d", "../out.mp4", "wind", "", "", "", "d.npz", ""),
    ]
    path = write_table(folder / "corpus.tsv", rows, COLUMNS)
    past = time.time() - 60
    for place in (folder, folder / "u\u0308ber"):
        os.utime(place, (past, past))
    return path


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The tables that were read, each time."""
    read: list[Path] = []

    def noting(corpus: str, root: Path, split: str, poses: str | None) -> Corpus:
        read.append(root)
        return read_corpus(corpus, root, split, poses)

    monkeypatch.setattr(module, "read_corpus", noting)
    return read


def plan(table: Path, out: Path, split: str = "train", num_tasks: int = 2) -> tuple[Corpus, str]:
    with plan_rows("table", table, split, out, num_tasks) as planned:
        return planned.rows, planned.digest


def test_the_second_task_does_not_read_the_table_and_has_the_same_rows(
    table: Path, tmp_path: Path, reads: list[Path]
) -> None:
    first, second = plan(table, tmp_path / "out"), plan(table, tmp_path / "out")
    assert reads == [table]
    assert first == second
    assert first[0] == read_corpus("table", table, "train")
    assert first[0].rejected
    assert first[0].orphans
    assert {row.id for row in first[0].rows} == {"a", "b", "c"}


def test_one_task_alone_leaves_nothing(table: Path, tmp_path: Path) -> None:
    plan(table, tmp_path / "out", num_tasks=1)
    assert not (tmp_path / "out").exists()


def test_the_digest_is_that_of_shards_that_are_there(table: Path, monkeypatch) -> None:
    """Of one JSON text, as it was before rows were taken in pieces."""
    rows = read_corpus("table", table, "train")
    accepted = [
        [r.row, r.id, r.source, r.text, r.start, r.end, r.signer, r.language, r.flags]
        + ([{"box": list(r.box)}] if r.box else [])
        for r in rows.rows
    ]
    rejected = [[r.row, r.id, r.reason] for r in rows.rejected]
    wanted = hashlib.sha256(json.dumps([accepted, rejected]).encode()).hexdigest()
    for size in (1, 2, 3, 1000):
        monkeypatch.setattr(module, "_ROWS_A_LINE", size)
        assert rows_digest(rows) == wanted
    nothing = replace(rows, rows=(), rejected=())
    assert rows_digest(nothing) == hashlib.sha256(b"[[], []]").hexdigest()


def change_text(table: Path) -> None:
    content = table.read_text(encoding="utf-8")
    table.write_text(content.replace("regen", "nebel"), encoding="utf-8")


def add_video(table: Path) -> None:
    (table.parent / "another.mp4").touch()


@pytest.mark.parametrize("change", [change_text, add_video])
def test_what_changed_is_planned_again_and_said(
    table: Path, tmp_path: Path, reads: list[Path], capsys, change
) -> None:
    plan(table, tmp_path / "out")
    change(table)
    assert plan(table, tmp_path / "out")[0] == read_corpus("table", table, "train")
    assert reads == [table, table]
    said = capsys.readouterr().err
    assert f"{tmp_path / 'out' / PLANNED_NAME}: " in said
    assert said.endswith("; the table is planned again\n")


def test_another_split_is_planned_by_itself(table: Path, tmp_path: Path, reads: list[Path]) -> None:
    plan(table, tmp_path / "out")
    assert plan(table, tmp_path / "out", split="dev")[0].split == "dev"
    assert len(reads) == 2


def damages(content: bytes) -> dict[str, bytes]:
    first, _, rest = content.partition(b"\n")
    body = first.partition(b" ")[2]

    def sealed(changed: bytes, rows: bytes = rest) -> bytes:
        return hashlib.sha256(changed).hexdigest().encode() + b" " + changed + b"\n" + rows

    outside = rest.replace(b'"a.mp4"', b'"../../../../etc/passwd"')
    resealed = body.replace(
        hashlib.sha256(rest).hexdigest().encode(), hashlib.sha256(outside).hexdigest().encode()
    )
    return {
        "torn rows": content[:-20],
        "torn head": content[:100],
        "empty": b"",
        "a changed text": content.replace(b"regen", b"nebel"),
        "a changed head": content.replace(b'"num_rows": 3', b'"num_rows": 2'),
        "another version": sealed(body.replace(b'"version": 2', b'"version": 3')),
        "another form": sealed(b'{"version": 1, "signfuse": "0.1.0"}'),
        "no object": sealed(b"[]"),
        "other fields": sealed(body.replace(b'"notes": [', b'"notes": [7, ')),
        "a path that leads out": sealed(resealed, outside),
    }


@pytest.mark.parametrize("damage", damages(b""))
def test_a_file_that_is_not_to_be_believed_is_named_and_the_table_planned_again(
    table: Path, tmp_path: Path, reads: list[Path], capsys, damage: str
) -> None:
    first = plan(table, tmp_path / "out")
    path = tmp_path / "out" / PLANNED_NAME
    whole = path.read_bytes()
    path.write_bytes(damages(whole)[damage])
    assert path.read_bytes() != whole
    assert plan(table, tmp_path / "out") == first
    assert len(reads) == 2
    assert f"{path}: " in capsys.readouterr().err
    assert path.read_bytes() == whole


def test_two_tasks_that_start_at_once_are_both_right_and_one_reads(
    table: Path, tmp_path: Path, reads: list[Path]
) -> None:
    planned: list[tuple[Corpus, str]] = []
    tasks = [
        threading.Thread(target=lambda: planned.append(plan(table, tmp_path / "out")))
        for _ in range(4)
    ]
    for task in tasks:
        task.start()
    for task in tasks:
        task.join()
    assert [rows for rows, _ in planned] == [read_corpus("table", table, "train")] * 4
    assert reads == [table]
    assert [path.name for path in (tmp_path / "out").iterdir()] == [PLANNED_NAME]


def test_a_task_that_waits_too_long_plans_by_itself(
    table: Path, tmp_path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_WAIT_SECONDS", 0.3)
    with plan_rows("table", table, "train", tmp_path / "out", 2) as first:
        assert plan(table, tmp_path / "out") == (first.rows, first.digest)
    assert len(reads) == 2


def test_a_table_that_changes_while_it_is_planned_is_not_shared(
    table: Path, tmp_path: Path
) -> None:
    with plan_rows("table", table, "train", tmp_path / "out", 2):
        change_text(table)
    assert not (tmp_path / "out" / PLANNED_NAME).exists()


def test_what_cannot_be_packed_is_not_shared(table: Path, tmp_path: Path) -> None:
    with pytest.raises(PackError), plan_rows("table", table, "train", tmp_path / "out", 2):
        raise PackError("another packing")
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(CorpusError, match="absent"):
        plan(tmp_path / "absent.tsv", tmp_path / "out")


def test_a_disk_that_is_full_of_what_was_planned_is_the_machines_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = write_corpus(tmp_path / "corpus", clips=2)
    past = time.time() - 60
    os.utime(table.parent, (past, past))

    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "write_bytes", full)
    with pytest.raises(MachineError, match=rf"{tmp_path / 'out'}: No space left"):
        pack("table", table, "train", tmp_path / "out", CONFIG, workers=0, num_tasks=2)
    assert list((tmp_path / "out").iterdir()) == []


def test_shards_of_tasks_that_share_are_those_of_one_task_byte_for_byte(
    tmp_path: Path, reads: list[Path]
) -> None:
    table = write_corpus(tmp_path / "corpus", clips=5)
    past = time.time() - 60
    os.utime(table.parent, (past, past))
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    pack("table", table, "train", alone, CONFIG, workers=0)
    reads.clear()
    for task in range(3):
        pack("table", table, "train", shared, CONFIG, workers=0, task_id=task, num_tasks=3)
        assert (shared / PLANNED_NAME).exists() == (task < 2)
    assert reads == [table]
    packed = [{p.name: p.read_bytes() for p in folder.iterdir()} for folder in (alone, shared)]
    assert packed[0] == packed[1]
