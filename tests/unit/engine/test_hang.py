"""A process that dies or hangs is named by the others; who is only slow, or frozen too, is not."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch.distributed as dist

import signfuse_dist.engine
from signfuse_dist.engine.hang import Beat, Watch, judge
from signfuse_dist.engine.stopping import HUNG
from signfuse_dist.engine.timing import QUICK, WAITING, Phase

SECONDS = 2.4  # a beat every 0.1 s
LOOKS = 24  # of a watch in these
ENGINE = Path(signfuse_dist.engine.__file__).parent


class Ending(Watch):
    """A watch that notes the end of its process in the place of ending it."""

    ended: set[int]

    def end(self, status: int) -> None:  # type: ignore[override]
        assert status == HUNG
        self.ended.add(self._rank)


class Job:
    """The watches of several processes, in threads of this one, over one store."""

    def __init__(self, folder: Path) -> None:
        self.store, self.folder = dist.HashStore(), folder
        self.ended: set[int] = set()

    def process(self, rank: int, world_size: int, store: Any = None) -> Watch:
        watch = Ending(store or self.store, rank, world_size, SECONDS, self.folder)
        watch.ended = self.ended
        return watch

    def silent(self, rank: int, **changes: Any) -> None:
        """Leave the beat of a process that is no more."""
        beat = Beat(f"process {rank} (host a, pid 7)", 3, "computing", 4, 0.1)
        self.store.set(f"process {rank}", json.dumps(beat._replace(**changes)))

    def wait_for(self, ranks: set[int]) -> str:
        """Wait until these have ended; return the verdict that they found in the store."""
        until(lambda: self.ended == ranks)
        return str(self.store.get("verdict").decode())


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def test_a_process_that_hangs_is_named_and_every_process_ends(
    job: Job, capfd: pytest.CaptureFixture[str]
) -> None:
    watches = [job.process(rank, 3) for rank in range(3)]
    entered = threading.Barrier(3)

    def live(rank: int) -> None:
        with watches[rank] as here:
            here.at("loading clips" if rank == 1 else WAITING, 5)
            entered.wait()
            until(lambda: rank in job.ended)

    threads = [threading.Thread(target=live, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    verdict = job.wait_for({0, 1, 2})
    for thread in threads:
        thread.join()
    assert re.match(
        r"1 of 3 processes: process 1 \(host .*, pid \d+\) does not get on: loading clips "
        r"\(step 5\) for \d s$",
        verdict,
    )
    assert "in live" in (job.folder / "stacks_1.txt").read_text(encoding="utf-8")
    assert "train.hang_seconds" in capfd.readouterr().err


def test_a_process_without_a_sign_of_life_is_named(job: Job) -> None:
    job.silent(1)
    with job.process(0, 2) as here:
        here.at(WAITING, 5)
        verdict = job.wait_for({0})
    assert "process 1 (host a, pid 7) gives no sign of life" in verdict
    assert "computing (step 4)" in verdict


def test_a_process_that_ended_with_an_error_is_named_with_it(job: Job) -> None:
    job.silent(1, ended="ended with UserError('no such shard')")
    with job.process(0, 2) as here:
        here.at(WAITING, 5)
        assert "no sign of life: ended with UserError('no such shard')" in job.wait_for({0})


def test_a_process_that_finished_is_not_missed(job: Job) -> None:
    job.silent(1, ended="finished")
    with job.process(0, 2) as here:
        here.at("ending", 5)
        time.sleep(1.5 * SECONDS)
    assert not job.ended


@pytest.mark.parametrize("phase", sorted(set(get_args(Phase)) - QUICK))
def test_what_may_take_long_is_no_hang(job: Job, phase: Phase) -> None:
    with job.process(0, 1) as here:
        here.at(phase, 5)
        here.last = (phase, 5, here.looks - 5 * LOOKS)
        time.sleep(0.5)
        assert not job.ended
        here.last = (phase, 5, here.looks - 50 * LOOKS)
        job.wait_for({0})


class _Suspending:
    """A store in whose answer the whole job is suspended: every clock has jumped after it."""

    def __init__(self, store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self._store, self._monkeypatch, self.armed = store, monkeypatch, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def set(self, key: str, value: str) -> None:
        self._store.set(key, value)
        if self.armed:
            self.armed = False
            for clock in ("monotonic", "perf_counter", "time"):
                now = getattr(time, clock)
                self._monkeypatch.setattr(time, clock, lambda now=now: now() + 1000.0)


def test_a_job_that_was_suspended_as_a_whole_goes_on_and_is_watched_as_before(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = time.monotonic()
    store = _Suspending(job.store, monkeypatch)
    job.silent(1)  # until it is there itself
    with job.process(0, 2, store) as one, job.process(1, 2) as other:
        one.at("computing", 5)
        other.at("computing", 5)
        store.armed = True
        until(lambda: time.monotonic() > before + 900)
        time.sleep(0.5)
        assert not job.ended
        one.at(WAITING, 6)
        other.at("computing", 6)
        assert "process 1" in job.wait_for({0, 1})


def test_a_clock_that_jumps_is_no_hang(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    with job.process(0, 1) as here:
        here.at("computing", 5)
        monkeypatch.setattr(time, "time", lambda: 4e9)
        time.sleep(0.3)
        monkeypatch.setattr(time, "time", lambda: 0.0)
        time.sleep(0.3)
    assert not job.ended


@pytest.mark.parametrize("path", sorted(ENGINE.glob("*.py")), ids=lambda path: path.name)
def test_durations_are_not_taken_from_a_clock_that_jumps(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"\btime\.time\(|datetime\.(now|utcnow)\(|\bctime\(|localtime\(", text)


class _Stuck:
    """A store whose machine is gone: it does not answer, and the connection does not break."""

    def __init__(self, store: Any) -> None:
        self.store, self.gone = store, threading.Event()

    def __getattr__(self, name: str) -> Any:
        if self.gone.is_set() and threading.current_thread().name == "watch":
            threading.Event().wait()
        return getattr(self.store, name)


def test_a_store_that_does_not_answer_ends_the_process(
    job: Job, capfd: pytest.CaptureFixture[str]
) -> None:
    store = _Stuck(job.store)
    with job.process(0, 1, store):
        store.gone.set()
        until(lambda: job.ended == {0})
    assert "the job's store, its launcher or process 0's machine, is gone" in capfd.readouterr().err


def test_a_broken_collective_names_the_process_that_went_before(
    job: Job, capfd: pytest.CaptureFixture[str]
) -> None:
    job.silent(1)
    with pytest.raises(RuntimeError, match="closed by peer"), job.process(0, 2):
        raise RuntimeError("connection closed by peer")
    said = capfd.readouterr().err
    assert "before this process, process 1 (host a, pid 7) gives no sign of life" in said


def test_a_process_that_never_came_is_named(job: Job) -> None:
    store: Any = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    store.set("process 1", "")
    with pytest.raises(RuntimeError, match="process 2"), job.process(0, 3, store):
        pass


def beat(rank: int, phase: str, seconds: float = 100.0, **more: Any) -> Beat:
    return Beat(f"process {rank} (host a)", 5, phase, 9, seconds, **more)


@pytest.mark.parametrize(
    ("beats", "blamed"),
    [
        ([beat(0, WAITING), beat(1, "loading clips"), beat(2, WAITING)], {1}),
        ([beat(0, "computing"), beat(1, "computing")], {0, 1}),
        ([beat(0, WAITING), beat(1, WAITING)], {0, 1}),
        ([beat(0, WAITING), beat(1, "loading clips"), beat(2, "computing", silent=True)], {2}),
        ([beat(0, WAITING), beat(1, "loading clips", seconds=1), beat(2, "saving")], {2}),
    ],
)
def test_who_is_to_blame(beats: list[Beat], blamed: set[int]) -> None:
    verdict = judge(beats, 120)
    assert {int(n) for n in re.findall(r"process (\d) \(host", verdict)} == blamed
    assert verdict.startswith(f"{len(blamed)} of {len(beats)} processes: ")


def test_of_many_to_blame_a_few_are_named() -> None:
    verdict = judge([beat(rank, "computing") for rank in range(64)], 120)
    assert verdict.startswith("64 of 64 processes: process 0 (")
    assert verdict.count("process ") == 8
