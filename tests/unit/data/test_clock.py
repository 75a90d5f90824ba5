from __future__ import annotations

from dataclasses import dataclass

import pytest

from signfuse_dist.data.clock import Timing, VideoError, Window, as_decoded, resampled, shown


@dataclass(frozen=True)
class Picture:
    time: float
    duration: float = 0.0


def timed(
    times: list[float],
    start: float | None = None,
    end: float | None = None,
    fps: float | None = None,
    max_gap: float = 2.0,
    declared: float = 30.0,
    tick: float = 0.0,
    last_for: float = 0.0,
) -> tuple[list[float], Timing]:
    timing = Timing((declared,), tick)
    pictures = [Picture(t) for t in times[:-1]] + [Picture(times[-1], last_for)]
    on_screen = shown(pictures, Window(start, end), timing, max_gap, "v")
    chosen = as_decoded(on_screen) if fps is None else resampled(on_screen, fps, timing)
    return [picture.time for picture in chosen], timing


def test_pictures_that_appear_in_the_window_are_taken_once():
    assert timed([0, 0.1, 0.2, 0.3, 0.4], 0.1, 0.3, declared=10)[0] == [0.1, 0.2]


def test_a_window_in_which_nothing_appears_holds_the_picture_on_the_screen():
    times, timing = timed([0, 0.1, 1.5, 1.6], 0.5, 0.9, declared=10)
    assert times == [0.1]
    assert timing.flags == ("gap",)


def test_a_picture_is_not_used_before_it_appears():
    times, _ = timed([0.0, 0.1, 0.9, 1.0], fps=10, declared=10)
    assert times == [0.0, *[0.1] * 8, 0.9, 1.0]


def test_a_held_picture_fills_the_time_before_the_next_one():
    times, _ = timed([0.0, 0.1, 1.1, 1.2, 1.3], 0.6, 1.25, fps=10, declared=10)
    assert times == [0.1, 0.1, 0.1, 0.1, 0.1, 1.1, 1.2]


def test_a_rate_that_the_source_has_changes_nothing_wherever_the_window_begins():
    rounded = [round(n / 30, 3) for n in range(60)]
    times, _ = timed(rounded, 0.31, 1.2, fps=30, tick=0.001)
    assert times == [t for t in rounded if 0.31 <= t < 1.2]


@pytest.mark.parametrize(
    ("times", "window"),
    [([0.0, 0.1, 2.2], {}), ([2.5, 2.6], {"start": 0.0}), ([0.0, 0.1, 9.0], {"end": 5.0})],
)
def test_a_gap_beyond_the_bound_is_refused_by_name(times, window):
    with pytest.raises(VideoError, match=r"gap: v shows no new picture .* at most 2 s"):
        timed(times, **window)


def test_no_declared_rate_makes_more_of_a_picture_than_ten_seconds():
    """The first of pictures that are 1e5 s apart would be there a million times."""
    with pytest.raises(VideoError, match="gap: v shows no new picture"):
        timed([0.0, 1e5, 2e5], fps=10, declared=1e-5)
    assert timed([0.0], fps=10, declared=1e-9)[0] == [0.0] * 100
    assert timed([0.0, 8.0, 16.0], declared=0.125)[0] == [0.0, 8.0, 16.0]


def test_a_gap_that_the_window_does_not_see_is_nobodys_fault():
    assert timed([0, 0.1, 9.0, 9.1, 9.2], 9.0, 9.2, declared=10)[0] == [9.0, 9.1]
    assert timed([0, 0.1, 9.0], 0.0, 0.2, declared=10)[0] == [0, 0.1]


def test_a_start_just_before_the_first_picture_after_a_long_gap_is_that_picture():
    assert timed([0, 0.1, 9.0, 9.1, 9.2], 8.95, 9.2, declared=10)[0] == [9.0, 9.1]


def test_what_a_file_announces_for_its_last_picture_is_bounded():
    times, timing = timed([0.0, 0.1, 0.2], fps=10, last_for=1e6, declared=10)
    assert times == [0.0, 0.1, *[0.2] * 20]
    assert timing.flags == ("gap",)


def test_times_that_run_backwards_are_damage():
    with pytest.raises(VideoError, match="damaged video: v"):
        timed([0.0, 0.1, 0.05])


@pytest.mark.parametrize("window", [{"end": 2.0}, {"start": 3.0}, {"start": 0.3, "end": 0.5}])
def test_a_window_beyond_the_end_is_refused(window):
    with pytest.raises(VideoError, match="beyond the end of v"):
        timed([0.0, 0.1, 0.2], declared=10, **window)


def test_a_window_before_the_first_picture_is_refused():
    with pytest.raises(VideoError, match=r"no picture of v is shown before 0\.4 s"):
        timed([0.5, 0.6], 0.1, 0.4)


@pytest.mark.parametrize(
    ("times", "declared", "rate", "flags"),
    [
        ([n / 25 for n in range(50)], 25.0, 25.0, ()),
        ([round(n / 29.97, 3) for n in range(500)], 29.97, 29.97, ()),
        ([round(n / 29.97, 3) for n in range(500)], 30.0, 29.97, ()),
        ([n / 25 for n in range(50)], 1000.0, 25.0, ()),
        ([*[n / 30 for n in range(30)], *[1 + n / 10 for n in range(20)]], 30.0, 30.0, ("v",)),
        ([*[n / 30 for n in range(30)], *[2 + n / 30 for n in range(30)]], 15.0, 30.0, ("g",)),
        ([0.0], 24.0, 24.0, ()),
        ([0.0, 0.0, 0.0], 24.0, 24.0, ()),
    ],
)
def test_the_rate_is_what_the_pictures_say_and_a_variable_one_is_flagged(
    times, declared, rate, flags
):
    _, timing = timed(times, declared=declared, tick=0.001)
    assert timing.rate == pytest.approx(rate, abs=0.002)
    assert tuple(flag[0] for flag in timing.flags) == flags
