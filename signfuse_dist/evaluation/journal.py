"""What a killed evaluation leaves behind: finished batches, from which the next one goes on.

Each process appends a line a batch to a file of its own, ``parts/KEY/part-*.jsonl`` beside the
results: a checksum, a blank and JSON. ``KEY`` stands for everything that a sentence depends on, so
nothing is taken from another model, split or setting; the number of processes is not in it. A line
that was cut short, or whose clips are not those of its batch, is left out and decoded again.
"""

from __future__ import annotations

import json
import os
import uuid
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from signfuse_dist.evaluation.translator import Translation

AS_IS = "as_is"
Unit = tuple[str, int]
"""A piece of the work: how the clips are shown (AS_IS or a control), and the batch's number."""
Ids = Sequence[tuple[str, ...]]
"""The clips of each batch."""


@dataclass
class Journal:
    """The files of one evaluation; ``folder`` is that of its key."""

    folder: Path
    _file: IO[bytes] | None = None
    _path: Path | None = None

    def read(self, ids: Ids) -> dict[Unit, list[Translation]]:
        """Return the finished units that earlier processes have left."""
        found: dict[Unit, list[Translation]] = {}
        for path in sorted(self.folder.glob("part-*.jsonl")):
            for line in path.read_bytes().split(b"\n"):
                entry = _read_line(line, ids)
                if entry is not None:
                    found[entry[0]] = entry[1]
        return found

    def append(self, unit: Unit, translations: Sequence[Translation]) -> None:
        """Put a finished unit on the disk."""
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Never behind an earlier process's last line, which may be cut short.
            self._path = self.folder / f"part-{uuid.uuid4().hex}.jsonl"
            self._file = self._path.open("xb")
        clips = [_plain(translation) for translation in translations]
        entry = {"shown": unit[0], "batch": unit[1], "clips": clips}
        text = json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
        self._file.write(b"%08x %s\n" % (zlib.crc32(text), text))
        self._file.flush()
        os.fsync(self._file.fileno())

    def remove_own(self) -> None:
        """Remove this process's file: its host may be the only one that sees it."""
        if self._file is not None and self._path is not None:
            self._file.close()
            self._path.unlink(missing_ok=True)
            self._file = self._path = None

    def remove(self) -> None:
        """Remove what all processes of this key left; other keys keep theirs."""
        for path in self.folder.glob("part-*.jsonl"):
            path.unlink(missing_ok=True)
        for folder in (self.folder, self.folder.parent):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def _read_line(line: bytes, ids: Ids) -> tuple[Unit, list[Translation]] | None:
    """Return what a line holds, or None when it is not whole or of other clips."""
    said, _, text = line.partition(b" ")
    if not text or said != b"%08x" % zlib.crc32(text):
        return None
    try:
        entry = json.loads(text)
        shown, batch = str(entry["shown"]), int(entry["batch"])
        translations = [_translation(clip) for clip in entry["clips"]]
    except (ValueError, KeyError, TypeError):
        return None
    names = tuple(translation.id for translation in translations)
    fits = 0 <= batch < len(ids) and names == ids[batch]
    return ((shown, batch), translations) if fits else None


def _plain(translation: Translation) -> dict[str, Any]:
    gate = translation.gate
    # A float32 has the same digits as a Python float, so it comes back bit by bit.
    steps = None if gate is None else [float(value) for value in gate]
    return {"id": translation.id, "text": translation.text, "gate": steps}


def _translation(clip: Mapping[str, Any]) -> Translation:
    gate = clip["gate"]
    return Translation(
        clip["id"], clip["text"], None if gate is None else np.array(gate, dtype=np.float32)
    )
