"""A disk that fails the trainer: status 75, one message, and a note for its job."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.repository import ROOT
from signfuse_dist.engine.stopping import JOB_FOLDER

SCRIPT = """
import json, sys
from pathlib import Path
from helpers.failing_disk import failing_disk
from signfuse_dist.train import main
words = ["configs/experiment/small.yaml", "stage=contrastive", "train.output=new"]
for fault, call, place in json.loads(sys.argv[1]):
    with failing_disk(fault, call, Path(place)) as met:
        status = main(words)
    note = Path("job/failure.json")
    print("ended", fault, status, bool(met), json.loads(note.read_text())["user"], flush=True)
    note.unlink()
"""
FAULTS = [
    ("EIO", "read", "configs/experiment/small.yaml"),
    ("ESTALE", "read", "shards/train/manifest.json"),
    ("EACCES", "read", "configs/experiment/small.yaml"),
    ("EROFS", "write", "new"),
    ("ENOSPC", "write", "new"),
    ("EXDEV", "rename", "new"),
]


@pytest.mark.long
def test_a_disk_that_fails_the_trainer_is_named_and_its_job_may_be_tried_again(
    tmp_path: Path,
) -> None:
    here = tmp_path / "project"
    shutil.copytree(ROOT / "tests" / "fixtures" / "earlier_run", here)
    (here / "job").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(FAULTS)],
        cwd=here,
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            JOB_FOLDER: str(here / "job"),
        },
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    ended = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("ended ")]
    users, machines = ["2", "True", "True"], ["75", "True", "False"]
    assert ended == [
        [fault, *(users if fault in ("EACCES", "EXDEV") else machines)] for fault, _, _ in FAULTS
    ], done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == len(FAULTS)
