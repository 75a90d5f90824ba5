"""Pictures and tables of a report, and in text what they show."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from io import BytesIO

from PIL import Image

# One number, or an interval.
_NUMBER = re.compile(r"-?[0-9][0-9.,]*(e[-+][0-9]+)?( to -?[0-9][0-9.,]*)?")
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Table:
    """A table of text with its caption."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def is_number(self, column: int) -> bool:
        """Return whether a column holds numbers alone, and is set to the right.

        Never the first, nor the values of a list of facts, which are of many kinds.
        """
        if column == 0 or len(self.header) == 2:
            return False
        cells = [row[column] for row in self.rows]
        return any(_NUMBER.fullmatch(c) for c in cells) and all(
            c == "–" or _NUMBER.fullmatch(c) for c in cells
        )


@dataclass(frozen=True)
class Figure:
    """A PNG or JPEG with its words; ``name`` is a plain file name without ending.

    ``dark`` is the picture for a dark page, None when there is one for both. ``alt`` says what is
    seen, ``caption`` what it means. ``table`` holds what a plot draws, for those who do not see it;
    None for a photograph.
    """

    name: str
    light: bytes
    dark: bytes | None
    alt: str
    caption: str
    table: Table | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, so that a page keeps its layout while it loads."""
        with Image.open(BytesIO(self.light)) as image:
            return image.size

    @property
    def file_name(self) -> str:
        """The picture's name in the Markdown report's folder of figures."""
        return f"{self.name}.{_kind(self.light)}"


def data_uri(picture: bytes) -> str:
    """Return the picture as a ``data:`` URI, so that the page needs no other file."""
    return f"data:image/{_kind(picture)};base64," + base64.b64encode(picture).decode("ascii")


def _kind(picture: bytes) -> str:
    return "png" if picture.startswith(_PNG) else "jpeg"
