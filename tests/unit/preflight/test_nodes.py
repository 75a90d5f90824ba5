"""The check of nodes: two processes play two nodes, and what is judged of what was measured."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.project import free_port
from helpers.repository import ROOT
from signfuse_dist.preflight.nodes import (
    Disk,
    compare_versions,
    judge_clocks,
    judge_folder,
    judge_links,
    rounds,
)

FOLDER = Path("runs")


def on_two_nodes(folder: Path, *words: str) -> list[tuple[int, str]]:
    """Run the check as two nodes of one process each; the second has a package of its own."""
    other = folder / "other" / "peft-0.0.1.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: peft\nVersion: 0.0.1\n")
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "signfuse_dist.preflight.nodes", *words],
            cwd=folder,
            env={
                **os.environ,
                **place,
                "RANK": str(rank),
                "LOCAL_RANK": "0",
                "SLURMD_NODENAME": f"node{rank}",
                "PYTHONPATH": f"{other.parent}:{ROOT}" if rank else str(ROOT),
                "CUDA_VISIBLE_DEVICES": "",
                "OMP_NUM_THREADS": "1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        printed = [process.communicate(timeout=200)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, text) for process, text in zip(started, printed, strict=True)]


def test_a_node_with_another_version_is_named_and_all_is_measured(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (status, printed), (other, _) = on_two_nodes(tmp_path)
    assert (status, other) == (1, 1), printed
    assert re.search(r"error +peft: node0: \S+; node1: 0\.0\.1\. Let every node see", printed)
    assert printed.count("error  ") == 1, printed
    assert re.search(r"ok +signfuse_dist: \S+ \([0-9a-f]{12}\)", printed)
    assert "2 processes on 2 nodes, through gloo" in printed
    rates = [float(rate) for rate in re.findall(r"all-reduce of .*: +([\d.]+) GB/s", printed)]
    assert len(rates) == 3
    assert max(rates) > 0
    row = re.search(
        r"^node1 +([+-]\d+\.\d+) +([\d.]+)-([\d.]+) +\d+, write (\d+), read (\d+)", printed, re.M
    )
    assert row is not None, printed
    assert abs(float(row[1])) < 0.5, "one machine has one clock"
    assert "ok       folder runs: is the same on every node" in printed
    assert "warning  folder shards: is on no node" in printed
    assert list((tmp_path / "runs").iterdir()) == [], "nothing is left"


@pytest.mark.long
def test_a_launcher_gets_the_status_in_a_file(tmp_path: Path) -> None:
    """One process is a cluster too: there is no network to measure."""
    words = ["--status", "status", "--folder", "."]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "signfuse_dist.preflight.nodes", *words],
        cwd=tmp_path,
        env={**os.environ, **place, "RANK": "0", "LOCAL_RANK": "0", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "1 processes on 1 nodes" in done.stdout
    assert "all-reduce" not in done.stdout
    assert (tmp_path / "status").read_text() == "0\n"


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8])
def test_in_rounds_of_pairs_every_node_meets_every_other_once(count: int) -> None:
    nodes = [f"node{i}" for i in range(count)]
    met = [pair for pairs in rounds(nodes) for pair in pairs.items()]
    assert sorted(met) == sorted((a, b) for a in nodes for b in nodes if a != b)
    for pairs in rounds(nodes):
        assert all(pairs[other] == one for one, other in pairs.items())


def test_the_fewer_are_those_that_differ() -> None:
    have = {f"node{i}": {"torch": "2.13", "driver": "570" if i != 2 else "550"} for i in range(4)}
    have["node2"]["nccl"] = "2.27"
    findings = {finding.what: finding for finding in compare_versions(have)}
    assert findings["torch"].level == "ok"
    assert findings["driver"].level == "error"
    assert findings["driver"].value == "node2: 550; node0, node1, node3: 570"
    assert findings["nccl"].value.startswith("node2: 2.27; ")


def test_a_node_with_slow_links_is_named_though_its_partners_have_one_slow_link_each() -> None:
    nodes = [f"node{i}" for i in range(4)]
    links = {
        one: {two: 1.0 if "node3" in (one, two) else 10.0 for two in nodes if two != one}
        for one in nodes
    }
    (finding,) = judge_links(links)
    assert (finding.level, finding.what) == ("error", "network of node3")
    assert finding.value == "1.00 GB/s, the middle node has 10.00"
    assert judge_links({"a": {"b": 1.0}, "b": {"a": 9.0}}) == [], "of two nobody can say which"


def test_a_clock_that_is_off_is_named_also_where_it_is_the_first_nodes() -> None:
    assert judge_clocks({"node0": 0.0, "node1": 0.9, "node2": -0.05}) == []
    (finding,) = judge_clocks({"node0": 0.0, "node1": 40.0, "node2": 40.1})
    assert (finding.what, finding.value) == ("clock of node0", "-40.0 s from the middle node's")


@pytest.mark.parametrize(
    ("disks", "level", "value"),
    [
        ([Disk(1), Disk(1)], "ok", "is the same on every node"),
        ([Disk(1), Disk(absent=True)], "error", "is not on node1"),
        ([Disk(absent=True)] * 2, "warning", "is on no node"),
        ([Disk(1), Disk(unwritable=True)], "error", "cannot be written on node1 alone"),
        ([Disk(unwritable=True, fault="why")] * 2, "warning", "cannot be written (why)"),
        ([Disk(1), Disk(1, fault="does not see what node0 wrote")], "error",
         "node1 does not see what node0 wrote"),
    ],
)  # fmt: skip
def test_a_folder_is_compared_over_the_nodes(disks: list[Disk], level: str, value: str) -> None:
    seen = {f"node{i}": disk for i, disk in enumerate(disks)}
    (finding,) = judge_folder(FOLDER, seen)
    assert (finding.level, finding.value) == (level, value)
