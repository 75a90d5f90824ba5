"""Videos whose pictures say which they are, at any times, in many containers."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

WIDTH, HEIGHT, BITS = 160, 96, 8
CORNERS = {
    "red": (220, 30, 30),
    "green": (30, 200, 30),
    "blue": (30, 30, 220),
    "yellow": (220, 220, 30),
}
_CLOCK = Fraction(1, 90_000)
_CELL = WIDTH // (BITS + 2)


def numbered(number: int) -> np.ndarray:
    """A picture with a colour in each corner and its number in black and white in between."""
    picture = np.full((HEIGHT, WIDTH, 3), 128, dtype=np.uint8)
    third, fifth = HEIGHT // 3, WIDTH // 5
    red, green, blue, yellow = CORNERS.values()
    picture[:third, :fifth], picture[:third, -fifth:] = red, green
    picture[-third:, :fifth], picture[-third:, -fifth:] = blue, yellow
    for bit in range(BITS):
        lit = number >> (BITS - 1 - bit) & 1
        picture[third:-third, _CELL * (bit + 1) : _CELL * (bit + 2)] = 255 * lit
    return picture


def number_in(picture: np.ndarray) -> int:
    """Read the number of a picture of the size that was drawn."""
    cells = [picture[HEIGHT // 2, _CELL * (bit + 1) + _CELL // 2].mean() for bit in range(BITS)]
    return sum(int(cell > 128) << (BITS - 1 - bit) for bit, cell in enumerate(cells))


def corners_of(picture: np.ndarray) -> list[str]:
    """Name the colours in the corners, row by row."""
    pixels = [picture[y, x].astype(int) for y in (5, -6) for x in (5, -6)]
    return [min(CORNERS, key=lambda c: abs(p - np.array(CORNERS[c])).sum()) for p in pixels]


def constant(rate: float, count: int, start: float = 0.0) -> list[float]:
    """Times of pictures at one rate."""
    return [start + number / rate for number in range(count)]


def write_numbered(
    path: Path,
    times: Sequence[float],
    codec: str = "libx264",
    rate: int = 30,
    key_frames: int = 24,
    sound: str | None = None,
    sound_for: float | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Write a video whose pictures are shown at ``times``.

    ``sound`` is a codec: silence from time 0 on, so that the pictures may begin after the file,
    to the last picture or for ``sound_for`` seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Where a container or codec counts, its pictures come at the rate.
    counted = path.suffix == ".avi" or codec == "mpeg2video"
    clock = Fraction(1, rate) if counted else _CLOCK
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.gop_size = key_frames
        stream.options = options or {}
        stream.codec_context.time_base = clock
        voice = container.add_stream(sound, rate=48_000, layout="mono") if sound else None
        if voice is not None:
            seconds = sound_for or times[-1] + 1 / rate
            silence = np.zeros((1, round(48_000 * seconds)), dtype=np.float32)
            heard = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
            heard.sample_rate, heard.pts, heard.time_base = 48_000, 0, Fraction(1, 48_000)
            container.mux([*voice.encode(heard), *voice.encode()])
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(numbered(number), format="rgb24")
            frame.time_base, frame.pts = clock, round(time / clock)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
