"""Forty rows that nobody should have written: each is named, and no other is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from signfuse_dist.corpora import read_corpus

HEADER = "id\tvideo\ttext\tstart\tend\tbox"
GOOD = ("good", "a.mp4", "one sentence", "", "", "")


def row(**cells: str) -> bytes:
    """A row that is good but for some of its cells."""
    names = HEADER.split("\t")
    return "\t".join(
        cells.get(n, v) for n, v in zip(names, ("bad", *GOOD[1:]), strict=True)
    ).encode()


ROWS: dict[str, tuple[bytes, str]] = {
    "a cell too few": (b"bad\ta.mp4\ttext\t\t", "malformed row: line 3, 5 columns"),
    "a cell too many": (row() + b"\t", "malformed row: line 3, 7 columns"),
    "one cell": (b"bad", "malformed row: line 3, 1 columns"),
    "commas": (b"bad,a.mp4,text,,,", "malformed row: line 3, 1 columns"),
    "no UTF-8": (b"bad\ta.mp4\tgr\xfc\xdfe\t\t\t", "malformed row: line 3, not UTF-8"),
    "half a surrogate": (b"bad\ta.mp4\t\xed\xa0\x80\t\t\t", "malformed row: line 3, not UTF-8"),
    "a NUL": (row(text="a\0b"), "malformed row: line 3, it holds a NUL character"),
    "a quote that does not close": (row(text='"open'), "malformed row: line 3, its quotes"),
    "a quote that closes early": (row(text='"shut" more'), "malformed row: line 3, its quotes"),
    "no id": (row(id=""), "empty id"),
    "an id of blanks": (row(id="  "), "empty id"),
    "an id twice": (row(id="good"), "duplicate id"),
    "an id with a slash": (row(id="a/b"), "bad id"),
    "an id with a backslash": (row(id="a\\b"), "bad id"),
    "an id that leads up": (row(id="../a"), "bad id"),
    "an id that is a folder": (row(id=".."), "bad id"),
    "an id that steers a terminal": (row(id="a\x1b[2J"), "bad id"),
    "an id with an invisible character": (row(id="a\u200b"), "bad id"),
    "an id that turns round": (row(id="\u202ea"), "bad id"),
    "an id too long": (row(id="語" * 40), "bad id"),
    "no text": (row(text=""), "empty text"),
    "a text of blanks": (row(text=" \u00a0 "), "empty text"),
    "a text of invisible characters": (row(text="\u200b\u200b"), "empty text"),
    "no video": (row(video=""), "bad path"),
    "a path from the root": (row(video="/etc/passwd"), "bad path"),
    "a path that leads up": (row(video="b/../../c.mp4"), "bad path"),
    "a folder above as a video": (row(video=".."), "bad path"),
    "a hidden video": (row(video=".a.mp4"), "bad path"),
    "a hidden video in a folder": (row(video="b/.a.mp4"), "bad path"),
    "minutes and seconds": (row(start="1:30"), "bad time: start '1:30' is not a time in seconds"),
    "a time in words": (row(start="soon"), "bad time: start 'soon'"),
    "a time before the start": (row(start="-1"), "bad time"),
    "a time without end": (row(start="inf"), "bad time"),
    "an end before everything": (row(end="-0.5"), "bad time"),
    "a time that overflows": (row(end="1e400"), "bad time"),
    "a time of 5,000 digits": (row(end="9" * 5000), "bad time"),
    "a time with a comma": (row(start="0,5"), "bad time: start '0,5' is not a time in seconds"),
    "an end before its start": (row(start="2", end="1"), "bad time: end 1 s is not after"),
    "a box of three": (row(box="0 0 1"), "bad box"),
    "a box outside": (row(box="0 0 2 1"), "bad box"),
}


def test_there_are_forty_kinds() -> None:
    assert len(ROWS) == 40


@pytest.mark.parametrize(("bad", "reason"), ROWS.values(), ids=ROWS.keys())
def test_a_hostile_row_is_named_with_its_reason_and_the_rows_around_it_are_kept(
    bad: bytes, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "a.mp4").write_bytes(b"")
    after = "\t".join(("after", *GOOD[1:])).encode()
    lines = [HEADER.encode(), "\t".join(GOOD).encode(), bad, after]
    (tmp_path / "t.tsv").write_bytes(b"\n".join(lines) + b"\n")
    corpus = read_corpus("table", tmp_path / "t.tsv", "train")
    assert [kept.id for kept in corpus.rows] == ["good", "after"]
    (rejected,) = corpus.rejected
    assert rejected.reason.startswith(reason)
    assert len(rejected.reason) < 500
