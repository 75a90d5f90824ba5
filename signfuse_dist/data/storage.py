"""Where shards lie: a folder on a disk, or an address that fsspec reads (``s3://bucket/shards``).

Addresses are read through fsspec with the access that its own settings and environment variables
give (for S3: ``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL`` and the like). Clips that were read from
an address are kept in a bounded local cache. Shards are written to disks only.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeAlias

from signfuse_dist.errors import UserError
from signfuse_dist.writer import temporary_beside

if TYPE_CHECKING:
    from upath import UPath  # brings fsspec, which a folder on a disk does without

Folder: TypeAlias = "Path | UPath"
Read: TypeAlias = Callable[[int, int], bytes]
"""Returns the bytes of a file from ``start`` to ``stop``, fewer where the file ends."""

_USED = "used"  # holds the bytes in the cache; also the file that is locked
_KEPT = 0.8  # share of the limit that is left when the oldest entries are removed


def open_folder(location: str) -> Folder:
    """Return the folder at a path or at an address (anything with ``://``).

    Raises :class:`UserError` when fsspec has no way to read such an address.
    """
    if "://" not in location:
        return Path(location)
    from upath import UPath

    try:
        path = UPath(location)
        _ = path.fs  # made on first use: what it needs is missing now, not in the first batch
    except (ImportError, ValueError) as error:
        raise UserError(
            f"{location}: this kind of address cannot be read ({error}); s3:// needs "
            "`pip install 'signfuse_dist[s3]'`"
        ) from error
    return path


def is_local(path: Folder) -> bool:
    """Return whether a path is one of the operating system's; ``file://`` is."""
    return isinstance(path, os.PathLike)


@dataclass(frozen=True)
class RangeCache:
    """Copies of parts of remote files in a local folder, never more than ``limit`` bytes of them.

    Shared by all processes of a machine. What was read longest ago goes first. ``namespace``
    stands for the content of the remote files: another content is another namespace.
    """

    folder: Path
    limit: int
    namespace: str

    def read(self, name: str, start: int, stop: int, fetch: Read) -> bytes:
        """Return bytes ``start`` to ``stop`` of file ``name``, by ``fetch`` where there is no copy.

        A cache that cannot be written is said once, and reading goes on without it.
        """
        key = hashlib.sha256(f"{self.namespace}\0{name}\0{start}\0{stop}".encode()).hexdigest()
        path = self.folder / key
        try:
            content = path.read_bytes()
            if len(content) == stop - start:
                os.utime(path)
                return content
        except OSError:
            pass  # no copy yet, or removed to make room; a folder that is unusable shows below
        content = fetch(start, stop)
        try:
            self._keep(path, content)
        except OSError as error:
            warnings.warn(
                f"{self.folder}: clips are read from the network every time, the cache cannot be "
                f"written ({error.strerror})",
                stacklevel=2,
            )
        return content

    def _keep(self, path: Path, content: bytes) -> None:
        if len(content) > self.limit:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._locked() as used:
            if path.exists():  # another process was faster, or the copy was torn
                used -= path.stat().st_size
                path.unlink()
            if used + len(content) > self.limit:
                used = self._make_room(len(content))
            # Counted before it is there: a writer that is killed here makes the cache look fuller
            # than it is, never emptier.
            (self.folder / _USED).write_text(str(used + len(content)))
            part = temporary_beside(path)
            try:
                part.write_bytes(content)
                os.replace(part, path)
            finally:
                part.unlink(missing_ok=True)

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """Hold the cache for this process alone; gives the bytes that are in it."""
        with (self.folder / _USED).open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            written = file.read()
            yield int(written) if written.isdigit() else sum(f[1] for f in self._entries())

    def _make_room(self, needed: int) -> int:
        """Remove the entries used longest ago; return the bytes that are left."""
        entries = sorted(self._entries())
        used = sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if used + needed <= self.limit * _KEPT or used == 0:
                break
            path.unlink(missing_ok=True)
            used -= size
        return used

    def _entries(self) -> list[tuple[int, int, Path]]:
        """Return (time of last use, size, path) of every copy, whole or left by a dead writer."""
        copies = []
        for entry in os.scandir(self.folder):
            if entry.name != _USED:
                stat = entry.stat()
                copies.append((stat.st_mtime_ns, stat.st_size, Path(entry.path)))
        return copies


def read_file(path: Folder) -> bytes:
    """Return the content of a file; raise OSError where it cannot be read."""
    with _as_os_errors():
        return path.read_bytes()


def file_size(path: Folder) -> int:
    """Return the bytes of a file; raise OSError where it cannot be asked for."""
    with _as_os_errors():
        return int(path.stat().st_size)


@contextmanager
def open_file(path: Folder) -> Iterator[IO[bytes]]:
    """Open a file for reading in sequence; raise OSError where it cannot be read."""
    if is_local(path):
        with path.open("rb") as file:
            yield file
        return
    with _as_os_errors(), path.open("rb") as file:
        yield file


@contextmanager
def open_ranges(path: Folder, span: tuple[int, int], cache: RangeCache | None) -> Iterator[Read]:
    """Open a file for reading ranges inside ``span``, a first and a last byte.

    A local file is read where asked. Of a remote one the whole span is fetched at once, from the
    cache where it has it. Raises OSError where the file cannot be read.
    """
    if is_local(path):
        with path.open("rb", buffering=0) as file:
            descriptor = file.fileno()
            end = os.fstat(descriptor).st_size
            # An index may lie about a size; no memory is taken for what the file does not have.
            yield lambda start, stop: os.pread(descriptor, max(0, min(stop, end) - start), start)
        return

    def fetch(start: int, stop: int) -> bytes:
        with _as_os_errors():
            content: bytes = path.fs.cat_file(path.path, start=start, end=stop)  # type: ignore[union-attr]
            return content

    first, last = span
    content = cache.read(path.name, first, last, fetch) if cache else fetch(first, last)
    yield lambda start, stop: content[start - first : stop - first]


@contextmanager
def _as_os_errors() -> Iterator[None]:
    """Let a remote filesystem's own errors (no credentials, no route) be those of a disk."""
    try:
        yield
    except (OSError, UserError):
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise OSError(errno.EIO, what) from error
