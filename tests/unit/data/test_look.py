"""`signfuse stats` and `signfuse show`: what is in a packed split, in words and pictures."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.little_clips import COLUMNS, write_joints, write_table, write_video
from signfuse_dist.cli import main
from signfuse_dist.data.joints import Joints, PoseExtractor, stacked
from signfuse_dist.data.look import collect
from signfuse_dist.data.manifest import PackConfig
from signfuse_dist.data.pack import extract_poses, pack
from signfuse_dist.data.picture import VideoFrame
from signfuse_dist.skeleton import NUM_JOINTS


class Elsewhere(PoseExtractor):
    """Finds every joint in a corner of every frame, and nothing in the first."""

    name, version = "elsewhere", "3"

    def extract(self, frames: Iterable[VideoFrame]) -> Joints:
        rows = [np.full((NUM_JOINTS, 2), 0.1, np.float32) for _ in frames]
        rows[0][:] = np.nan
        return Joints(*stacked(rows))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Two signers; the second clip shows nothing but a left hand."""
    folder, columns = tmp_path / "corpus", (*COLUMNS, "signer")
    for number, frames in enumerate((8, 12)):
        write_video(folder / f"{number}.mp4", frames)
        write_joints(folder / f"{number}.npz", frames, slice(21, 75 if number else 21))
    rows = [
        ("first", "0.mp4", "two words", "0.npz", "ann"),
        ("-x", "1.mp4", "one", "1.npz", "bo"),
        ("lost", "2.mp4", "gone", "2.npz", "bo"),
    ]
    return write_table(folder / "t.tsv", rows, columns)


@pytest.fixture
def split(table: Path, tmp_path: Path) -> Path:
    pack("table", table, "train", tmp_path / "out", PackConfig(frame_size=32), workers=0)
    return tmp_path / "out"


def test_stats_count_clips_texts_detections_and_signers(split: Path) -> None:
    stats = collect(split)
    assert stats.frames.tolist() == [8, 12]
    assert stats.seconds.tolist() == pytest.approx([0.8, 1.2])
    assert stats.words.tolist() == [2, 1]
    assert stats.characters.tolist() == [9, 3]
    assert stats.found.tolist() == [[8, 8, 8, 8], [12, 0, 0, 0]]
    assert stats.signers == {"ann": 1, "bo": 1}
    assert stats.flags == {"no_right_hand": 1}
    text = str(stats)
    for part in (
        "3 rows = 2 clips + 1 dropped",
        "20 frames",
        "joints by synthetic",
        "40.0%",
        "no_right_hand: 1",
        "10.00",
    ):
        assert part in text, part


def test_stats_of_a_pose_set_are_told_from_those_of_the_clips(table: Path, split: Path) -> None:
    extract_poses("table", table, "train", split, "corner", workers=0, extractor=Elsewhere())
    stats = collect(split, "corner")
    assert stats.found.tolist() == [[7, 7, 7, 7], [11, 11, 11, 11]]
    assert "joints by elsewhere 3" in str(stats)


def test_stats_are_printed_and_drawn(
    split: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "plot.png"
    assert main(["stats", str(split), "--plot", str(plot)]) == 0
    printed = capsys.readouterr().out
    assert "2 clips" in printed
    assert str(plot) in printed
    with Image.open(plot) as picture:
        assert picture.width > 800
        assert np.asarray(picture.convert("L")).std() > 10


def test_show_draws_the_frames_with_their_skeleton(split: Path, tmp_path: Path) -> None:
    out = tmp_path / "clip.png"
    assert main(["show", "--out", str(out), "--frames", "4", "--", str(split), "-x"]) == 0
    with Image.open(out) as picture:
        assert picture.format == "PNG"
        assert picture.size == (4 * (192 + 4) + 4, 192 + 4 + 4)
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert (pixels == (255, 170, 0)).all(axis=1).any(), "the left hand's colour"
    assert not (pixels == (255, 90, 200)).all(axis=1).any(), "no face was found"


def test_show_draws_the_joints_of_a_pose_set(table: Path, split: Path, tmp_path: Path) -> None:
    extract_poses("table", table, "train", split, "corner", workers=0, extractor=Elsewhere())
    for name, words in (("a", []), ("b", ["--poses", "corner"])):
        assert main(["show", str(split), "first", "--out", str(tmp_path / name), *words]) == 0
    assert (tmp_path / "a").read_bytes() != (tmp_path / "b").read_bytes()


def test_a_clip_that_is_not_there_is_refused_with_near_ones(
    split: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", str(split), "frst"]) == 2
    assert "holds no clip 'frst'; it holds first" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["stats"], ["show", "first"]])
def test_a_pose_set_that_is_not_there_is_refused(
    split: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command[0], str(split), *command[1:], "--poses", "none"]) == 2
    assert "none" in capsys.readouterr().err
    assert main([command[0], str(split), *command[1:], "--poses", "../out"]) == 2
    assert "begins with a letter" in capsys.readouterr().err
