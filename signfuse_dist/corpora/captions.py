"""Caption files, ``.vtt`` and ``.srt``, as subtitles that go with a video.

Read by hand: pysubs2 leaves the inner times of YouTube's captions (``<00:00:01.500><c>``) and
entities in the text and takes a STYLE block for words. A cue that is broken is named by its line
and takes no other with it.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from pathlib import Path

from signfuse_dist.corpora.rows import CorpusError
from signfuse_dist.files import special_kind
from signfuse_dist.system_errors import unreadable

_TIME = r"(?:(\d{1,4}):)?(\d{1,2}):(\d{1,2})[.,](\d{1,3})"
_TIMING = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}(?:\s.*)?\Z")
_TAG = re.compile(r"<[^<>]*>|\{\\[^{}]*\}|\{an\d\}")
_BLANKS = re.compile(r"\s+")
_MOST_BYTES = 64 << 20  # of a file of captions: a day of them is a hundredth


@dataclass(frozen=True)
class Caption:
    """One cue: seconds, and its lines cleaned of tags."""

    line: int
    """Of the file, where its times stand."""
    start: float
    end: float
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        return " ".join(self.lines)


@dataclass(frozen=True)
class CaptionFile:
    """The cues of a file in its order, and what is wrong with the others."""

    captions: tuple[Caption, ...]
    broken: tuple[tuple[int, str], ...]
    """Line and reason."""


def read_captions(path: Path) -> CaptionFile:
    """Read a file; raise :class:`CorpusError` where it cannot be read, or has no cue at all."""
    kind = special_kind(path)
    if kind:
        raise CorpusError(f"captions {path.name}: is {kind} and no file; it is not opened")
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise CorpusError(f"captions {path.name}: is larger than {_MOST_BYTES} bytes")
        content = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorpusError(f"captions {path.name}: is not UTF-8; save it as UTF-8") from error
    except OSError as error:
        raise unreadable(error, f"captions {path.name}", CorpusError) from error
    captions: list[Caption] = []
    broken: list[tuple[int, str]] = []
    lines = content.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    for number, line in enumerate(lines):
        if "-->" not in line:
            continue
        timing = _TIMING.match(line)
        if timing is None:
            broken.append((number + 1, f"bad time: {line.strip()[:60]!r}"))
            continue
        start, end = _seconds(*timing.groups()[:4]), _seconds(*timing.groups()[4:])
        if end <= start:
            broken.append((number + 1, f"bad time: end {end:g} s is not after start {start:g} s"))
            continue
        captions.append(Caption(number + 1, start, end, _text(lines, number + 1)))
    if not captions and not broken:
        raise CorpusError(f"captions {path.name}: holds no cue with times")
    return CaptionFile(tuple(captions), tuple(broken))


def _seconds(hours: str | None, minutes: str, seconds: str, thousandths: str) -> float:
    return 3600 * int(hours or 0) + 60 * int(minutes) + int(seconds) + float(f"0.{thousandths}")


def _text(lines: list[str], place: int) -> tuple[str, ...]:
    """Return the lines of a cue that begins at ``place``, up to the first that is empty.

    One of blanks is not empty: YouTube's rolling captions begin with it where the screen is bare.
    """
    text = []
    while place < len(lines) and lines[place] and "-->" not in lines[place]:
        clean = _BLANKS.sub(" ", html.unescape(_TAG.sub("", lines[place]))).strip()
        if clean:
            text.append(clean)
        place += 1
    # The number of the next cue, where no empty line divides them.
    if place < len(lines) and "-->" in lines[place] and text and text[-1].isdigit():
        text.pop()
    return tuple(text)
