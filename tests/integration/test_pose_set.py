"""Joints extracted again, beside frames that stay as they are."""

from __future__ import annotations

import os
import signal
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
from signfuse_dist.data.joints import FrameTracker, NoJoints
from signfuse_dist.data.manifest import pose_path
from signfuse_dist.data.manifest_files import load_index, load_manifest
from signfuse_dist.data.pack import PackConfig, PackError, extract_poses, pack
from signfuse_dist.data.shard import ShardError, read_clip, read_pose
from signfuse_dist.data.verify import verify
from signfuse_dist.errors import UserError

CONFIG = PackConfig(frame_size=32, clips_per_shard=2)


class Tracker(FrameTracker):
    """Finds all joints where the picture is brightest; fails at the second frame of a clip."""

    name = "tracker"

    def __init__(self, version: str = "1", kills: int | None = None) -> None:
        self.version, self._kills = version, kills

    def restart(self, after_failure: bool) -> None:
        self.seconds += 0.0

    def find(self, picture, number):
        if number == self._kills:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == 1:
            raise RuntimeError("lost the thread")
        return np.full((75, 2), picture.mean() / 255)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def extract(table: Path, shards: Path, name: str = "again", workers: int = 0, **options):
    options.setdefault("extractor", Tracker())
    return extract_poses("table", table, "train", shards, name, workers=workers, **options)


@pytest.fixture
def corpus(tmp_path: Path) -> tuple[Path, Path]:
    """A table of five clips, of which the second cannot be packed, and its shards."""
    table, out = write_corpus(tmp_path, 5), tmp_path / "out"
    write_video(tmp_path / "1.mp4", 40, movflags="faststart")
    truncated(tmp_path / "1.mp4", 0.6)
    pack("table", table, "train", out, CONFIG, workers=0)
    return table, out


def test_joints_are_extracted_again_and_the_frames_stay_as_they_are(corpus):
    table, out = corpus
    before = bytes_of(out)
    summary = extract(table, out)
    assert bytes_of(out) == before
    assert str(summary).startswith("train, poses again: 4 rows = 4 packed + 0 dropped; 27 frames")
    folder = out / pose_path("again")
    assert folder == out / "poses" / "again"
    assert verify(folder, 0) == [] == verify(out, 0)
    manifest, clips = load_manifest(folder), load_manifest(out)
    assert (manifest.packing.extractor, manifest.packing.extractor_version) == ("tracker", "1")
    assert manifest.packing == clips.packing.of_poses("tracker", "1")
    for mine, theirs in zip(manifest.shards, clips.shards, strict=True):
        poses, frames = load_index(folder, mine).samples, load_index(out, theirs).samples
        assert [(s.id, s.num_frames) for s in poses] == [(s.id, s.num_frames) for s in frames]
        for sample, shown in zip(poses, frames, strict=True):
            read = read_pose(folder, mine.name, sample.members)
            assert set(read.record) == {
                "id",
                "num_frames",
                "joint_layout",
                "extractor",
                "extractor_version",
                "flags",
                "failed_frames",
                "found_frames",
            }
            pixels = read_clip(out, theirs.name, shown.members).frames[:, 4:28]
            assert np.allclose(read.pose[0, 3, 0], pixels[0].mean() / 255, atol=0.02)
            assert not read.mask[1].any(), "the frame at which the tracker failed"
            assert read.mask[2:].all()


def test_chosen_frames_of_a_pose_set_come_in_the_order_asked(corpus):
    table, out = corpus
    extract(table, out)
    folder = out / pose_path("again")
    entry = load_manifest(folder).shards[0]
    members = load_index(folder, entry).samples[0].members
    whole = read_pose(folder, entry.name, members)
    chosen = read_pose(folder, entry.name, members, [4, 0, 0])
    assert (chosen.pose == whole.pose[[4, 0, 0]]).all()
    with pytest.raises(ValueError, match="frame indices"):
        read_pose(folder, entry.name, members, [99])
    with pytest.raises(
        ShardError, match=r"has no member offsets.npy; is this a pose set or a feature set\?"
    ):
        read_clip(folder, entry.name, members)


def test_workers_tasks_and_interruptions_do_not_show_in_a_pose_set(corpus):
    table, out = corpus
    extract(table, out, "alone")
    extract(table, out, "two", workers=2)
    assert not extract(table, out, "tasks", task_id=1, num_tasks=2).complete
    assert extract(table, out, "tasks", task_id=0, num_tasks=2).complete
    with pytest.raises(PackError, match=r"shard-000001.tar: a worker process died .*SIGKILL"):
        extract(table, out, "died", workers=1, extractor=Tracker(kills=6))
    assert extract(table, out, "died").complete
    alone = bytes_of(out / "poses" / "alone")
    assert len(alone) == 8, "three shards with indexes, columns, manifest"
    for name in ("two", "tasks", "died"):
        assert bytes_of(out / "poses" / name) == alone


def test_a_set_by_another_extractor_is_refused_by_what_differs(corpus):
    table, out = corpus
    extract(table, out)
    with pytest.raises(PackError, match=r"extractor_version is '1', asked '2'"):
        extract(table, out, extractor=Tracker("2"))
    extract(table, out, "newer", extractor=Tracker("2"))
    extract(table, out, "table", extractor=None)
    found = {n: load_manifest(out / "poses" / n).packing for n in ("again", "newer", "table")}
    assert {(p.extractor, p.extractor_version) for p in found.values()} == {
        ("tracker", "1"),
        ("tracker", "2"),
        ("synthetic", "1"),
    }


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", "../out", "a\\b", "a\n", "é", "-rf"])
def test_a_set_whose_name_is_more_than_a_name_is_refused(corpus, name):
    table, out = corpus
    with pytest.raises(UserError, match="pose set"):
        extract(table, out, name)
    assert not (out / "poses").exists()


def test_other_rows_than_were_packed_are_refused(corpus, tmp_path):
    table, out = corpus
    text = table.read_text()
    table.write_text(text.replace("sentence 3", "another"))
    with pytest.raises(PackError, match=r"packed from other rows"):
        extract(table, out)
    table.write_text(text)
    with pytest.raises(PackError, match=r"split dev has now"):
        extract_poses("table", table, "dev", out, "again", workers=0, extractor=Tracker())
    extract(table, out)
    with pytest.raises(PackError, match="holds a pose set"):
        extract(table, out / "poses" / "again")
    (out / "manifest.json").unlink()
    with pytest.raises(ShardError, match="no finished split"):
        extract(table, out)


def test_a_clip_that_is_not_what_was_packed_stops_its_shard_and_no_other(corpus, tmp_path):
    table, out = corpus
    kept = (tmp_path / "2.mp4").read_bytes()
    write_video(tmp_path / "2.mp4", 9)
    (tmp_path / "0.mp4").rename(tmp_path / "away.mp4")
    with pytest.raises(PackError) as error:
        extract(table, out)
    message = str(error.value)
    assert "shard-000000.tar: clip 'clip.0' (row 2): missing video: 0.mp4" in message
    assert "2.mp4 has 9 frames now and had 8 when it was packed" in message
    assert "all other shards are done" in message
    folder = out / "poses" / "again"
    assert sorted(bytes_of(folder)) == ["shard-000002.index.json", "shard-000002.tar"]
    (tmp_path / "2.mp4").write_bytes(kept)
    (tmp_path / "away.mp4").rename(tmp_path / "0.mp4")
    assert extract(table, out).new_frames == 6 + 8 + 6, "the third shard is kept"
    assert verify(folder, 0) == []


def test_frames_alone_take_a_pose_set_later(tmp_path):
    table, out = write_corpus(tmp_path, 3), tmp_path / "out"
    summary = pack("table", table, "train", out, CONFIG, workers=0, extractor=NoJoints())
    assert summary.flagged == {}, "nobody has looked for anybody"
    manifest = load_manifest(out)
    assert (manifest.packing.extractor, manifest.num_flagged) == ("none", 0)
    for entry in manifest.shards:
        for sample in load_index(out, entry).samples:
            clip = read_clip(out, entry.name, sample.members)
            assert not clip.mask.any()
            assert not clip.pose.any()
            assert clip.frames.any()
    extract(table, out)
    assert verify(out, 0) == [] == verify(out / "poses" / "again", 0)


def test_mediapipe_finds_the_same_joints_with_the_frames_and_again(shared, tmp_path):
    mediapipe = pytest.importorskip("mediapipe")
    if not hasattr(mediapipe, "solutions"):
        pytest.skip("this mediapipe has no models inside")
    for name in ("SOUP", "FOOTBALL"):
        (tmp_path / f"{name}.mp4").write_bytes((shared / "data/clips" / f"{name}.mp4").read_bytes())
    rows = [("soup", "SOUP.mp4", "x", "", 0.3), ("football", "FOOTBALL.mp4", "y", 0.2, 0.5)]
    columns = ("id", "video", "text", "start", "end")
    table, out = write_table(tmp_path / "t.tsv", rows, columns), tmp_path / "out"
    pack("table", table, "train", out, PackConfig(clips_per_shard=2), workers=0)
    extract(table, out, extractor=None)
    entry = load_manifest(out).shards[0]
    clips, poses = (
        load_index(out, entry),
        load_index(out / "poses" / "again", load_manifest(out / "poses" / "again").shards[0]),
    )
    for shown, found in zip(clips.samples, poses.samples, strict=True):
        with_frames = read_clip(out, entry.name, shown.members)
        alone = read_pose(out / "poses" / "again", entry.name, found.members)
        assert with_frames.mask.any()
        assert (with_frames.pose == alone.pose).all()
        assert (with_frames.mask == alone.mask).all()


def test_verify_compares_a_pose_set_with_its_clips(corpus, tmp_path):
    table, out = corpus
    extract(table, out)
    folder = out / "poses" / "again"
    other = tmp_path / "other"
    rows = [(f"clip.{i}", "0.mp4", "x", "0.npz") for i in range(4)]
    write_joints(tmp_path / "0.npz", 6)
    more = write_table(tmp_path / "more.tsv", rows, COLUMNS)
    pack("table", more, "train", other, CONFIG, workers=0)
    (other / "poses").mkdir()
    folder.rename(other / "poses" / "again")
    (fault,) = verify(other / "poses" / "again", 0)
    assert "belongs to other clips" in fault.what
    assert "rows_sha256" in fault.what
    (other / "manifest.json").unlink()
    (fault,) = verify(other / "poses" / "again", 0)
    assert "the clips it belongs to cannot be read" in fault.what


def test_verify_names_damage_inside_a_pose_set(corpus):
    table, out = corpus
    extract(table, out)
    folder = out / "poses" / "again"
    entry = load_manifest(folder).shards[0]
    sample = load_index(folder, entry).samples[0]
    content = bytearray((folder / entry.name).read_bytes())
    start = sample.members["pose.npy"][0] + 128
    content[start : start + 4] = np.float32("inf").tobytes()
    offset, size = sample.members["json"]
    record = bytes(content[offset : offset + size]).replace(
        b'"failed_frames": 1', b'"failed_frames": 0'
    )
    content[offset : offset + size] = record
    (folder / entry.name).write_bytes(content)
    found = " ".join(str(fault) for fault in verify(folder, 0))
    assert "does not agree with its checksum" in found
    assert "joints that are not finite" in found
    assert "failed_frames of the record is 0, the index has 1" in found
