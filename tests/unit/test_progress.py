"""Progress: bars on a terminal alone; elsewhere whole lines, each in one write."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from helpers.repository import ROOT
from signfuse_dist import progress
from signfuse_dist.progress import Progress, print_line

STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "


class Writes(io.StringIO):
    """A stream that is no terminal and remembers each write by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []

    def write(self, text: str) -> int:
        self.pieces.append(text)
        return len(text)


def streams(monkeypatch: pytest.MonkeyPatch) -> tuple[Writes, Writes]:
    """Put streams in the place of standard output and error; pytest sets them after fixtures."""
    out, err = Writes(), Writes()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    return out, err


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that have passed, to be set by the test."""
    seconds = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: seconds[0])
    return seconds


def test_without_a_terminal_a_whole_line_comes_every_so_many_seconds(
    monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    out, err = streams(monkeypatch)
    with Progress("packing train", 200, "clip", done=20) as work:
        for _ in range(60):  # one clip a second
            clock[0] += 1
            work.advance()
    assert out.pieces == []
    first, second, last = err.pieces
    assert re.fullmatch(
        STAMP + r"packing train: 50 of 200 clips, 25%, 1 clips/s, 02:30 left\n", first
    )
    assert re.fullmatch(
        STAMP + r"packing train: 80 of 200 clips, 40%, 1 clips/s, 02:00 left\n", second
    )
    assert re.fullmatch(STAMP + r"packing train: 80 clips in 01:00\n", last)


def test_short_work_and_other_processes_say_nothing(
    monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    out, err = streams(monkeypatch)
    with Progress("reading", 10, "clip") as work:
        work.advance(10)
    with Progress("reading", 10, "clip", active=False) as work:
        clock[0] += 100
        work.advance(10)
    assert out.pieces == err.pieces == []


def test_a_logged_line_has_the_time_and_is_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = streams(monkeypatch)
    work = Progress("finetune", 10, "step", lines=False)
    work.advance()
    work.log("step 1, total 2.5")
    work.print("a warning", err)
    work.close()
    (line,) = out.pieces
    assert re.fullmatch(STAMP + r"step 1, total 2\.5\n", line)
    assert err.pieces == ["a warning\n"]


def test_lines_of_processes_that_share_an_unbuffered_stream_stay_whole() -> None:
    """As under PYTHONUNBUFFERED: what is written goes out at once, in as many pieces."""
    read, write = os.pipe()
    with open(write, "wb", buffering=0) as raw:
        stream = io.TextIOWrapper(raw, write_through=True)
        print_line("x" * 500, stream)
        assert os.read(read, 10_000) == b"x" * 500 + b"\n"
    os.close(read)


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """Standard output and error are a terminal; what it is sent is given at the end."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    sent: list[bytes] = []

    def listen() -> None:
        try:
            while piece := os.read(ours, 65536):
                sent.append(piece)
        except OSError:
            return  # the other end is closed

    thread = threading.Thread(target=listen)
    thread.start()
    with os.fdopen(theirs, "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", stream)
        yield sent
    thread.join()
    os.close(ours)


def test_on_a_terminal_a_bar_is_drawn_and_lines_stand_above_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with terminal(monkeypatch) as sent, Progress("finetune", 4, "step", lines=False) as work:
        work.advance(2)
        work.log("step 2, total 2.5")
    text = b"".join(sent).decode()
    assert "finetune:" in text
    assert re.search(r"\rstep 2, total 2\.5\r\n", text), "at the beginning of its line, no time"


def test_no_other_module_draws_bars() -> None:
    drawing = re.compile(r"^\s*(from|import) tqdm", re.MULTILINE)
    files = (ROOT / "signfuse_dist").rglob("*.py")
    assert [f.name for f in files if drawing.search(f.read_text(encoding="utf-8"))] == [
        "progress.py"
    ]
