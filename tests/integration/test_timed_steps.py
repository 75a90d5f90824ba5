"""Where the time of a step goes is the same under both engines, and that of the bare loop."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers import timed_steps_worker as worker
from helpers.project import environment, free_port
from helpers.repository import ROOT

WORKER = ROOT / "tests" / "helpers" / "timed_steps_worker.py"
SLACK = 0.025  # of a step: hooks, gloo, a busy machine


@pytest.mark.long
@pytest.mark.parametrize(("engine", "launch"), [("plain", "node_ddp"), ("zero2", "cpu_zero2")])
def test_time_and_mfu_of_each_part_are_the_bare_loops(
    tmp_path: Path, engine: str, launch: str
) -> None:
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", f"launch/{launch}.yaml", "--num_processes", "1"]
    command += ["--main_process_port", str(free_port()), str(WORKER), str(tmp_path / "run")]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert said["engine"] == engine
    line, parts = said["log"], worker.ACCUMULATION
    assert line["optimizer/seconds"] == pytest.approx(worker.OPTIMIZER, abs=SLACK)
    for name in worker.FORWARD:
        known = parts * (worker.FORWARD[name] + worker.BACKWARD[name])
        assert line[f"{name}/seconds"] == pytest.approx(known, abs=SLACK)
        operations = parts * 3 * worker.OPERATIONS
        assert line[f"{name}/mfu"] == pytest.approx(operations / known / worker.PEAK, rel=0.15)
    assert line["seconds_per_step"] == pytest.approx(said["bare"], abs=2 * SLACK)
    assert line["other/seconds"] < SLACK
