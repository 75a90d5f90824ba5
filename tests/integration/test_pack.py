from __future__ import annotations

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from helpers.little_clips import (
    COLUMNS,
    truncated,
    write_corpus,
    write_joints,
    write_table,
    write_video,
)
from signfuse_dist.data.joints import FrameTracker, Joints, NoJoints
from signfuse_dist.data.pack import PackConfig, PackError, PackSummary, pack
from signfuse_dist.data.shard import load_index, load_manifest, read_clip
from signfuse_dist.data.verify import verify
from signfuse_dist.errors import UserError
from signfuse_dist.writer import Writer

CONFIG = PackConfig(frame_size=32, clips_per_shard=2)


def packed(table: Path, out: Path, workers: int = 0, **options) -> PackSummary:
    return pack(
        "table", table, "train", out, options.pop("config", CONFIG), workers=workers, **options
    )


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def samples(folder: Path):
    manifest = load_manifest(folder)
    return [(e.name, s) for e in manifest.shards for s in load_index(folder, e).samples]


def test_a_corpus_is_packed_whole(tmp_path):
    summary = packed(write_corpus(tmp_path, 5), tmp_path / "out")
    assert summary.complete
    assert str(summary).startswith("train: 5 rows = 5 packed + 0 dropped")
    manifest = load_manifest(tmp_path / "out")
    assert [e.num_samples for e in manifest.shards] == [2, 2, 1]
    assert (manifest.num_frames, manifest.packing.extractor) == (6 + 7 + 8 + 6 + 7, "synthetic")
    shard, sample = samples(tmp_path / "out")[1]
    clip = read_clip(tmp_path / "out", shard, sample.members)
    assert clip.frames.shape == (7, 32, 32, 3)
    assert np.allclose(clip.pose[:, 0, 0], np.arange(7) / 100 + 0.1)
    assert clip.record["fps"] == 10.0
    assert clip.record["source"] == "1.mp4"
    assert verify(tmp_path / "out", 0) == []


def test_every_bad_clip_is_a_dropped_row_and_costs_no_other(tmp_path):
    for name in ("good", "short", "one", "empty", "foreign", "mute"):
        frames = 1 if name == "one" else 8
        write_video(tmp_path / f"{name}.mp4", frames)
        write_joints(tmp_path / f"{name}.npz", frames, slice(None) if name == "empty" else slice(0))
    write_video(tmp_path / "torn.mp4", 40, movflags="faststart")
    truncated(tmp_path / "torn.mp4", 0.6)
    write_joints(tmp_path / "few.npz", 3)
    write_joints(tmp_path / "handless.npz", 8, slice(0, 21))
    rows = [
        ("good", "good.mp4", "a sentence", "good.npz"),
        ("good", "good.mp4", "the same id", "good.npz"),
        ("missing", "missing.mp4", "no such file", "good.npz"),
        ("torn", "torn.mp4", "cut short", "good.npz"),
        ("a/../b", "good.mp4", "a path", "good.npz"),
        ("mute", "mute.mp4", "", "mute.npz"),
        ("malformed", "good.mp4"),
        ("few", "good.mp4", "too few joints", "few.npz"),
        ("one", "one.mp4", "one frame", "one.npz"),
        ("empty", "empty.mp4", "nobody there", "empty.npz"),
        ("foreign", "foreign.mp4", "漢字", "foreign.npz"),
        ("handless", "good.mp4", "one hand", "handless.npz"),
    ]
    summary = packed(write_table(tmp_path / "t.tsv", rows, COLUMNS), tmp_path / "out")
    assert (summary.num_rows, summary.num_packed, len(summary.dropped)) == (12, 5, 7)
    assert summary.reasons == {
        "duplicate id": 1,
        "missing video": 1,
        "truncated video": 1,
        "bad id": 1,
        "empty text": 1,
        "malformed row": 1,
        "bad joints": 1,
    }
    assert summary.flagged == {
        "no_left_hand": ("empty", "handless"),
        "no_person": ("empty",),
        "no_right_hand": ("empty",),
        "script:HAN": ("foreign",),
    }
    printed = str(summary)
    assert "12 rows = 5 packed + 7 dropped" in printed
    assert "script:HAN: 1 (foreign)" in printed
    lines = (tmp_path / "out" / "dropped.tsv").read_text().splitlines()
    assert lines[0] == "row\tid\treason"
    assert len(lines) == 8
    assert lines[3].startswith("5\ttorn\ttruncated video: torn.mp4, ")
    assert "of 40 frames" in lines[3]
    assert load_manifest(tmp_path / "out").num_flagged == 3
    assert verify(tmp_path / "out", 0) == []


def test_windows_and_frame_rates_choose_frames_and_joints_alike(tmp_path):
    write_video(tmp_path / "v.mp4", 50)
    write_joints(tmp_path / "v.npz", 50)
    rows = [("a", "v.mp4", "x", "v.npz", 3.0, 4.0), ("b", "v.mp4", "y", "v.npz", 4.0, 9.0)]
    table = write_table(tmp_path / "t.tsv", rows, (*COLUMNS, "start", "end"))
    config = PackConfig(frame_size=32, fps=5.0)
    summary = packed(table, tmp_path / "out", config=config)
    assert summary.dropped[0].reason == "bad time: end 9 s is beyond the end of v.mp4, 5.00 s"
    ((shard, sample),) = samples(tmp_path / "out")
    clip = read_clip(tmp_path / "out", shard, sample.members)
    assert np.allclose(clip.pose[:, 0, 0], np.array([30, 32, 34, 36, 38]) / 100 + 0.1)
    brightness = clip.frames[:, 16, 24, 0].astype(float)
    assert np.allclose(brightness, 40 + 3 * np.array([30, 32, 34, 36, 38]), atol=4)
    assert (clip.record["fps"], clip.record["start"], clip.record["end"]) == (5.0, 3.0, 4.0)


def test_the_number_of_workers_and_of_tasks_does_not_show_in_the_files(tmp_path):
    table = write_corpus(tmp_path, 5)
    packed(table, tmp_path / "alone")
    packed(table, tmp_path / "two", workers=2)
    first = packed(table, tmp_path / "tasks", task_id=1, num_tasks=2)
    assert not first.complete
    assert "1 of 3 shards" in str(first)
    assert not (tmp_path / "tasks" / "manifest.json").exists()
    assert packed(table, tmp_path / "tasks", task_id=0, num_tasks=2).complete
    assert files(tmp_path / "alone") == files(tmp_path / "two") == files(tmp_path / "tasks")


def test_finished_shards_are_kept_and_damaged_ones_packed_again(tmp_path):
    table, out = write_corpus(tmp_path, 5), tmp_path / "out"
    packed(table, out)
    before = files(out)
    stamps = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    (out / "manifest.json").unlink()
    truncated(out / "shard-000001.tar", 0.5)
    flipped = bytearray(before["shard-000000.tar"])
    flipped[3000] ^= 1
    (out / "shard-000000.tar").write_bytes(flipped)
    (out / ".shard-000002.tar.0123.tmp").write_bytes(b"left by a killed process")
    summary = packed(table, out)
    assert summary.new_frames == 6 + 7 + 8 + 6, "only the damaged shards are packed again"
    assert files(out) == before
    for path in out.glob("*.tar"):
        assert (path.stat().st_mtime_ns == stamps[path.name]) == (path.name == "shard-000002.tar")


def test_a_folder_with_another_packing_is_never_overwritten(tmp_path):
    table, out = write_corpus(tmp_path, 3), tmp_path / "out"
    packed(table, out)
    before = files(out)
    with pytest.raises(PackError, match="frame_size is 32, asked 64"):
        packed(table, out, config=PackConfig(frame_size=64, clips_per_shard=2))
    with pytest.raises(PackError, match="split is 'train', asked 'dev'"):
        pack("table", table, "dev", out, CONFIG, workers=0)
    table.write_text(table.read_text().replace("sentence 1", "another sentence"))
    (out / "manifest.json").unlink()
    with pytest.raises(PackError, match="rows_sha256"):
        packed(table, out)
    assert files(out) == {k: v for k, v in before.items() if k != "manifest.json"}


def test_a_corpus_of_which_nothing_can_be_packed_is_an_error(tmp_path):
    table = write_table(tmp_path / "t.tsv", [("a", "a.mp4", "x", "a.npz")], COLUMNS)
    with pytest.raises(PackError, match=r"none of the 1 rows could be packed: .*dropped.tsv"):
        packed(table, tmp_path / "out")
    assert "missing video: a.mp4" in (tmp_path / "out" / "dropped.tsv").read_text()
    assert not (tmp_path / "out" / "manifest.json").exists()


class Tracker:
    """Stands for a pose model in which one clip is fatal."""

    name, version, seconds = "mediapipe-holistic", "0", 0.0

    def extract(self, frames):
        indices = [frame.index for frame in frames]
        if len(indices) == 7:
            os.kill(os.getpid(), signal.SIGSEGV)
        if len(indices) == 8:
            raise RuntimeError("the graph stopped")
        return Joints(
            np.zeros((len(indices), 75, 2), np.float32), np.zeros((len(indices), 75), bool)
        )


def write_bare_corpus(folder: Path, clips: int) -> Path:
    table = write_corpus(folder, clips)
    rows = [line.split("\t")[:3] for line in table.read_text().splitlines()]
    return write_table(table, rows[1:], rows[0])


def test_a_worker_that_dies_is_reported_by_shard_and_clip(tmp_path):
    table = write_bare_corpus(tmp_path, 5)
    with pytest.raises(PackError) as error:
        packed(table, tmp_path / "out", workers=1, extractor=Tracker())
    message = str(error.value)
    assert "shard-000000.tar: a worker process died (killed by SIGSEGV) at clip 'clip.1'" in message
    assert "shard-000002.tar" in message
    assert "all other shards are done" in message
    index = json.loads((tmp_path / "out" / "shard-000001.index.json").read_text())
    assert [sample["id"] for sample in index["samples"]] == ["clip.3"]
    assert index["dropped"][0]["reason"] == "not packable: RuntimeError the graph stopped"
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_wrong_arguments_are_named(tmp_path):
    table = write_corpus(tmp_path, 1)
    with pytest.raises(PackError, match="task 2 of 2"):
        packed(table, tmp_path / "out", task_id=2, num_tasks=2)
    with pytest.raises(PackError, match="workers -1"):
        packed(table, tmp_path / "out", workers=-1)
    (tmp_path / "out").write_text("a file")
    with pytest.raises(PackError, match="is a file"):
        packed(table, tmp_path / "out")


def test_verify_names_each_fault(tmp_path):
    table, out = write_corpus(tmp_path, 6), tmp_path / "out"
    packed(table, out)
    assert verify(out, workers=2) == []
    shard, sample = samples(out)[0]
    content = bytearray((out / shard).read_bytes())
    start = sample.members["pose.npy"][0] + 128
    content[start : start + 4] = np.float32("nan").tobytes()
    content[sample.members["jpegs"][0]] = 0
    (out / shard).write_bytes(content)
    truncated(out / "shard-000001.tar", 0.5)
    (out / "shard-000002.index.json").unlink()
    (out / "shard-000009.tar").write_bytes(b"")
    faults = [str(fault) for fault in verify(out, 0)]
    for expected in (
        "shard-000000.tar: its content does not agree with its checksum",
        "shard-000000.tar, clip clip%2E0: frame 0: no JPEG",
        "shard-000001.tar: torn: ",
        "shard-000001.tar: torn: the tar ends within clip clip%2E3",
        "shard-000001.tar, clip clip%2E3: torn: ",
        "shard-000002.index.json: no such file",
        "shard-000009.tar: a tar that the manifest does not name",
    ):
        assert any(expected in fault for fault in faults), (expected, faults)
    assert not any("clip%2E1" in fault for fault in faults), "a whole clip has no fault"
    (out / "manifest.json").unlink()
    (fault,) = verify(out, 0)
    assert fault.shard == "manifest.json"
    assert "no finished split" in fault.what
    with pytest.raises(UserError, match="no such folder"):
        verify(tmp_path / "nowhere", 0)


def test_verify_names_what_is_no_file(tmp_path):
    table, out = write_corpus(tmp_path, 3), tmp_path / "out"
    packed(table, out)
    (out / "shard-000000.tar").unlink()
    (out / "shard-000000.tar").mkdir()
    (out / "shard-000001.index.json").unlink()
    (out / "shard-000001.index.json").mkdir()
    faults = [str(fault) for fault in verify(out, 0)]
    assert any("shard-000000.tar: cannot be read (Is a directory)" in f for f in faults), faults
    assert any("shard-000001.index.json: cannot be read" in f for f in faults), faults


def test_verify_checks_joints_and_records(tmp_path):
    table, out = write_corpus(tmp_path, 2), tmp_path / "out"
    write_joints(tmp_path / "0.npz", 6, slice(0, 21))
    packed(table, out)
    shard, sample = samples(out)[0]
    content = bytearray((out / shard).read_bytes())
    start = sample.members["pose.npy"][0] + 128
    content[start : start + 8] = np.array([np.inf, 0.5], np.float32).tobytes()
    offset, size = sample.members["json"]
    record = bytes(content[offset : offset + size]).replace(b"sentence 0", b"sentence X")
    content[offset : offset + size] = record
    (out / shard).write_bytes(content)
    found = " ".join(fault.what for fault in verify(out, 0))
    assert "joints that are not finite" in found
    assert "masked but not 0" in found
    assert "text of the record is 'sentence X'" in found


class Failing(FrameTracker):
    """Stands for a pose model that fails at every frame of one clip and at one of another."""

    name, version = "failing", "0"

    def restart(self, after_failure):
        pass

    def find(self, picture, number):
        self.clip = 1 + getattr(self, "clip", -1) if number == 0 else self.clip
        if self.clip == 0 or (self.clip == 1 and number == 3):
            raise RuntimeError("no memory on the card")
        return np.full((75, 2), 0.5 if self.clip < 3 else np.nan)


def test_failed_frames_and_absent_people_are_packed_flagged_and_counted(tmp_path):
    table, out = write_bare_corpus(tmp_path, 4), tmp_path / "out"
    summary = packed(table, out, extractor=Failing())
    assert (summary.num_packed, summary.num_failed_frames) == (4, 6 + 1)
    assert summary.failed_clips == ("clip.0", "clip.1")
    nobody = dict.fromkeys(("no_left_hand", "no_person", "no_right_hand"), ("clip.0", "clip.3"))
    assert summary.flagged == {**nobody, "failed_frames": ("clip.0", "clip.1")}
    assert (
        "the extractor failed at 7 of 27 frames, in 2 clips; they are packed with all joints "
        "masked (the first: clip.0: RuntimeError no memory on the card)"
    ) in str(summary)
    assert [sample.failed_frames for _, sample in samples(out)] == [6, 1, 0, 0]
    manifest = load_manifest(out)
    assert [e.num_failed_frames for e in manifest.shards] == [7, 0]
    assert (manifest.num_failed_frames, manifest.num_flagged) == (7, 3)
    shard, sample = samples(out)[1]
    clip = read_clip(out, shard, sample.members)
    assert clip.mask.any(axis=1).tolist() == [True, True, True, False, True, True, True]
    assert clip.record["failed_frames"] == 1
    assert verify(out, 0) == []


def test_an_extractor_that_is_named_takes_the_place_of_the_tables_joints(tmp_path):
    table = write_corpus(tmp_path, 1)
    packed(table, tmp_path / "out", extractor=NoJoints())
    assert load_manifest(tmp_path / "out").packing.extractor == "none"


def test_shards_of_an_earlier_format_are_left_alone_and_refused(tmp_path):
    table, out = write_corpus(tmp_path, 3), tmp_path / "out"
    packed(table, out)
    for name in ("manifest.json", "shard-000000.index.json", "shard-000001.index.json"):
        path = out / name
        path.write_text(path.read_text().replace('"version": 2', '"version": 1'))
    before = files(out)
    words = r"is of version 1 of the format, this program reads 2; pack the split again"
    with pytest.raises(UserError, match=words):
        packed(table, out)
    (fault,) = verify(out, 0)
    assert "version 1" in fault.what
    (out / "manifest.json").unlink()
    with pytest.raises(UserError, match=words):
        packed(table, out)
    del before["manifest.json"]
    assert files(out) == before


def test_what_a_killed_writer_of_the_last_files_left_is_removed(tmp_path):
    table, out = write_corpus(tmp_path, 3), tmp_path / "out"
    packed(table, out)
    before = files(out)
    killed = Writer(Writer.this().where, os.getpid(), 1)  # its number was given again
    (out / f".manifest.json.{killed}.01234567.tmp").write_bytes(b"half a man")
    (out / f".dropped.tsv.{killed}.12345678.tmp").write_bytes(b"")
    (out / "manifest.json").unlink()
    packed(table, out)
    assert files(out) == before


def test_tasks_that_end_at_the_same_moment_leave_a_manifest(tmp_path):
    table, out = write_corpus(tmp_path, 6), tmp_path / "out"
    with ThreadPoolExecutor(3) as pool:
        ended = list(
            pool.map(lambda i: packed(table, out, task_id=i, num_tasks=3).complete, range(3))
        )
    assert any(ended)
    packed(table, tmp_path / "alone")
    assert files(out) == files(tmp_path / "alone")
