"""Two commands that write the same: the second is refused by name, and reading goes on."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from helpers.little_clips import write_corpus
from helpers.lock_holder import lock_holder
from signfuse_dist.cli import main
from signfuse_dist.data.manifest import PackConfig
from signfuse_dist.data.pack import pack
from signfuse_dist.data.stamp import is_verified

PACK = ["--frame-size", "32", "--clips-per-shard", "2", "--workers", "0"]


def packing(table: Path, out: Path, *options: str) -> list[str]:
    words = ["pack", "table", "--root", str(table), "--split", "train", "--out", str(out)]
    return [*words, *PACK, *options]


def refused(command: list[str], pid: int, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that is to be refused with status 2 and one line; return that line."""
    capsys.readouterr()
    assert main(command) == 2
    said = capsys.readouterr().err
    assert f"held by pid {pid} on " in said
    assert said.count("\n") == 1
    return said


def test_a_second_packer_of_a_split_is_refused_and_one_of_other_shards_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, out = write_corpus(tmp_path, 5), tmp_path / "out"
    assert main(packing(table, out, "--task-id", "1", "--num-tasks", "2")) == 0
    (lock,) = _locks_of(packing(table, out, "--task-id", "1", "--num-tasks", "2"), out)
    before = sorted(path.name for path in out.iterdir())
    with lock_holder(out, 1, 2, 3, lock) as other:
        said = refused(packing(table, out), other.pid, capsys)
        assert f"the set in {out} is held" in said
        refused(packing(table, out, "--task-id", "1", "--num-tasks", "2"), other.pid, capsys)
        assert sorted(p.name for p in out.iterdir() if p.suffix != ".lock") == before
        assert main(packing(table, out, "--task-id", "0", "--num-tasks", "2")) == 0
        other.kill()
    assert main(packing(table, out)) == 0
    assert (out / "manifest.json").is_file()
    assert not list(out.glob(".*"))


def _locks_of(command: list[str], out: Path) -> list[str]:
    """Return what the locks in a folder say that is written, while a command works there."""
    from signfuse_dist import locks
    from signfuse_dist.data import pack as module

    seen: list[str] = []
    make = module.make_set

    def look(*arguments: object, **options: object) -> object:
        seen.extend(
            holder.about for path in out.glob(".*.lock") if (holder := locks.holder_of(path))
        )
        return make(*arguments, **options)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "make_set", look)
        assert main(command) == 0
    return seen


@pytest.fixture
def split(tmp_path: Path) -> Path:
    out = tmp_path / "split"
    config = PackConfig(frame_size=32, clips_per_shard=2)
    pack("table", write_corpus(tmp_path, 3), "train", out, config, workers=0)
    return out


def test_a_set_that_is_packed_is_not_verified_and_one_that_is_verified_is_not_packed(
    split: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with lock_holder(split, 0, 4, 3, "a") as other:
        refused(["verify", str(split), "--workers", "0"], other.pid, capsys)
    with lock_holder(split, 0, 1, 0, "signfuse verify") as other:
        refused(packing(tmp_path / "corpus.tsv", split), other.pid, capsys)
        assert main(["show", str(split), "clip.0", "--out", str(tmp_path / "clip.png")]) == 0


def test_a_set_in_a_folder_that_is_only_read_is_verified_without_a_lock(
    split: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mount = ["mount", "--bind", "-o", "ro", str(split), str(split)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here (needs root)")
    try:
        assert main(["verify", str(split), "--workers", "0"]) == 0
        assert "cannot be written to, so `signfuse check`" in capsys.readouterr().out
        assert not is_verified(split)
    finally:
        subprocess.run(["umount", str(split)], check=True)
