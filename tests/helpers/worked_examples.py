"""Running a document: its files written, its changes applied, its commands and code executed.

As a program, ``python worked_examples.py DOCUMENT`` runs the commands and the Python blocks of a
document in the current folder, one after the other in one process, and prints what they print.
"""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_FILE = re.compile(r"# ([\w/]+\.(?:py|yaml))\n")


class Block(NamedTuple):
    """A block of code: its language ("" for commands), and the file that it is, if any."""

    language: str
    text: str
    file: str | None


def blocks(document: Path) -> list[Block]:
    """Return every fenced block of a document in order."""
    found = []
    for language, text in _FENCE.findall(document.read_text(encoding="utf-8")):
        named = _FILE.match(text)
        found.append(Block(language, text, named[1] if named else None))
    return found


def apply(document: Path, root: Path) -> None:
    """Write the document's files into a copy of the code at ``root``, and apply its changes."""
    for block in blocks(document):
        if block.file is not None:
            path = root / block.file
            assert not path.exists(), f"{document.name} writes {block.file}, which exists"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text.partition("\n")[2], encoding="utf-8")
        elif block.language == "diff":
            _patch(block.text, root)


def _patch(diff: str, root: Path) -> None:
    """Apply a diff whose hunks have no line numbers: each must fit in exactly one place."""
    for file, hunks in re.findall(
        r"^--- a/\S+\n\+\+\+ b/(\S+)\n(.*?)(?=^--- |\Z)", diff, re.S | re.M
    ):
        path = root / file
        text = path.read_text(encoding="utf-8")
        for hunk in hunks.split("@@\n")[1:]:
            lines = hunk.splitlines(keepends=True)
            before = "".join(line[1:] for line in lines if line[0] in " -")
            after = "".join(line[1:] for line in lines if line[0] in " +")
            assert text.count(before) == 1, f"{file}: this does not fit in one place:\n{hunk}"
            text = text.replace(before, after)
        path.write_text(text, encoding="utf-8")


def run(document: Path) -> None:
    """Run the commands and the Python blocks; exit with the line that failed."""
    for block in blocks(document):
        if block.language == "python" and block.file is None:
            exec(compile(block.text, f"{document.name}, a Python block", "exec"), {})
        elif not block.language:
            for line in block.text.splitlines():
                print(f"$ {line}", flush=True)
                status = _run_command(shlex.split(line))
                if status != 0:
                    sys.exit(f"status {status}: {line}")


def _run_command(words: list[str]) -> int:
    from signfuse_dist import cli

    if words[0] == "signfuse":
        return cli.main(words[1:])
    if words[:2] != ["python", "-m"]:
        raise ValueError(f"not a command that this runs: {words}")
    sys.argv = words[2:]
    try:
        runpy.run_module(words[2], run_name="__main__", alter_sys=False)
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


if __name__ == "__main__":
    run(Path(sys.argv[1]))
