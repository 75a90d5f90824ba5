"""How long it takes to read who is in a corpus: the rows of a table, without opening a video.

The table is written into a temporary folder, beside as many empty files as it has videos. What is
timed is :func:`~signfuse_dist.corpora.read_corpus`, the digest of the rows by which packing again
knows them, and what two tasks of an array need that share what the first one reads.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from signfuse_dist.answer import answer
from signfuse_dist.cli import add_options, from_options, parse
from signfuse_dist.corpora import read_corpus
from signfuse_dist.data.planned import plan_rows, rows_digest
from signfuse_dist.errors import UserError

_WORDS = ("heute", "wird", "es", "über", "der", "küste", "schön", "später", "löst", "nebel", "auf")
_HAN = "今天天气很好明天会下雨北方有大风"


@dataclass(frozen=True)
class TableBench:
    """What the table is."""

    rows: int = field(default=100_000, metadata={"help": "of the table (default: %(default)s)"})
    form: str = field(default="tsv", metadata={"help": "tsv, csv or xlsx (default: %(default)s)"})
    per_folder: int = field(
        default=1000, metadata={"help": "videos in a folder (default: %(default)s)"}
    )

    def __post_init__(self) -> None:
        if self.form not in ("tsv", "csv", "xlsx"):
            raise UserError(f"--form {self.form}: must be tsv, csv or xlsx")
        if self.rows < 1 or self.per_folder < 1:
            raise UserError("--rows and --per-folder: at least 1 is needed")


def bench_table(bench: TableBench) -> str:
    """Write the table, read it, and return the times as text."""
    with tempfile.TemporaryDirectory() as folder:
        table = _write(Path(folder), bench)
        wall, began = time.perf_counter(), time.process_time()
        corpus = read_corpus("table", table, "train")
        read, wall = time.process_time(), time.perf_counter() - wall
        rows_digest(corpus)
        digested = time.process_time()
        assert len(corpus.rows) == bench.rows, "every row is planned"
        del corpus
        shared = [_plan(table, Path(folder) / "shards") for _ in range(2)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return (
        f"{bench.rows} rows of .{bench.form}: read in {read - began:.2f} CPU s ({wall:.2f} s), "
        f"digest in {digested - read:.2f} CPU s, {peak:.2f} GB at the peak\n"
        f"of tasks that share: the first {shared[0]:.2f} CPU s, each other {shared[1]:.2f} CPU s"
    )


def _plan(table: Path, out: Path) -> float:
    """Return the processor seconds that one of two tasks needs for its rows."""
    began = time.process_time()
    with plan_rows("table", table, "train", out, num_tasks=2):
        pass
    return time.process_time() - began


def _write(folder: Path, bench: TableBench) -> Path:
    draw = random.Random(0)
    rows = [("id", "video", "text", "start", "end", "signer", "split")]
    for number in range(bench.rows):
        place = folder / f"videos/{number // bench.per_folder:04d}"
        if number % bench.per_folder == 0:
            place.mkdir(parents=True)
        (place / f"{number}.mp4").touch()
        letters = draw.choices(_HAN, k=14) if number % 4 == 0 else draw.choices(_WORDS, k=9)
        text = ("" if number % 4 == 0 else " ").join(letters)
        video = f"videos/{place.name}/{number}.mp4"
        rows.append((f"clip_{number}", video, text, "0.5", "3.25", "S1", "train"))
    table = folder / f"table.{bench.form}"
    if bench.form == "xlsx":
        import openpyxl

        book = openpyxl.Workbook(write_only=True)
        sheet = book.create_sheet()
        for row in rows:
            sheet.append(row)
        book.save(table)
    else:
        separator = "\t" if bench.form == "tsv" else ","
        table.write_text("".join(f"{separator.join(row)}\n" for row in rows), encoding="utf-8")
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the measurement that the command line describes."""
    command = argparse.ArgumentParser(
        prog="python benchmarks/table.py",
        description="Write a table beside empty videos and read its rows, as `pack` does. Printed "
        "are processor seconds of this process and, in brackets, of the clock.",
        epilog="Example: python benchmarks/table.py --rows 20000. Figures: docs/benchmarks.md.",
    )
    add_options(command, TableBench)
    command.set_defaults(run=_table)
    options = parse(command, arguments)
    return answer(lambda: options.run(options))


def _table(options: argparse.Namespace) -> int:
    print(bench_table(from_options(TableBench, options)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
