"""Starting the stages on this machine through `accelerate launch`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from signfuse_dist.engine.stopping import JOB_FOLDER, REQUEUE
from signfuse_dist.errors import UserError
from signfuse_dist.experiment import load_stages
from signfuse_dist.files import locate
from signfuse_dist.jobs.folder import JobFolder
from signfuse_dist.preflight.machine import read_launch
from signfuse_dist.run_folder import RunFolder, refuse_other, refuse_other_before

# The file of launch/ where none is given.
DEFAULT_LAUNCH = {
    "no GPU": "cpu_zero2.yaml",
    "one GPU": "gpu.yaml",
    "several GPUs": "node_zero2.yaml",
}


def train_stages(
    experiment: str, overrides: Sequence[str], launch: Path | None, num_processes: int | None
) -> int:
    """Train ``train.stages`` in order; return 0, or the status of the first that does not finish.

    With ``stage=NAME`` among the overrides, only that stage.
    """
    launch = find_launch(launch, num_processes)
    shared = [word for word in overrides if not word.startswith("stage=")]
    # All stages are looked at first: an error in the last must not show after the first trained.
    runs = load_stages(experiment, overrides)
    refuse_other_before(runs[0])
    for run in runs:
        refuse_other(run)
    for run in runs:
        stage = run.stage.name
        if RunFolder.of(run).is_finished:
            print(f"{run.folder}: already trained", flush=True)
            continue
        words = [experiment, f"stage={stage}", *shared]
        status = _launch(launch, num_processes, words)
        if status:
            print(
                f"stage {stage} did not finish; the same command goes on from its last checkpoint"
            )
            return status
    return 0


def _launch(launch: Path, num_processes: int | None, words: Sequence[str]) -> int:
    command = launch_command(launch, num_processes, "signfuse_dist.train", words)
    with tempfile.TemporaryDirectory() as own:
        # The launcher makes 1 of every status; whether a stop was asked for stands in the folder.
        folder = os.environ.get(JOB_FOLDER, own)
        job = JobFolder(Path(folder))
        with job.asking(signal.SIGTERM, signal.SIGUSR1):
            announced = launcher_environment(launch, num_processes)
            status = _wait(command, {**announced, **os.environ, JOB_FOLDER: folder})
        return REQUEUE if status and job.stopped else status


def _wait(command: Sequence[str], environment: Mapping[str, str]) -> int:
    with subprocess.Popen(command, env=environment) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                # ctrl-C reaches the workers as well: they write a checkpoint, then end.
                print("stopping after this step ...", flush=True)


def find_launch(launch: Path | None, num_processes: int | None) -> Path:
    """Return the launch file, the default where none is given; raise UserError for what is not."""
    if num_processes is not None and num_processes < 1:
        raise UserError(f"--num-processes {num_processes}: at least one process is needed")
    launch = locate(launch or _default_launch())
    if not launch.is_file():
        raise UserError(f"--launch {launch}: no such file (see launch/)")
    return launch


def launcher_environment(launch: Path, num_processes: int | None) -> dict[str, str]:
    """Return what the launcher decides by itself and announces with a warning: said to it here.

    torchrun gives each of several processes one thread, and DeepSpeed takes the CPU where torch
    sees no GPU. What the environment has already goes before this.
    """
    import torch

    settings = read_launch(launch)
    processes = num_processes or settings.get("num_processes")
    machines = settings.get("num_machines", 1)
    variables = {} if torch.cuda.is_available() else {"DS_ACCELERATOR": "cpu"}
    if isinstance(processes, int) and isinstance(machines, int) and processes > machines:
        variables["OMP_NUM_THREADS"] = "1"
    return variables


def launch_command(
    launch: Path, num_processes: int | None, module: str, words: Sequence[str], *options: str
) -> list[str]:
    """Return ``accelerate launch -m module words``; ``options`` are more of the launcher's."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(launch)]
    if num_processes is not None:
        command += ["--num_processes", str(num_processes)]
    return [*command, *options, "-m", module, *words]


def _default_launch() -> Path:
    import torch

    gpus = list(DEFAULT_LAUNCH)[min(torch.cuda.device_count(), 2)]
    path = Path("launch") / DEFAULT_LAUNCH[gpus]
    print(f"no --launch given: using {path}")
    return path
