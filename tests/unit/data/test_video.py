from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.little_clips import picture, truncated, write_video
from signfuse_dist.data.video import FULL_SIDE, Placement, VideoError, open_video, read_frames


def frames_of(path: Path, size: int = 32, folder_fps: float | None = None, **choice):
    with open_video(path, folder_fps) as source:
        return list(read_frames(source, size, **choice))


def numbers(path: Path, **choice) -> list[int]:
    return [frame.index for frame in frames_of(path, **choice)]


@pytest.mark.parametrize(
    ("width", "height", "rows", "columns"),
    [
        (64, 48, (4, 28), (0, 32)),
        (48, 64, (0, 32), (4, 28)),
        (50, 34, (5, 27), (0, 32)),
        (16, 16, (0, 32), (0, 32)),
    ],
)
def test_a_picture_is_centred_in_a_black_square(tmp_path, width, height, rows, columns):
    (frame,) = frames_of(write_video(tmp_path / "v.mp4", 1, width, height))
    assert frame.square.shape == (32, 32, 3)
    lit = frame.square.astype(int).sum(axis=-1) > 60
    assert (np.flatnonzero(lit.any(axis=1))[[0, -1]] == [rows[0], rows[1] - 1]).all()
    assert (np.flatnonzero(lit.any(axis=0))[[0, -1]] == [columns[0], columns[1] - 1]).all()
    assert frame.full().shape == (height, width, 3)


def test_joints_and_pixels_share_the_square():
    placement = Placement.centred(48, 64, 32)
    corners = placement.to_square(np.array([[0.0, 0.0], [1.0, 1.0], [0.5, 0.5]]))
    assert np.allclose(corners, [[4 / 32, 0], [28 / 32, 1], [0.5, 0.5]])


def test_large_pictures_are_scaled_down_for_the_pose_model(tmp_path):
    (frame,) = frames_of(write_video(tmp_path / "v.mp4", 1, 2560, 64))
    assert frame.full().shape == (32, FULL_SIDE, 3)


def test_a_clip_of_one_frame_is_read(tmp_path):
    assert numbers(write_video(tmp_path / "v.mp4", 1)) == [0]


def test_a_window_takes_the_frames_from_start_up_to_but_not_at_the_end(tmp_path):
    video = write_video(tmp_path / "v.mp4", 10)
    assert numbers(video, start=0.2, end=0.5) == [2, 3, 4]
    assert numbers(video, start=0.25) == [3, 4, 5, 6, 7, 8, 9]
    assert numbers(video, end=1.05)[-1] == 9


@pytest.mark.parametrize(
    ("start", "end", "words"),
    [(None, 2.0, "end 2 s"), (3.0, None, "start 3 s"), (0.21, 0.29, "no frame of v.mp4")],
)
def test_a_window_that_leaves_the_video_is_an_error(tmp_path, start, end, words):
    video = write_video(tmp_path / "v.mp4", 10)
    with pytest.raises(VideoError, match=words):
        frames_of(video, start=start, end=end)


@pytest.mark.parametrize(
    ("fps", "expected"),
    [
        (5.0, [0, 2, 4, 6, 8]),
        (4.0, [0, 2, 5, 7]),
        (20.0, [n for n in range(10) for _ in (0, 1)]),
        (10.0, list(range(10))),
    ],
)
def test_resampling_takes_the_nearest_frames(tmp_path, fps, expected):
    assert numbers(write_video(tmp_path / "v.mp4", 10), fps=fps) == expected


def test_resampling_starts_at_the_window(tmp_path):
    video = write_video(tmp_path / "v.mp4", 10)
    assert numbers(video, start=0.3, end=0.9, fps=5.0) == [3, 5, 7]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "ts"])
def test_seeking_finds_the_same_frames_as_decoding_from_the_beginning(tmp_path, suffix):
    video = write_video(tmp_path / f"v.{suffix}", 60)
    window = {"start": 4.05, "end": 4.6}
    sought = frames_of(video, **window)
    counted = frames_of(video, **window, exact_index=True)
    assert [frame.index for frame in sought] == [41, 42, 43, 44, 45]
    assert [frame.index for frame in counted] == [41, 42, 43, 44, 45]
    for one, other in zip(sought, counted, strict=True):
        assert (one.square == other.square).all()


class Overshooting:
    """A container that seeks past what it is asked for, as some without an index do."""

    def __init__(self, container):
        self._container = container

    def __getattr__(self, name):
        return getattr(self._container, name)

    def seek(self, offset, stream, backward):
        self._container.seek(offset + int(1.5 / stream.time_base), stream=stream)


def test_a_container_that_seeks_too_far_is_read_from_its_first_frame(tmp_path):
    with open_video(write_video(tmp_path / "v.mp4", 60)) as source:
        source._container = Overshooting(source._container)
        frames = list(read_frames(source, 32, start=4.05, end=4.6))
    assert [frame.index for frame in frames] == [41, 42, 43, 44, 45]


def test_a_rotated_recording_is_turned_upright(tmp_path):
    video = write_video(tmp_path / "v.mp4", 1, 64, 48)
    content = bytearray(video.read_bytes())
    matrix = content.index(b"tkhd") + 4 + 40
    assert struct.unpack_from(">i", content, matrix) == (0x10000,)
    # A quarter turn clockwise, as phones write it: x' = -y, y' = x.
    one, zero = 0x10000, 0
    struct.pack_into(">9i", content, matrix, zero, one, 0, -one, zero, 0, 0, 0, 0x40000000)
    video.write_bytes(content)
    (frame,) = frames_of(video)
    assert frame.full().shape == (64, 48, 3)
    red = frame.full()[:8].mean(axis=(0, 1))
    assert red[0] > 150 > 90 > red[2], "the left edge has become the upper one"
    assert frame.square[:, :4].max() < 30


@pytest.mark.parametrize("share", [0.5, 0.85])
def test_a_truncated_video_names_the_frames_it_has_and_should_have(tmp_path, share):
    video = write_video(tmp_path / "v.mp4", 40, movflags="faststart")
    truncated(video, share)
    with pytest.raises(VideoError, match=r"truncated video: v.mp4, \d+ of 40 frames"):
        frames_of(video)


def test_a_matroska_file_that_ends_early_is_truncated(tmp_path):
    video = truncated(write_video(tmp_path / "v.mkv", 40), 0.6)
    with pytest.raises(VideoError, match=r"truncated video: v.mkv, \d+ of 40 frames"):
        frames_of(video)


def test_a_video_without_its_table_of_contents_cannot_be_opened(tmp_path):
    video = truncated(write_video(tmp_path / "v.mp4", 40), 0.9)
    with pytest.raises(VideoError, match=r"unreadable video: v.mp4, 0 frames"):
        frames_of(video)


@pytest.mark.parametrize("content", [b"", b"not a video", b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n"])
def test_what_is_no_video_is_refused_by_name(tmp_path, content):
    (tmp_path / "v.m3u8").write_bytes(content)
    with pytest.raises(VideoError, match=r"unreadable video: v.m3u8"):
        frames_of(tmp_path / "v.m3u8")


def test_a_missing_video_is_an_error(tmp_path):
    with pytest.raises(VideoError, match=r"missing video: v.mp4"):
        frames_of(tmp_path / "v.mp4")


def write_frames(folder: Path, names: list[str]) -> Path:
    folder.mkdir()
    for number, name in enumerate(names):
        Image.fromarray(picture(number * 10, 30, 40)).save(folder / name)
    return folder


def test_a_folder_of_frames_is_read_in_the_order_of_its_numbers(tmp_path):
    folder = write_frames(tmp_path / "f", ["im9.png", "im10.png", "im11.jpg"])
    (folder / "stray.lprof").write_text("not a frame")
    frames = frames_of(folder, folder_fps=25.0)
    brightness = [int(frame.full()[20, 25, 0]) for frame in frames]
    assert brightness == [40, 70, 100]
    assert [frame.time for frame in frames] == [0, 1 / 25, 2 / 25]
    assert frames[0].square[:, :3].max() == 0


def test_a_folder_of_frames_needs_a_frame_rate(tmp_path):
    folder = write_frames(tmp_path / "f", ["a.png"])
    with pytest.raises(VideoError, match="unknown frame rate"):
        open_video(folder)


def test_a_damaged_frame_of_a_folder_is_named(tmp_path):
    folder = write_frames(tmp_path / "f", ["a.png", "b.png"])
    truncated(folder / "b.png", 0.5)
    with pytest.raises(VideoError, match=r"truncated video: f/b.png, 1 of 2 frames"):
        frames_of(folder, folder_fps=25.0)


def test_a_folder_without_frames_and_a_link_out_of_it_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(VideoError, match="empty video"):
        open_video(tmp_path / "empty", 25.0)
    folder = write_frames(tmp_path / "f", ["a.png"])
    (tmp_path / "outside.png").write_bytes((folder / "a.png").read_bytes())
    (folder / "b.png").symlink_to(tmp_path / "outside.png")
    with pytest.raises(VideoError, match=r"bad path: f/b.png"):
        open_video(folder, 25.0)
