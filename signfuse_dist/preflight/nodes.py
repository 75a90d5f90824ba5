"""Whether the nodes of a cluster can train together: network, clocks, file systems, versions.

    torchrun ... -m signfuse_dist.preflight.nodes [--folder DIR ...]

slurm/check_nodes.sh starts it as a job, with one process a GPU, or one a node on CPUs. It takes
less than two minutes, prints a line a node and what was found, and names the node that differs.
Exit status: 0, or 1 where there is an error.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import os
import platform
import secrets
import shutil
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from signfuse_dist import __version__
from signfuse_dist.errors import UserError
from signfuse_dist.files import write_text
from signfuse_dist.preflight.finding import Finding, error, ok, summary, warning
from signfuse_dist.preflight.interfaces import check_interfaces, networks

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
_PATIENCE = timedelta(seconds=120)
_PACKAGES = ("torch", "accelerate", "deepspeed", "transformers", "peft", "numpy")
_CLOCK_SECONDS = 1.0  # further apart, times of files and lines of logs lie about what came first
_SLOW = 0.5  # of the median: a node whose links are slower holds all others up
_MOST_ROUNDS = 8  # partners that a node is measured with
_FILE_SIZE, _SECONDS_TO_SEE = 1 << 23, 5.0


@dataclass(frozen=True)
class Peers:
    """The processes that were started, and the nodes that they are on."""

    rank: int
    nodes: tuple[str, ...]
    """Of each process, by rank."""
    device: torch.device
    fast: Any
    """The group that training exchanges gradients through: NCCL's, or gloo's without GPUs."""

    @cached_property
    def leaders(self) -> dict[str, int]:
        """The first process of each node, by the node's name."""
        return {node: self.nodes.index(node) for node in dict.fromkeys(self.nodes)}

    @property
    def leads(self) -> bool:
        """Whether this process is the first of its node."""
        return self.rank in self.leaders.values()

    def gather(self, own: T) -> list[T]:
        """Return what every process gives, by rank."""
        import torch.distributed as dist

        found: list[Any] = [None] * len(self.nodes)
        dist.all_gather_object(found, own)
        return found

    def by_node(self, own: T) -> dict[str, T]:
        """Return what the first process of each node gives."""
        found = self.gather(own)
        return {node: found[rank] for node, rank in self.leaders.items()}


def meet() -> Peers:
    """Join the processes that were launched.

    Raises RuntimeError where they do not come, and UserError for a GPU that torch cannot use or a
    network that is not here.
    """
    import torch
    import torch.distributed as dist

    from signfuse_dist.device import has_gpu

    for finding in check_interfaces(os.environ, networks(), several_nodes=False):
        raise UserError(finding.said)  # gloo would wait for the others, and say another thing
    rank, local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    on_gpu = has_gpu()
    device = torch.device("cuda", local) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("gloo", timeout=_PATIENCE)
    fast = dist.new_group(backend="nccl", timeout=_PATIENCE) if on_gpu else dist.group.WORLD
    nodes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(nodes, os.environ.get("SLURMD_NODENAME", os.uname().nodename))
    return Peers(rank, tuple(nodes), device, fast)


# Versions -----------------------------------------------------------------------------------------


def versions() -> dict[str, str]:
    """Return what must be the same on every node."""
    import torch

    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    found["signfuse_dist"] = f"{__version__} ({_sources()})"
    found["cuda"] = str(torch.version.cuda)
    if torch.cuda.is_available():
        found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
        found["driver"] = _driver()
        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        found["GPUs"] = ", ".join(f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus))
    return found


def _sources() -> str:
    """Return a digest of this package's files: a node may have a copy of its own, an older one."""
    package, sha256 = Path(__file__).resolve().parents[1], hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        sha256.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return sha256.hexdigest()[:12]


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return ", ".join(sorted(set(done.stdout.split()))) or "unknown"


def compare_versions(found: Mapping[str, Mapping[str, str]]) -> list[Finding]:
    """Compare the versions of the nodes, by name; the fewer are those that differ."""
    findings = []
    for what in dict.fromkeys(key for have in found.values() for key in have):
        nodes: dict[str, list[str]] = defaultdict(list)
        for node, have in found.items():
            nodes[have.get(what, "absent")].append(node)
        if len(nodes) == 1:
            findings.append(ok(what, next(iter(nodes))))
            continue
        fewest_first = sorted(nodes.items(), key=lambda item: len(item[1]))
        value = "; ".join(f"{', '.join(names)}: {have}" for have, names in fewest_first)
        fix = "Let every node see the same environment, or leave the node out (sbatch --exclude)"
        findings.append(error(what, value, fix))
    return findings


# The network --------------------------------------------------------------------------------------


def measure_all_reduce(peers: Peers) -> list[tuple[int, float]]:
    """Return bytes and bus bandwidth in GB/s, over all processes, of sums of several sizes.

    The bus bandwidth is what each link carries, whatever the number of processes n: 2 (n - 1) / n
    of the bytes, over the time of the slowest.
    """
    import torch
    import torch.distributed as dist

    found, world = [], len(peers.nodes)
    for size in (1 << 20, 1 << 24, 1 << 28 if peers.device.type == "cuda" else 1 << 26):
        numbers = torch.zeros(size // 4, device=peers.device)
        repeats = 20 if peers.device.type == "cuda" else 3
        dist.all_reduce(numbers, group=peers.fast)  # links are made at the first
        _wait(peers)
        began = time.perf_counter()
        for _ in range(repeats):
            dist.all_reduce(numbers, group=peers.fast)
        _finish(peers)
        seconds = max(peers.gather(time.perf_counter() - began)) / repeats
        found.append((size, 2 * (world - 1) / world * size / seconds / 1e9))
    return found


def measure_links(peers: Peers) -> dict[str, dict[str, float]]:
    """Return GB/s each way between nodes, by node and partner, in rounds of disjoint pairs."""
    import torch
    import torch.distributed as dist

    size = 1 << 26 if peers.device.type == "cuda" else 1 << 23
    rates: dict[str, float] = {}
    for pairs in rounds(list(peers.leaders))[:_MOST_ROUNDS]:
        partner = pairs.get(peers.nodes[peers.rank]) if peers.leads else None
        _wait(peers)
        if partner is None:
            continue
        other, numbers = peers.leaders[partner], torch.zeros(2, size // 4, device=peers.device)
        for repeat in range(4):
            if repeat == 1:  # links are made at the first
                _finish(peers)
                began = time.perf_counter()
            swap = [
                dist.P2POp(dist.isend, numbers[0], other, peers.fast),
                dist.P2POp(dist.irecv, numbers[1], other, peers.fast),
            ]
            for work in dist.batch_isend_irecv(swap):
                work.wait()
        _finish(peers)
        rates[partner] = 3 * size / (time.perf_counter() - began) / 1e9
    return peers.by_node(rates)


def rounds(nodes: Sequence[str]) -> list[dict[str, str]]:
    """Return rounds of disjoint pairs, both ways, in which every node meets every other once."""
    circle: list[str | None] = [*nodes, *([None] if len(nodes) % 2 else [])]
    found = []
    for _ in range(len(circle) - 1):
        half = len(circle) // 2
        pairs = zip(circle[:half], reversed(circle[half:]), strict=True)
        met = [(one, other) for one, other in pairs if one is not None and other is not None]
        found.append(dict([*met, *((other, one) for one, other in met)]))
        circle = [circle[0], circle[-1], *circle[1:-1]]
    return found


def judge_links(links: Mapping[str, Mapping[str, float]]) -> list[Finding]:
    """Name the nodes whose links are slow; of two nodes nobody can say which."""
    typical = {node: statistics.median(r.values()) for node, r in links.items() if r}
    if len(typical) < 3:
        return []
    middle = statistics.median(typical.values())
    slow = {node: rate for node, rate in typical.items() if rate < _SLOW * middle}
    fix = "Look at its cable and at NCCL_SOCKET_IFNAME and NCCL_IB_HCA in slurm/site.sh"
    return [
        error(f"network of {node}", f"{rate:.2f} GB/s, the middle node has {middle:.2f}", fix)
        for node, rate in slow.items()
    ]


def _wait(peers: Peers) -> None:
    import torch.distributed as dist

    _finish(peers)
    dist.barrier()


def _finish(peers: Peers) -> None:
    import torch

    if peers.device.type == "cuda":
        torch.cuda.synchronize()


# Clocks -------------------------------------------------------------------------------------------


def measure_clocks(peers: Peers) -> dict[str, float]:
    """Return how many seconds each node's clock is ahead of the first node's.

    Of ten questions the one that was answered fastest counts: the answer was given half way.
    """
    import torch
    import torch.distributed as dist

    offsets = {peers.nodes[0]: 0.0}
    for node, leader in list(peers.leaders.items())[1:]:
        fastest = float("inf")
        for _ in range(10):
            answer = torch.zeros(1, dtype=torch.float64)
            if peers.rank == leader:
                dist.recv(answer, 0)
                dist.send(torch.tensor([time.time()], dtype=torch.float64), 0)
            elif peers.rank == 0:
                asked = time.time()
                dist.send(answer, leader)
                dist.recv(answer, leader)
                took = time.time() - asked
                if took < fastest:
                    fastest = took
                    offsets[node] = float(answer) - asked - took / 2
        dist.barrier()
    return offsets


def judge_clocks(offsets: Mapping[str, float]) -> list[Finding]:
    """Name the nodes whose clocks are off from the middle one's."""
    middle = statistics.median_low(list(offsets.values()))
    return [
        error(
            f"clock of {node}",
            f"{offset - middle:+.1f} s from the middle node's",
            "Have its time synchronised (chronyc tracking)",
        )
        for node, offset in offsets.items()
        if abs(offset - middle) > _CLOCK_SECONDS
    ]


# File systems -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Disk:
    """What one node sees of a folder: bytes free, MB/s of a small file, and what went wrong."""

    free: int = 0
    write: float = 0.0
    read: float = 0.0
    fault: str = ""
    absent: bool = False
    unwritable: bool = False


def probe_folder(peers: Peers, folder: Path) -> dict[str, Disk]:
    """Write a file from every node, and read that of the next node, in one folder."""
    token = peers.gather(secrets.token_hex(8))[0]
    probe, nodes = folder / f".check-nodes-{token}", list(peers.leaders)
    try:
        if peers.leads:
            probe.mkdir(exist_ok=True)
        disk = Disk(shutil.disk_usage(folder).free)
    except FileNotFoundError:
        disk = Disk(absent=True)
    except OSError as e:
        disk = Disk(fault=str(e.strerror), unwritable=True)
    disks = peers.by_node(disk)
    if not any(d.absent or d.unwritable for d in disks.values()):
        place = nodes.index(peers.nodes[peers.rank])
        own, following = (_content(token, nodes[i % len(nodes)]) for i in (place, place + 1))
        written = _write(probe / nodes[place], own) if peers.leads else ("", 0.0)
        faults = peers.by_node(written[0])
        if peers.leads and not any(faults.values()):
            fault, rate = _read(probe / nodes[(place + 1) % len(nodes)], following)
            seen = {path.name for path in probe.iterdir()}
            unseen = [node for node in nodes if node not in seen]
            fault = fault or (f"does not see what {', '.join(unseen)} wrote" if unseen else "")
            disk = Disk(disk.free, written[1], rate, fault)
        else:
            disk = Disk(disk.free, fault=written[0])
        disks = peers.by_node(disk)
    if peers.leads:  # each its own: where the folder is not the same, nobody else could
        shutil.rmtree(probe, ignore_errors=True)
    return disks


def _content(token: str, node: str) -> bytes:
    line = f"{token} {node}\n".encode()
    return line * (_FILE_SIZE // len(line))


def _write(path: Path, content: bytes) -> tuple[str, float]:
    """Return what went wrong, and MB/s to the disk."""
    began = time.perf_counter()
    try:
        with path.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as e:
        return f"cannot write ({e.strerror})", 0.0
    return "", len(content) / (time.perf_counter() - began) / 1e6


def _read(path: Path, expected: bytes) -> tuple[str, float]:
    """Return the same of reading another node's file, which may take a moment to show."""
    began = time.perf_counter()
    deadline = began + _SECONDS_TO_SEE
    while True:
        try:
            content = path.read_bytes()
        except OSError as e:
            if time.perf_counter() < deadline:
                time.sleep(0.2)
                began = time.perf_counter()
                continue
            return f"does not see what {path.name} wrote ({e.strerror})", 0.0
        rate = len(content) / (time.perf_counter() - began) / 1e6
        return "" if content == expected else f"reads another content of {path.name}'s file", rate


def judge_folder(folder: Path, disks: Mapping[str, Disk]) -> list[Finding]:
    """Compare what the nodes see of a folder; one that no node has, or may write, is a warning."""
    what = f"folder {folder}"
    absent = [node for node, disk in disks.items() if disk.absent]
    closed = [node for node, disk in disks.items() if disk.unwritable]
    fix = "Put it on a file system that every node mounts"
    if len(absent) == len(disks):
        return [warning(what, "is on no node", "Nothing was measured; --folder DIR names another")]
    if absent:
        return [error(what, f"is not on {', '.join(absent)}", fix)]
    if len(closed) == len(disks):
        return [warning(what, f"cannot be written ({disks[closed[0]].fault})", "For reading alone")]
    if closed:
        return [error(what, f"cannot be written on {', '.join(closed)} alone", fix)]
    faults = [
        error(what, f"{node} {disk.fault}", fix) for node, disk in disks.items() if disk.fault
    ]
    return faults or [ok(what, "is the same on every node")]


# The report ---------------------------------------------------------------------------------------


def check_nodes(peers: Peers, folders: Sequence[Path]) -> tuple[str, bool]:
    """Look at everything; return the report, and whether there is an error, on every process."""
    have = peers.by_node(versions())
    own = check_interfaces(os.environ, networks(), several_nodes=len(peers.leaders) > 1)
    sums = measure_all_reduce(peers) if len(peers.nodes) > 1 else []
    links = measure_links(peers)
    clocks = peers.gather(measure_clocks(peers))[0]
    disks = {folder: probe_folder(peers, folder) for folder in folders}
    findings = [finding for of_node in peers.by_node(own).values() for finding in of_node]
    findings += [*compare_versions(have), *judge_links(links), *judge_clocks(clocks)]
    for folder, seen in disks.items():
        findings += judge_folder(folder, seen)
    through = "NCCL" if peers.device.type == "cuda" else "gloo"
    lines = [f"{len(peers.nodes)} processes on {len(peers.leaders)} nodes, through {through}"]
    lines += [f"  all-reduce of {size >> 20:4d} MB: {rate:8.2f} GB/s" for size, rate in sums]
    lines.append(_row("node", "clock s", "links GB/s", *(f"{f} free GB, MB/s" for f in folders)))
    for node in peers.leaders:
        rates = links[node].values()
        span = f"{min(rates):.2f}-{max(rates):.2f}" if rates else "-"
        cells = [
            f"{d.free / 1e9:.0f}, write {d.write:.0f}, read {d.read:.0f}"
            for d in (seen[node] for seen in disks.values())
        ]
        lines.append(_row(node, f"{clocks[node]:+.3f}", span, *cells))
    failed = any(finding.level == "error" for finding in findings)
    return "\n".join([*lines, summary(findings)]), failed


def _row(*cells: str) -> str:
    return "  ".join([f"{cells[0]:16s}", *(f"{cell:12s}" for cell in cells[1:])]).rstrip()


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the nodes that this process was started on; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m signfuse_dist.preflight.nodes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--folder",
        type=Path,
        action="append",
        metavar="DIR",
        help="one that all nodes must see, once for each (default: runs and shards)",
    )
    parser.add_argument(
        "--status",
        type=Path,
        metavar="FILE",
        help="write the status to a file and end with 0: a launcher prints a traceback for others",
    )
    options = parser.parse_args(arguments)
    import torch.distributed as dist

    try:
        peers = meet()
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return e.status
    report, failed = check_nodes(peers, options.folder or [Path("runs"), Path("shards")])
    if peers.rank == 0:
        print(report, flush=True)
        if options.status is not None:
            write_text(options.status, f"{int(failed)}\n")
    dist.barrier()
    dist.destroy_process_group()
    return int(failed and options.status is None)


if __name__ == "__main__":
    sys.exit(main())
