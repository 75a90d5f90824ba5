"""How far long work has come: a bar on a terminal, else a whole line every so many seconds.

This is the one place that decides which. Bars redraw their line; in the log of a batch job, or
beside other processes, that would tear the lines of everybody. A line goes out in one write.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, TextIO

from tqdm import tqdm

LINE_SECONDS = 30.0  # between two lines where there is no terminal


def print_line(text: str, file: TextIO | None = None) -> None:
    """Print ``text`` and its line break in one write, to standard output where no file is given.

    ``print`` takes two where Python does not buffer, and another process's line fits between.
    """
    file = sys.stdout if file is None else file
    file.write(f"{text}\n")
    file.flush()


class Progress:
    """Says how far a piece of work is, on standard error; silent where it is not ``active``.

    Args:
        what: what is done, such as "translating".
        total: how many units there are.
        unit: the name of one.
        done: how many were done before.
        active: False on every process but the one that speaks.
        lines: whether lines take the bar's place; False where the work prints lines of its own.
    """

    def __init__(
        self,
        what: str,
        total: int,
        unit: str,
        *,
        done: int = 0,
        active: bool = True,
        lines: bool = True,
    ) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._before = self._done = done
        self._started = self._said = time.monotonic()
        self._lines = active and lines
        self._bar: tqdm[Any] | None = None
        if active and sys.stderr.isatty():
            self._bar = tqdm(
                total=total,
                initial=done,
                unit=unit,
                unit_scale=total >= 100_000,
                desc=what,
                dynamic_ncols=True,
                mininterval=0.2,
            )

    def advance(self, count: int = 1) -> None:
        """Note that ``count`` more are done."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif self._lines and time.monotonic() - self._said >= LINE_SECONDS:
            self._said = time.monotonic()
            print_line(f"{_now()} {self._so_far(self._said - self._started)}", sys.stderr)

    def print(self, text: str, file: TextIO | None = None) -> None:
        """Print a line to standard output or ``file``, above the bar where there is one."""
        file = sys.stdout if file is None else file
        if self._bar is None:
            print_line(text, file)
            return
        with tqdm.external_write_mode(file=file):
            print_line(text, file)

    def log(self, text: str) -> None:
        """Print a line to standard output, the time in front of it where that is no terminal."""
        self.print(text if sys.stdout.isatty() else f"{_now()} {text}")

    def close(self) -> None:
        """End the bar; where there were lines, one more says how long it took."""
        if self._bar is not None:
            self._bar.close()
        elif self._lines and self._said > self._started:
            took = tqdm.format_interval(time.monotonic() - self._started)
            print_line(f"{_now()} {self._what}: {self._done:,} {self._unit}s in {took}", sys.stderr)
        self._lines = False

    def __enter__(self) -> Progress:
        """Return this."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _so_far(self, seconds: float) -> str:
        """Return what is done of what, how fast it goes and how long the rest takes so."""
        rate = (self._done - self._before) / seconds
        left = tqdm.format_interval((self._total - self._done) / rate) if rate else "unknown time"
        share = f", {self._done / self._total:.0%}" if self._total else ""
        return (
            f"{self._what}: {self._done:,} of {self._total:,} {self._unit}s{share}, "
            f"{rate:.3g} {self._unit}s/s, {left} left"
        )


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")
