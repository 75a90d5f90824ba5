"""The net under the frames: which picture is read for which second, from any container.

Every file holds numbered pictures at known times, so that what is read can be compared with
arithmetic, and with what ffmpeg shows where it is installed.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import av
import numpy as np
import pytest

from helpers.numbered_clips import HEIGHT, WIDTH, constant, number_in, write_numbered
from signfuse_dist.data.clock import VideoError
from signfuse_dist.data.video import FrameReader, open_video

STEADY = constant(30, 240)
VARYING = [*constant(30, 90), *constant(10, 40, start=3.0)]
JITTERING = np.cumsum([0.0, *np.random.default_rng(0).uniform(0.025, 0.045, 200)]).tolist()
PAUSING = [*constant(30, 70), *constant(30, 120, start=70 / 30 + 1.4)]
TIMES = {"steady": STEADY, "varying": VARYING, "jittering": JITTERING, "pausing": PAUSING}
IN_PARTS = {"x264-params": "intra-refresh=1", "preset": "veryfast"}
OPEN_GROUPS = {"x264-params": "open-gop=1:scenecut=0:bframes=3", "preset": "veryfast"}
FAST = {"preset": "veryfast"}
MPEG2 = {"bf": "2", "qmin": "1", "qmax": "3"}
SIMPLE = {"qmin": "1", "qmax": "3"}

ANY_TIMES = [
    ("mp4", "libx264", FAST, {}),
    ("mp4", "libx264", OPEN_GROUPS, {}),
    ("mp4", "libx264", IN_PARTS, {}),
    ("mkv", "libx264", IN_PARTS, {}),
    ("mp4", "libx264", FAST, {"movflags": "frag_keyframe+empty_moov"}),
    ("mov", "libx264", FAST, {}),
    ("mkv", "libx264", OPEN_GROUPS, {}),
    ("webm", "libvpx", {"deadline": "realtime", "cpu-used": "8"}, {}),
    ("flv", "libx264", FAST, {}),
    ("ts", "libx264", OPEN_GROUPS, {}),
]
STEADY_TIMES = [
    ("ts", "mpeg2video", MPEG2, {}),
    ("mpg", "mpeg2video", MPEG2, {}),
    ("vob", "mpeg2video", MPEG2, {}),
    ("avi", "mpeg4", SIMPLE, {}),
    ("avi", "libx264", FAST, {}),
    ("avi", "libx264", {**FAST, "bf": "0"}, {}),
    ("wmv", "wmv2", SIMPLE, {}),
]
CUTS = [(0.4, 0.9), (2.1, 2.5), (2.95, 3.31), (4.0, 4.4), (5.6, 6.0)]


def read(path: Path, **choice) -> list[int]:
    with open_video(path) as source:
        return [number_in(f.full()) for f in FrameReader(source, WIDTH, **choice)]


def ffmpeg(path: Path, start: float, end: float) -> list[int]:
    """Return the numbers of the pictures that ffmpeg shows, read from the beginning."""
    pictures = [
        *("-map", "0:v", "-vf", rf"select=gte(t\,{start})*lt(t\,{end})"),
        *("-vsync", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"),
    ]
    sound = ["-map", "0:a", "-f", "null", "-"]  # unused, ffmpeg would count without it
    command = ["ffmpeg", "-v", "error", "-i", str(path), *pictures, *sound]
    shown = subprocess.run(command, capture_output=True, check=True).stdout
    return [number_in(p) for p in np.frombuffer(shown, np.uint8).reshape(-1, HEIGHT, WIDTH, 3)]


def rounded(path: Path, times: list[float]) -> list[float]:
    """Return the times as the container keeps them: whole milliseconds, or far finer."""
    return [round(t, 3) for t in times] if path.suffix in (".mkv", ".webm", ".flv") else times


def expected(path: Path, times: list[float], start: float, end: float) -> list[int]:
    """The pictures that appear in the window; if none does, the one that is on the screen."""
    kept = rounded(path, times)
    appear = [n for n, time in enumerate(kept) if start - 1e-6 <= time < end - 1e-6]
    return appear or [max(n for n, time in enumerate(kept) if time <= start)]


def check(path: Path, times: list[float]) -> None:
    assert read(path) == [n % 256 for n in range(len(times))]
    for start, end in CUTS:
        if start < times[0] or end > times[-1]:
            continue
        wanted = [n % 256 for n in expected(path, times, start, end)]
        assert read(path, start=start, end=end) == wanted, (start, end)
        assert read(path, start=start, end=end, exact_index=True) == wanted, (start, end)


@pytest.mark.parametrize("rate", TIMES)
@pytest.mark.parametrize(("suffix", "codec", "options", "container"), ANY_TIMES)
def test_every_cut_is_exact_at_any_rate(tmp_path, suffix, codec, options, container, rate):
    path = tmp_path / f"v.{suffix}"
    write_numbered(path, TIMES[rate], codec, options=options, container_options=container)
    check(path, TIMES[rate])


@pytest.mark.parametrize(("suffix", "codec", "options", "container"), STEADY_TIMES)
def test_every_cut_is_exact_where_a_container_counts(tmp_path, suffix, codec, options, container):
    path = tmp_path / f"v.{suffix}"
    write_numbered(path, STEADY, codec, options=options, container_options=container)
    check(path, STEADY)


@pytest.mark.parametrize("rate", ["varying", "pausing"])
@pytest.mark.parametrize(
    ("codec", "options"), [("libx264", FAST), ("mpeg4", {**SIMPLE, "bf": "2"})]
)
def test_an_avi_of_varying_rate_is_named_where_its_pictures_are_reordered(
    tmp_path, codec, options, rate
):
    """Its times of reading would be taken for those of showing, up to a pause too early."""
    path = write_numbered(tmp_path / "v.avi", TIMES[rate], codec, options=options)
    with pytest.raises(VideoError, match=r"unknown times: v\.avi is an AVI of varying rate"):
        read(path)
    in_order = {**options, "bf": "0"}
    check(write_numbered(tmp_path / "b.avi", TIMES[rate], codec, options=in_order), TIMES[rate])


def turn_back(path: Path, stamp: int, seconds: float) -> int:
    """Turn the clock of a programme stream's pictures back from time stamp ``stamp`` on.

    Return how many time stamps were changed. One is 33 bits at 90 kHz, in 5 bytes with markers.
    """
    content, changed, place = bytearray(path.read_bytes()), 0, -1
    while (place := content.find(b"\0\0\1\xe0", place + 1)) >= 0:
        flags, first = content[place + 7] >> 6, place + 9
        for at in range(first, first + {2: 5, 3: 10}.get(flags, 0), 5):
            a, b, c, d, e = content[at : at + 5]
            ticks = (a >> 1 & 7) << 30 | b << 22 | c >> 1 << 15 | d << 7 | e >> 1
            if ticks < stamp:
                continue
            ticks -= round(seconds * 90_000)
            content[at] = a & 0xF1 | ticks >> 30 << 1
            content[at + 1], content[at + 2] = ticks >> 22 & 255, (ticks >> 15 & 127) << 1 | 1
            content[at + 3], content[at + 4] = ticks >> 7 & 255, (ticks & 127) << 1 | 1
            changed += 1
    path.write_bytes(content)
    return changed


def jumping_back(path: Path, seconds: float) -> Path:
    """Write 120 pictures of which the 60th and all after it are stamped ``seconds`` earlier."""
    write_numbered(
        path,
        constant(30, 120),
        "mpeg2video",
        options={**MPEG2, "bf": "0"},
        container_options={"packetsize": "150"},  # a packet and a stamp for each picture
    )
    with av.open(str(path)) as container:
        begin = round(container.start_time * 90_000 / av.time_base)
    assert turn_back(path, begin + 2 * 90_000 - 450, seconds) > 50
    return path


def test_a_programme_stream_whose_clock_jumps_back_by_pictures_keeps_them_all(tmp_path):
    """Nothing else is wrong with such a file; its row was dropped as damaged."""
    path = jumping_back(tmp_path / "v.vob", 0.1)
    assert read(path) == list(range(120))
    with open_video(path) as source:
        seen = [frame.time for frame in FrameReader(source, WIDTH)]
    assert np.all(np.diff(seen) > 0)
    assert np.allclose(seen[:60], constant(30, 60), atol=1e-3)
    assert np.allclose(seen[64:], constant(30, 56, start=64 / 30 - 0.1), atol=2e-3)


def test_a_programme_stream_whose_clock_jumps_back_further_is_damaged(tmp_path):
    with pytest.raises(VideoError, match="damaged video"):
        read(jumping_back(tmp_path / "v.vob", 1.0))


@pytest.mark.parametrize("offset", [0.12, 0.5, 1.4])
@pytest.mark.parametrize(("suffix", "sound"), [("mp4", "aac"), ("mkv", "pcm_s16le"), ("ts", "mp2")])
def test_time_0_is_that_of_the_file_where_sound_begins_before_the_pictures(
    tmp_path, suffix, sound, offset
):
    times = constant(30, 200, start=offset)
    path = write_numbered(tmp_path / f"v.{suffix}", times, sound=sound, options=FAST)
    check(path, constant(30, 200, start=offset + priming(path, offset)))


def priming(path: Path, offset: float) -> float:
    """Seconds that the encoder of the sound puts before it, from which the file then counts."""
    with av.open(str(path)) as container:
        (pictures,) = container.streams.video
        late = float(pictures.start_time * pictures.time_base) - container.start_time / av.time_base
    assert 0 <= late - offset < 0.05
    return late - offset


@pytest.mark.parametrize("offset", [0.12, 0.5, 1.4])
@pytest.mark.parametrize("suffix", ["mkv", "ts", "flv"])
def test_a_clock_that_starts_late_is_counted_from_its_start(tmp_path, suffix, offset):
    path = write_numbered(tmp_path / f"v.{suffix}", constant(30, 200, start=offset), options=FAST)
    check(path, constant(30, 200))


def test_a_rate_that_is_none_of_the_usual_is_cut_exactly(tmp_path):
    times = constant(24000 / 1001, 150)
    check(write_numbered(tmp_path / "v.mp4", times, options=OPEN_GROUPS), times)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "flv", "mpg"])
def test_cuts_are_those_that_ffmpeg_shows(tmp_path, suffix):
    times = STEADY if suffix == "mpg" else [*constant(30, 90, 0.5), *constant(10, 40, start=3.5)]
    kind = ("mpeg2video", MPEG2) if suffix == "mpg" else ("libx264", OPEN_GROUPS)
    # The aac in Matroska has a start that versions of ffmpeg do not agree upon.
    sound = {"mpg": "mp2", "ts": "mp2", "mkv": "pcm_s16le"}.get(suffix, "aac")
    path = write_numbered(tmp_path / f"v.{suffix}", times, kind[0], sound=sound, options=kind[1])
    for start, end in CUTS:
        assert read(path, start=start, end=end) == ffmpeg(path, start, end), (start, end)
