"""Reading corpora into rows. Every row ends as accepted, or as rejected with a reason.

``table``: ROOT is a UTF-8 TSV with a header: ``id``, ``video`` (a file or a folder of frames,
relative to the table), ``text``, and optionally ``start``, ``end`` (seconds), ``signer``,
``split``, ``language``, and ``joints`` (an ``.npz`` relative to the table). Fields are taken as
they stand: a quote is a quote.

``synthetic``: ROOT is a folder where the invented corpus is written on first use; it ends as a
table of the same form.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from signfuse_dist.errors import UserError

CORPORA = ("table", "synthetic")
_REQUIRED = ("id", "video", "text")
_OPTIONAL = ("start", "end", "signer", "language", "split", "joints")
_KEY_BYTES = 240  # a member's file name is the key and at most 12 bytes, and 255 is the limit
# Scripts that are written together: a row in the second is at home in a table of the first.
_MIXED_SCRIPTS = {"KANA": {"HAN"}, "HANGUL": {"HAN"}}


class CorpusError(UserError):
    """A corpus cannot be read at all."""


@dataclass(frozen=True)
class Row:
    """A clip as the corpus names it; nothing of it has been opened yet."""

    row: int
    """Line number in the table, the header being line 1."""
    id: str
    video: Path
    source: str
    """The video as the table writes it."""
    text: str
    start: float | None
    end: float | None
    signer: str | None
    language: str | None
    split: str
    joints: Path | None
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rejected:
    """A row that is not packed, and why."""

    row: int
    id: str
    reason: str
    """A kind of fault, and mostly after a colon what it is about."""


@dataclass(frozen=True)
class Corpus:
    """The rows of one split, in the table's order."""

    name: str
    root: str
    """Name of the table or folder, without its path."""
    split: str
    rows: tuple[Row, ...]
    rejected: tuple[Rejected, ...]
    has_joints: bool


def read_corpus(corpus: str, root: Path, split: str) -> Corpus:
    """Read the rows of ``split``. Raises :class:`CorpusError` when there is no such corpus."""
    if corpus not in CORPORA:
        raise CorpusError(f"corpus {corpus!r}: unknown; known are {', '.join(CORPORA)}")
    if corpus == "table":
        return read_table(root, split)
    from signfuse_dist.data import synthetic

    if not synthetic.is_written(root):
        synthetic.write_corpus(root)
    return read_table(root / "synthetic.tsv", split, name=corpus, root_name=root.resolve().name)


def read_table(
    table: Path, split: str, name: str = "table", root_name: str | None = None
) -> Corpus:
    """Read a table. Without a ``split`` column its rows belong to whatever split is asked for.

    A row that is malformed may belong to any split, so each split lists it as rejected. Raises
    :class:`CorpusError` when the table cannot be read or has no row of ``split``.
    """
    columns, lines = _lines_of(table)
    parsed = [(number, _fields(line, columns)) for number, line in lines]
    rejected = [
        Rejected(number, "", f"malformed row: line {number}, {fields}")
        for number, fields in parsed
        if isinstance(fields, str)
    ]
    whole = [(number, fields) for number, fields in parsed if isinstance(fields, dict)]
    chosen = [(n, fields) for n, fields in whole if fields.get("split", split) == split]
    if not chosen:
        splits = Counter(fields.get("split", split) for _, fields in whole)
        raise CorpusError(_no_rows(table, split, splits, rejected))
    accepted, refused = _accept(chosen, table.parent, split)
    rejected = sorted([*rejected, *refused], key=lambda row: row.row)
    rows = tuple(_flag_scripts(accepted, (fields["text"] for _, fields in whole)))
    has_joints = "joints" in columns
    return Corpus(name, root_name or table.name, split, rows, tuple(rejected), has_joints)


def key_of(clip_id: str) -> str:
    """Return the id percent-encoded, without '.' or '/', as the name of its members in a tar."""
    return quote(clip_id, safe="").replace(".", "%2E")


def script_of(text: str) -> str | None:
    """Return the script most letters of ``text`` belong to (LATIN, HAN, KANA ...), None if none."""
    counts = Counter(_script(letter) for letter in text if letter.isalpha())
    return max(counts, key=lambda name: (counts[name], name)) if counts else None


def _script(letter: str) -> str:
    plain = unicodedata.normalize("NFKC", letter)[0]  # full-width and styled letters
    first = unicodedata.name(plain, "UNNAMED").replace("-", " ").split()[0]
    renamed = {"CJK": "HAN", "IDEOGRAPHIC": "HAN", "HIRAGANA": "KANA", "KATAKANA": "KANA"}
    return renamed.get(first, first)


def _flag_scripts(rows: Sequence[Row], texts: Iterable[str]) -> list[Row]:
    """Flag the rows in another script than most texts of the whole table."""
    counts = Counter(script for script in map(script_of, texts) if script)
    if not counts:
        return list(rows)
    majority = max(counts, key=lambda name: (counts[name], name))
    home = {majority, *_MIXED_SCRIPTS.get(majority, ())}
    return [_flagged(row, home) for row in rows]


def _flagged(row: Row, home: set[str]) -> Row:
    script = script_of(row.text)
    if script is None or script in home:
        return row
    return replace(row, flags=(f"script:{script}",))


def _lines_of(table: Path) -> tuple[list[str], list[tuple[int, bytes]]]:
    """Return the column names and the numbered lines that follow, empty lines left out."""
    try:
        content = table.read_bytes()
    except OSError as error:
        raise CorpusError(f"table {table}: cannot be read ({error.strerror})") from error
    content = content.removeprefix(b"\xef\xbb\xbf")
    lines = [line.removesuffix(b"\r") for line in content.split(b"\n")]
    try:
        columns = [name.strip() for name in lines[0].decode("utf-8").split("\t")]
    except UnicodeDecodeError as error:
        raise CorpusError(f"table {table}: the header is not UTF-8; save it as UTF-8") from error
    missing = [name for name in _REQUIRED if name not in columns]
    if missing:
        hint = "; it must be separated by tabs" if len(columns) == 1 else ""
        raise CorpusError(
            f"table {table}: no column {', '.join(missing)} in its header {columns}{hint}"
        )
    twice = [name for name in (*_REQUIRED, *_OPTIONAL) if columns.count(name) > 1]
    if twice:
        raise CorpusError(f"table {table}: column {', '.join(twice)} appears more than once")
    return columns, [(n, line) for n, line in enumerate(lines[1:], start=2) if line]


def _fields(line: bytes, columns: Sequence[str]) -> dict[str, str] | str:
    """Return the fields by column, or what is wrong with the line."""
    try:
        values = line.decode("utf-8").split("\t")
    except UnicodeDecodeError:
        return "not UTF-8"
    if len(values) != len(columns):
        return f"{len(values)} columns where the header has {len(columns)}"
    return dict(zip(columns, values, strict=True))


def _accept(
    chosen: Iterable[tuple[int, dict[str, str]]], folder: Path, split: str
) -> tuple[list[Row], list[Rejected]]:
    accepted: list[Row] = []
    rejected: list[Rejected] = []
    seen: set[str] = set()
    for number, fields in chosen:
        row = _row(number, fields, folder, split, seen)
        if isinstance(row, Rejected):
            rejected.append(row)
        else:
            accepted.append(row)
            seen.add(row.id)
    return accepted, rejected


def _row(
    number: int, fields: dict[str, str], folder: Path, split: str, seen: set[str]
) -> Row | Rejected:
    clip_id, text = fields["id"], unicodedata.normalize("NFC", fields["text"])
    try:
        _check_id(clip_id, seen)
        if not text.strip():
            raise CorpusError("empty text")
        start, end = _seconds(fields, "start"), _seconds(fields, "end")
        if end is not None and end <= (start or 0.0):
            raise CorpusError(f"bad time: end {end:g} s is not after start {start or 0.0:g} s")
        video = _inside(folder, fields["video"], "video")
        joints = _inside(folder, fields["joints"], "joints") if "joints" in fields else None
    except CorpusError as error:
        return Rejected(number, clip_id, str(error))
    signer, language = fields.get("signer") or None, fields.get("language") or None
    source = fields["video"]
    return Row(number, clip_id, video, source, text, start, end, signer, language, split, joints)


def _check_id(clip_id: str, seen: set[str]) -> None:
    if not clip_id.strip():
        raise CorpusError("empty id")
    if _has_control(clip_id):
        raise CorpusError(f"bad id: {clip_id!r} holds a control character")
    if "/" in clip_id or "\\" in clip_id or ".." in clip_id:
        raise CorpusError(f"bad id: {clip_id!r} holds a path; no id may hold / \\ or ..")
    if len(key_of(clip_id)) > _KEY_BYTES:
        raise CorpusError(f"bad id: takes more than {_KEY_BYTES} bytes when percent-encoded")
    if clip_id in seen:
        raise CorpusError(f"duplicate id: {clip_id!r}, the first row that has it is kept")


def _has_control(text: str) -> bool:
    return any(unicodedata.category(letter) in ("Cc", "Zl", "Zp") for letter in text)


def _seconds(fields: dict[str, str], column: str) -> float | None:
    written = fields.get(column, "").strip()
    if not written:
        return None
    try:
        value = float(written)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise CorpusError(f"bad time: {column} {written!r} is not a time in seconds")
    return value


def _inside(folder: Path, written: str, column: str) -> Path:
    """Return the path of a file inside ``folder``; links are followed to see where they lead."""
    if not written.strip():
        raise CorpusError(f"bad path: the {column} path is empty")
    path = Path(written)
    if path.is_absolute() or ".." in path.parts or _has_control(written):
        raise CorpusError(f"bad path: {column} {written!r} leaves the table's folder")
    try:
        leaves = not (folder / path).resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):
        leaves = True
    if leaves:
        raise CorpusError(f"bad path: {column} {written!r} is a link out of the table's folder")
    return folder / path


def _no_rows(table: Path, split: str, splits: Counter[str], malformed: Sequence[Rejected]) -> str:
    found = ", ".join(f"{name!r} ({n})" for name, n in sorted(splits.items())) or "none"
    message = f"table {table}: no row of split {split!r}; its splits are {found}"
    if malformed:
        message += f"; {len(malformed)} rows are malformed, the first: {malformed[0].reason}"
    return message
