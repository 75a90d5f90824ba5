"""Packing on a machine that fails, in a folder that others change, and of rows that failed once."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from helpers.little_clips import COLUMNS, write_corpus, write_joints, write_table, write_video
from helpers.repository import ROOT
from signfuse_dist.cli import main
from signfuse_dist.data import pack as packing
from signfuse_dist.data.joints import FrameTracker, Joints, PoseExtractor
from signfuse_dist.data.manifest_files import index_bytes, read_index
from signfuse_dist.data.pack import PackConfig, PackError, PackSummary, pack
from signfuse_dist.data.picture import VideoFrame
from signfuse_dist.data.verify import verify
from signfuse_dist.errors import MachineError

CONFIG = PackConfig(frame_size=32, clips_per_shard=2)


def packed(table: Path, out: Path, workers: int = 0, **options) -> PackSummary:
    return pack("table", table, "train", out, CONFIG, workers=workers, **options)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def stamps(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tar")}


@pytest.fixture
def corpus(tmp_path: Path) -> tuple[Path, dict[str, bytes]]:
    """A table of six clips, and the files that they are packed into undisturbed."""
    table = write_corpus(tmp_path / "corpus", 6)
    packed(table, tmp_path / "undisturbed")
    return table, files(tmp_path / "undisturbed")


class Disturbed(PoseExtractor):
    """Finds the joints of the table's own files, and does something at one clip."""

    name, version = "synthetic", "1"

    def __init__(self, at: int, what: Callable[[], object]) -> None:
        self.left, self.what = at, what

    def extract(self, frames: Iterable[VideoFrame]) -> Joints:
        if self.left == 0:
            self.what()
        self.left -= 1
        indices = np.array([frame.index for frame in frames])
        pose = np.zeros((len(indices), 75, 2), np.float32)
        pose += indices.astype(np.float32)[:, None, None] / 100 + 0.1
        return Joints(pose, np.ones((len(indices), 75), bool))


@pytest.mark.parametrize("name", ["EIO", "ESTALE", "ENOMEM", "EMFILE", "ETIMEDOUT"])
def test_a_disk_that_fails_drops_nothing_and_the_same_command_goes_on(
    corpus, tmp_path, monkeypatch, name
):
    table, expected = corpus
    out, whole = tmp_path / "out", packing.encode_clip
    tried = []

    def failing(row, *others):
        tried.append(row.id)
        if row.id == "clip.3":
            number = getattr(errno, name)
            raise OSError(number, os.strerror(number), str(row.video))
        return whole(row, *others)

    monkeypatch.setattr(packing, "encode_clip", failing)
    with pytest.raises(MachineError, match=rf"shard-000001\.tar: .*3\.mp4: .*\({name}\)"):
        packed(table, out)
    assert tried == ["clip.0", "clip.1", "clip.2", "clip.3"], "rows after it were not tried"
    assert sorted(files(out)) == ["shard-000000.index.json", "shard-000000.tar"]
    monkeypatch.undo()
    packed(table, out)
    assert files(out) == expected


def test_no_memory_for_a_clip_drops_nothing(corpus, tmp_path, monkeypatch):
    table, _ = corpus

    def failing(*_):
        raise MemoryError

    monkeypatch.setattr(packing, "encode_clip", failing)
    with pytest.raises(MachineError, match="Cannot allocate memory"):
        packed(table, tmp_path / "out")
    assert files(tmp_path / "out") == {}


def test_an_extractor_without_memory_or_disk_drops_nothing(tmp_path):
    class Failing(FrameTracker):
        name, version = "failing", "1"

        def restart(self, after_failure):
            pass

        def find(self, picture, number):
            raise OSError(errno.EIO, "Input/output error", "holistic.task")

    table = write_corpus(tmp_path / "corpus", 2)
    with pytest.raises(MachineError, match=r"holistic\.task: Input/output error"):
        packed(table, tmp_path / "out", extractor=Failing())


def test_a_corpus_that_vanishes_on_the_way_drops_nothing(corpus, tmp_path, capsys):
    table, expected = corpus
    away, out = tmp_path / "away", tmp_path / "out"
    vanish = Disturbed(2, lambda: table.parent.rename(away))
    with pytest.raises(MachineError) as stopped:
        packed(table, out, extractor=vanish)
    assert f"{table.parent}: is empty or gone" in str(stopped.value)
    assert sorted(files(out)) == ["shard-000000.index.json", "shard-000000.tar"]
    table.parent.mkdir()  # the mount point alone is there
    away.rename(table.parent)
    packed(table, out)
    assert files(out) == expected


def test_the_joints_of_a_pose_set_wait_for_a_disk_as_well(corpus, tmp_path, monkeypatch):
    table, _ = corpus
    out = tmp_path / "out"
    packed(table, out)

    def failing(*_, **__):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(packing, "encode_pose", failing)
    with pytest.raises(MachineError, match="ESTALE"):
        packing.extract_poses("table", table, "train", out, "again", workers=0)
    assert files(out / "poses" / "again") == {}


def command(table: Path, out: Path, *more: object, limit: int | None = None):
    words = ["pack", "table", "--root", table, "--split", "train", "--out", out, "--frame-size", 32]
    words += ["--clips-per-shard", 2, *more]
    return subprocess.run(
        [sys.executable, "-m", "signfuse_dist.cli", *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limit
        and (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))),
    )


def test_a_file_that_cannot_be_written_to_its_end_leaves_nothing_and_ends_with_75(corpus, tmp_path):
    table, expected = corpus
    out = tmp_path / "out"
    done = command(table, out, "--workers", 2, limit=8192)
    assert done.returncode == 75, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "File too large (EFBIG)" in line
    assert "run the same command again" in line
    assert files(out) == {}, "no half of a file keeps a full disk full"
    assert command(table, out, "--workers", 0).returncode == 0
    assert files(out) == expected


@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT", "EROFS"])
def test_a_full_disk_is_named_with_its_place_and_leaves_no_half_of_a_file(
    corpus, tmp_path, monkeypatch, name
):
    table, expected = corpus
    out, sync, calls = tmp_path / "out", os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 6:  # the lock, two files and their folder for each, then the second tar
            number = getattr(errno, name)
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MachineError, match=rf"shard-000001\.tar: .*\({name}\)"):
        packed(table, out)
    monkeypatch.undo()
    assert sorted(files(out)) == ["shard-000000.index.json", "shard-000000.tar"]
    packed(table, out)
    assert files(out) == expected


def test_a_place_that_may_not_be_written_is_an_error_without_a_traceback(
    corpus, tmp_path, monkeypatch
):
    table, _ = corpus

    def closed(self, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", closed)
    with pytest.raises(PackError, match=r"out: cannot be written \(Permission denied\)"):
        packed(table, tmp_path / "out")


def test_an_index_that_the_disk_does_not_give_is_no_reason_to_make_its_shard_again(
    corpus, tmp_path, monkeypatch
):
    table, _ = corpus
    out = tmp_path / "out"
    packed(table, out)
    before, read = stamps(out), Path.read_bytes

    def failing(self):
        if self.name == "shard-000001.index.json":
            raise OSError(errno.EIO, "Input/output error", str(self))
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", failing)
    with pytest.raises(MachineError, match=r"shard-000001\.index\.json: .*EIO"):
        packed(table, out)
    assert stamps(out) == before


@pytest.mark.parametrize("lost", ["deleted", "truncated", "without its index"])
def test_a_shard_that_is_lost_under_a_running_pack_is_noticed_before_the_manifest(
    corpus, tmp_path, lost
):
    table, expected = corpus
    out = tmp_path / "out"
    shard = out / "shard-000000.tar"

    def lose() -> None:
        if lost == "truncated":
            os.truncate(shard, 5000)
        else:
            (shard if lost == "deleted" else out / "shard-000000.index.json").unlink()

    with pytest.raises(PackError, match=r"shard-000000\.tar was whole and is gone or changed"):
        packed(table, out, extractor=Disturbed(4, lose))
    assert not (out / "manifest.json").exists()
    packed(table, out)
    assert files(out) == expected


def swap(out: Path) -> None:
    """Swap two shards with their indexes, names and checksums inside included."""
    one, other = (read_index(out, f"shard-00000{i}.tar") for i in (0, 1))
    tars = {index.shard: (out / index.shard).read_bytes() for index in (one, other)}
    for index, name in ((one, other.shard), (other, one.shard)):
        (out / name).write_bytes(tars[index.shard])
        path = out / name.replace(".tar", ".index.json")
        path.write_bytes(index_bytes(type(index)(name, *list(vars(index).values())[1:6])))


@pytest.mark.parametrize("finished", [True, False])
def test_shards_that_were_swapped_with_their_indexes_are_noticed(corpus, tmp_path, finished):
    table, expected = corpus
    out = tmp_path / "out"
    packed(table, out)
    swap(out)
    faults = {(fault.shard, fault.what) for fault in verify(out, 0)}
    for name in ("shard-000000", "shard-000001"):
        assert (f"{name}.index.json", "does not agree with the manifest") in faults
    if not finished:
        (out / "manifest.json").unlink()
    before = stamps(out)
    summary = packed(table, out)
    assert files(out) == expected
    assert stamps(out)["shard-000002.tar"] == before["shard-000002.tar"]
    assert "made again: shard-000000.tar (it holds other clips than its rows)" in str(summary)


def test_a_shard_with_other_texts_than_its_rows_is_made_again(corpus, tmp_path):
    table, expected = corpus
    out = tmp_path / "out"
    packed(table, out)
    path = out / "shard-000001.index.json"
    document = json.loads(path.read_text())
    del document["index_sha256"]  # as one of before
    document["samples"][0]["text"] = "something else"
    path.write_text(json.dumps(document))
    packed(table, out)
    assert files(out) == expected


def test_rows_that_were_dropped_are_tried_again_where_that_is_asked_for(corpus, tmp_path):
    table, expected = corpus
    out, away = tmp_path / "out", tmp_path / "3.mp4"
    (table.parent / "3.mp4").rename(away)
    assert packed(table, out).reasons == {"missing video": 1}
    assert main(["verify", str(out), "--workers", "0"]) == 0
    away.rename(table.parent / "3.mp4")
    before = stamps(out)
    assert packed(table, out).reasons == {"missing video": 1}, "a dropped row stays dropped"
    assert stamps(out) == before
    summary = packed(table, out, retry_dropped=True)
    assert (summary.num_packed, len(summary.dropped)) == (6, 0)
    changed = {name for name, stamp in stamps(out).items() if stamp != before[name]}
    assert changed == {"shard-000001.tar"}
    stamp = (out / "verified.json").read_bytes()
    assert files(out) == {**expected, "verified.json": stamp}
    assert not packing.load_manifest(out).num_dropped
    from signfuse_dist.data.stamp import is_verified

    assert not is_verified(out), "what was verified is another set"


def test_a_set_of_which_nothing_was_packed_is_tried_again_in_its_place(tmp_path):
    folder, out = tmp_path / "corpus", tmp_path / "out"
    table = write_corpus(folder, 3)
    for video in folder.glob("*.mp4"):
        video.rename(tmp_path / video.name)
    with pytest.raises(PackError) as error:
        packed(table, out)
    for part in (
        "none of the 3 rows could be packed: missing video (3 of 3), such as row 2, 'clip.0': ",
        "dropped.tsv names them all",
        "--retry-dropped",
    ):
        assert part in str(error.value)
    for video in tmp_path.glob("*.mp4"):
        video.rename(folder / video.name)
    assert packed(table, out, retry_dropped=True).num_packed == 3
    packed(table, tmp_path / "fresh")
    assert files(out) == files(tmp_path / "fresh")


def test_a_retry_that_ends_in_a_fault_leaves_an_unfinished_set_that_goes_on(corpus, tmp_path):
    table, expected = corpus
    out, away = tmp_path / "out", tmp_path / "3.mp4"
    (table.parent / "3.mp4").rename(away)
    packed(table, out)
    away.rename(table.parent / "3.mp4")
    fail = Disturbed(0, lambda: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(MachineError):
        packed(table, out, extractor=fail, retry_dropped=True)
    assert not (out / "manifest.json").exists()
    packed(table, out, retry_dropped=True)
    assert files(out) == expected


def test_a_first_shard_that_fails_whole_is_said_at_once(tmp_path, capsys):
    rows = [(f"id{i}", f"{i}.mp4", "x", f"{i}.npz") for i in range(4)]
    for i in (2, 3):
        write_video(tmp_path / f"{i}.mp4")
        write_joints(tmp_path / f"{i}.npz")
    packed(write_table(tmp_path / "t.tsv", rows, COLUMNS), tmp_path / "out")
    said = capsys.readouterr().err
    assert "shard-000000.tar: none of its rows could be packed: missing video (2 of 2)" in said
    assert "such as row 2, 'id0': missing video: 0.mp4" in said


def test_clips_in_which_joints_were_found_in_few_frames_are_named_worst_first(tmp_path):
    class Seldom(PoseExtractor):
        name, version = "seldom", "1"
        clips = 0

        def extract(self, frames):
            count, found = sum(1 for _ in frames), (6, 1, 0, 5)[self.clips]
            self.clips += 1
            mask = np.zeros((count, 75), bool)
            mask[:found, 40] = True
            return Joints(np.zeros((count, 75, 2), np.float32), mask)

    table, out = write_corpus(tmp_path / "corpus", 4), tmp_path / "out"
    summary = packed(table, out, extractor=Seldom())
    assert (
        "  warning: joints were found in less than half of the frames of 2 of 4 clips, and in "
        "44.4% of all frames (worst: clip.2: 0 of 8, clip.1: 1 of 7)"
    ) in str(summary)
    again = packed(table, out, extractor=Seldom())
    assert again.seldom_found == summary.seldom_found, "counted from the shards that are there"
    assert verify(out, 0) == []


def test_nobody_is_warned_of_joints_that_nobody_looked_for(tmp_path):
    from signfuse_dist.data.joints import NoJoints

    table = write_corpus(tmp_path / "corpus", 2)
    assert "warning" not in str(packed(table, tmp_path / "out", extractor=NoJoints()))


def test_control_characters_of_ids_and_names_are_printed_as_escapes(tmp_path, capsys):
    write_video(tmp_path / "a.mp4")
    write_joints(tmp_path / "a.npz", 8, slice(None))
    rows = [("good", "a.mp4", "x", "a.npz"), ("b\u202ed", "a.mp4", "x", "a.npz")]
    rows.append(("bad\x1b[2J", "a.mp4", "x", "a.npz"))
    table = write_table(tmp_path / "t.tsv", rows, COLUMNS)
    summary = str(packed(table, tmp_path / "out"))
    assert "b\\u202ed" in summary
    assert "bad\\x1b[2J" in summary
    assert "\x1b" not in summary + (tmp_path / "out" / "dropped.tsv").read_text()
    assert main(["pack", "table", "--root", "no\x1b[2J.tsv", "--split", "a", "--out", "b"]) == 2
    assert "\\x1b[2J.tsv" in capsys.readouterr().err
