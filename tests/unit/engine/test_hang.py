"""A process that dies or hangs is named by the others; who is only slow, or frozen too, is not."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

import signfuse_dist.engine
from signfuse_dist.engine import hang
from signfuse_dist.engine.hang import WAITING, Beat, Mark, Watch, judge

SECONDS = 2.4  # a beat every 0.1 s
ENGINE = Path(signfuse_dist.engine.__file__).parent


class Job:
    """The watches of several processes, in threads of this one, over one store."""

    def __init__(self, folder: Path) -> None:
        self.store, self.folder = dist.HashStore(), folder
        self.verdicts: dict[int, str] = {}

    def process(self, rank: int, world_size: int, store: Any = None) -> Watch:
        return Watch(
            store or self.store,
            rank,
            world_size,
            SECONDS,
            self.folder,
            lambda verdict: self.verdicts.update({rank: verdict}),
        )

    def silent(self, rank: int, **changes: Any) -> None:
        """Leave the beat of a process that is no more."""
        beat = {"rank": rank, "host": "a", "pid": 7, "number": 3, "phase": "computing", "step": 4}
        self.store.set(f"beat/{rank}", json.dumps({**beat, "seconds": 0.1, "ended": "", **changes}))

    def wait_for(self, ranks: set[int]) -> str:
        """Wait until these have ended, all with the same verdict; return it."""
        until(lambda: self.verdicts.keys() == ranks)
        (verdict,) = set(self.verdicts.values())
        return verdict


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
            until(lambda: rank in job.verdicts)

    threads = [threading.Thread(target=live, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    verdict = job.wait_for({0, 1, 2})
    for thread in threads:
        thread.join()
    assert re.match(r"process 1 \(host .*, pid \d+\) does not get on: loading clips", verdict)
    assert "of the others: 2 waiting for the others (step 5)" in verdict
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
    job.silent(1, ended="ended with UserError: no such shard")
    with job.process(0, 2) as here:
        here.at(WAITING, 5)
        assert "no sign of life: ended with UserError: no such shard" in job.wait_for({0})


def test_a_process_that_finished_is_not_missed(job: Job) -> None:
    job.silent(1, ended="finished")
    with job.process(0, 2) as here:
        here.at("ending", 5)
        time.sleep(1.5 * SECONDS)
    assert not job.verdicts


@pytest.mark.parametrize("phase", sorted(hang.LONG))
def test_what_may_take_long_is_no_hang(job: Job, phase: hang.Phase) -> None:
    with job.process(0, 1) as here:
        here.at(phase, 5)
        here.last = Mark(phase, 5, time.monotonic() - 5 * SECONDS)
        time.sleep(0.5)
        assert not job.verdicts
        here.last = Mark(phase, 5, time.monotonic() - 50 * SECONDS)
        job.wait_for({0})


class _Clock:
    """Time as it is, and a jump."""

    def __init__(self) -> None:
        self.jump = 0.0
        self.sleep = time.sleep

    def monotonic(self) -> float:
        return time.monotonic() + self.jump


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    """The clock by which the watches go."""
    clock = _Clock()
    monkeypatch.setattr(hang, "time", clock)
    monkeypatch.setattr(hang, "time", clock)
    return clock


def test_a_job_that_was_suspended_as_a_whole_goes_on(job: Job, clock: _Clock) -> None:
    """Frozen with the others, a process finds everybody late; after that it looks anew."""
    job.silent(1)  # until it is there itself
    with job.process(0, 2) as one, job.process(1, 2) as other:
        one.at("computing", 5)
        other.at("computing", 5)
        time.sleep(0.3)
        clock.jump = 1000.0
        time.sleep(0.5)
        assert not job.verdicts
        one.at(WAITING, 6)
        assert "process 1" in job.wait_for({0, 1})


class _Suspending:
    """A store during whose next answer the job is suspended for 1000 seconds."""

    def __init__(self, store: Any, clock: _Clock) -> None:
        self._store, self._clock, self.armed = store, clock, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def set(self, key: str, value: str) -> None:
        self._store.set(key, value)
        if self.armed:
            self.armed = False
            self._clock.jump += 1000.0


def test_a_job_that_was_suspended_between_a_beat_and_a_look_goes_on(
    job: Job, clock: _Clock
) -> None:
    store = _Suspending(job.store, clock)
    with job.process(0, 1, store) as here:
        here.at("computing", 5)
        store.armed = True
        until(lambda: clock.jump > 0)
        time.sleep(0.5)
        assert not job.verdicts


def test_a_clock_that_jumps_is_no_hang(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    with job.process(0, 1) as here:
        here.at("computing", 5)
        monkeypatch.setattr(time, "time", lambda: 4e9)
        time.sleep(0.3)
        monkeypatch.setattr(time, "time", lambda: 0.0)
        time.sleep(0.3)
    assert not job.verdicts


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


def test_a_store_that_does_not_answer_ends_the_process(job: Job) -> None:
    store = _Stuck(job.store)
    with job.process(0, 1, store):
        store.gone.set()
        assert "has not answered process 0" in job.wait_for({0})


def test_a_broken_collective_names_the_process_that_went_before(
    job: Job, capfd: pytest.CaptureFixture[str]
) -> None:
    job.silent(1)
    with pytest.raises(RuntimeError, match="closed by peer"), job.process(0, 2):
        raise RuntimeError("connection closed by peer")
    said = capfd.readouterr().err
    assert "before this process, process 1 (host a, pid 7) gives no sign of life" in said


def test_processes_that_never_came_are_named(job: Job) -> None:
    with pytest.raises(RuntimeError, match=r"no sign of processes \[1, 2\]"), job.process(0, 3):
        pass


def beat(rank: int, phase: str, step: int = 9, seconds: float = 100.0, **more: Any) -> Beat:
    return Beat(rank, "a", 100 + rank, 5, phase, step, seconds, **more)


@pytest.mark.parametrize(
    ("beats", "blamed"),
    [
        ([beat(0, WAITING), beat(1, "loading clips"), beat(2, WAITING)], {1}),
        ([beat(0, "computing"), beat(1, "computing", step=8)], {1}),
        ([beat(0, "computing"), beat(1, "computing")], {0, 1}),
        ([beat(0, WAITING), beat(1, WAITING)], {0, 1}),
        ([beat(0, WAITING), beat(1, "loading clips"), beat(2, "computing", silent=True)], {2}),
        ([beat(0, WAITING), beat(1, "loading clips", seconds=1), beat(2, "saving", 8)], {2}),
    ],
)
def test_who_is_to_blame(beats: list[Beat], blamed: set[int]) -> None:
    verdict = judge(beats, 120)
    assert {int(n) for n in re.findall(r"process (\d) \(host", verdict)} == blamed
    assert ("collective" in verdict) == (blamed == {0, 1})
