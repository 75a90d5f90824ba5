from __future__ import annotations

import os
import signal

import pytest

from signfuse_dist.data.pack_workers import Death, WorkerPool
from signfuse_dist.errors import UserError


def work(task: int, report) -> int:
    report(f"piece of {task}", 0)
    if task == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if task == 7:
        raise UserError("seven cannot be done")
    report("", 1)
    return task * task


def test_a_worker_that_dies_is_named_and_takes_no_other_task_with_it():
    finished = []
    pool = WorkerPool(work, 2, lambda name, count: finished.append(count))
    outcomes = dict(pool.run([1, 2, 3, 4]))
    assert outcomes == {0: 1, 1: Death("piece of 2", "killed by SIGKILL"), 2: 9, 3: 16}
    assert sum(finished) == 3


def test_an_error_in_a_task_reaches_the_caller():
    with pytest.raises(UserError, match="seven cannot be done"):
        list(WorkerPool(work, 1, lambda name, count: None).run([1, 7]))


def test_without_workers_tasks_run_in_this_process():
    assert list(WorkerPool(work, 0, lambda name, count: None).run([3, 1])) == [(0, 9), (1, 1)]
