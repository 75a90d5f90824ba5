"""Folders that are there whole or not at all, with the checksums of what they hold."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from signfuse_dist.errors import UserError

STATE = "state.json"


def write_folder(
    folder: Path, writers: dict[str, Callable[[Path], object]], state: dict[str, Any]
) -> None:
    """Write files and a ``state.json`` with their checksums, synced, then rename into place.

    ``writers`` maps a file name to what writes it. An earlier ``folder`` is replaced.
    """
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for name, write in writers.items():
        write(part / name)
        sync(part / name)
    checksums = {name: checksum(part / name) for name in writers}
    text = json.dumps({"version": 1, **state, "files": checksums}, indent=1, sort_keys=True)
    (part / STATE).write_text(text, encoding="utf-8")
    sync(part / STATE)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)
    sync(folder.parent)


def read_state(folder: Path) -> dict[str, Any]:
    """Return a folder's ``state.json`` after comparing every checksum; raise UserError."""
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        files = dict(state["files"])
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"{folder / STATE} cannot be read ({e})") from e
    for name, expected in files.items():
        if Path(name).name != name or not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing")
        if checksum(folder / name) != expected:
            raise UserError(f"{folder / name} is damaged: its checksum differs")
    return dict(state)


def write_text(path: Path, text: str) -> None:
    """Write a text file under a temporary name, synced, then rename into place."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    sync(part)
    os.replace(part, path)


def checksum(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
