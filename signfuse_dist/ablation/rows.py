"""Tables of section 5.4 as files of ``configs/ablation``: a row is words for the command line.

    title: what the table is called
    paper: where the paper asks for it, and what it expects
    full: the row that the others are compared with
    rows:
      - name: sum
        words: [model.fusion=sum]
        below: CMFA          # or `above:`; the paper expects this row there. Optional

A row without ``words`` is the model of the experiment as it is. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from signfuse_dist.errors import UserError, raise_together, refuse_unknown, suggest
from signfuse_dist.files import locate, yaml_files

FOLDER = Path("configs") / "ablation"
ALL = "all"
_KEYS = ("title", "paper", "full", "rows")
_ROW_KEYS = ("name", "words", "above", "below")


@dataclass(frozen=True)
class Expectation:
    """Where the paper expects a row: ``above`` or ``below`` the row ``other``."""

    side: Literal["above", "below"]
    other: str

    def __str__(self) -> str:
        """Say it as a table does."""
        return f"{self.side} {self.other}"


@dataclass(frozen=True)
class Row:
    """A row of a table: its name, what it changes, and what the paper expects of it."""

    name: str
    words: tuple[str, ...] = ()
    expectation: Expectation | None = None


@dataclass(frozen=True)
class Ablation:
    """A table: ``full`` names the row that the others are compared with."""

    name: str
    title: str
    paper: str
    full: str
    rows: tuple[Row, ...]

    def row(self, name: str) -> Row:
        """Return the row of that name, one of :attr:`rows`."""
        return next(row for row in self.rows if row.name == name)


def read_ablations(names: str) -> list[Ablation]:
    """Read ablations: names of files in ``configs/ablation`` or paths, with commas; or ``all``.

    Raises :class:`UserError` with every error of every file together.
    """
    given = [name for name in names.split(",") if name]
    paths = yaml_files(FOLDER) if given == [ALL] else [_find(name) for name in given]
    if not paths:
        raise UserError(f"no ablation named: give {ALL} or {_known()}")
    found = [read_ablation(path) for path in paths]
    twice = {one.name for one in found if [other.name for other in found].count(one.name) > 1}
    if twice:
        raise UserError(f"two ablations are called {', '.join(sorted(twice))}: name each once")
    return found


def read_ablation(path: Path) -> Ablation:
    """Read one file; raise :class:`UserError` with every error in it."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from e
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: not YAML: {e}") from e
    errors: list[str] = []
    found = _build(path.stem, raw, errors)
    raise_together(errors, f"{path}: not an ablation")
    assert found is not None
    return found


def _find(name: str) -> Path:
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = FOLDER / f"{name}.yaml"
    path = locate(path)
    if path.is_file():
        return path
    near = suggest(path.stem, [p.stem for p in yaml_files(path.parent)])
    raise UserError(f"no ablation {name!r}: {path} does not exist{near}. There are: {_known()}")


def _known() -> str:
    return ", ".join(path.stem for path in yaml_files(FOLDER))


def _build(name: str, raw: Any, errors: list[str]) -> Ablation | None:
    if not isinstance(raw, dict):
        errors.append(f"expected a mapping of {', '.join(_KEYS)}")
        return None
    refuse_unknown(map(str, raw), _KEYS, "ablation", errors)
    errors += [f"{key}: missing, or no text" for key in _KEYS[:3] if not _is_text(raw.get(key))]
    entries = raw.get("rows")
    if not isinstance(entries, list) or not entries:
        errors.append("rows: expected a list of rows")
        return None
    rows = [row for number, entry in enumerate(entries, 1) if (row := _row(number, entry, errors))]
    errors += _across(rows, raw.get("full"))
    return Ablation(
        name, str(raw.get("title")), str(raw.get("paper")), str(raw.get("full")), tuple(rows)
    )


def _row(number: int, entry: Any, errors: list[str]) -> Row | None:
    if not isinstance(entry, dict) or not _is_text(entry.get("name")):
        errors.append(f"rows: entry {number}: expected a mapping with a name")
        return None
    label = f"row {entry['name']!r}"
    refuse_unknown(map(str, entry), _ROW_KEYS, label, errors)
    words = entry.get("words", [])
    if not isinstance(words, list) or not all(_is_text(w) and "=" in w for w in words):
        errors.append(f"{label}: words: expected a list of section.key=value, got {words!r}")
        return None
    sides = [key for key in ("above", "below") if key in entry]
    if len(sides) > 1:
        errors.append(f"{label}: above and below; a row is expected in one place")
    if not sides:
        return Row(entry["name"], tuple(words))
    side: Literal["above", "below"] = "above" if sides[0] == "above" else "below"
    return Row(entry["name"], tuple(words), Expectation(side, str(entry[side])))


def _across(rows: Sequence[Row], full: Any) -> list[str]:
    """Return what no single row can say."""
    names = [row.name for row in rows]
    errors = [
        f"row {name!r}: more than once" for name in dict.fromkeys(names) if names.count(name) > 1
    ]
    if _is_text(full) and full not in names:
        errors.append(f"full: no row {full!r}{suggest(full, names)}")
    for row in rows:
        if row.expectation and row.expectation.other not in names:
            other = row.expectation.other
            errors.append(
                f"row {row.name!r}: {row.expectation.side}: no row {other!r}{suggest(other, names)}"
            )
    return errors


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
