"""Figures of a report: one picture for a light page, maybe one for a dark page, and its words."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

from PIL import Image

from signfuse_dist.evaluation.plots import DARK, LIGHT, Theme

_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Figure:
    """A PNG or JPEG with its words; ``name`` is a plain file name without ending.

    ``dark`` is the picture for a dark page, None when there is one for both. ``alt`` says what is
    seen, ``caption`` what it means.
    """

    name: str
    light: bytes
    dark: bytes | None
    alt: str
    caption: str

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, so that a page keeps its layout while it loads."""
        with Image.open(BytesIO(self.light)) as image:
            return image.size

    @property
    def file_name(self) -> str:
        """The picture's name in the Markdown report's folder of figures."""
        return f"{self.name}.{_kind(self.light)}"


def plot(name: str, draw: Callable[[Theme], bytes], alt: str, caption: str) -> Figure:
    """Return a figure drawn once for each theme."""
    return Figure(name, draw(LIGHT), draw(DARK), alt, caption)


def data_uri(picture: bytes) -> str:
    """Return the picture as a ``data:`` URI, so that the page needs no other file."""
    return f"data:image/{_kind(picture)};base64," + base64.b64encode(picture).decode("ascii")


def _kind(picture: bytes) -> str:
    return "png" if picture.startswith(_PNG) else "jpeg"
