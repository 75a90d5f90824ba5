"""Starting the stages on this machine: looked at first, launched in order, stopped by ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import psutil

from signfuse_dist import nvidia
from signfuse_dist.answer import ctrl_c_held_back, ignore_ctrl_c
from signfuse_dist.engine.stopping import JOB_FOLDER, REQUEUE
from signfuse_dist.errors import UserError
from signfuse_dist.experiment import load_stages
from signfuse_dist.files import locate
from signfuse_dist.jobs.folder import JobFolder
from signfuse_dist.preflight.check import Target, refuse_errors
from signfuse_dist.preflight.machine import read_launch
from signfuse_dist.run_folder import RunFolder, refuse_other, refuse_other_before

# The file of launch/ where none is given.
DEFAULT_LAUNCH = {
    "no GPU": "cpu_zero2.yaml",
    "one GPU": "gpu.yaml",
    "several GPUs": "node_zero2.yaml",
}


class Launch(NamedTuple):
    """A file of launch/, and how many processes are started in place of the number that it says."""

    file: Path
    num_processes: int | None


_SECONDS_TO_END = 30.0  # as torchrun waits for its processes


def train_stages(
    experiment: str, overrides: Sequence[str], file: Path | None, num_processes: int | None
) -> int:
    """Train ``train.stages`` in order; return 0, or the status of the first that does not finish.

    With ``stage=NAME`` among the overrides, only that stage. Before anything is started, all is
    looked at as `signfuse check` does: its warnings are printed, and its errors raise UserError.
    """
    launch = find_launch(file, num_processes)
    shared = [word for word in overrides if not word.startswith("stage=")]
    # All stages are looked at first: an error in the last must not show after the first trained.
    runs = load_stages(experiment, overrides)
    refuse_other_before(runs[0])
    for run in runs:
        refuse_other(run)
    left = [run for run in runs if not RunFolder.of(run).is_finished]
    if left:
        target = Target(count_processes(launch), launch.file, started_by="train")
        refuse_errors(left, target)
    for run in runs:
        stage = run.stage.name
        if run not in left:
            print(f"{run.folder}: already trained", flush=True)
            continue
        words = [experiment, f"stage={stage}", *shared]
        status = _launch(launch, words)
        if status == REQUEUE:
            print(
                f"stage {stage} did not finish; the same command goes on from its last checkpoint"
            )
        if status:
            return status
    return 0


def _launch(launch: Launch, words: Sequence[str]) -> int:
    command = launch_command(launch, "signfuse_dist.train", words)
    with tempfile.TemporaryDirectory() as own:
        folder = os.environ.get(JOB_FOLDER, own)
        job = JobFolder(Path(folder))
        with job.asking(signal.SIGTERM, signal.SIGUSR1):
            announced = launcher_environment(launch)
            return _wait(command, {**announced, **os.environ, JOB_FOLDER: folder}, job)


def _wait(command: Sequence[str], environment: Mapping[str, str], job: JobFolder) -> int:
    """Run a launcher to its end and return its status.

    The first ctrl-C asks trainers that take steps for a checkpoint, and ends those that do not yet;
    another ends all at once. Raises KeyboardInterrupt when everything has ended.
    """
    presses = 0
    process: subprocess.Popen[bytes] | None = None

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal presses
        presses += 1
        if presses == 1 and job.heeds_stop:
            job.ask_stop()
            said = b"stopping after this step; ctrl-C again stops at once\n"
            os.write(2, said)  # print could be in the middle of a line
        elif process is not None:
            _signal_all(process, signal.SIGTERM if presses == 1 else signal.SIGKILL)

    before = signal.getsignal(signal.SIGINT)
    with ctrl_c_held_back():
        signal.signal(signal.SIGINT, interrupt)
        process = subprocess.Popen(command, env=environment, preexec_fn=ignore_ctrl_c)
    try:
        with process:
            status = process.wait()
    finally:
        signal.signal(signal.SIGINT, before)
    if presses:
        raise KeyboardInterrupt
    return status


def _signal_all(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to a launcher and to all that it has started."""
    with suppress(psutil.NoSuchProcess):
        launcher = psutil.Process(process.pid)
        for each in [*launcher.children(recursive=True), launcher]:
            with suppress(psutil.NoSuchProcess):
                each.send_signal(number)


def end_processes(processes: Sequence[psutil.Process]) -> None:
    """Ask each process to end with TERM, and kill those that are there 30 seconds later."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=_SECONDS_TO_END)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def find_launch(file: Path | None, num_processes: int | None) -> Launch:
    """Return the launch file and the number of processes that are asked for.

    Where no file is given, that of this machine, with a process for each of its GPUs. Raises
    UserError for a file that is not there and a number that cannot be.
    """
    if num_processes is not None and num_processes < 1:
        raise UserError(f"--num-processes {num_processes}: at least one process is needed")
    found = _default_launch(num_processes) if file is None else Launch(file, num_processes)
    file = locate(found.file)
    if not file.is_file():
        raise UserError(f"--launch {file}: no such file (see launch/)")
    return found._replace(file=file)


def count_processes(launch: Launch) -> int:
    """Return how many processes will be started; raise UserError where nobody says it."""
    processes = launch.num_processes or read_launch(launch.file).get("num_processes")
    if not isinstance(processes, int):
        raise UserError(f"--launch {launch.file}: says no num_processes; give --num-processes N")
    return processes


def launcher_environment(launch: Launch) -> dict[str, str]:
    """Return what the launcher decides by itself and announces with a warning: said to it here.

    torchrun gives each of several processes one thread, and DeepSpeed takes the CPU where there is
    no GPU. What the environment has already goes before this.
    """
    settings = read_launch(launch.file)
    processes = launch.num_processes or settings.get("num_processes")
    machines = settings.get("num_machines", 1)
    variables = {} if nvidia.count_gpus(os.environ) else {"DS_ACCELERATOR": "cpu"}
    if isinstance(processes, int) and isinstance(machines, int) and processes > machines:
        variables["OMP_NUM_THREADS"] = "1"
    return variables


def launch_command(launch: Launch, module: str, words: Sequence[str], *options: str) -> list[str]:
    """Return ``accelerate launch -m module words``, as :mod:`signfuse_dist.jobs.launcher` does it.

    ``options`` are more of the launcher's.
    """
    command = [
        sys.executable,
        "-m",
        "signfuse_dist.jobs.launcher",
        "--config_file",
        str(launch.file),
    ]
    if launch.num_processes is not None:
        command += ["--num_processes", str(launch.num_processes)]
    return [*command, *options, "-m", module, *words]


def _default_launch(num_processes: int | None) -> Launch:
    gpus = nvidia.count_gpus(os.environ)
    file = Path("launch") / list(DEFAULT_LAUNCH.values())[min(gpus, 2)]
    if gpus > 1 and num_processes is None:
        num_processes = gpus
    number = f", {num_processes} processes" if num_processes else ""
    print(f"no --launch given: using {file}{number}", flush=True)
    return Launch(file, num_processes)
