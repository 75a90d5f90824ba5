"""Tables of section 5.4 as files of ``configs/ablation``: a row is overrides of the experiment.

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

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass as pydantic_dataclass

from signfuse_dist.errors import UserError, raise_together, suggest
from signfuse_dist.files import locate, read_yaml, yaml_files
from signfuse_dist.records import STRICT_KEYS, NonBlank, Place, build, dotted

FOLDER = Path("configs") / "ablation"
ALL = "all"


@dataclass(frozen=True)
class Expectation:
    """Where the paper expects a row: ``above`` or ``below`` the row ``other``."""

    side: Literal["above", "below"]
    other: str

    def __str__(self) -> str:
        """Say it as a table does."""
        return f"{self.side} {self.other}"


def _check_override(text: str) -> str:
    if "=" not in text:
        raise ValueError("is not section.key=value")
    return text


@pydantic_dataclass(frozen=True, config=STRICT_KEYS)
class AblationRow:
    """A row of a table: its name, what it changes, and what the paper expects of it.

    ``overrides`` are the ``words`` of the file; at most one of ``above`` and ``below`` is given.
    """

    name: NonBlank
    overrides: tuple[Annotated[str, AfterValidator(_check_override)], ...] = Field(
        default=(), validation_alias="words"
    )
    above: NonBlank = ""
    below: NonBlank = ""

    def __post_init__(self) -> None:
        if self.above and self.below:
            raise ValueError("has above and below; a row is expected in one place")

    @property
    def expectation(self) -> Expectation | None:
        """What the paper expects; None where it expects nothing."""
        if self.above:
            return Expectation("above", self.above)
        return Expectation("below", self.below) if self.below else None


@dataclass(frozen=True)
class Ablation:
    """A table: ``full`` names the row that the others are compared with."""

    name: str
    title: str
    paper: str
    full: str
    rows: tuple[AblationRow, ...]

    def row(self, name: str) -> AblationRow:
        """Return the row of that name, one of :attr:`rows`."""
        return next(row for row in self.rows if row.name == name)


@pydantic_dataclass(config=STRICT_KEYS)
class _TableRecord:
    """A file of an ablation; its rows are read one by one, so that each names its own errors."""

    title: NonBlank
    paper: NonBlank
    full: NonBlank
    rows: list[Any] = Field(min_length=1)


def read_ablations(names: str) -> list[Ablation]:
    """Read ablations: names of files in ``configs/ablation`` or paths, with commas; or ``all``.

    Raises :class:`UserError` with every error of every file together.
    """
    given = [name for name in names.split(",") if name]
    paths = yaml_files(FOLDER) if given == [ALL] else [_find(name) for name in given]
    if not paths:
        raise UserError(f"no ablation named: give {ALL} or {_known()}")
    ablations = [read_ablation(path) for path in paths]
    times = Counter(ablation.name for ablation in ablations)
    twice = sorted(name for name, count in times.items() if count > 1)
    if twice:
        raise UserError(f"two ablations are called {', '.join(twice)}: name each once")
    return ablations


def read_ablation(path: Path) -> Ablation:
    """Read one file; raise :class:`UserError` with every error in it."""
    raw = read_yaml(path)
    errors: list[str] = []
    table = build(_TableRecord, raw, errors)
    # Rows, and what they say of each other, are read even where something beside them is wrong.
    entries = raw.get("rows") if isinstance(raw, dict) else None
    rows: list[AblationRow] = []
    if isinstance(entries, list):
        rows = _read_rows(entries, errors)
        errors += _across(entries, raw.get("full"))
    raise_together(errors, f"{path}: not an ablation")
    assert table is not None
    return Ablation(path.stem, table.title, table.paper, table.full, tuple(rows))


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


def _read_rows(entries: Sequence[Any], errors: list[str]) -> list[AblationRow]:
    rows = []
    for number, entry in enumerate(entries, 1):
        name = entry.get("name") if isinstance(entry, dict) else None
        label = f"row {name!r}" if _is_text(name) else f"rows: entry {number}"
        if row := build(AblationRow, entry, errors, partial(_name_place, label)):
            rows.append(row)
    return rows


def _name_place(label: str, place: Place) -> str:
    return f"{label}: {dotted(place)}" if place else label


def _across(entries: Sequence[Any], full: object) -> list[str]:
    """Return what no single row can say."""
    named = [entry for entry in entries if isinstance(entry, dict) and _is_text(entry.get("name"))]
    names = [entry["name"] for entry in named]
    errors = [f"row {name!r}: more than once" for name, n in Counter(names).items() if n > 1]
    if _is_text(full) and full not in names:
        errors.append(f"full: no row {full!r}{suggest(str(full), names)}")
    for entry in named:
        for side in ("above", "below"):
            other = entry.get(side)
            if _is_text(other) and other not in names:
                near = suggest(str(other), names)
                errors.append(f"row {entry['name']!r}: {side}: no row {other!r}{near}")
    return errors


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())
