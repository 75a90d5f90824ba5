"""Files of an LLM on a network disk are read once by the processes of a node together."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from signfuse_dist.model import read_ahead as module
from signfuse_dist.model.read_ahead import file_system, is_network, part, read_ahead


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "model-1.safetensors", tmp_path / "model-2.safetensors"]
    for path, size in zip(paths, (1001, 7), strict=True):
        path.write_bytes(bytes(size))
    return paths


def mount(monkeypatch: pytest.MonkeyPatch, *mounts: tuple[str, str]) -> None:
    found = [SimpleNamespace(mountpoint=point, fstype=kind) for point, kind in mounts]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: found)


def test_the_innermost_mount_says_what_a_path_lies_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mount(monkeypatch, ("/", "ext4"), (str(tmp_path), "nfs4"), (f"{tmp_path}2", "tmpfs"))
    assert file_system(tmp_path / "model") == "nfs4"
    assert file_system(Path(f"{tmp_path}2")) == "tmpfs"
    (tmp_path / "local").symlink_to("/")
    assert file_system(tmp_path / "local") == "ext4"


@pytest.mark.parametrize(
    ("kind", "network"),
    [
        *((kind, True) for kind in ("nfs4", "lustre", "fuse.sshfs", "fuse.juicefs")),
        *((kind, False) for kind in ("ext4", "tmpfs", "fuse.overlayfs", "")),
    ],
)
def test_network_disks_are_told_from_a_machines_own(kind: str, network: bool) -> None:
    assert is_network(kind) is network


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_the_processes_of_a_node_read_every_byte_once(files: list[Path], count: int) -> None:
    for path in files:
        parts = [(a, b) for r in range(count) for p, a, b in part(files, r, count) if p == path]
        assert [a for a, _ in parts] == [0, *(b for _, b in parts[:-1])]
        assert parts[-1][1] == path.stat().st_size


def test_a_process_reads_its_part_and_the_first_says_so(
    files: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mount(monkeypatch, ("/", "lustre"))
    monkeypatch.setattr(module, "_PIECE", 100)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    first = read_ahead(files[0].parent)
    assert "on lustre, read ahead, a part by each of 2 processes" in capsys.readouterr().out
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert first + read_ahead(files[0].parent) == 1008
    assert capsys.readouterr().out == ""


def test_nothing_is_read_from_a_machines_own_disk_or_without_the_memory_to_keep_it(
    files: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mount(monkeypatch, ("/", "ext4"))
    assert read_ahead(files[0].parent) == 0
    assert capsys.readouterr().out == ""
    mount(monkeypatch, ("/", "nfs"))
    full: Any = SimpleNamespace(available=1000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: full)
    assert read_ahead(files[0].parent) == 0
    assert "not read ahead" in capsys.readouterr().out
