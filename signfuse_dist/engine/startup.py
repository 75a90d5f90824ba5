"""From the start of a process to the end of its first step, in parts."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from signfuse_dist.files import write_text


class Startup:
    """Notes when each part of a start ended; the parts add up to the whole."""

    def __init__(self) -> None:
        """Begin with the time since the operating system started this process: the imports."""
        age = _age_of_process()
        self.seconds: dict[str, float] = {"imports": age}
        self._last = time.monotonic()
        self._ended = False

    def lap(self, part: str) -> None:
        """Let ``part`` end now; nothing is noted after the first step."""
        if self._ended:
            return
        now = time.monotonic()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._last
        self._last = now

    def end(self, path: Path | None) -> str | None:
        """Write the parts to ``path`` (None: another process does) and return them as a line.

        None when the start has ended before.
        """
        if self._ended:
            return None
        self._ended = True
        total = sum(self.seconds.values())
        parts = {name: round(seconds, 3) for name, seconds in self.seconds.items()}
        if path is not None:
            write_text(path, json.dumps({"total": round(total, 3), **parts}, indent=1))
        return f"first step after {total:.1f} s: " + ", ".join(
            f"{name} {seconds:.1f}" for name, seconds in parts.items()
        )


def _age_of_process() -> float:
    """Return the seconds since this process was started; Linux counts ticks since its own start.

    Both clocks go on steadily whatever happens to the date.
    """
    with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
        ticks = int(file.read().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
