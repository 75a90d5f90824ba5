"""What a run says: one line a log interval, and the same figures in ``metrics.jsonl``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm


class MetricsLog:
    """Writes ``metrics.jsonl`` and a progress bar; silent on every process but the first.

    A resumed run drops the lines after its checkpoint, so each step stands in the file once.
    """

    def __init__(self, folder: Path, total_steps: int, start_step: int, active: bool) -> None:
        self._file = None
        self._pending = b""
        self._bar = tqdm(
            total=total_steps, initial=start_step, unit="step", disable=not active,
            desc=folder.name, dynamic_ncols=True, mininterval=1.0,
        )  # fmt: skip
        if active:
            path = folder / "metrics.jsonl"
            _keep_until(path, start_step)
            self._file = path.open("ab", buffering=0)

    def advance(self) -> None:
        """Move the progress bar by one step."""
        self._bar.update()

    def write(self, values: Mapping[str, Any]) -> None:
        """Append one line and show the losses in the bar."""
        if self._file is None:
            return
        self._append(f"{json.dumps(values)}\n".encode())
        shown = ("total", "language", "contrastive", "clips_per_second")
        self._bar.set_postfix({k: f"{values[k]:.3g}" for k in shown if k in values})

    def _append(self, line: bytes) -> None:
        """Write what is pending; what a full disk refuses is said, and tried again next time."""
        assert self._file is not None
        self._pending += line
        try:
            while self._pending:
                self._pending = self._pending[self._file.write(self._pending) :]
        except OSError as e:
            self.say(
                f"{self._file.name} cannot be written ({e.strerror}): training goes on, and its "
                f"last {len(self._pending)} bytes are written when there is room"
            )

    def say(self, text: str) -> None:
        """Print a line above the progress bar."""
        if self._file is not None:
            self._bar.write(text)

    def close(self) -> None:
        """Close the file and the bar."""
        self._bar.close()
        if self._file is not None:
            self._append(b"")
            self._file.close()


def _keep_until(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue  # a line cut short when the process was killed; its steps are run again
    part = path.with_suffix(".part")
    part.write_text("".join(kept), encoding="utf-8")
    os.replace(part, path)
