"""Files and folders: written whole or not at all, checksums, and where the package's own are."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO

import yaml

from signfuse_dist.errors import DamagedError, UserError, shortened
from signfuse_dist.system_errors import at_path, unreadable
from signfuse_dist.writer import Writer, temporary_beside, writer_of

STATE = "state.json"
_OWN_CHECKSUM = "state_sha256"  # in state.json: of all else that it says
_DEEPEST = 20  # levels of a state.json; what is written has five
PART = ".part"  # ends the name of a folder that is being written
_SILENCE = 86_400.0  # seconds after which what another machine left half written is left for good
# Folders of files that come with the package and that a user may have in the working folder too.
_OWN = ("configs", "ds_configs", "launch")
_PACKAGE = Path(__file__).resolve().parent


def write_folder(
    folder: Path, writers: dict[str, Callable[[Path], object]], state: dict[str, Any]
) -> None:
    """Write files and a ``state.json`` with their checksums, synced, then rename into place.

    ``writers`` maps a name to what writes the file, or folder of files, of that name. An earlier
    ``folder`` is replaced. When a file cannot be written, whatever its writer raises is raised and
    nothing of the new folder is left: half of it would keep a full disk full.
    """
    with part_of(folder, replaces=True) as part:
        for name, write in writers.items():
            write(part / name)
        _write_state(part, state)


@contextmanager
def part_of(folder: Path, *, replaces: bool = False) -> Iterator[Path]:
    """Make a temporary folder that takes the place of ``folder`` when the block ends well.

    Where it does not, nothing of it is left. Unless it ``replaces`` what is there, ``folder`` is
    absent or empty.
    """
    _remove_leftovers_once(folder.parent)
    part = temporary_beside(folder, PART)
    try:
        with at_path(folder, part):
            part.mkdir(parents=True)
            yield part
            if replaces:
                remove(folder)
            os.replace(part, folder)
            sync(folder.parent)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, where there is one; of a folder no half keeps its name."""
    if path.is_dir() and not path.is_symlink():
        gone = temporary_beside(path, f".old{PART}")
        os.replace(path, gone)
        shutil.rmtree(gone)
    else:
        path.unlink(missing_ok=True)


def _write_state(part: Path, state: dict[str, Any]) -> None:
    """Sync what is there and write its checksums."""
    files = sorted(path for path in part.rglob("*") if path.is_file())
    readable = stat.S_IMODE(part.stat().st_mode) & 0o666  # as the umask has it for a new file
    for path in files:
        path.chmod(readable)  # safetensors leaves 0600, which colleagues cannot read
    for path in (*files, *{file.parent for file in files}):
        sync(path)
    checksums = {path.relative_to(part).as_posix(): checksum(path) for path in files}
    content = {"version": 1, **state, "files": checksums}
    signed = {**content, _OWN_CHECKSUM: _checksum_of(content)}
    text = json.dumps(signed, indent=1, sort_keys=True)
    (part / STATE).write_text(text, encoding="utf-8")
    sync(part / STATE)
    sync(part)


def _checksum_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_state(folder: Path) -> dict[str, Any]:
    """Return a folder's ``state.json`` after comparing all checksums, its own too.

    Folders of earlier versions have none of their own. Raises :class:`DamagedError` where a file is
    not what was written; an error of another kind where it may not be read (UserError) or its disk
    fails (MachineError), of which nothing follows for the file.
    """
    try:
        state = _parse_state(folder / STATE)
        if not isinstance(state.get("files"), dict):
            raise DamagedError(f"{folder / STATE}: cannot be read (it lists no files)")
        for name, expected in state["files"].items():
            if not _is_inside(name) or not (folder / name).is_file():
                raise DamagedError(f"{folder / name} is missing")
            if checksum(folder / name) != expected:
                raise DamagedError(f"{folder / name} is damaged: its checksum differs")
    except OSError as e:
        raise unreadable(e, e.filename or folder, DamagedError) from e
    return state


def peek_state(folder: Path) -> dict[str, Any]:
    """Return a folder's ``state.json`` without looking at the files; empty where it is not whole.

    For what is not decided by it: who goes on from the folder reads it all, and names a fault.
    """
    try:
        return _parse_state(folder / STATE)
    except (OSError, DamagedError):
        return {}


def _parse_state(path: Path) -> dict[str, Any]:
    """Return what a ``state.json`` says but for its own checksum; raise OSError, DamagedError."""
    try:
        if special_kind(path) is not None:
            raise TypeError(f"it is {special_kind(path)}")
        state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(state, dict):
            raise TypeError("it holds no object")
        own = state.pop(_OWN_CHECKSUM, None)
        # Computed where there is none, too: what is nested too deep for it is for all else.
        computed = _checksum_of(state)
    except (ValueError, TypeError, RecursionError) as e:
        raise DamagedError(f"{path}: cannot be read ({e})") from e
    if own is not None and own != computed:
        raise DamagedError(f"{path} is damaged: its own checksum differs")
    if _depth(state) > _DEEPEST:
        raise DamagedError(f"{path} is damaged: it is nested deeper than {_DEEPEST} levels")
    return state


def _depth(value: Any) -> int:
    """Return how deep lists and mappings are nested, without recursion."""
    depth, level = 0, [value]
    while level:
        depth += 1
        inner = [v.values() if isinstance(v, dict) else v for v in level if type(v) in (dict, list)]
        level = [one for several in inner for one in several]
    return depth


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path`` that takes its place when the block ends well.

    The content is on the disk before the name is. No two writers have one temporary name. The first
    file that a process writes in a folder is when it removes what killed ones left there. Raises
    OSError for a folder, which no file takes the place of.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    _remove_leftovers_once(path.parent)
    temporary = temporary_beside(path)
    try:
        with at_path(path, temporary):
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


_cleared: set[str] = set()  # folders in which this process has looked for leftovers


def _remove_leftovers_once(folder: Path) -> None:
    """Look for leftovers the first time that this process writes in a folder.

    That they cannot be looked for or removed is no reason not to write.
    """
    if str(folder.absolute()) in _cleared:
        return
    _cleared.add(str(folder.absolute()))
    with suppress(OSError):
        remove_leftovers(folder)


def remove_leftovers(folder: Path, names: Collection[str] = ()) -> None:
    """Remove the temporary files and folders of writers that have ended without renaming them.

    A writer of this machine is looked for by its process. One of another machine has ended when
    nothing was written for a day: it cannot be asked, and how far clocks differ is not known. Of
    what is called ``names`` the caller holds the lock, so that nobody else writes it: all goes.
    """
    with os.scandir(folder) as entries:
        leftovers = [Path(e.path) for e in entries if _is_leftover(e, names)]
    for leftover in leftovers:
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _is_leftover(entry: os.DirEntry[str], names: Collection[str]) -> bool:
    if not (entry.name.startswith(".") and entry.name.endswith((".tmp", PART))):
        return False
    known = writer_of(entry.name)
    if known is None:  # of an earlier version, which did not say who writes
        return entry.name[1:].rsplit(".", 2)[0] in names
    name, writer = known
    if writer == Writer.this():
        return False
    lives = False if name in names else writer.lives()
    if lives is None:
        try:
            return time.time() - entry.stat(follow_symlinks=False).st_mtime > _SILENCE
        except FileNotFoundError:
            return False
    return not lives


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with written_whole(path) as file:
        file.write(text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, and make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as file:
        file.write(data)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON with sorted keys, whole or not at all, and make its folder."""
    text = json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True, allow_nan=False)
    write_bytes(path, (text + "\n").encode("utf-8"))


_MANY_DIGITS = re.compile(r"\d{4301}")


def read_json(path: Path) -> Any:
    """Return what a JSON file holds; raise :class:`UserError` when it cannot be read."""
    return parse_json(read_text(path), str(path))


def parse_json(text: str, name: str) -> Any:
    """Return the value of JSON text; raise :class:`UserError` that begins with ``name``."""
    try:
        return json.loads(text.removeprefix("\ufeff"))
    except json.JSONDecodeError as e:
        raise UserError(f"{name}: not JSON ({e})") from e
    except ValueError as e:  # Python's limit of digits
        line = next(n for n, line in enumerate(text.split("\n"), 1) if _MANY_DIGITS.search(line))
        raise UserError(f"{name}: not JSON (line {line}: a number of thousands of digits)") from e
    except RecursionError as e:
        raise UserError(f"{name}: not JSON (it is nested too deep: {e})") from e


def read_text(path: Path, name: str = "") -> str:
    """Return a UTF-8 text file; raise :class:`UserError` when it cannot be read.

    The error begins with ``name``, or with the path. Where the disk does not give the file, it is a
    :class:`MachineError`.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as e:
        raise unreadable(e, name or path) from e
    except UnicodeDecodeError as e:
        raise UserError(f"{name or path}: not UTF-8 text (byte {e.start})") from e


_SPECIAL = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def special_kind(path: Path) -> str | None:
    """Return what ``path`` is where it is a FIFO, a socket or a device, else None.

    Opening such a one may wait for ever, and reading it may have no end. Links are followed.
    """
    try:
        return _SPECIAL.get(stat.S_IFMT(path.stat().st_mode))
    except OSError:  # what is not there is an error of its own when it is opened
        return None


def read_yaml(path: Path) -> Any:
    """Return what a YAML file holds; raise :class:`UserError` when it cannot be read or parsed."""
    return parse_yaml(read_text(path), str(path))


def parse_yaml(text: str, name: str) -> Any:
    """Return the value of YAML text; raise :class:`UserError` that begins with ``name``.

    Refused besides what is no YAML: a key that is there twice in one mapping, integers of more
    than 64 bits, and what costs more than it is long: deep nests, and aliases of aliases.
    """
    try:
        return _read_yaml(text)
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        line = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        about = "; ".join(part for part in (e.context, e.problem) if part)
        raise UserError(f"{name}{line}: not YAML: {about}") from e
    except yaml.YAMLError as e:
        raise UserError(f"{name}: not YAML: {e}") from e


def _read_yaml(text: str) -> Any:
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


_MOST_NODES = 100_000  # values of a YAML file, those of an alias wherever it stands
_MOST_LEVELS = 50
_WHOLE, _MERGE = "tag:yaml.org,2002:int", "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """Plain data, within bounds, with the line of what is wrong."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._num_nodes = 0
        self._sizes: dict[int, int] = {}  # nodes in a finished node, by its id

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event, before = self.peek_event(), self._num_nodes
        if self._depth == _MOST_LEVELS:
            raise _at(event, f"more than {_MOST_LEVELS} levels deep")
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self._sizes:
                raise _at(event, f"*{event.anchor} stands inside what it repeats")
            self._num_nodes += self._sizes[id(node)]
        else:
            self._num_nodes += 1
            self._sizes[id(node)] = self._num_nodes - before
        if self._num_nodes > _MOST_NODES:
            raise _at(event, f"more than {_MOST_NODES} values, those that aliases repeat included")
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        first: dict[tuple[str, Any], yaml.Node] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
                other = first.setdefault((key.tag, key.value), key)
                if other is not key:
                    line = other.start_mark.line + 1
                    raise _at(key, f"key {_short(key)} is there twice, first in line {line}")
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
        except yaml.MarkedYAMLError:
            raise
        # Of 2024-13-45, of an integer of 5,000 digits, of "!!bool x" and "!!timestamp x".
        except (ValueError, OverflowError, KeyError, AttributeError) as e:
            raise _at(node, f"{_short(node)} is no value ({e})") from e
        if node.tag == _WHOLE and not -(2**63) <= value < 2**63:
            raise _at(node, f"{_short(node)} is an integer of more than 64 bits")
        return value


def _at(place: Any, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=place.start_mark)


def _short(node: yaml.Node) -> str:
    return repr(shortened(str(node.value), 40))


def checksum(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    with at_path(path), path.open("rb") as file:
        return digest(file)


def digest(file: IO[bytes]) -> str:
    """Return the SHA-256 of what is left to read of a file, in hexadecimal."""
    sha256 = hashlib.sha256()
    while chunk := file.read(1 << 20):
        sha256.update(chunk)
    return sha256.hexdigest()


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    with at_path(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def package_files() -> Path:
    """Return the folder that holds the package's own ``configs``, ``ds_configs`` and ``launch``.

    Installed, they are inside the package; in a clone they are beside it.
    """
    return _PACKAGE if (_PACKAGE / _OWN[0]).is_dir() else _PACKAGE.parent


def locate(path: Path) -> Path:
    """Return ``path`` where it exists, seen from the working folder, else the package's own file.

    ``configs/experiment/demo.yaml`` is thus found from every folder, and a file of that name in the
    working folder comes first. Where there is neither, ``path`` is returned as it is, for an error
    that names what the user typed.
    """
    if path.exists() or path.is_absolute() or path.parts[0] not in _OWN or ".." in path.parts:
        return path
    own = package_files() / path
    return own if own.exists() else path


def yaml_files(folder: Path) -> list[Path]:
    """Return the YAML files of ``folder`` by name: the working folder's, then the package's own."""
    by_name = {path.name: path for path in (package_files() / folder).glob("*.yaml")}
    by_name |= {path.name: path for path in folder.glob("*.yaml")}
    return [by_name[name] for name in sorted(by_name)]
