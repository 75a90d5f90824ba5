"""A private Slurm of two nodes on this host, for tests."""

from __future__ import annotations

import getpass
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.repository import ROOT

NODES = ("node0", "node1")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
# Nodes without GPUs, of a few cores: what the scripts ask for is overridden, as a user would.
SMALL = ("--gpus-per-node=0", "--cpus-per-task=1", "--mem=0")


class LocalSlurm:
    """munged, slurmctld and a slurmd for each node, as this user, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.socket = folder, folder / "munge.socket"
        self._daemons: list[subprocess.Popen[bytes]] = []
        sbin = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
        path = os.pathsep.join([str(Path(sys.executable).parent), sbin])
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SIGNFUSE_"))}
        self.environment = {
            **kept,
            "PATH": path,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "SLURM_CONF": str(folder / "slurm.conf"),
            "SIGNFUSE_JOBS": str(folder / "jobs"),
        }

    def start(self) -> None:
        """Start all, and wait until both nodes are idle; skips by name where that cannot be."""
        for name in ("munged", "slurmctld", "slurmd", "sbatch"):
            if shutil.which(name, path=self.environment["PATH"]) is None:
                pytest.skip(f"Slurm cannot be started: no {name} (slurm-wlm and munge of Debian)")
        (self.folder / "slurm.conf").write_text(self._configuration(), encoding="utf-8")
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(1024))
        files = (
            "key-file=munge.key",
            "socket=munge.socket",
            "pid-file=munge.pid",
            "log-file=munged.log",
            "seed-file=munge.seed",
        )
        self._spawn(
            "munged",
            "--foreground",
            "--force",
            *(f"--{option}={self.folder / name}" for option, name in (f.split("=") for f in files)),
        )
        self._wait("munged", self.socket.exists, 20)
        self._spawn("slurmctld", "-D", "-c")
        for node in NODES:
            self._spawn("slurmd", "-D", "-N", node)
        self._wait("slurmd", lambda: self._idle() == len(NODES), 90)

    def stop(self) -> None:
        """End every job, then what was started, by its id."""
        if self._daemons:
            self._call("scancel", "--user", getpass.getuser(), check=False)
            self._settle(lambda: not self._call("squeue", "--noheader", check=False), 20)
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in reversed(self._daemons):
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def submit(self, *words: str | Path, **environment: str) -> str:
        """Submit from the repository; return the job's id."""
        return self._call("sbatch", "--parsable", *words, more=environment).strip()

    def signal_batch(self, job: str, name: str) -> None:
        """Send a signal to the batch script alone, as `#SBATCH --signal=B:...` does."""
        self._call("scancel", f"--signal={name}", "--batch", job)

    def cancel(self, job: str) -> None:
        self._call("scancel", job)

    def state(self, job: str) -> str:
        shown = self._call("scontrol", "show", "job", "--oneliner", job)
        (state, *others) = re.findall(r"\bJobState=(\w+)", shown)
        return state if not others else ",".join([state, *others])

    def name(self, job: str) -> str:
        shown = self._call("scontrol", "show", "job", "--oneliner", job)
        return str(re.findall(r"\bJobName=(\S+)", shown)[0])

    def wait(self, job: str, seconds: float = 400) -> str:
        """Wait until a job, or every task of an array, has ended; return the state or states."""
        self._settle(lambda: set(self.state(job).split(",")) <= set(ENDED), seconds)
        return self.state(job)

    def wait_until(self, job: str, when: Callable[[], bool], seconds: float = 300) -> None:
        """Wait for something that the job must do before it ends."""
        self._settle(lambda: when() or self.state(job) in ENDED, seconds)
        assert when(), f"job {job} is {self.state(job)}"

    def wait_until_idle(self, seconds: float = 120) -> None:
        """Wait until nothing runs on the nodes: a job that was cancelled ends a little later."""
        self._settle(lambda: self._idle() == len(NODES), seconds)
        assert self._idle() == len(NODES)

    def _settle(self, settled: Callable[[], object], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not settled() and time.monotonic() < deadline:
            time.sleep(0.2)

    def _wait(self, name: str, ready: Callable[[], bool], seconds: float) -> None:
        self._settle(ready, seconds)
        if not ready():
            said = (self.folder / "daemons.log").read_text(errors="replace")[-2000:]
            pytest.skip(f"Slurm cannot be started: {name} does not come up here:\n{said}")

    def _idle(self) -> int:
        return self._call("sinfo", "--Node", "--noheader", "--format=%T", check=False).count("idle")

    def _spawn(self, *command: str) -> None:
        with (self.folder / "daemons.log").open("ab") as log:
            self._daemons.append(
                subprocess.Popen(
                    command,
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )

    def _call(
        self, *words: str | Path, check: bool = True, more: dict[str, str] | None = None
    ) -> str:
        done = subprocess.run(
            [str(word) for word in words],
            cwd=ROOT,
            env={**self.environment, **(more or {})},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert not check or done.returncode == 0, done.stderr
        return done.stdout

    def _configuration(self) -> str:
        control, *ports = _free_ports(1 + len(NODES))
        nodes = [
            f"NodeName={node} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs=4 "
            "RealMemory=4000 State=UNKNOWN"
            for node, port in zip(NODES, ports, strict=True)
        ]
        return _CONFIGURATION.format(
            folder=self.folder,
            user=getpass.getuser(),
            control=control,
            socket=self.socket,
            nodes="\n".join(nodes),
            names=",".join(NODES),
        )


# No accounting, no cgroups, no MPI. A requeued job waits for `cred_expire`, by default 120 s.
_CONFIGURATION = """\
ClusterName=private
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={control}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={socket},cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=60
MinJobAge=3600
MailProg=/bin/true
{nodes}
PartitionName=main Nodes={names} Default=YES MaxTime=INFINITE State=UP
"""


def _free_ports(number: int) -> list[int]:
    """Ports that are free now, all held at once so that they differ."""
    sockets = [socket.socket() for _ in range(number)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [int(s.getsockname()[1]) for s in sockets]
    for s in sockets:
        s.close()
    return ports
