"""Where a picture lies in its square, and the square around a signer."""

from __future__ import annotations

import math
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from signfuse_dist.corpora import Box
from signfuse_dist.data.clock import VideoError
from signfuse_dist.data.crop import (
    MARGIN,
    hands_cut,
    in_picture,
    is_box,
    moved,
    signer_box,
)
from signfuse_dist.data.picture import Placement, VideoFrame, squared
from signfuse_dist.data.video import FrameReader, open_video
from signfuse_dist.skeleton import NUM_JOINTS

WIDTH, HEIGHT, SIZE = 320, 240, 96
MARKER = (0.55, 0.4)  # as shares of the picture as it is stored
RADIUS = 7  # pixels


def marker_video(path: Path, aspect: int = 1, quarter: bool = False) -> Path:
    """Write a frame with a white disc; ``quarter`` has players turn it clockwise."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    disc = np.hypot(x - MARKER[0] * WIDTH, y - MARKER[1] * HEIGHT) < RADIUS
    pixels = np.where(disc[..., None], 255, 16).astype(np.uint8).repeat(3, axis=2)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.options = {"qmin": "1", "qmax": "2"}
        stream.codec_context.sample_aspect_ratio = Fraction(aspect)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    if quarter:
        content = bytearray(path.read_bytes())
        matrix = content.index(b"tkhd") + 4 + 40
        one, zero = 0x10000, 0
        struct.pack_into(">9i", content, matrix, zero, one, 0, -one, zero, 0, 0, 0, 0x40000000)
        path.write_bytes(content)
    return path


def brightest(picture: np.ndarray) -> np.ndarray:
    """Return the centre of what is bright, as shares of the picture."""
    light = np.clip(picture.astype(float).mean(axis=2) - 60, 0, None)
    height, width = light.shape
    x, y = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    return np.array([(light.sum(axis=0) * x).sum(), (light.sum(axis=1) * y).sum()]) / light.sum()


BOXES = {
    "letterboxed": None,
    "inside": Box(0.25, 0.1, 0.85, 0.8),
    "reaching out on the right": Box(0.4, 0.05, 1.0, 0.6),
    "reaching out below": Box(0.3, 0.35, 0.75, 1.0),
    "enlarged": Box(0.5, 0.3, 0.65, 0.5),
}


def frame_of(path: Path, box: Box | None) -> VideoFrame:
    with open_video(path) as source:
        (frame,) = FrameReader(source, SIZE, box=box)
    return frame


@pytest.mark.parametrize("shape", ["plain", "rotated", "wide pixels", "rotated wide pixels"])
@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES)
def test_where_a_joint_is_there_is_its_pixel(tmp_path: Path, box: Box | None, shape: str) -> None:
    quarter, aspect = "rotated" in shape, 2 if "wide" in shape else 1
    point = np.array(MARKER)
    if quarter:  # the left edge becomes the upper one
        point = np.array([1 - MARKER[1], MARKER[0]])
        box = box and Box(1 - box.y1, box.x0, 1 - box.y0, box.x1)
    frame = frame_of(marker_video(tmp_path / "v.mp4", aspect, quarter), box)
    upright = (HEIGHT, WIDTH * aspect) if quarter else (WIDTH * aspect, HEIGHT)
    assert (frame.picture.width, frame.picture.height) == upright
    pixel = brightest(frame.square)
    joint = frame.placement.to_square(point)
    assert np.abs(pixel - joint).max() * SIZE < 0.5
    looked_at = brightest(frame.full())  # what an extractor is shown, and says
    assert np.abs(frame.to_square(looked_at) - joint).max() * SIZE < 0.5
    assert np.abs(frame.placement.to_picture(joint) - point).max() < 1e-6
    if box is not None:
        share = in_picture(joint, squared(box, *upright))
        assert np.abs(share - point).max() * max(upright) / SIZE < 2


def test_what_lies_outside_the_picture_is_black(tmp_path: Path) -> None:
    frame = frame_of(marker_video(tmp_path / "v.mp4"), Box(0.0, 0.0, 1.0, 1.0))
    assert squared(Box(0, 0, 1, 1), WIDTH, HEIGHT) == pytest.approx((0, -1 / 6, 1, 7 / 6))
    assert frame.square[:11].max() == 0
    assert frame.square[13:83].min() > 5
    assert frame.square[85:].max() == 0
    assert frame.full().shape == (HEIGHT, WIDTH, 3)


class Recorded:
    """A picture that notes at which sizes it was asked for."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height, self.asked = width, height, list[tuple[int, int]]()

    def rgb(self, width: int, height: int) -> np.ndarray:
        self.asked.append((width, height))
        return np.full((height, width, 3), 200, dtype=np.uint8)


@pytest.mark.parametrize("box", [Box(0.5, 0.5, 0.502, 0.502), Box(0.2, 0.25, 0.7, 0.75)])
def test_no_picture_is_scaled_beyond_its_own_size_for_a_crop(box: Box) -> None:
    picture = Recorded(2000, 1000)
    square = Placement.around(box, 2000, 1000, 224).draw(picture)
    assert square.min() == 200
    ((width, height),) = picture.asked
    assert width <= 2000
    assert height <= 1000


def test_a_square_is_cut_from_one_scaling(tmp_path: Path) -> None:
    picture = Recorded(1000, 500)
    Placement.around(Box(0.0, 0.0, 0.5, 1.0), 1000, 500, 250).draw(picture)
    assert picture.asked == [(500, 250)]


def test_a_box_is_widened_to_a_square_of_whole_pixels_around_its_centre() -> None:
    box = squared(Box(0.2, 0.25, 0.4, 0.75), 1280, 720)
    pixels = np.array(box).reshape(2, 2) * (1280, 720)
    assert np.allclose(pixels, pixels.round())
    assert np.allclose(pixels[1] - pixels[0], 360)
    assert np.allclose(pixels.mean(axis=0), (384, 360))
    assert squared(box, 1280, 720) == box
    assert Placement.around(box, 1280, 720, 180) == Placement(-102, -90, 640, 360, 180)


def test_a_box_smaller_than_a_pixel_is_refused() -> None:
    with pytest.raises(VideoError, match="covers less than a pixel of 1280 x 720"):
        squared(Box(0.5, 0.5, 0.5005, 0.5005), 1280, 720)
    with pytest.raises(VideoError, match="bad box"):
        Placement.around(Box(0.5, 0.5, 0.5 + 1e-12, 0.5 + 1e-12), 1280, 720, 224)


def still(frames: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Return joints that span 0.4 to 0.6 across and 0.2 to 0.7 down, in every frame."""
    points = np.zeros((frames, NUM_JOINTS, 2))
    points[..., 0] = np.linspace(0.4, 0.6, NUM_JOINTS)
    points[..., 1] = np.linspace(0.2, 0.7, NUM_JOINTS)
    return points, np.ones((frames, NUM_JOINTS), dtype=bool)


def pixels_of(box: Box | None) -> np.ndarray:
    assert box is not None
    return np.array(box).reshape(2, 2) * (1000, 500)


@pytest.mark.parametrize("frames", [1, 2, 3, 60])
def test_the_square_holds_all_joints_with_a_margin(frames: int) -> None:
    pixels = pixels_of(signer_box(*still(frames), 1000, 500))
    side = math.ceil(250 * (1 + 2 * MARGIN))
    assert np.allclose(
        pixels, [[500 - side / 2, 225 - side / 2], [500 + side / 2, 225 + side / 2]], atol=1
    )
    assert np.allclose(pixels[1] - pixels[0], side)
    assert np.allclose(pixels, pixels.round())


def test_a_movement_counts_and_one_frame_of_it_does_not() -> None:
    points, mask = still()
    alone = signer_box(points, mask, 1000, 500)
    points[30, 5] = (0.95, 0.95)
    assert signer_box(points, mask, 1000, 500) == alone
    points[30:33, 5] = (0.95, 0.95)
    assert pixels_of(signer_box(points, mask, 1000, 500))[1, 0] > 950


def test_what_lies_outside_the_picture_or_was_seen_once_does_not_count() -> None:
    points, mask = still()
    alone = signer_box(points, mask, 1000, 500)
    points[:, 5] = (0.5, 1.2)  # an arm that leaves the picture below
    points[:, 6], mask[:, 6] = (0.05, 0.5), False
    mask[7, 6] = True
    assert signer_box(points, mask, 1000, 500) == alone


def test_there_is_no_square_without_joints() -> None:
    points, mask = still()
    assert signer_box(points, np.zeros_like(mask), 1000, 500) is None
    assert signer_box(points + 2, mask, 1000, 500) is None
    assert signer_box(np.full_like(points, 0.5), mask, 1000, 500) is None


def test_joints_of_the_letterbox_are_moved_into_the_square_by_frame() -> None:
    box = Box(0.25, 0.0, 0.75, 1.0)
    pose = np.full((2, NUM_JOINTS, 2), 0.5, np.float32)
    pose[:, 1] = (0.25, 0.25)
    mask = np.ones((2, NUM_JOINTS), dtype=bool)
    mask[1, 1] = False
    # 0.25 of the letterbox's square is the picture's upper edge, and so is that of the crop.
    there = moved(pose, mask, [(200, 100), (400, 200)], 100, box)
    assert there.dtype == np.float32
    assert np.allclose(there[:, 0], 0.5)
    assert np.allclose(there[0, 1], 0.0)
    assert not there[1, 1].any()


def test_hands_are_cut_where_they_were_filmed_and_lie_outside_the_square() -> None:
    box = Box(0.25, 0.0, 0.75, 1.0)
    pose = np.full((1, NUM_JOINTS, 2), 0.5, np.float32)
    pose[0, 0] = (1.2, 0.5)  # 0.85 of the picture
    pose[0, 1] = (1.9, 0.5)  # beyond the picture
    pose[0, 2] = (1.2, 0.5)
    pose[0, 60] = (1.2, 0.5)  # no hand
    mask = np.ones((1, NUM_JOINTS), dtype=bool)
    mask[0, 2] = False
    cut, filmed = hands_cut(pose, mask, box)
    assert np.flatnonzero(cut[0]).tolist() == [0]
    assert filmed.sum() == 40


@pytest.mark.parametrize(
    ("recorded", "flags", "expected"),
    [
        ([-0.1, 0, 1, 1.1], (), True),
        (None, ("no_crop",), True),
        (None, (), False),
        ([0, 0, 1], (), False),
        ([0, 0, 0, 1], (), False),
        ([0, 0, math.nan, 1], (), False),
        ([0, 0, True, 1], (), False),
        ("0 0 1 1", (), False),
    ],
)
def test_a_record_says_how_a_clip_was_cropped(recorded, flags, expected) -> None:
    assert is_box(recorded, flags) is expected


def test_folders_of_pictures_are_cropped_as_videos_are(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    pixels = np.zeros((100, 200, 3), np.uint8)
    pixels[40:60, 120:140] = 255
    Image.fromarray(pixels).save(folder / "1.png")
    with open_video(folder, 10.0) as source:
        (frame,) = FrameReader(source, 50, box=Box(0.5, 0.0, 1.0, 1.0))
    assert np.allclose(brightest(frame.square), (0.3, 0.5), atol=0.01)
    assert np.allclose(frame.placement.to_square(np.array([0.65, 0.5])), (0.3, 0.5))
