"""Whether a row or the machine is to blame for what a clip fails with."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import av
import pytest

from helpers.little_clips import write_corpus
from signfuse_dist.corpora import read_corpus
from signfuse_dist.data import faults
from signfuse_dist.data.clock import VideoError
from signfuse_dist.data.faults import Places, reason_of
from signfuse_dist.errors import MachineError


@pytest.fixture
def corpus(tmp_path: Path):
    table = write_corpus(tmp_path / "corpus", clips=2)
    return read_corpus("table", table, "train"), table


def caused(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


MACHINES = (
    *("ENOMEM", "EIO", "ESTALE", "ENOSPC", "EDQUOT", "EROFS", "ENOTCONN", "ETIMEDOUT"),
    *("EMFILE", "ENFILE", "ESHUTDOWN", "EHOSTDOWN", "EFBIG", "EKEYEXPIRED"),
)


@pytest.mark.parametrize("name", MACHINES)
def test_what_the_machine_fails_with_is_no_rows_fault_however_deep_it_lies(corpus, name):
    rows, _ = corpus
    number = getattr(errno, name)
    plain = OSError(number, os.strerror(number))
    for error in (plain, caused(VideoError("truncated video: 0.mp4"), plain)):
        with pytest.raises(MachineError) as stopped:
            reason_of(error, rows.rows[0], Places())
        message = str(stopped.value)
        for part in ("0.mp4", os.strerror(number), name, "then run the same command again"):
            assert part in message


def test_no_memory_is_no_rows_fault(corpus):
    rows, _ = corpus
    with pytest.raises(MachineError, match=r"0\.mp4: Cannot allocate memory \(ENOMEM\)"):
        reason_of(MemoryError(), rows.rows[0], Places())


@pytest.mark.parametrize("name", ["ENOENT", "EACCES", "EPERM", "EISDIR", "EINVAL"])
def test_a_file_that_is_absent_or_closed_is_its_rows_fault(corpus, name):
    rows, table = corpus
    number = getattr(errno, name)
    error = OSError(number, os.strerror(number), str(rows.rows[0].video))
    reason = reason_of(error, rows.rows[0], Places.of(table, rows.rows))
    assert reason.startswith("not packable: ")
    assert os.strerror(number) in reason
    assert str(table.parent) not in reason, "named as the table does"


def test_what_ffmpeg_says_of_a_damaged_file_is_not_taken_for_the_disks_fault(corpus):
    rows, table = corpus
    for number in (errno.EIO, errno.ENOMEM):
        decoder = av.error.classes[number](number, os.strerror(number), "0.mp4")
        for error in (
            caused(VideoError("truncated video: 0.mp4, 3 of 6 frames"), decoder),
            caused(MachineError("0.mp4: no input is to blame"), decoder),
        ):
            reason = reason_of(error, rows.rows[0], Places.of(table, rows.rows))
            assert reason == f"unreadable video: 0.mp4 ({os.strerror(number)}); is the file " + (
                "complete?"
            )


@pytest.mark.parametrize("name", ["ESTALE", "EMFILE", "ETIMEDOUT", "ENOTCONN"])
def test_what_ffmpeg_has_from_the_system_alone_is_the_machines_fault(corpus, name):
    rows, table = corpus
    number = getattr(errno, name)
    decoder = av.error.classes[number](number, os.strerror(number), "0.mp4")
    error = caused(VideoError("unreadable video: 0.mp4"), decoder)
    with pytest.raises(MachineError, match=name):
        reason_of(error, rows.rows[0], Places.of(table, rows.rows))


def test_a_file_that_ends_early_for_ffmpeg_and_cannot_be_read_is_the_disks_fault(
    corpus, monkeypatch
):
    rows, table = corpus
    early = VideoError("truncated video: 0.mp4, 3 of 6 frames (the file ends early)")
    assert reason_of(early, rows.rows[0], Places.of(table, rows.rows)) == str(early)

    def fails(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(faults, "_read", fails)
    with pytest.raises(MachineError, match=r"0\.mp4: Input/output error \(EIO\)"):
        reason_of(early, rows.rows[0], Places.of(table, rows.rows))
    other = VideoError("bad time: end 9 s is beyond the end of 0.mp4")
    assert reason_of(other, rows.rows[0], Places.of(table, rows.rows)) == str(other)


def test_a_decoder_without_memory_is_the_machines_fault_where_the_machine_has_none(
    corpus, monkeypatch
):
    rows, table = corpus
    decoder = av.error.classes[errno.ENOMEM](errno.ENOMEM, "Cannot allocate memory", "0.mp4")
    error = caused(VideoError("unreadable video: 0.mp4"), decoder)

    def full(*_: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(faults.mmap, "mmap", full)
    with pytest.raises(MachineError, match="Take fewer workers or ask for more memory"):
        reason_of(error, rows.rows[0], Places.of(table, rows.rows))


@pytest.mark.parametrize("left", ["nothing", "an empty folder", "a closed folder"])
def test_a_folder_that_vanished_is_no_rows_fault(corpus, tmp_path, monkeypatch, left):
    rows, table = corpus
    places = Places.of(table, rows.rows)
    missing = VideoError("missing video: 0.mp4 is no file and no folder of frames")
    rows.rows[0].video.unlink()
    assert reason_of(missing, rows.rows[0], places) == str(missing), "one file of many"
    table.parent.rename(tmp_path / "elsewhere")
    if left == "an empty folder":
        table.parent.mkdir()
    if left == "a closed folder":
        monkeypatch.setattr(faults.os, "scandir", _closed)
    with pytest.raises(MachineError) as stopped:
        reason_of(missing, rows.rows[0], places)
    assert str(stopped.value).startswith(f"{table.parent}: ")
    assert "run the same command again" in str(stopped.value)


def _closed(folder: Path) -> None:
    raise PermissionError(errno.EACCES, "Permission denied", str(folder))


def test_a_folder_that_was_never_there_is_its_rows_fault(corpus):
    rows, table = corpus
    lines = table.read_text().replace("0.mp4", "away/0.mp4")
    table.write_text(lines)
    rows = read_corpus("table", table, "train")
    missing = VideoError("missing video: 0.mp4 is no file and no folder of frames")
    assert reason_of(missing, rows.rows[0], Places.of(table, rows.rows)) == str(missing)


def test_of_very_many_folders_those_above_are_looked_after(corpus, monkeypatch):
    rows, table = corpus
    monkeypatch.setattr(faults, "_MOST_PLACES", 0)
    assert Places.of(table, ()).full == {table.parent}
    monkeypatch.setattr(faults, "_MOST_PLACES", 1)
    assert table.parent in Places.of(table, rows.rows).full
