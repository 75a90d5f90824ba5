"""Shards at an address: the same clips as in a folder, and a local cache that keeps its bound."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import urlopen

import boto3
import numpy as np
import pytest
import torch
from moto.server import ThreadedMotoServer
from upath import UPath

from helpers.little_clips import write_corpus
from helpers.little_splits import SHARD, clip_batches, data_config, encode, write_split
from signfuse_dist.cli import main
from signfuse_dist.data.manifest import PackConfig
from signfuse_dist.data.pack import pack
from signfuse_dist.data.split import open_split
from signfuse_dist.data.storage import (
    RangeCache,
    file_size,
    is_local,
    open_folder,
    open_ranges,
    read_file,
)
from signfuse_dist.errors import UserError


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    """A server on this machine that speaks S3."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path, str], str]]:
    """Upload a folder of shards; returns where it is then."""
    values = {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="corpora")

    def upload(folder: Path, name: str) -> str:
        for path in folder.iterdir():
            client.upload_file(str(path), "corpora", f"{name}/{path.name}")
        return f"s3://corpora/{name}"

    yield upload
    with urlopen(f"{s3_server}/moto-api/reset", data=b"") as answer:
        answer.read()


def batch_of(location: str | Path, cache: Path, limit_gb: float = 1.0) -> torch.Tensor:
    config = data_config(shard_cache=str(cache), shard_cache_gb=limit_gb)
    batch = clip_batches(open_split(location, config), [[2, 0, 1, 3]], 64, encode)[0]
    assert batch.faults == ()
    return batch.frames


def test_shards_on_s3_give_the_batches_of_a_folder(
    tmp_path: Path, s3: Callable[[Path, str], str]
) -> None:
    folder = write_split(tmp_path / "train")
    address = s3(folder, "one/train")
    local = batch_of(folder, tmp_path / "unused")
    assert not (tmp_path / "unused").exists()
    assert torch.equal(batch_of(address, tmp_path / "cache"), local)
    assert len(list((tmp_path / "cache").iterdir())) == 4 + 1  # a copy a clip, and the count


def test_a_clip_is_fetched_once_and_then_read_from_the_cache(
    tmp_path: Path, s3: Callable[[Path, str], str]
) -> None:
    folder = write_split(tmp_path / "train")
    config = data_config(shard_cache=str(tmp_path / "cache"))
    split = open_split(s3(folder, "two/train"), config)
    first = clip_batches(split, [[0, 1]])[0]
    boto3.client("s3").delete_object(Bucket="corpora", Key=f"two/train/{SHARD}")
    again = clip_batches(split, [[1, 0, 2]])[0]
    assert again.weight.tolist() == [1, 1, 0]
    assert again.ids == ("clip 1", "clip 0", "")
    assert first.ids == ("clip 0", "clip 1")
    (fault,) = again.faults
    assert "clip 2" in fault
    assert "cannot be read" in fault


def test_shards_packed_again_are_not_read_from_old_copies(
    tmp_path: Path, s3: Callable[[Path, str], str]
) -> None:
    first = write_split(tmp_path / "a", (4, 1, 6, 3))
    second = write_split(tmp_path / "b", (3, 6, 1, 4))
    before = batch_of(s3(first, "same"), tmp_path / "cache")
    after = batch_of(s3(second, "same"), tmp_path / "cache")
    assert torch.equal(after, batch_of(second, tmp_path / "unused"))
    assert not torch.equal(before, after)


def test_verify_reads_shards_on_s3(
    tmp_path: Path, s3: Callable[[Path, str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    table, folder = write_corpus(tmp_path / "corpus"), tmp_path / "packed"
    pack("table", table, "train", folder, PackConfig(frame_size=32), workers=0)
    assert main(["verify", s3(folder, "whole"), "--workers", "0"]) == 0
    content = bytearray((folder / SHARD).read_bytes())
    content[len(content) // 2] ^= 255
    (folder / SHARD).write_bytes(content)
    capsys.readouterr()
    assert main(["verify", s3(folder, "torn"), "--workers", "0"]) == 1
    assert f"{SHARD}: its content does not agree with its checksum" in capsys.readouterr().out


def test_a_bucket_that_is_not_there_is_named(s3: Callable[[Path, str], str]) -> None:
    with pytest.raises(UserError, match=r"s3://nowhere/train/manifest.json"):
        open_split("s3://nowhere/train", data_config())


def test_a_file_address_is_a_folder(tmp_path: Path) -> None:
    folder = write_split(tmp_path / "train")
    address = f"file://{folder}"
    assert is_local(open_folder(address))
    assert torch.equal(batch_of(address, tmp_path / "c"), batch_of(folder, tmp_path / "c"))
    assert not (tmp_path / "c").exists()


def test_an_address_of_an_unknown_kind_is_refused_with_what_to_install() -> None:
    with pytest.raises(UserError, match=r"nosuch://x/y: .*signfuse_dist\[s3\]"):
        open_folder("nosuch://x/y")


def remote(name: str, content: bytes) -> UPath:
    path = UPath(f"memory://{name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def used(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.iterdir() if f.name != "used")


def test_the_cache_never_exceeds_its_limit_and_forgets_what_was_used_longest_ago(
    tmp_path: Path,
) -> None:
    content = np.random.default_rng(0).bytes(1000)
    path = remote("/lru/shard.tar", content)
    cache = RangeCache(tmp_path / "cache", limit=500, namespace="n")
    asked: list[int] = []

    def read(start: int) -> bytes:
        def fetch(first: int, last: int) -> bytes:
            asked.append(first)
            return content[first:last]

        return cache.read(path.name, start, start + 100, fetch)

    for start in (0, 100, 200, 300, 400, 0):  # the limit is reached, and 0 used once more
        assert read(start) == content[start : start + 100]
    assert asked == [0, 100, 200, 300, 400]
    for start in (500, 600, 700):
        assert read(start) == content[start : start + 100]
        assert used(tmp_path / "cache") <= 500
    asked.clear()
    read(700)
    read(100)
    assert asked == [100]  # the oldest went first


def test_something_larger_than_the_cache_is_read_without_it(tmp_path: Path) -> None:
    path = remote("/large/shard.tar", bytes(1000))
    cache = RangeCache(tmp_path / "cache", limit=10, namespace="n")
    with open_ranges(path, (100, 900), cache) as read:
        assert len(read(100, 900)) == 800
    assert not (tmp_path / "cache").exists()


def test_a_torn_copy_is_fetched_again(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path / "cache", limit=1000, namespace="n")
    content = bytes(range(100))

    def fetch(start: int, stop: int) -> bytes:
        return content[start:stop]

    cache.read("s", 0, 100, fetch)
    (copy,) = (f for f in (tmp_path / "cache").iterdir() if f.name != "used")
    copy.write_bytes(content[:40])
    assert cache.read("s", 0, 100, fetch) == content
    assert copy.read_bytes() == content


def test_a_cache_that_cannot_be_written_is_said_and_reading_goes_on(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file is in the way")
    cache = RangeCache(tmp_path / "cache", limit=1000, namespace="n")
    with pytest.warns(UserWarning, match="the cache cannot be written"):
        assert cache.read("s", 0, 3, lambda start, stop: b"abc") == b"abc"


FILL = """
import sys
from pathlib import Path
from signfuse_dist.data.storage import RangeCache

cache = RangeCache(Path(sys.argv[1]), limit=5000, namespace="n")
for i in range(60):
    place = (i + int(sys.argv[2])) % 90
    start = 100 * place
    found = cache.read("s", start, start + 100, lambda a, b: bytes([a // 100]) * (b - a))
    assert found == bytes([place]) * 100
"""


def test_processes_that_share_a_cache_keep_its_bound_and_read_what_is_theirs(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", FILL, str(tmp_path / "c")]
    workers = [subprocess.Popen([*command, str(30 * i)]) for i in range(3)]
    assert [worker.wait(60) for worker in workers] == [0, 0, 0]
    assert 0 < used(tmp_path / "c") <= 5000
    assert not list((tmp_path / "c").glob("*.tmp"))


def test_an_error_of_a_filesystem_is_one_of_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    path = remote("/errors/a", b"abc")
    assert file_size(path) == 3

    def broken(*_: object, **__: object) -> bytes:
        raise RuntimeError("no route")

    monkeypatch.setattr(type(path.fs), "cat_file", broken)
    with pytest.raises(OSError, match="RuntimeError: no route"), open_ranges(path, (0, 3), None):
        pass
    monkeypatch.setattr(UPath, "read_bytes", broken)
    with pytest.raises(OSError, match="no route"):
        read_file(path)


def test_the_folder_of_a_split_can_be_removed_and_named(tmp_path: Path) -> None:
    folder = write_split(tmp_path / "train")
    shutil.rmtree(folder)
    with pytest.raises(UserError, match=str(folder)):
        open_split(folder, data_config())
