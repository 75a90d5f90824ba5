"""Units of work: order, failures, locks between tasks, kills and stops."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from signfuse_dist.ablation import workers
from signfuse_dist.ablation.workers import Unit, UnitRunner, take_lock
from signfuse_dist.errors import UserError


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "SECONDS_BETWEEN_LOOKS", 0.01)
    monkeypatch.setattr(workers, "SECONDS_WAITING", 0.02)


def unit(folder: Path, name: str, *needs: str, script: str = ":") -> Unit:
    """A unit that says when it ran, and makes a file."""
    made = folder / f"{name}.made"
    command = f"echo {name} >> {folder}/order; {script}; touch {made}"
    return Unit(name, ("sh", "-c", command), made.is_file, folder, needs)


def order(folder: Path) -> list[str]:
    return (folder / "order").read_text(encoding="utf-8").split()


def test_each_unit_is_done_once_and_after_what_it_needs(tmp_path: Path) -> None:
    units = [
        unit(tmp_path, "a"),
        unit(tmp_path, "b", "a"),
        unit(tmp_path, "c", "b"),
        unit(tmp_path, "d"),
    ]
    outcome = UnitRunner(units, 2, 0, 1).run()
    assert (outcome.failed, outcome.elsewhere, outcome.stopped) == ((), (), False)
    found = order(tmp_path)
    assert sorted(found) == ["a", "b", "c", "d"]
    assert found.index("a") < found.index("b") < found.index("c")
    UnitRunner(units, 2, 0, 1).run()
    assert order(tmp_path) == found  # nothing is done again


def test_a_failed_unit_takes_with_it_only_what_needs_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    units = [
        unit(tmp_path, "a", script="echo out of memory >&2; exit 7"),
        unit(tmp_path, "b", "a"),
        unit(tmp_path, "c", "b"),
        unit(tmp_path, "d"),
    ]
    outcome = UnitRunner(units, 1, 0, 1).run()
    assert set(outcome.failed) == {"a", "b", "c"}
    assert order(tmp_path) == ["a", "d"]
    said = capsys.readouterr().out
    assert "a: ended with status 7" in said
    assert "out of memory" in said
    assert "b: not begun, for a failed" in said


def test_a_command_that_makes_nothing_has_failed_whatever_it_says(tmp_path: Path) -> None:
    nothing = Unit("a", ("true",), (tmp_path / "never").is_file, tmp_path)
    assert UnitRunner([nothing], 1, 0, 1).run().failed == ("a",)


def test_tasks_at_once_do_each_unit_once(tmp_path: Path) -> None:
    units = [unit(tmp_path, f"u{i}", script="sleep 0.02") for i in range(12)]
    script = (
        "import sys; sys.path.insert(0, {here!r})\n"
        "from pathlib import Path\n"
        "import test_workers as t\n"
        "t.workers.SECONDS_BETWEEN_LOOKS = t.workers.SECONDS_WAITING = 0.01\n"
        "folder = Path({folder!r})\n"
        "units = [t.unit(folder, f'u{{i}}', script='sleep 0.02') for i in range(12)]\n"
        "assert not t.UnitRunner(units, 1, {task}, 3).run().failed\n"
    )
    here = str(Path(__file__).parent)
    tasks = [
        subprocess.Popen(
            [sys.executable, "-c", script.format(here=here, folder=str(tmp_path), task=task)]
        )
        for task in range(3)
    ]
    assert [task.wait(60) for task in tasks] == [0, 0, 0]
    assert sorted(order(tmp_path)) == sorted(u.name for u in units)


def test_a_surplus_task_leaves_the_rest_and_the_only_one_waits(tmp_path: Path) -> None:
    busy, after = unit(tmp_path, "busy"), unit(tmp_path, "after", "busy")
    lock = take_lock(busy)
    assert lock is not None
    outcome = UnitRunner([busy, after], 1, 1, 2).run()
    assert set(outcome.elsewhere) == {"busy", "after"}
    assert not (tmp_path / "order").exists()
    threading.Timer(0.2, os.close, [lock]).start()
    assert UnitRunner([busy, after], 1, 0, 1).run().elsewhere == ()
    assert order(tmp_path) == ["busy", "after"]


def test_more_rows_than_tasks_at_work_are_worth_waiting_for(tmp_path: Path) -> None:
    shared = unit(tmp_path, "shared")
    rows = [unit(tmp_path, name, "shared") for name in ("b", "c")]
    lock = take_lock(shared)
    assert lock is not None
    threading.Timer(0.2, os.close, [lock]).start()
    assert UnitRunner([shared, *rows], 1, 1, 2).run().elsewhere == ()
    assert sorted(order(tmp_path)) == ["b", "c", "shared"]


def test_a_lock_is_free_once_every_process_of_its_holder_is_killed(tmp_path: Path) -> None:
    one = unit(tmp_path, "a", script="sleep 60")
    script = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\nimport test_workers as t\n"
        f"t.UnitRunner([t.unit(Path({str(tmp_path)!r}), 'a', script='sleep 60')], 1, 0, 1).run()\n"
    )
    task = subprocess.Popen([sys.executable, "-c", script])
    while not (tmp_path / "order").exists():
        assert task.poll() is None
        time.sleep(0.02)
    import psutil

    children = psutil.Process(task.pid).children(recursive=True)
    task.kill()
    task.wait()
    assert take_lock(one) is None  # what it started goes on, and is not doubled
    for child in children:
        child.kill()
    psutil.wait_procs(children, 10)
    deadline = time.monotonic() + 30
    while (lock := take_lock(one)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.close(lock)


def test_a_stop_ends_what_runs_and_begins_nothing(tmp_path: Path) -> None:
    trap = f"trap 'echo saved >> {tmp_path}/order; exit 1' INT; while :; do sleep 0.05; done"
    units = [unit(tmp_path, "a", script=trap), unit(tmp_path, "b")]
    threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGUSR1]).start()
    outcome = UnitRunner(units, 1, 0, 1).run()
    assert outcome.stopped
    assert outcome.failed == ()
    assert set(outcome.elsewhere) == {"a", "b"}
    assert order(tmp_path) == ["a", "saved"]


@pytest.mark.parametrize(("parallel", "task", "tasks"), [(0, 0, 1), (1, 1, 1), (1, 0, 0)])
def test_a_division_that_is_none_is_refused(parallel: int, task: int, tasks: int) -> None:
    with pytest.raises(UserError):
        UnitRunner([], parallel, task, tasks)
