"""Clips of joints alone: packed without decoding, verified, counted, shown, and told apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from helpers.little_clips import write_joints, write_table, write_video
from helpers.little_splits import clip_batches, data_config
from helpers.published_poses import signer, write_pose
from signfuse_dist.data import encode
from signfuse_dist.data.look import collect, show
from signfuse_dist.data.manifest import PackConfig
from signfuse_dist.data.manifest_files import load_index, load_manifest
from signfuse_dist.data.pack import pack
from signfuse_dist.data.planned import plan_rows
from signfuse_dist.data.shard import ShardError, read_clip
from signfuse_dist.data.split import Split, open_split
from signfuse_dist.data.verify import verify
from signfuse_dist.evaluation.new_clips import ClipReader
from signfuse_dist.plan import PADDING
from signfuse_dist.preflight.inputs import _check_pictures

COLUMNS = ("id", "text", "video", "joints", "fps", "start", "end", "corpus", "language")
CONFIG = PackConfig(frame_size=32)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """One clip with a video, two without: the whole of its joints, and a window of them."""
    folder = tmp_path / "corpus"
    write_video(folder / "0.mp4", 8)
    for number in range(3):
        write_joints(folder / f"{number}.npz", 8)
    rows = [
        ("seen", "pictures", "0.mp4", "0.npz", "", "", "", "one", "en"),
        ("whole", "joints alone", "", "1.npz", "10", "", "", "two", "de"),
        ("part", "a part of them", "", "2.npz", "10", "0.2", "0.5", "two", "de"),
    ]
    return write_table(folder / "t.tsv", rows, COLUMNS)


def test_joints_alone_are_packed_verified_counted_and_shown(table: Path, tmp_path: Path) -> None:
    summary = pack("table", table, "train", tmp_path / "out", CONFIG, workers=0)
    assert (summary.num_packed, summary.dropped) == (3, ())
    assert any("2 of 3 clips have joints alone" in note for note in summary.notes)
    assert verify(tmp_path / "out") == []

    stats = collect(tmp_path / "out")
    assert stats.pictureless == 2
    assert stats.frames.tolist() == [8, 8, 3]
    assert stats.seconds.tolist() == pytest.approx([0.8, 0.8, 0.3])
    assert dict(stats.corpora) == {"one": 1, "two": 2}
    assert "2 clips are joints alone" in str(stats)

    picture, _ = show(tmp_path / "out", "whole", 4, None)
    assert len({colour for _, colour in picture.getcolors(1 << 16)}) > 2  # joints on the ground


def test_a_window_of_joints_alone_has_the_rows_of_that_window(table: Path, tmp_path: Path) -> None:
    pack("table", table, "train", tmp_path / "out", CONFIG, workers=0)
    clips = clips_of(tmp_path / "out")
    assert clips["whole"].record["pictures"] is False
    assert "pictures" not in clips["seen"].record
    assert clips["whole"].frames.shape == (0, 32, 32, 3)
    assert np.array_equal(clips["part"].pose, clips["whole"].pose[2:5])
    assert clips["whole"].record["fps"] == 10.0


def test_joints_alone_open_no_video(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0], *lines[2:]]) + "\n")
    monkeypatch.setattr(encode, "open_video", lambda *_: pytest.fail("a video was opened"))
    for crop in ("none", "signer"):
        config = replace(CONFIG, crop=crop)
        out = tmp_path / crop
        assert pack("table", table, "train", out, config, workers=0).num_packed == 2
        assert verify(out) == []


def test_joints_alone_without_a_rate_are_dropped_by_name(table: Path, tmp_path: Path) -> None:
    table.write_text(table.read_text().replace("\t10\t", "\t\t"))
    summary = pack("table", table, "train", tmp_path / "out", CONFIG, workers=0)
    assert summary.num_packed == 1
    assert {row.id for row in summary.dropped} == {"whole", "part"}
    assert all("unknown frame rate" in row.reason for row in summary.dropped)


def test_a_file_that_says_its_rate_is_stored_at_another_as_a_video_is(tmp_path: Path) -> None:
    """`--fps` is the rate that is stored, and of the film only where nothing else says it."""
    write_pose(tmp_path / "film.pose", signer(12), fps=25.0)
    (tmp_path / "t.tsv").write_text("id\tposes\ttext\tsplit\nfilm\tfilm.pose\tHi\ttrain\n")
    config = replace(CONFIG, fps=12.5)
    pack("table", tmp_path / "t.tsv", "train", tmp_path / "out", config, workers=0)
    film = clips_of(tmp_path / "out")["film"]
    assert (film.record["fps"], len(film.pose)) == (12.5, 6)
    reader = ClipReader(data_config(fps=12.5, frame_size=32, max_frames=100), None)
    new = reader.read(None, tmp_path / "film.pose")
    assert np.array_equal(new.encoded.pose, film.pose)


def test_an_extractor_that_wants_pictures_drops_what_has_none(table: Path, tmp_path: Path) -> None:
    from signfuse_dist.data.joints import NoJoints

    extractor = NoJoints()
    summary = pack(
        "table", table, "train", tmp_path / "out", CONFIG, extractor=extractor, workers=0
    )
    assert [row.reason.partition(":")[0] for row in summary.dropped] == ["no video"] * 2


def test_rows_without_a_video_are_planned_for_other_tasks_as_they_are(
    table: Path, tmp_path: Path
) -> None:
    with plan_rows("table", table, "train", tmp_path / "out", 2) as first:
        pass
    with plan_rows("table", table, "train", tmp_path / "out", 2) as second:
        assert second == first
    assert [row.video is None for row in second.rows.rows] == [False, True, True]


def test_a_record_that_contradicts_its_pictures_is_a_fault(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack("table", table, "train", out, CONFIG, workers=0)
    entry = load_manifest(out).shards[0]
    sample = next(s for s in load_index(out, entry).samples if s.id == "whole")
    offset, size = sample.members["json"]
    with (out / entry.name).open("r+b") as file:
        file.seek(offset)
        record = file.read(size)
        file.seek(offset)
        file.write(record.replace(b'"pictures": false', b'"pictures": true '))
    with pytest.raises(ShardError, match="pictures of the record is True"):
        read_clip(out, entry.name, sample.members)


def test_frames_of_joints_alone_are_not_made_up(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack("table", table, "train", out, CONFIG, workers=0)
    entry = load_manifest(out).shards[0]
    sample = next(s for s in load_index(out, entry).samples if s.id == "whole")
    into = np.empty((8, 32, 32, 3), np.uint8)
    with pytest.raises(ShardError, match="8 frames of it are asked for"):
        read_clip(out, entry.name, sample.members, into=into)


def clips_of(folder: Path) -> dict:
    clips = {}
    for entry in load_manifest(folder).shards:
        for sample in load_index(folder, entry).samples:
            clips[sample.id] = read_clip(folder, entry.name, sample.members, frame_size=32)
    return clips


def split_of(table: Path, out: Path, **changes: object) -> Split:
    pack("table", table, "train", out, CONFIG, workers=0)
    return open_split(out, data_config(fps=None, **changes))


def test_a_batch_says_which_clips_have_pictures_and_has_no_others(
    table: Path, tmp_path: Path
) -> None:
    split = split_of(table, tmp_path / "out")
    assert split.has_pictures.tolist() == [True, False, False]
    mixed, alone = clip_batches(split, [[1, 0, PADDING], [2, 1]])
    assert mixed.has_visual.tolist() == [False, True, True]
    assert mixed.picture_lengths.tolist() == [0, 8, 1]
    assert len(mixed.frames) == 9
    assert mixed.frames[:8].float().mean() > 20  # the second clip's, not the first's place
    assert len(alone.frames) == 0
    assert alone.frame_lengths.tolist() == [3, 8]
    assert alone.joint_mask.any(dim=(1, 2)).tolist() == [True, True]


def test_a_batch_of_clips_with_pictures_is_as_before(table: Path, tmp_path: Path) -> None:
    (batch,) = clip_batches(split_of(table, tmp_path / "out"), [[0]])
    assert batch.has_visual is None
    assert batch.has_skeletal is None


def test_clips_that_nobody_looked_for_joints_in_say_so(table: Path, tmp_path: Path) -> None:
    from signfuse_dist.data.joints import NoJoints

    pack("table", table, "train", tmp_path / "out", CONFIG, extractor=NoJoints(), workers=0)
    split = open_split(tmp_path / "out", data_config(fps=None))
    (batch,) = clip_batches(split, [[0]])
    assert batch.has_skeletal.tolist() == [False]


@pytest.mark.parametrize(
    ("streams", "levels", "words"),
    [
        ("both", ["ok"], "2 of 3 clips are joints alone"),
        ("visual", ["error"], "the model has no skeletal stream"),
        ("skeletal", [], ""),
    ],
)
def test_check_says_what_a_model_would_see_of_clips_without_pictures(
    table: Path, tmp_path: Path, streams: str, levels: list[str], words: str
) -> None:
    pack("table", table, "train", tmp_path / "out", CONFIG, workers=0)
    samples = load_index(tmp_path / "out", load_manifest(tmp_path / "out").shards[0]).samples
    run = SimpleNamespace(model=SimpleNamespace(streams=streams))
    findings = list(_check_pictures(run, "split", samples))
    assert [finding.level for finding in findings] == levels
    assert all(words in str(finding) for finding in findings)


def test_check_warns_of_a_visual_stream_that_would_see_nothing(table: Path, tmp_path: Path) -> None:
    pack("table", table, "train", tmp_path / "out", CONFIG, workers=0)
    samples = load_index(tmp_path / "out", load_manifest(tmp_path / "out").shards[0]).samples[1:]
    run = SimpleNamespace(model=SimpleNamespace(streams="both"))
    (finding,) = _check_pictures(run, "split", samples)
    assert finding.level == "warning"
    assert "all clips are joints alone" in str(finding)
