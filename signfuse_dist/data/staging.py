"""Shards on a node's own disk: copied there once before training, and read from there.

`data.stage_to` names the folder. Of all processes that want the same shards in it, the first takes
a lock and copies, and the others wait; a process that dies gives the lock back, and the next one
goes on. Each shard is compared with its checksum on the way and gets its name when it is whole.
Copies lie under the digest of what they are copied from, so that shards which were packed again are
copied again, and other jobs of the same user find them.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from signfuse_dist.data.manifest import MANIFEST_NAME, ShardEntry, ShardError, index_name
from signfuse_dist.data.manifest_files import load_index, manifest_bytes
from signfuse_dist.data.split import Split
from signfuse_dist.data.storage import Folder, open_file
from signfuse_dist.errors import MachineError, UserError
from signfuse_dist.files import remove_leftovers, write_bytes, written_whole
from signfuse_dist.system_errors import machine_error, machine_fault

_LOCK = ".lock"
_CHUNK = 1 << 22  # bytes
_SECONDS_BETWEEN_LINES, _SECONDS_BETWEEN_LOOKS = 10.0, 0.5
Beat = Callable[[], None]
"""Called again and again while a process copies or waits, at least once a second."""


def stage(split: Split, stage_to: str, beat: Beat = lambda: None) -> Split:
    """Return the split, with the sets beside it, as they are read from copies below ``stage_to``.

    Every process calls this. The one that copies prints how far it is. Raises
    :class:`~signfuse_dist.errors.MachineError` where there is no room, or the disk fails, and
    :class:`~signfuse_dist.errors.UserError` for a folder that cannot be meant or a damaged shard.
    """
    root = open_stage(stage_to)
    poses = split.poses and _staged(split.poses, root, beat)
    if not split.vectors:
        return replace(_staged(split, root, beat), poses=poses)
    vectors = tuple(replace(of, split=_staged(of.split, root, beat)) for of in split.vectors)
    return replace(_staged(split, root, beat), poses=poses, vectors=vectors)


def open_stage(stage_to: str) -> Path:
    """Return this user's own folder below ``stage_to``, whose variables are the node's."""
    path = os.path.expandvars(stage_to)
    if "$" in path:
        raise UserError(
            f"data.stage_to={stage_to}: names an environment variable that is not set on "
            f"{os.uname().nodename}; data.stage_to=null reads the shards where they are"
        )
    root = Path(path) / f"signfuse-{os.getuid()}"
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = root.lstat().st_uid
    except OSError as e:
        raise _refusal(e, root) from e
    if owner != os.getuid():
        raise UserError(f"data.stage_to={stage_to}: {root} belongs to another user ({owner})")
    return root


def _staged(split: Split, root: Path, beat: Beat) -> Split:
    content = manifest_bytes(split.manifest)
    folder = root / hashlib.sha256(content).hexdigest()[:16]
    try:
        folder.mkdir(exist_ok=True)
        with _locked(folder, beat):
            _copy_missing(split, folder, beat)
            if not (folder / MANIFEST_NAME).exists():
                write_bytes(folder / MANIFEST_NAME, content)
    except OSError as e:
        raise _refusal(e, folder) from e
    return replace(split, folder=folder, cache=None)


@contextmanager
def _locked(folder: Path, beat: Beat) -> Iterator[None]:
    """Wait until no other process works in the folder; the kernel frees the lock of the dead."""
    with (folder / _LOCK).open("a") as file:
        while True:
            beat()
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(_SECONDS_BETWEEN_LOOKS)
        yield


def _copy_missing(split: Split, folder: Path, beat: Beat) -> None:
    missing = [entry for entry in split.manifest.shards if not _is_copied(entry, folder)]
    if not missing:
        return
    names = [name for entry in missing for name in (entry.name, index_name(entry.name))]
    remove_leftovers(folder, {*names, MANIFEST_NAME})
    size = sum(entry.size for entry in missing)
    _refuse_without_room(split, folder, size, len(missing))
    progress = _Progress(f"{os.uname().nodename}: {split.folder} to {folder}", size, beat)
    for entry in missing:
        _copy(split, entry, folder, progress)
    progress.say(f"copied, {len(missing)} of {len(split.manifest.shards)} shards")


def _is_copied(entry: ShardEntry, folder: Path) -> bool:
    """Whether a shard is there: it was compared with its checksum before it had its name."""
    try:
        return (folder / index_name(entry.name)).is_file() and (
            (folder / entry.name).stat().st_size == entry.size
        )
    except FileNotFoundError:
        return False


def _refuse_without_room(split: Split, folder: Path, size: int, count: int) -> None:
    free = shutil.disk_usage(folder).free
    if size <= free:
        return
    others = [path for path in sorted(folder.parent.iterdir()) if path != folder]
    held = sum(file.stat().st_size for path in others for file in path.glob("*"))
    more = f" Copies of other splits take {_gigabytes(held)} in {folder.parent}." if others else ""
    raise MachineError(
        f"data.stage_to: {count} shards of {split.folder} take {_gigabytes(size)}, and "
        f"{_gigabytes(free)} are free in {folder} on {os.uname().nodename}.{more} Make room there "
        "and run the same command again, or read the shards where they are: data.stage_to=null"
    )


def _copy(split: Split, entry: ShardEntry, folder: Path, progress: _Progress) -> None:
    """Copy a tar and then its index, which says that both are there."""
    sha256 = hashlib.sha256()
    source = split.folder / entry.name
    with written_whole(folder / entry.name) as copy:
        for chunk in _chunks(source):
            sha256.update(chunk)
            copy.write(chunk)
            progress.add(len(chunk))
        if sha256.hexdigest() != entry.sha256:
            raise ShardError(entry.name, "", "its content does not agree with its checksum")
    index = index_name(entry.name)
    write_bytes(folder / index, b"".join(_chunks(split.folder / index)))
    load_index(folder, entry)


def _chunks(path: Folder) -> Iterator[bytes]:
    """Yield the content of a file; an error of reading it names it, as one of writing does not."""
    try:
        with open_file(path) as file:
            while chunk := file.read(_CHUNK):
                yield chunk
    except OSError as e:
        raise OSError(e.errno, e.strerror, str(path)) from e


def _refusal(error: OSError, folder: Path) -> UserError:
    """Return what stops a copy: a fault of the machine, or a folder that cannot be meant."""
    where = f"data.stage_to: {error.filename or folder} on {os.uname().nodename}"
    if machine_fault(error):
        return machine_error(error, where)
    return UserError(
        f"{where}: {error.strerror}; it takes a folder that this node can write, and shards that "
        "it can read; data.stage_to=null reads them where they are"
    )


class _Progress:
    """Prints a line when the copy begins, every ten seconds, and at its end."""

    def __init__(self, what: str, size: int, beat: Beat) -> None:
        self._what, self._size, self._beat = what, size, beat
        self._done, self._began = 0, time.monotonic()
        self._said = self._began
        self.say("copying")

    def add(self, count: int) -> None:
        """Count bytes that were copied."""
        self._done += count
        self._beat()
        if time.monotonic() - self._said >= _SECONDS_BETWEEN_LINES:
            self.say("copying")

    def say(self, doing: str) -> None:
        """Print how far the copy is, and how fast."""
        self._said = time.monotonic()
        rate = self._done / max(self._said - self._began, 1e-9) / 1e6
        done = f"{_gigabytes(self._done)} of {_gigabytes(self._size)}"
        print(f"{self._what}: {doing}: {done}, {rate:.0f} MB/s", file=sys.stderr, flush=True)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.3f} GB"
