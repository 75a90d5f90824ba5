"""Packing that is killed anywhere, and started again, ends as if nobody had disturbed it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from helpers.little_clips import COLUMNS, write_joints, write_table, write_video
from helpers.repository import ROOT
from signfuse_dist.data.pack import PackConfig, pack
from signfuse_dist.data.verify import verify

pytestmark = pytest.mark.alone

CLIPS, PER_SHARD = 80, 2
Stamps = dict[str, tuple[int, int]]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus with joints of its own: forty shards of a few hundredths of a second each."""
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(4):
        write_video(folder / f"{number}.mp4", 40 + number)
        write_joints(folder / f"{number}.npz", 40 + number)
    rows = [(f"id{i}", f"{i % 4}.mp4", f"sentence {i}", f"{i % 4}.npz") for i in range(CLIPS)]
    return write_table(folder / "t.tsv", rows, COLUMNS)


@pytest.fixture(scope="module")
def undisturbed(table: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed")
    pack(
        "table",
        table,
        "train",
        out,
        PackConfig(frame_size=64, clips_per_shard=PER_SHARD),
        workers=0,
    )
    return content(out)


@pytest.fixture
def dice(request: pytest.FixtureRequest) -> random.Random:
    """What decides who dies and when; a failure prints the seed that repeats its choices."""
    seed = int(os.environ.get("SIGNFUSE_KILL_SEED", random.SystemRandom().randrange(2**32)))
    print(f"SIGNFUSE_KILL_SEED={seed}")
    return random.Random(seed)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def stamps(folder: Path) -> Stamps:
    """Inode and time of the files of every shard that has its index: those are finished."""
    found: Stamps = {}
    for index in folder.glob("shard-*.index.json"):
        for path in (index, folder / index.name.replace(".index.json", ".tar")):
            state = path.stat()
            found[path.name] = (state.st_ino, state.st_mtime_ns)
    return found


@dataclass
class Packing:
    """One command that packs a share of a corpus, in a process group of its own."""

    table: Path
    out: Path
    workers: int = 2
    task: tuple[int, int] = (0, 1)
    process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        words = ["pack", "table", "--root", self.table, "--split", "train", "--out", self.out]
        words += ["--frame-size", 64, "--clips-per-shard", PER_SHARD, "--workers", self.workers]
        words += ["--task-id", self.task[0], "--num-tasks", self.task[1]]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "signfuse_dist.cli", *map(str, words)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def family(self) -> list[psutil.Process]:
        try:
            parent = psutil.Process(self.process.pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def end(self, family: list[psutil.Process]) -> int:
        """Wait until the command and whatever it started have ended; return its status."""
        _, errors = self.process.communicate(timeout=120)
        _, left = psutil.wait_procs(family, timeout=30)
        assert not left, "processes outlive the one that started them"
        assert b"Traceback" not in errors, errors.decode()
        return self.process.returncode


@contextmanager
def all_ended(*packings: Packing) -> Iterator[None]:
    try:
        yield
    finally:
        for packing in packings:
            for process in packing.family():
                process.kill()


def wait_for_a_moment(packings: list[Packing], dice: random.Random) -> None:
    """Let a random time pass: from the start, or from the first shard that this attempt makes."""
    before = len(stamps(packings[0].out))
    if dice.random() < 0.3:
        time.sleep(dice.uniform(0, 1.0))
        return
    deadline = time.monotonic() + 60
    while len(stamps(packings[0].out)) == before and time.monotonic() < deadline:
        if all(packing.process.poll() is not None for packing in packings):
            return
        time.sleep(0.002)
    time.sleep(dice.uniform(0, 0.2))


def kill(packing: Packing, dice: random.Random, whom: str) -> int:
    """Send SIGKILL; return the status with which the command ended."""
    family = packing.family()
    workers = [p for p in family[1:] if _is_worker(p)]
    if whom == "worker" and workers:
        dice.choice(workers).kill()
    elif whom == "group" and packing.process.poll() is None:
        os.killpg(packing.process.pid, signal.SIGKILL)
    else:
        packing.process.kill()
    return packing.end(family)


def _is_worker(process: psutil.Process) -> bool:
    try:
        return any("spawn_main" in word for word in process.cmdline())
    except psutil.Error:
        return False


def check_after(out: Path, whole: Stamps, open_shards: int) -> Stamps:
    """Assert that no finished shard was touched and that few were open; return those finished."""
    found = stamps(out)
    assert {name: found.get(name) for name in whole} == whole, "a finished shard was made again"
    torn = {path.name[1:].split(".")[0] for path in out.glob(".shard-*.tmp")}
    torn |= {p.stem for p in out.glob("*.tar") if f"{p.stem}.index.json" not in found}
    assert len(torn) <= open_shards, f"{torn} were open"
    return found


def kill_until(
    number: int, table: Path, folder: Path, dice: random.Random, expected: dict[str, bytes]
) -> list[str]:
    """Kill commands ``number`` times; whenever a folder is finished, compare it and begin anew."""
    killed: list[str] = []
    out, whole = folder / "out0", Stamps()
    out.mkdir()
    while len(killed) < number:
        packing = Packing(table, out)
        with all_ended(packing):
            wait_for_a_moment([packing], dice)
            running = packing.process.poll() is None
            whom = ("parent", "group", "worker")[len(killed) % 3]
            status = kill(packing, dice, whom) if running else packing.end([])
        assert status in (0, 2, -signal.SIGKILL)
        killed += [whom] * running
        whole = check_after(out, whole, open_shards=2)
        if status == 0:
            assert content(out) == expected
            out, whole = folder / f"out{len(killed)}", Stamps()
            out.mkdir(exist_ok=True)
    with all_ended(last := Packing(table, out)):
        assert last.end([]) == 0
    check_after(out, whole, open_shards=0)
    assert content(out) == expected
    assert verify(out, 0) == []
    return killed


def test_a_packing_that_is_killed_three_times_ends_as_if_undisturbed(
    table: Path, tmp_path: Path, dice: random.Random, undisturbed: dict[str, bytes]
) -> None:
    assert kill_until(3, table, tmp_path, dice, undisturbed) == ["parent", "group", "worker"]


@pytest.mark.long
def test_a_packing_that_is_killed_24_times_ends_as_if_undisturbed(
    table: Path, tmp_path: Path, dice: random.Random, undisturbed: dict[str, bytes]
) -> None:
    assert len(kill_until(24, table, tmp_path, dice, undisturbed)) == 24


@pytest.mark.long
def test_two_tasks_that_are_killed_end_as_if_undisturbed(
    table: Path, tmp_path: Path, dice: random.Random, undisturbed: dict[str, bytes]
) -> None:
    out, whole = tmp_path / "out", Stamps()
    out.mkdir()
    for _ in range(6):
        tasks = [Packing(table, out, workers=1, task=(i, 2)) for i in (0, 1)]
        with all_ended(*tasks):
            wait_for_a_moment(tasks, dice)
            victims = dice.sample(tasks, dice.choice((1, 2)))
            for task in victims:
                kill(task, dice, dice.choice(("parent", "group")))
            for task in tasks:
                task.end(task.family())
        whole = check_after(out, whole, open_shards=len(victims))
    tasks = [Packing(table, out, workers=1, task=(i, 2)) for i in (0, 1)]
    with all_ended(*tasks):
        assert [task.end([]) for task in tasks] == [0, 0]
    check_after(out, whole, open_shards=0)
    assert content(out) == undisturbed
    assert verify(out, 0) == []
