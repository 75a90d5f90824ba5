"""Shards on a node's own disk: copied once, whole, and read like those they are copied from."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from helpers.little_splits import PACKING, clip, clip_batches, damage, data_config, encode
from helpers.repository import ROOT
from signfuse_dist.data import staging
from signfuse_dist.data.manifest import Manifest
from signfuse_dist.data.manifest_files import manifest_bytes
from signfuse_dist.data.shard import write_shard
from signfuse_dist.data.split import Split, open_split
from signfuse_dist.data.staging import stage
from signfuse_dist.data.storage import open_folder
from signfuse_dist.errors import MachineError, UserError
from signfuse_dist.experiment import load_run
from signfuse_dist.run_folder import fixed

NUM_SHARDS = 3


@pytest.fixture
def split(tmp_path: Path) -> Split:
    """Three shards of two clips each."""
    folder = tmp_path / "shards"
    folder.mkdir()
    entries = []
    for shard in range(NUM_SHARDS):
        clips = [clip(2 * shard + i, 3 + i) for i in range(2)]
        entries.append(write_shard(folder / f"shard-{shard:06d}.tar", clips, PACKING).entry())
    count, frames = 2 * NUM_SHARDS, sum(entry.num_frames for entry in entries)
    manifest = Manifest(PACKING, tuple(entries), count, count, frames, 0, 0, "0")
    (folder / "manifest.json").write_bytes(manifest_bytes(manifest))
    return open_split(folder, data_config())


def copies(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.tar")}


def same_files(copied: Split, split: Split) -> bool:
    """Whether a copy has each file of a split, and nothing besides but its lock."""
    files = [
        {path.name: path.read_bytes() for path in Path(str(of.folder)).iterdir()}
        for of in (copied, split)
    ]
    return files[0].pop(".lock") == b"" and files[0] == files[1]


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_clips_are_read_from_a_copy_that_is_a_split_of_its_own(
    split: Split, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    want = clip_batches(split, [[0, 3, 5]], encode=encode)[0]
    copied = stage(split, str(tmp_path / "node"))
    assert copies(Path(str(copied.folder))) == copies(Path(str(split.folder)))
    assert same_files(copied, split)
    shutil.rmtree(str(split.folder))
    got = clip_batches(copied, [[0, 3, 5]], encode=encode)[0]
    assert torch.equal(got.frames, want.frames)
    assert not got.faults
    assert next(copied.entries()).text == "ab"
    first, last = capsys.readouterr().err.splitlines()
    assert "copying: 0.000 GB of 0.000 GB" in first
    assert "copied, 3 of 3 shards" in last


def test_shards_at_an_address_are_copied_too(split: Split, tmp_path: Path) -> None:
    far = open_folder("memory://staging/train")
    far.mkdir(parents=True)
    for path in Path(str(split.folder)).iterdir():
        (far / path.name).write_bytes(path.read_bytes())
    remote = open_split(str(far), data_config(shard_cache=str(tmp_path / "cache")))
    copied = stage(remote, str(tmp_path / "node"))
    assert isinstance(copied.folder, Path)
    assert torch.equal(clip_batches(copied, [[1]])[0].frames, clip_batches(split, [[1]])[0].frames)
    assert not (tmp_path / "cache").exists(), "a copy on the disk needs no cache beside it"


def test_of_two_that_want_the_same_shards_one_copies_and_the_other_waits(
    split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, looks, waited = [], [], threading.Event()
    chunks = staging._chunks

    def slowly(path: Path) -> object:
        read.append(path.name)
        assert waited.wait(30), "the other one did not wait"
        return chunks(path)

    def look() -> None:
        looks.append(threading.get_ident())
        if len(set(looks)) == 2 and len(looks) > 3:
            waited.set()

    monkeypatch.setattr(staging, "_chunks", slowly)
    found: list[Split] = []
    threads = [
        threading.Thread(target=lambda: found.append(stage(split, str(tmp_path / "node"), look)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 2
    assert found[0].folder == found[1].folder
    assert len(read) == len(set(read)) == 2 * NUM_SHARDS, "each file once"


KILLED = """
import json, sys, time
from pathlib import Path
from signfuse_dist.config import DataConfig
from signfuse_dist.sections import build_section
from signfuse_dist.data import staging
from signfuse_dist.data.split import open_split

chunks = staging._chunks

def half_of_the_second(path):
    for chunk in chunks(path):
        if path.name == "shard-000001.tar":
            yield chunk[: len(chunk) // 2]
            Path(sys.argv[3]).touch()
            time.sleep(600)
        yield chunk

staging._chunks = half_of_the_second
data = build_section("data", DataConfig, json.loads(sys.argv[4]), [])
staging.stage(open_split(sys.argv[1], data), sys.argv[2])
"""


def test_a_copy_that_was_killed_goes_on_where_it_was(split: Split, tmp_path: Path) -> None:
    words = [str(split.folder), str(tmp_path / "node"), str(tmp_path / "half")]
    command = [sys.executable, "-c", KILLED, *words, json.dumps(asdict(data_config()))]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        wait_until((tmp_path / "half").exists)
        process.send_signal(signal.SIGKILL)
    (folder,) = (tmp_path / "node").glob("signfuse-*/*")
    assert copies(folder) == {"shard-000000.tar"}
    assert len(list(folder.glob(".shard-000001.tar.*.tmp"))) == 1
    before = (folder / "shard-000000.tar").stat().st_ino
    copied = stage(split, str(tmp_path / "node"))
    assert (folder / "shard-000000.tar").stat().st_ino == before, "what was whole is kept"
    assert same_files(copied, split)
    assert not list(folder.glob(".*.tmp"))


def test_a_disk_without_room_is_said_with_sizes_before_anything_is_copied(
    split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "node" / f"signfuse-{os.getuid()}" / "0123"
    other.mkdir(parents=True)
    (other / "shard-000000.tar").write_bytes(bytes(2_000_000))
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(MachineError) as raised:
        stage(split, str(tmp_path / "node"))
    assert raised.value.status == 75
    message = str(raised.value)
    assert f"3 shards of {split.folder} take 0.000 GB, and 0.000 GB are free in " in message
    assert f"Copies of other splits take 0.002 GB in {other.parent}." in message
    assert not list((tmp_path / "node").glob("*/*/shard-000001.*"))


def test_a_disk_that_becomes_full_is_the_machines_fault_and_leaves_nothing_half(
    split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(MachineError, match=r"data\.stage_to: .*No space left.*Make room there"):
            stage(split, str(tmp_path / "node"))
    (folder,) = (tmp_path / "node").glob("*/*")
    assert {path.name for path in folder.iterdir()} == {".lock"}
    assert len(stage(split, str(tmp_path / "node"))) == len(split), "with room it goes on"


def test_a_shard_that_is_damaged_where_it_lies_is_not_copied(split: Split, tmp_path: Path) -> None:
    damage(split, 2, "pose.npy", b"\0" * 8, skip=200)
    with pytest.raises(UserError, match=r"shard-000001\.tar: .*not agree with its checksum"):
        stage(split, str(tmp_path / "node"))
    (folder,) = (tmp_path / "node").glob("*/*")
    assert copies(folder) == {"shard-000000.tar"}


def test_shards_that_are_packed_again_are_copied_again(split: Split, tmp_path: Path) -> None:
    first = stage(split, str(tmp_path / "node"))
    again = replace(split, manifest=replace(split.manifest, signfuse_version="1"))
    assert stage(again, str(tmp_path / "node")).folder != first.folder


def test_the_folder_is_the_nodes_own_and_the_users_own(
    split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOB_DISK", str(tmp_path / "node"))
    assert Path(str(stage(split, "$JOB_DISK/x").folder)).is_relative_to(tmp_path / "node" / "x")
    with pytest.raises(UserError, match=r"NO_DISK/x: names an environment variable that is not"):
        stage(split, "$NO_DISK/x")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"Not a directory; it takes a folder that this node"):
        stage(split, str(tmp_path / "file"))
    other = os.getuid() + 1
    (tmp_path / "node" / f"signfuse-{other}").mkdir()
    monkeypatch.setattr(os, "getuid", lambda: other)
    with pytest.raises(UserError, match="belongs to another user"):
        stage(split, str(tmp_path / "node"))


def test_a_run_is_the_same_wherever_its_shards_are_read() -> None:
    here, there = (
        load_run("demo", "finetune", words) for words in ([], ["data.stage_to=$SLURM_TMPDIR"])
    )
    assert there.data.stage_to == "$SLURM_TMPDIR"
    assert fixed(here) == fixed(there)
    with pytest.raises(UserError, match=r"data\.stage_to 'scratch': name a folder of each node's"):
        load_run("demo", "finetune", ["data.stage_to=scratch"])
