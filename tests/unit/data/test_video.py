from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image

from helpers.little_clips import picture, truncated, write_video
from helpers.numbered_clips import (
    constant,
    corners_of,
    number_in,
    numbered,
    write_numbered,
)
from signfuse_dist.data.clock import VideoError
from signfuse_dist.data.picture import FULL_SIDE, Placement
from signfuse_dist.data.video import FrameReader, open_video
from signfuse_dist.errors import MachineError


def frames_of(path: Path, size: int = 32, folder_fps: float | None = None, **choice):
    with open_video(path, folder_fps) as source:
        return list(FrameReader(source, size, **choice))


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
    [(None, 2.0, "end 2 s"), (3.0, None, "start 3 s"), (3.0, 4.0, "end 4 s")],
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
        frames = list(FrameReader(source, 32, start=4.05, end=4.6))
    assert [frame.index for frame in frames] == [41, 42, 43, 44, 45]


ONE = 0x10000


@pytest.mark.parametrize(
    ("matrix", "corners"),
    [
        ((ONE, 0, 0, ONE), ["red", "green", "blue", "yellow"]),
        ((-ONE, 0, 0, ONE), ["green", "red", "yellow", "blue"]),
        ((ONE, 0, 0, -ONE), ["blue", "yellow", "red", "green"]),
        ((-ONE, 0, 0, -ONE), ["yellow", "blue", "green", "red"]),
        ((0, ONE, -ONE, 0), ["blue", "red", "yellow", "green"]),
        ((0, -ONE, ONE, 0), ["green", "yellow", "red", "blue"]),
        ((0, ONE, ONE, 0), ["red", "blue", "green", "yellow"]),
        ((0, -ONE, -ONE, 0), ["yellow", "green", "blue", "red"]),
    ],
)
def test_a_recording_is_turned_and_mirrored_as_its_matrix_says(tmp_path, matrix, corners):
    video = write_numbered(tmp_path / "v.mp4", constant(30, 2))
    content = bytearray(video.read_bytes())
    place = content.index(b"tkhd") + 4 + 40
    assert struct.unpack_from(">i", content, place) == (ONE,)
    a, b, c, d = matrix
    struct.pack_into(">9i", content, place, a, b, 0, c, d, 0, 0, 0, 0x40000000)
    video.write_bytes(content)
    frame = frames_of(video)[0]
    assert corners_of(frame.full()) == corners
    assert frame.full().shape == ((96, 160, 3) if a else (160, 96, 3))


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


def test_a_folder_without_frames_is_refused_and_links_to_pictures_are_followed(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(VideoError, match="empty video"):
        open_video(tmp_path / "empty", 25.0)
    folder = write_frames(tmp_path / "f", ["a.png"])
    (tmp_path / "outside.png").write_bytes((folder / "a.png").read_bytes())
    (folder / "b.png").symlink_to(tmp_path / "outside.png")
    assert len(frames_of(folder, folder_fps=25.0)) == 2


def test_a_name_that_begins_with_a_dot_is_no_picture(tmp_path):
    folder = write_frames(tmp_path / "f", ["0.png", "1.png"])
    (folder / "._0.png").write_bytes(b"resource fork")
    assert len(frames_of(folder, folder_fps=25.0)) == 2


def test_grey_of_16_bits_keeps_its_shades(tmp_path):
    grey = np.tile(np.arange(0, 256, 8, dtype=np.uint16) * 257, (32, 1))
    (tmp_path / "f").mkdir()
    Image.fromarray(grey).save(tmp_path / "f" / "0.png")
    (frame,) = frames_of(tmp_path / "f", folder_fps=25.0)
    assert (frame.full() == (grey >> 8)[..., None]).all()


@pytest.mark.parametrize(
    ("orientation", "corners"),
    [
        (2, ["green", "red", "yellow", "blue"]),
        (6, ["blue", "red", "yellow", "green"]),
        (8, ["green", "yellow", "red", "blue"]),
    ],
)
def test_a_photograph_is_turned_as_its_exif_says(tmp_path, orientation, corners):
    (tmp_path / "f").mkdir()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(numbered(0)).save(tmp_path / "f" / "0.jpg", exif=exif, quality=95)
    (frame,) = frames_of(tmp_path / "f", folder_fps=25.0)
    assert corners_of(frame.full()) == corners


@pytest.mark.parametrize(
    ("names", "flags"),
    [
        (["a1.png", "a2.png", "a3.png"], ()),
        (["a1.png", "a2.png", "a4.png"], ("missing_frames",)),
        (["a00.png", "a02.png", "a04.png"], ()),
        (["8.jpg", "9.jpg", "10.jpg"], ()),
        (["s2_1.png", "s2_2.png", "s2_5.png"], ("missing_frames",)),
        (["one.png", "two.png", "three.png"], ()),
    ],
)
def test_numbers_that_are_left_out_of_a_folder_are_flagged(tmp_path, names, flags):
    with open_video(write_frames(tmp_path / "f", names), 25.0) as source:
        reader = FrameReader(source, 32)
        assert len(list(reader)) == len(names)
        assert reader.flags == flags


def test_a_picture_that_asks_for_too_much_memory_is_refused_by_its_header(tmp_path, monkeypatch):
    folder = tmp_path / "f"
    folder.mkdir()
    Image.new("L", (40, 30)).save(folder / "a.png")
    monkeypatch.setattr("signfuse_dist.data.picture.MAX_PIXELS", 1000)
    monkeypatch.setattr("PIL.Image.Image.load", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(VideoError, match=r"too large: the picture of f/a.png is 40 x 30"):
        frames_of(folder, folder_fps=25.0)
    with pytest.raises(VideoError, match=r"too large: the picture of v.mp4 is 64 x 48"):
        frames_of(write_video(tmp_path / "v.mp4", 1))


def test_what_is_no_regular_file_is_refused_without_being_opened(tmp_path):
    os.mkfifo(tmp_path / "v.mp4")
    with pytest.raises(VideoError, match=r"unreadable video: v.mp4 is no regular file"):
        frames_of(tmp_path / "v.mp4")
    folder = write_frames(tmp_path / "f", ["0.png"])
    os.mkfifo(folder / "1.png")
    with pytest.raises(VideoError, match=r"unreadable video: f/1.png is no regular file"):
        frames_of(folder, folder_fps=25.0)


def put_user_data_first(path: Path) -> None:
    """Move the box with the cover to the front of an mp4's header, whose size stays."""
    content = path.read_bytes()
    begin = content.index(b"moov") + 4
    end = begin - 8 + int.from_bytes(content[begin - 8 : begin - 4], "big")
    boxes, at = [], begin
    while at < end:
        size = int.from_bytes(content[at : at + 4], "big")
        boxes.append(content[at : at + size])
        at += size
    boxes.sort(key=lambda box: box[4:8] != b"udta")
    path.write_bytes(content[:begin] + b"".join(boxes) + content[end:])


def test_a_cover_is_not_taken_for_the_film(tmp_path):
    film = write_numbered(tmp_path / "film.mp4", constant(30, 20))
    with av.open(str(film)) as source, av.open(str(tmp_path / "v.mp4"), "w") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 300, 200, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        copied = container.add_stream_from_template(source.streams.video[0])
        still = av.VideoFrame.from_ndarray(np.zeros((200, 300, 3), np.uint8), format="rgb24")
        container.mux([*cover.encode(still), *cover.encode()])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = copied
                container.mux(packet)
    put_user_data_first(tmp_path / "v.mp4")
    with av.open(str(tmp_path / "v.mp4")) as container:
        assert container.streams.video[0].disposition & Disposition.attached_pic
    assert [number_in(frame.full()) for frame in frames_of(tmp_path / "v.mp4", 160)] == [*range(20)]


def test_a_time_far_away_is_refused_at_once(tmp_path):
    video = write_numbered(tmp_path / "v.mkv", [0.0, 0.04, 2e6], container_options={"live": "1"})
    for fps in (None, 25.0):
        with pytest.raises(VideoError, match=r"gap: v.mkv shows no new picture from 0\.04 s"):
            frames_of(video, fps=fps)


def test_interlaced_pictures_are_flagged(tmp_path):
    video = write_numbered(
        tmp_path / "v.ts", constant(25, 10), "mpeg2video", rate=25, options={"flags": "+ildct+ilme"}
    )
    with open_video(video) as source:
        reader = FrameReader(source, 32)
        assert len(list(reader)) == 10
        assert reader.flags == ("interlaced",)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "ts"])
def test_a_fault_of_the_disk_is_not_taken_for_one_of_the_video(tmp_path, suffix, monkeypatch):
    video = write_video(tmp_path / f"v.{suffix}", 40)

    def fails(*_):
        raise av.error.OSError(errno.EIO, "Input/output error", str(video))

    with open_video(video) as source:
        monkeypatch.setattr(type(source), "_packets", fails)
        with pytest.raises(MachineError, match=r"v\.\w+: Input/output error"):
            list(FrameReader(source, 32))


def test_a_fault_of_the_disk_is_not_taken_for_one_of_a_picture(tmp_path, monkeypatch):
    folder = write_frames(tmp_path / "f", ["0.png"])

    def fails(*_, **__):
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr("PIL.Image.open", fails)
    with pytest.raises(MachineError, match="Stale file handle"):
        frames_of(folder, folder_fps=25.0)


@pytest.mark.parametrize(
    ("suffix", "codec", "sound"),
    [
        ("mp4", "libx264", "aac"),
        ("mkv", "libx264", "aac"),
        ("wmv", "wmv2", "libmp3lame"),
        ("avi", "mpeg4", "aac"),
    ],
)
def test_sound_that_outlasts_the_pictures_is_no_missing_picture(tmp_path, suffix, codec, sound):
    video = write_numbered(
        tmp_path / f"v.{suffix}", constant(30, 60), codec, sound=sound, sound_for=12.0
    )
    assert len(frames_of(video)) == 60


def test_a_stream_that_the_reader_does_not_know_is_damage(tmp_path, monkeypatch):
    video = write_video(tmp_path / "v.mp4", 10)

    def fails(*_):
        raise IndexError("list index out of range")

    with open_video(video) as source:
        monkeypatch.setattr(type(source), "_packets", fails)
        with pytest.raises(VideoError, match=r"truncated video: v.mp4, 0 of 10 frames"):
            list(FrameReader(source, 32))
