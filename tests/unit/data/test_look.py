"""`signfuse stats` and `signfuse show`: what is in a packed split, in words and pictures."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.little_clips import COLUMNS, write_joints, write_table, write_video
from signfuse_dist.cli import main
from signfuse_dist.corpora import Box
from signfuse_dist.data.joints import Joints, PoseExtractor, stacked
from signfuse_dist.data.look import collect, crop_picture, show
from signfuse_dist.data.manifest import PackConfig
from signfuse_dist.data.pack import extract_poses, pack
from signfuse_dist.data.picture import VideoFrame
from signfuse_dist.data.shard import ClipPose
from signfuse_dist.data.verify import verify
from signfuse_dist.errors import UserError
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


def test_pictures_land_in_the_split_that_they_show_and_not_in_the_working_folder(
    table: Path,
    split: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    extract_poses("table", table, "train", split, "corner", workers=0, extractor=Elsewhere())
    (tmp_path / "working").mkdir()
    monkeypatch.chdir(tmp_path / "working")
    assert main(["stats", str(split)]) == main(["show", str(split), "first"]) == 0
    assert main(["stats", str(split), "--poses", "corner"]) == 0
    places = [split / "stats.png", split / "clip.png", split / "poses" / "corner" / "stats.png"]
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in printed if line.endswith(".png")] == [str(p) for p in places]
    assert all(place.is_file() for place in places)
    assert list(Path.cwd().iterdir()) == []
    assert verify(split) == verify(split / "poses" / "corner") == []


def test_a_folder_that_takes_no_picture_asks_for_another_place(
    split: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (split / "clip.png").mkdir()  # as a folder that may only be read refuses
    assert main(["show", str(split), "first"]) == 2
    error = capsys.readouterr().err
    assert f"{split / 'clip.png'}: cannot be written" in error
    assert "give --out FILE" in error


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


def write_cropped(tmp_path: Path, crop: str, box: str) -> Path:
    """Pack a wide clip whose hand is at 0.8 of its width in the last two frames of eight."""
    folder = tmp_path / "cropped"
    write_video(folder / "0.mp4", 8, 128, 64)
    pose = np.full((8, NUM_JOINTS, 2), 0.5, np.float32)
    pose[:, 1:] += np.linspace(-0.1, 0.1, NUM_JOINTS - 1)[:, None]
    pose[6:, :4, 0] = 0.8
    np.savez(folder / "0.npz", pose=pose, mask=np.ones((8, NUM_JOINTS), bool))
    rows = [("clip", "0.mp4", "two words", "0.npz", box)]
    table = write_table(folder / "t.tsv", rows, (*COLUMNS, "box"))
    config = PackConfig(frame_size=64, crop=crop)
    pack("table", table, "train", tmp_path / "out", config, workers=0)
    return tmp_path / "out"


RED = (255, 40, 40)


def shown(folder: Path, out: Path) -> np.ndarray:
    assert main(["show", str(folder), "clip", "--out", str(out)]) == 0
    with Image.open(out) as picture:
        return np.asarray(picture.convert("RGB"))


def test_show_says_that_the_square_cut_a_hand_off_and_draws_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_cropped(tmp_path, "box", "0.3 0.2 0.7 0.8")
    pixels = shown(folder, tmp_path / "clip.png")
    printed = capsys.readouterr().out
    assert "crop: 0.2969 0.09375 0.7031 0.9062 of the picture; " in printed
    assert "8 of 336 landmarks of hands are cut off, in 2 of 8 frames" in printed
    y, x = np.nonzero((pixels == RED).all(axis=2))
    assert y.min() > 2 * (192 + 4), "below the frames"
    # The outline is 192 pixels wide, and the hand at 0.8 of it.
    assert np.abs(x - (4 + 0.8 * 192)).max() < 3
    assert "hand_outside_box: 1" in str(collect(folder))
    assert "64 pixels, cropped by box, " in str(collect(folder))


def test_show_says_that_a_square_holds_the_hands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_cropped(tmp_path, "signer", "")
    pixels = shown(folder, tmp_path / "clip.png")
    assert "0 of 336 landmarks of hands are cut off, in 0 of 8 frames" in capsys.readouterr().out
    assert not (pixels == RED).all(axis=2).any()


def test_show_adds_nothing_to_a_clip_that_is_not_cropped(
    split: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "clip.png"
    assert main(["show", str(split), "first", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"


def test_a_box_of_a_hostile_shard_is_drawn_at_the_rim_or_refused() -> None:
    pose = np.full((2, NUM_JOINTS, 2), 0.5, np.float32)
    pose[0, 3] = np.nan
    joints = ClipPose({}, pose, np.ones((2, NUM_JOINTS), bool))
    for box in (Box(-1e300, -1e300, 1e300, 1e300), Box(0, 0, 1e-300, 1), Box(5, 5, 6, 6)):
        picture, words = crop_picture(joints, box)
        assert max(picture.size) < 1000
        assert "landmarks" in words


def test_show_refuses_a_box_that_is_none(tmp_path: Path) -> None:
    folder = write_cropped(tmp_path, "signer", "")
    tar = folder / "shard-000000.tar"
    content = tar.read_bytes()
    at = content.index(b'"box": [') + len(b'"box": [')
    end = content.index(b"]", at)
    tar.write_bytes(content[:at] + b"1".ljust(end - at) + content[end:])
    with pytest.raises(UserError, match=r"box of the record is \[1\]"):
        show(folder, "clip", 2, None)
    (fault,) = [f for f in verify(folder, 0) if f.key]
    assert "box of the record is [1], in shards that were packed with crop signer" in str(fault)
