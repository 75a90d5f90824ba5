"""ctrl-C at any moment of any command: one line, and status 130."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from helpers.little_clips import write_corpus
from helpers.little_job import overrides, write_job
from helpers.project import free_port
from helpers.repository import ROOT

FIXTURE = ROOT / "tests" / "fixtures" / "earlier_run"
FINETUNE = "runs/small/finetune"
LINE = "interrupted; run the same command again to go on\n"

# Presses ctrl-C when the command first does what the first word says: `import` of a module, or
# `open` of a path, with these letters in its name; a second time right after, where the word begins
# with `twice `.
SCRIPT = """
import os, signal, sys
event, _, what = sys.argv[1].removeprefix("twice ").partition(" ")
presses = 2 if sys.argv[1].startswith("twice ") else 1
def hook(name, arguments):
    global presses
    if presses and name == event and what in str(arguments[0]):
        presses -= 1
        os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(hook)
from signfuse_dist.cli import main
sys.exit(main(sys.argv[2:]))
"""


def interrupted(folder: Path, moment: str, *words: str) -> tuple[int, str]:
    """Run a command in a folder and press ctrl-C at a moment; return its status and errors."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, moment, *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"},
    )
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packed splits and an LLM's files, to be checked."""
    return write_job(tmp_path_factory.mktemp("job"))


@pytest.mark.parametrize(
    "moment",
    [
        "import pydantic",
        "open cli/__pycache__/training.",
        "import numpy",  # makes an ImportError of it
        "open shards/train/manifest.json",
        "open llm/config.json",
    ],
)
@pytest.mark.parametrize("command", ["check", pytest.param("train", marks=pytest.mark.long)])
def test_ctrl_c_while_a_job_is_looked_at_is_one_line(job: Path, moment: str, command: str) -> None:
    more = ("--world-size", "2") if command == "check" else ("--launch", "launch/cpu_zero2.yaml")
    words = (command, "configs/experiment/demo.yaml", *more, *overrides(job))
    assert interrupted(ROOT, moment, *words) == (130, LINE)


def test_ctrl_c_before_any_command_is_known_is_one_line() -> None:
    found = interrupted(ROOT, "import signfuse_dist.answer", "check", "demo")
    assert found == (130, "interrupted\n")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run and its shards."""
    folder = tmp_path_factory.mktemp("run") / "project"
    shutil.copytree(FIXTURE, folder)
    return folder


EVALUATE = ("evaluate", FINETUNE, "--split", "train", "--name", "again")
REPORT = ("report", FINETUNE, "--split", "train")
COMMANDS = [
    ("open hypotheses.jsonl", REPORT),
    pytest.param("import matplotlib", REPORT, marks=pytest.mark.long),
    pytest.param("import torch", EVALUATE, marks=pytest.mark.long),
    pytest.param("import transformers", EVALUATE, marks=pytest.mark.long),
    pytest.param("open shard-000000.tar", EVALUATE, marks=pytest.mark.long),
    pytest.param("twice open shard-000000.tar", EVALUATE, marks=pytest.mark.long),
    pytest.param("import torch", ("translate", FINETUNE, "clip.mp4"), marks=pytest.mark.long),
    pytest.param("import torch", ("serve", FINETUNE), marks=pytest.mark.long),
    pytest.param("import gradio", ("serve", FINETUNE), marks=pytest.mark.long),
]


@pytest.mark.parametrize(("moment", "words"), COMMANDS)
def test_ctrl_c_at_any_moment_of_a_command_is_one_line(
    run: Path, moment: str, words: tuple[str, ...]
) -> None:
    if words[0] in ("translate", "serve"):
        pytest.importorskip("mediapipe")
        pytest.importorskip("gradio")
        (run / "clip.mp4").touch()
    status, errors = interrupted(run, moment, *words)
    assert (status, errors[-len(LINE) :]) == (130, LINE), errors
    assert "Traceback" not in errors


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_page_that_is_served_ends_in_one_line(run: Path, number: signal.Signals) -> None:
    pytest.importorskip("mediapipe")
    pytest.importorskip("gradio")
    command = [sys.executable, "-m", "signfuse_dist.cli", "serve", FINETUNE]
    with subprocess.Popen(
        [*command, "--port", str(free_port())],
        cwd=run,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        assert process.stdout is not None
        said = next((line for line in process.stdout if line.startswith("http://")), None)
        assert said is not None, process.communicate()[1]
        os.killpg(process.pid, number)
        printed, errors = process.communicate(timeout=60)
    assert (process.returncode, printed) == (130, "")
    assert errors.endswith(LINE)
    assert "Traceback" not in errors


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_workers_pack_ends_all_of_them_in_one_line_and_the_same_command_goes_on(
    tmp_path: Path, number: signal.Signals
) -> None:
    table, out = write_corpus(tmp_path / "corpus", 16), tmp_path / "packed"
    words = ["pack", "table", "--root", str(table), "--split", "train", "--out", str(out)]
    words += ["--workers", "2", "--frame-size", "32", "--clips-per-shard", "2"]
    command = [sys.executable, "-m", "signfuse_dist.cli", *words]
    with subprocess.Popen(
        command, cwd=ROOT, text=True, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        deadline = time.monotonic() + 60
        while not list(out.glob("shard-*.tar")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        workers = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, number)
        errors = process.communicate(timeout=30)[1]
    assert psutil.wait_procs(workers, timeout=10)[1] == [], "no process is left behind"
    if number == signal.SIGINT:
        assert (process.returncode, errors) == (130, LINE)
    else:
        assert (process.returncode, errors) == (-signal.SIGTERM, "")
    assert not (out / "manifest.json").exists()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "train: 16 rows = 16 packed + 0 dropped" in done.stdout
