"""Folders and files that are there whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from signfuse_dist import files
from signfuse_dist.errors import UserError
from signfuse_dist.files import (
    STATE,
    checksum,
    locate,
    package_files,
    read_state,
    remove_leftovers,
    write_bytes,
    write_folder,
    write_text,
    yaml_files,
)
from signfuse_dist.writer import Writer, temporary_beside, writer_of


def write(folder: Path, content: bytes = b"content", **state: Any) -> Path:
    write_folder(folder, {"a.bin": lambda path: path.write_bytes(content)}, {"step": 3, **state})
    return folder


def test_a_folder_holds_its_files_and_a_state_with_their_checksums(tmp_path: Path) -> None:
    folder = write(tmp_path / "deep" / "folder", note="ein Wort: größer")
    assert sorted(p.name for p in folder.iterdir()) == ["a.bin", STATE]
    state = read_state(folder)
    assert (state["version"], state["step"], state["note"]) == (1, 3, "ein Wort: größer")
    assert state["files"] == {"a.bin": hashlib.sha256(b"content").hexdigest()}
    assert [p.name for p in folder.parent.iterdir()] == ["folder"], "nothing is left over"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])
def test_files_have_the_modes_that_the_umask_gives_whatever_wrote_them(
    tmp_path: Path, umask: int, mode: int
) -> None:
    def private(path: Path) -> None:
        path.write_bytes(b"content")
        path.chmod(0o600)

    before = os.umask(umask)
    try:
        write_folder(tmp_path / "folder", {"a.bin": private}, {"step": 3})
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "folder").iterdir()}
    assert modes == {"a.bin": mode, STATE: mode}


def test_an_earlier_folder_is_replaced_whole(tmp_path: Path) -> None:
    folder = write(tmp_path / "folder")
    (folder / "stray").write_text("old")
    write(folder, b"new", step=4)
    assert (folder / "a.bin").read_bytes() == b"new"
    assert not (folder / "stray").exists()
    assert read_state(folder)["step"] == 4


def test_a_writer_that_fails_leaves_the_earlier_folder_as_it_was(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    folder = write(tmp_path / "folder")
    with pytest.raises(OSError, match="disk full"):
        write_folder(folder, {"a.bin": fail}, {"step": 9})
    assert read_state(folder)["step"] == 3
    write(folder, b"after")  # and what the failed writer left is no obstacle
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_a_folder_that_was_being_written_is_not_there(tmp_path: Path) -> None:
    seen: list[bool] = []

    def look(path: Path) -> None:
        path.write_bytes(b"")
        seen.append((tmp_path / "folder").exists())

    write_folder(tmp_path / "folder", {"a.bin": look}, {})
    assert seen == [False]
    assert (tmp_path / "folder").exists()


def test_a_changed_file_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "folder")
    (folder / "a.bin").write_bytes(b"c0ntent")
    with pytest.raises(UserError, match=r"a\.bin is damaged: its checksum differs"):
        read_state(folder)


def test_a_changed_state_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "folder", loss=0.5)
    text = (folder / STATE).read_text()
    (folder / STATE).write_text(text.replace('"step": 3', '"step": 4'))
    with pytest.raises(UserError, match=r"state.json is damaged: its own checksum differs"):
        read_state(folder)
    (folder / STATE).write_text(text)
    assert read_state(folder)["step"] == 3


def test_a_state_of_an_earlier_version_has_no_checksum_of_its_own(tmp_path: Path) -> None:
    folder = write(tmp_path / "folder")
    state = json.loads((folder / STATE).read_text())
    del state["state_sha256"]
    (folder / STATE).write_text(json.dumps(state))
    assert read_state(folder) == state


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "folder")
    (folder / "a.bin").unlink()
    with pytest.raises(UserError, match=r"a\.bin is missing"):
        read_state(folder)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "{",
        "[]",
        "3",
        '{"step": 1}',
        '{"files": 3}',
        '{"files": ["a.bin"]}',
        '{"files": null}',
    ],
)
def test_a_state_that_is_missing_or_no_state_is_named(tmp_path: Path, text: str | None) -> None:
    folder = write(tmp_path / "folder")
    (folder / STATE).unlink()
    if text is not None:
        (folder / STATE).write_text(text)
    with pytest.raises(UserError, match=r"state\.json:? cannot be read"):
        read_state(folder)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "..", "sub/a.bin"])
def test_a_state_cannot_name_a_file_of_another_folder(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "folder")
    (tmp_path / "secret").write_bytes(b"content")
    digest = hashlib.sha256(b"content").hexdigest()
    (folder / STATE).write_text(json.dumps({"files": {name: digest}}))
    with pytest.raises(UserError, match="is missing"):
        read_state(folder)


def test_a_text_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_text(path, "one")
    write_text(path, "zwei: ß\n")
    assert path.read_text(encoding="utf-8") == "zwei: ß\n"
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


def test_a_checksum_is_sha256_of_all_of_a_large_file(tmp_path: Path) -> None:
    content = bytes(range(256)) * 4096 * 3 + b"end"  # more than two blocks
    (tmp_path / "large").write_bytes(content)
    assert checksum(tmp_path / "large") == hashlib.sha256(content).hexdigest()


def test_of_an_earlier_version_only_leftovers_of_the_named_files_are_removed(
    tmp_path: Path,
) -> None:
    for name in (".a.tar.0f.tmp", ".b.tar.1f.tmp", ".a.tar.tmp", "a.tar.2f.tmp", "a.tar"):
        (tmp_path / name).write_text("")
    remove_leftovers(tmp_path, {"a.tar"})
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [".a.tar.tmp", ".b.tar.1f.tmp", "a.tar", "a.tar.2f.tmp"]


WRITE_HALF = """
import sys, time
from pathlib import Path
from signfuse_dist.files import part_of, written_whole
with written_whole(Path(sys.argv[1]) / "plan.json") as file, part_of(Path(sys.argv[1]) / "f"):
    file.write(b"half")
    print("half", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def half_written(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has half a file and half a folder in ``tmp_path / "runs"``."""
    (tmp_path / "runs").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", WRITE_HALF, str(tmp_path / "runs")],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        yield process
        process.kill()


def test_the_next_writer_removes_what_a_killed_one_left_and_nothing_of_one_that_lives(
    tmp_path: Path, half_written: subprocess.Popen[str]
) -> None:
    folder = tmp_path / "runs"
    write_text(folder / "plan.json", "another")  # the first writing of this process there
    halves = sorted(path.name for path in folder.iterdir() if path.name.startswith("."))
    assert [name.partition(".")[2].partition(".")[0] for name in halves] == ["f", "plan"]
    half_written.kill()
    half_written.wait()
    files._cleared.clear()  # as in the next process
    write_text(folder / "notes", "")
    assert sorted(path.name for path in folder.iterdir()) == ["notes", "plan.json"]
    assert (folder / "plan.json").read_text() == "another"


def test_leftovers_of_another_machine_are_removed_after_a_day_without_a_sign(
    tmp_path: Path,
) -> None:
    for where, hours in (("00000000", 1), ("00000001", 30)):
        leftover = tmp_path / f".plan.json.{where}-1-1.01234567.tmp"
        leftover.write_text("")
        then = time.time() - hours * 3600
        os.utime(leftover, (then, then))
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".plan.json.00000000-1-1.01234567.tmp"]
    remove_leftovers(tmp_path, {"plan.json"})  # whoever holds its lock knows better
    assert list(tmp_path.iterdir()) == []


def test_a_leftover_of_a_process_whose_number_was_given_again_is_removed(tmp_path: Path) -> None:
    mine = Writer.this()
    leftover = tmp_path / f".a.{Writer(mine.where, os.getppid(), 1)}.01234567.tmp"
    leftover.write_text("")
    remove_leftovers(tmp_path)
    assert not leftover.exists()


def test_a_file_that_many_write_at_once_is_there_from_the_first_on(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    seen: list[bool] = []

    def write_many(_: int) -> None:
        for _ in range(40):
            write_bytes(path, b"alike")
            seen.append(path.read_bytes() == b"alike")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write_many, range(8)))
    assert len(seen) == 320
    assert all(seen)
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]


def test_no_two_writers_have_one_temporary_name(tmp_path: Path) -> None:
    names = [temporary_beside(tmp_path / "plan.json").name for _ in range(100)]
    assert len(set(names)) == 100
    assert {writer_of(name) for name in names} == {("plan.json", Writer.this())}
    assert writer_of("plan.json.tmp") is writer_of(".plan.json.0f.tmp") is None
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # a process of its own, with the memory of this one
        os.write(write, str(Writer.this()).encode())
        os._exit(0)
    os.waitpid(child, 0)
    other = Writer.parse(os.read(read, 100).decode())
    assert other is not None
    assert (other.where, other.lives()) == (Writer.this().where, False)
    assert other.pid == child


def test_the_packages_own_files_are_found_from_every_folder_after_those_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    launch, own = Path("launch") / "gpu.yaml", package_files() / "launch" / "gpu.yaml"
    assert own.is_file()
    assert locate(launch) == own
    launch.parent.mkdir()
    launch.touch()
    (launch.parent / "mine.yaml").touch()
    assert locate(launch) == launch
    names = {path.name: path for path in yaml_files(Path("launch"))}
    assert names["mine.yaml"] == launch.parent / "mine.yaml"
    assert (names["gpu.yaml"], names["cpu_zero2.yaml"]) == (launch, own.with_name("cpu_zero2.yaml"))


@pytest.mark.parametrize(
    "name", ["launch/absent.yaml", "setup.cfg", "launch/../setup.cfg", "/launch/gpu.yaml", "."]
)
def test_what_is_none_of_the_packages_files_stays_as_it_was_typed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert locate(Path(name)) == Path(name)
