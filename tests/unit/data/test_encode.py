"""A clip from its row to its bytes: whole pictures, and those that are cut around the signer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from signfuse_dist.corpora import Box, ClipRow, FolderFrames
from signfuse_dist.data import encode
from signfuse_dist.data.clock import VideoError
from signfuse_dist.data.crop import hands_cut, in_picture
from signfuse_dist.data.encode import encode_clip, encode_pose
from signfuse_dist.data.joints import FrameTracker, Joints, NoJoints, PoseExtractor, stacked
from signfuse_dist.data.manifest import PackConfig, Packing
from signfuse_dist.data.picture import VideoFrame
from signfuse_dist.skeleton import JOINT_LAYOUT, NUM_JOINTS

WIDTH, HEIGHT, SIZE, FRAMES, FPS = 320, 180, 64, 6, 10.0
SPREAD = np.random.default_rng(5).uniform(-0.15, 0.15, (NUM_JOINTS, 2))
"""Joints around the marker, so that they have an extent."""
SPREAD[30] = 0  # of a hand: the marker itself


def marker(number: int) -> tuple[int, int]:
    """Return the middle of the white patch in a frame, in pixels."""
    return 180 + 10 * number, 80 + 4 * number


def write_folder(folder: Path, lit: bool = True) -> Path:
    folder.mkdir()
    for number in range(FRAMES):
        pixels = np.full((HEIGHT, WIDTH, 3), 20, np.uint8)
        x, y = marker(number)
        if lit:
            pixels[y - 5 : y + 5, x - 5 : x + 5] = 255
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def centre(picture: np.ndarray) -> np.ndarray:
    """Return the middle of what is bright, as shares of the picture."""
    light = np.clip(picture.astype(float).mean(axis=2) - 60, 0, None)
    x, y = (np.arange(light.shape[1]) + 0.5), (np.arange(light.shape[0]) + 0.5)
    middle = np.array([(light.sum(axis=0) * x).sum(), (light.sum(axis=1) * y).sum()])
    return middle / light.sum() / light.shape[::-1]


class MarkerTracker(FrameTracker):
    """Finds the joints around the white patch, and none where there is no patch."""

    name, version = "marker", "1"

    def __init__(self, spread: float = 1.0) -> None:
        self.pictures, self._spread = list[tuple[int, ...]](), spread

    def restart(self, after_failure: bool) -> None: ...

    def find(self, picture: np.ndarray, number: int) -> np.ndarray:
        self.pictures.append(picture.shape)
        if picture.max() < 100:
            return np.full((NUM_JOINTS, 2), np.nan)
        return centre(picture) + SPREAD * self._spread


def packing(crop: str, extractor: PoseExtractor) -> Packing:
    settings = PackConfig(frame_size=SIZE, jpeg_quality=98, crop=crop)
    return Packing(
        "table", "t", "train", JOINT_LAYOUT, extractor.name, extractor.version, settings, ""
    )


def row_of(video: Path, **fields: object) -> ClipRow:
    row = ClipRow(
        row=2,
        id="clip",
        video=video,
        source=video.name,
        text="words",
        start=None,
        end=None,
        signer=None,
        language=None,
        split="train",
        joints=None,
        folder=FolderFrames(FPS, None),
    )
    return replace(row, **fields)


def expect_markers_at_joints(clip) -> None:
    for jpeg, pose in zip(clip.jpegs, clip.pose, strict=True):
        at = centre(simplejpeg.decode_jpeg(jpeg))
        assert np.abs(at - pose[30]).max() * SIZE < 0.6


def test_a_whole_picture_is_stored_as_before_there_were_crops(tmp_path: Path) -> None:
    tracker = MarkerTracker()
    clip = encode_clip(row_of(write_folder(tmp_path / "f")), packing("none", tracker), tracker)
    assert "box" not in clip.record
    assert clip.record["flags"] == []
    expect_markers_at_joints(clip)
    assert simplejpeg.decode_jpeg(clip.jpegs[0])[:13].max() < 5


def test_the_square_around_the_signer_is_for_frames_and_joints(tmp_path: Path) -> None:
    tracker = MarkerTracker()
    clip = encode_clip(row_of(write_folder(tmp_path / "f")), packing("signer", tracker), tracker)
    assert tracker.pictures == [(HEIGHT, WIDTH, 3)] * FRAMES, "looked at once, and whole"
    assert len(clip.jpegs) == FRAMES == len(clip.pose)
    expect_markers_at_joints(clip)
    x0, y0, x1, y1 = clip.record["box"]
    side = (x1 - x0) * WIDTH
    assert side == pytest.approx((y1 - y0) * HEIGHT)
    assert side < HEIGHT
    assert clip.record["flags"] == []
    assert clip.pose.dtype == np.float32
    assert 0.0 < clip.pose.min() < 0.25
    assert 0.75 < clip.pose.max() < 1.0
    # The joints are those that were found, moved: as far apart in the picture as they were.
    there = in_picture(clip.pose, Box(x0, y0, x1, y1))
    assert np.allclose(there - there[:, 30:31], SPREAD, atol=0.003)


def test_a_clip_without_joints_keeps_the_whole_picture_and_a_flag(tmp_path: Path) -> None:
    tracker = MarkerTracker()
    row = row_of(write_folder(tmp_path / "f", lit=False), flags=("script:HAN",))
    clip = encode_clip(row, packing("signer", tracker), tracker)
    assert clip.record["box"] is None
    assert clip.record["flags"] == [
        "script:HAN",
        "no_person",
        "no_left_hand",
        "no_right_hand",
        "no_crop",
    ]
    assert simplejpeg.decode_jpeg(clip.jpegs[0])[14:50].min() > 10
    assert len(clip.jpegs) == FRAMES


def test_the_extractor_looks_at_the_corpuss_box_alone(tmp_path: Path) -> None:
    tracker, folder = MarkerTracker(0.3), write_folder(tmp_path / "f")
    row = row_of(folder, box=Box(0.5, 0.2, 0.875, 0.8))
    clip = encode_clip(row, packing("box", tracker), tracker)
    assert len(tracker.pictures) == FRAMES
    assert np.abs(np.array(tracker.pictures) - (120, 120, 3)).max() <= 2, "to a stored pixel"
    assert clip.record["box"] == pytest.approx([0.5, 30 / 180, 0.875, 150 / 180])
    expect_markers_at_joints(clip)
    assert clip.record["flags"] == []


def test_a_row_without_a_box_is_whole_and_flagged_among_rows_with_one(tmp_path: Path) -> None:
    tracker = MarkerTracker()
    clip = encode_clip(row_of(write_folder(tmp_path / "f")), packing("box", tracker), tracker)
    assert clip.record["box"] is None
    assert clip.record["flags"] == ["no_crop"]
    expect_markers_at_joints(clip)


def test_a_box_smaller_than_a_pixel_is_refused_by_name(tmp_path: Path) -> None:
    row = row_of(write_folder(tmp_path / "f"), box=Box(0.5, 0.5, 0.501, 0.501))
    with pytest.raises(VideoError, match=r"bad box: 0.5 0.5 0.501 0.501 covers less than a pixel"):
        encode_clip(row, packing("box", NoJoints()), NoJoints())


@pytest.mark.parametrize("crop", ["signer", "box"])
def test_joints_that_come_with_a_clip_are_moved_into_the_square(tmp_path: Path, crop: str) -> None:
    folder = write_folder(tmp_path / "f")
    pictures = np.array([marker(n) for n in range(FRAMES)])[:, None] / (WIDTH, HEIGHT) + SPREAD
    letterboxed = (pictures * (1, HEIGHT / WIDTH) + (0, (1 - HEIGHT / WIDTH) / 2)).astype("f4")
    mask = np.ones((FRAMES, NUM_JOINTS), bool)
    mask[2, 5] = False
    np.savez(tmp_path / "j.npz", pose=letterboxed, mask=mask)
    row = row_of(folder, joints=tmp_path / "j.npz", box=Box(0.5, 0.2, 0.9, 0.8))
    clip = encode_clip(row, packing(crop, NoJoints()), None)
    expect_markers_at_joints(clip)
    assert (clip.mask == mask).all()
    assert not clip.pose[~mask].any()
    found = mask.copy()
    there = in_picture(clip.pose, Box(*clip.record["box"]))
    assert np.abs((there - pictures)[found]).max() < 0.01


def test_a_hand_that_the_corpuss_box_cuts_off_is_flagged(tmp_path: Path) -> None:
    pictures = np.array([marker(n) for n in range(FRAMES)])[:, None] / (WIDTH, HEIGHT) + SPREAD
    letterboxed = (pictures * (1, HEIGHT / WIDTH) + (0, (1 - HEIGHT / WIDTH) / 2)).astype("f4")
    np.savez(tmp_path / "j.npz", pose=letterboxed, mask=np.ones((FRAMES, NUM_JOINTS), bool))
    folder = write_folder(tmp_path / "f")
    row = row_of(folder, joints=tmp_path / "j.npz", box=Box(0.5, 0.4, 0.6, 0.5))
    clip = encode_clip(row, packing("box", NoJoints()), None)
    assert clip.record["flags"] == ["hand_outside_box"]
    cut, filmed = hands_cut(clip.pose, clip.mask, Box(*clip.record["box"]))
    assert 0 < cut.sum() < filmed.sum()


class Shrinking(MarkerTracker):
    """Takes a frame away when it has seen all of them."""

    def __init__(self, frame: Path) -> None:
        super().__init__()
        self._frame = frame

    def extract(self, frames: Iterable[VideoFrame]) -> Joints:
        found = super().extract(frames)
        self._frame.unlink()
        return found


def test_a_source_that_changes_between_the_two_readings_is_refused(tmp_path: Path) -> None:
    tracker = Shrinking(write_folder(tmp_path / "f") / "5.png")
    with pytest.raises(VideoError, match="f had 6 frames when its joints were found, and 5"):
        encode_clip(row_of(tmp_path / "f"), packing("signer", tracker), tracker)


class Short(PoseExtractor):
    name, version = "short", "1"

    def extract(self, frames: Iterable[VideoFrame]) -> Joints:
        return Joints(*stacked([np.zeros((NUM_JOINTS, 2), np.float32) for _ in frames][1:]))


@pytest.mark.parametrize("crop", ["none", "signer"])
def test_an_extractor_that_loses_a_frame_is_refused(tmp_path: Path, crop: str) -> None:
    with pytest.raises(VideoError, match="bad joints: 5 frames of joints for 6 frames"):
        encode_clip(row_of(write_folder(tmp_path / "f")), packing(crop, Short()), Short())


@pytest.mark.parametrize("crop", ["none", "signer", "box"])
def test_joints_extracted_again_lie_in_the_square_of_the_packed_frames(
    tmp_path: Path, crop: str
) -> None:
    row = row_of(write_folder(tmp_path / "f"), box=Box(0.5, 0.2, 0.9, 0.8))
    clip = encode_clip(row, packing(crop, NoJoints()), MarkerTracker())
    box = Box(*clip.record["box"]) if crop == "signer" else None
    other = MarkerTracker(0.5)  # whose own square would be another
    again = encode_pose(row, packing(crop, other), other, box)
    assert np.abs(again.pose[:, 30] - clip.pose[:, 30]).max() < 1e-3
    assert np.abs(again.pose - clip.pose).max() > 0.05


@pytest.mark.parametrize(("crop", "readings"), [("none", 1), ("box", 1), ("signer", 2)])
def test_only_a_clip_that_is_cut_around_its_signer_is_read_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crop: str, readings: int
) -> None:
    numbers: list[int] = []

    class Noted(encode.FrameReader):
        def __iter__(self):
            for frame in super().__iter__():
                numbers.append(frame.index)
                yield frame

    monkeypatch.setattr(encode, "FrameReader", Noted)
    row = row_of(write_folder(tmp_path / "f"), box=Box(0.5, 0.2, 0.9, 0.8))
    encode_clip(row, packing(crop, NoJoints()), MarkerTracker())
    assert numbers == [*range(FRAMES)] * readings
