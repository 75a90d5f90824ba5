"""One writer a folder: who is second is told, and what the dead left behind is taken over."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.lock_holder import lock_holder
from signfuse_dist import locks
from signfuse_dist.errors import UserError
from signfuse_dist.locks import HeldError, Holder, Share, held, held_share, holder_of
from signfuse_dist.writer import Writer

ELSEWHERE = Writer("00000000", 1, 1)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("PATIENCE", 0.2), ("SILENCE", 0.5), ("_SETTLING", 0.05)):
        monkeypatch.setattr(locks, name, seconds)


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "run" / ".lock"


@pytest.fixture(params=["flock", "no flock"])
def any_mount(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "no flock":
        without_flock(monkeypatch)


def without_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let flock say what a mount without it says."""

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)


def left_by(path: Path, writer: Writer, seconds: float = 0) -> None:
    """Write the lock file of another process, touched some seconds ago."""
    path.parent.mkdir(exist_ok=True)
    fields = {"writer": str(writer), "host": "node7", "command": "train.py demo", "since": "then"}
    path.write_text(json.dumps(fields))
    then = time.time() - seconds
    os.utime(path, (then, then))


@pytest.fixture
def touching(lock: Path) -> Iterator[None]:
    """Touch the lock file again and again, as a holder does."""
    over = threading.Event()

    def touch() -> None:
        while not over.wait(0.1):
            if lock.exists():
                os.utime(lock)

    thread = threading.Thread(target=touch)
    thread.start()
    yield
    over.set()
    thread.join()


def taken(lock: Path) -> list[str]:
    """Take and release the lock; return what is said of it."""
    said: list[str] = []
    with held(lock, "the run", say=said.append):
        holder = holder_of(lock)
        assert holder is not None
        assert holder.writer == Writer.this()
    return said


def test_a_lock_is_gone_when_it_is_released_and_can_be_taken_again(
    lock: Path, any_mount: None
) -> None:
    assert taken(lock) == taken(lock) == []
    assert list(lock.parent.iterdir()) == []


def test_a_second_writer_is_told_who_writes_since_when_and_what_to_do(
    lock: Path, any_mount: None
) -> None:
    with lock_holder(lock) as other, pytest.raises(HeldError) as refused, held(lock, "the run"):
        pass
    said = rf"the run is held by pid {other.pid} on {re.escape(socket.gethostname())} since "
    said += r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC \(-c .*\): wait until it has finished, or end it, "
    assert re.fullmatch(said + "then run the same command again", str(refused.value))
    assert refused.value.status == 2


def test_threads_of_one_process_are_two_writers(lock: Path, any_mount: None) -> None:
    with held(lock, "the run"), pytest.raises(HeldError), held(lock, "the run"):
        pass


def test_a_writer_that_ends_within_the_patience_of_the_second_is_no_reason_to_refuse(
    lock: Path,
) -> None:
    with lock_holder(lock) as other:
        threading.Timer(0.3, other.kill).start()
        with held(lock, "the run", patience=20):
            pass


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_of_a_killed_process_is_taken_over_at_once_with_a_line(
    lock: Path, any_mount: None, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "SILENCE", 60)
    with lock_holder(lock) as other:
        os.kill(other.pid, number)  # and nobody waits for it: it may be a zombie for long
        began = time.monotonic()
        (said,) = taken(lock)
    assert time.monotonic() - began < 10
    assert f"taking over the lock of pid {other.pid} on" in said
    assert said.endswith("which has ended")


def test_a_lock_of_a_number_that_was_given_to_another_process_is_taken_over(
    lock: Path, any_mount: None
) -> None:
    mine = Writer.this()
    parent = os.getppid()
    left_by(lock, Writer(mine.where, parent, 1))
    assert f"taking over the lock of pid {parent} on node7" in taken(lock)[0]


def test_a_copied_lock_file_of_a_process_that_lives_holds_nothing(lock: Path) -> None:
    with lock_holder(lock.with_name("other.lock")):
        lock.write_bytes(lock.with_name("other.lock").read_bytes())
        assert "taking over" in taken(lock)[0]


@pytest.mark.parametrize(
    "content",
    [
        b"node7 123\n",
        b"\xff\x00",
        b"[]",
        b"{}",
        b"1" * 5000,
        b"[" * 60_000,
        b'{"writer": "x"}',
        b'{"writer": "00000000-1-1", "host": 1, "command": "", "since": ""}',
    ],
)
def test_a_lock_file_that_is_garbage_is_taken_over_with_a_line(lock: Path, content: bytes) -> None:
    lock.parent.mkdir()
    lock.write_bytes(content)
    assert holder_of(lock) is None
    assert taken(lock) == [f"{lock.parent}: taking over the lock of nobody that its file names"]


def test_garbage_that_somebody_locks_is_held_by_somebody(lock: Path) -> None:
    lock.parent.mkdir()
    lock.write_bytes(b"node7 123\n")
    with lock.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(HeldError, match="held by another process, which its lock file does"):
            taken(lock)


@pytest.mark.parametrize("kind", ["folder", "link", "fifo", "socket"])
def test_what_is_no_file_in_a_locks_place_is_named_and_left_alone(lock: Path, kind: str) -> None:
    lock.parent.mkdir()
    target = lock.with_name("precious")
    target.write_text("kept")
    made: dict[str, Any] = {
        "folder": lambda: lock.mkdir(),
        "link": lambda: lock.symlink_to(target),
        "fifo": lambda: os.mkfifo(lock),
        "socket": lambda: socket.socket(socket.AF_UNIX).bind(str(lock)),
    }
    made[kind]()
    assert holder_of(lock) is None
    with pytest.raises(UserError, match=r"\.lock: is to be the file of a lock, and is none"):
        taken(lock)
    assert target.read_text() == "kept"


def test_a_lock_in_a_read_only_folder_is_an_error_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    folder.chmod(0o555)
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)]
    if os.geteuid() == 0 and subprocess.run(mount, check=False).returncode:
        pytest.skip("root may write everywhere, and nothing can be mounted here")
    try:
        with pytest.raises(OSError, match=r"\.lock") as refused:
            taken(folder / ".lock")
        assert refused.value.errno in (errno.EACCES, errno.EROFS)
        assert holder_of(folder / ".lock") is None
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", str(folder)], check=True)


def test_the_lock_of_another_machine_that_is_touched_is_held(
    lock: Path, any_mount: None, touching: None
) -> None:
    left_by(lock, ELSEWHERE)
    with pytest.raises(HeldError, match="held by pid 1 on node7 since then"):
        taken(lock)
    assert lock.exists()


def test_the_lock_of_another_machine_that_gives_no_sign_of_life_is_taken_over(
    lock: Path, any_mount: None
) -> None:
    left_by(lock, ELSEWHERE)
    holder = "pid 1 on node7 since then (train.py demo)"
    assert taken(lock) == [
        f"{lock.parent}: locked by {holder}; waiting for a sign of life",
        f"{lock.parent}: taking over the lock of {holder}, which has ended",
    ]


def test_the_lock_of_another_machine_of_long_ago_is_taken_over_at_once(
    lock: Path, any_mount: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "SILENCE", 1000)
    left_by(lock, ELSEWHERE, seconds=4000)
    assert len(taken(lock)) == 1


def test_a_machine_that_is_gone_has_its_lock_until_its_server_frees_it(
    lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "SILENCE", 1.0)
    left_by(lock, ELSEWHERE)
    file = lock.open("rb")
    fcntl.flock(file, fcntl.LOCK_EX)
    threading.Timer(0.6, file.close).start()  # its lease is over
    assert "taking over" in taken(lock)[-1]


def test_a_holder_touches_its_lock(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "BEAT", 0.02)
    with held(lock, "the run"):
        first = lock.stat().st_mtime_ns
        deadline = time.monotonic() + 10
        while lock.stat().st_mtime_ns == first:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_without_flock_one_of_two_that_begin_at_once_has_the_lock(
    lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_flock(monkeypatch)
    monkeypatch.setattr(locks, "_SETTLING", 0.3)
    holding: list[int] = []
    begun = threading.Barrier(4)

    def write(number: int) -> None:
        begun.wait()
        try:
            with held(lock, "the run", patience=0):
                holding.append(number)
                time.sleep(0.5)
        except HeldError:
            pass

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(holding) == 1


def test_of_many_that_wait_for_a_lock_one_has_it_at_a_time(lock: Path) -> None:
    inside, most = 0, 0

    def write() -> None:
        nonlocal inside, most
        for _ in range(5):
            with held(lock, "the run", patience=60):
                inside += 1
                most = max(most, inside)
                time.sleep(0.001)
                inside -= 1

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert list(lock.parent.iterdir()) == []


def test_what_a_lock_file_says_of_its_holder_steers_no_terminal() -> None:
    holder = Holder(ELSEWHERE, "node\x1b[2J", "train.py " + "x" * 5000 + "\n", "then")
    assert str(holder).isprintable()
    assert len(str(holder)) < 300


def test_a_holder_that_lives_is_seen_without_a_lock_and_one_that_has_ended_is_not(
    lock: Path,
) -> None:
    assert holder_of(lock) is None
    with lock_holder(lock) as other:
        seen = holder_of(lock)
        assert seen is not None
        assert seen.writer.pid == other.pid
        other.kill()
        other.wait()
        assert holder_of(lock) is None
    left_by(lock, ELSEWHERE)
    assert holder_of(lock) is not None, "nobody can know"


def share_taken(folder: Path, task_id: int, num_tasks: int, about: str = "a") -> None:
    with held_share(folder, Share(task_id, num_tasks, 10), "the split", about=about):
        pass


def test_tasks_whose_shares_meet_are_two_writers_and_others_are_not(tmp_path: Path) -> None:
    with lock_holder(tmp_path, 1, 4, 10, "a") as other:
        share_taken(tmp_path, 0, 4)
        share_taken(tmp_path, 0, 2)
        share_taken(tmp_path, 3, 8)
        for task_id, num_tasks in ((1, 4), (0, 1), (1, 2), (5, 8), (0, 3)):
            with pytest.raises(HeldError, match=f"the split is held by pid {other.pid} on"):
                share_taken(tmp_path, task_id, num_tasks)
        assert len(list(tmp_path.iterdir())) == 1
    share_taken(tmp_path, 0, 1)  # the process was killed
    assert list(tmp_path.iterdir()) == []


def test_tasks_that_write_something_else_are_two_writers_even_of_other_shares(
    tmp_path: Path,
) -> None:
    with lock_holder(tmp_path, 1, 4, 10, "a"), pytest.raises(HeldError):
        share_taken(tmp_path, 0, 4, "b")
    share_taken(tmp_path, 0, 4, "b")
