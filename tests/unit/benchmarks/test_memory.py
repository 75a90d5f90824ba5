"""`python benchmarks/memory.py`: chunks bound the peak whatever the length; failures are rows."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest

from benchmarks import memory
from benchmarks.memory import MemoryBench, main
from helpers.repository import ROOT

DEMO = str(ROOT / "configs" / "experiment" / "demo.yaml")


def bench(
    frames: tuple[int, ...],
    chunks: tuple[int, ...] = (),
    part: str = "visual",
    options: tuple[str, ...] = (),
) -> MemoryBench:
    words = ["data.frame_size=96"]
    return MemoryBench(DEMO, words, part, frames, chunks, options, clips=1, threads=1)


def peaks(*cases: tuple[int, str]) -> list[float]:
    """Measure in one process of their own, from the least memory to the most."""
    program = (
        "import json, sys; from benchmarks.memory import MemoryCase, measure\n"
        "for text in sys.argv[1:]: print(measure(MemoryCase(**json.loads(text)))['peak_bytes'])\n"
    )
    texts = []
    for frames, name in cases:
        changes = dict(memory._ways(bench((frames,), (8,)), frames))[name]
        case = memory._case(bench((frames,)), frames, name, changes)
        texts.append(json.dumps(dataclasses.asdict(case)))
    done = subprocess.run(
        [sys.executable, "-c", program, *texts], check=True, capture_output=True, text=True
    )
    return [float(line) for line in done.stdout.split()]


@pytest.mark.long
def test_in_chunks_the_peak_does_not_grow_with_the_clip() -> None:
    """Resident memory of a process: 5 times the frames, and nowhere near 5 times the peak."""
    short, long, whole = peaks((48, "chunks of 8"), (240, "chunks of 8"), (240, "whole"))
    assert 0 < long < 1.8 * short
    assert long < whole / 3


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[memory.MemoryCase]:
    """Cases that were asked for, without running them."""
    seen: list[memory.MemoryCase] = []

    def measure(case: memory.MemoryCase) -> dict[str, float] | str:
        seen.append(case)
        if case.model["visual_compile"]:
            return "status 1: no compiler"
        seconds = 3.0 if case.model["visual_chunk"] else 2.0
        return {"peak_bytes": 5e6 * case.frames, "seconds": seconds}

    monkeypatch.setattr(memory, "_measure", measure)
    return seen


def test_every_way_is_measured_at_every_length_and_options_at_the_largest(
    measured: list[memory.MemoryCase], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--frames", "4,6", "--chunks", "2,3", "--part", "step", "--clips", "2"]
    assert main([DEMO, "model.visual_width=8", *words]) == 0
    title, header, *rows = capsys.readouterr().out.splitlines()
    assert "part step, clips 2" in title
    assert header.split() == [
        "frames",
        "ResNet",
        "peak",
        "MB",
        "a",
        "frame",
        "seconds",
        "x",
        "whole",
    ]
    assert [row.split()[:2] for row in rows] == [
        ["4", "whole"],
        ["4", "blocks"],
        ["4", "chunks"],
        ["4", "chunks"],
        ["6", "whole"],
        ["6", "blocks"],
        ["6", "chunks"],
        ["6", "chunks"],
        ["6", "channels_last"],
        ["6", "bf16"],
        ["6", "compile"],
    ]
    assert rows[2].split()[-4:] == ["20", "2.50", "3.00", "1.50"]
    assert "status 1: no compiler" in rows[-1]
    assert [case.model["visual_chunk"] for case in measured[:4]] == [None, None, 2, 3]
    assert [case.model["visual_checkpoint"] for case in measured[:3]] == [False, True, False]
    assert measured[8].model["visual_channels_last"]
    assert measured[9].bf16
    assert all(case.frame_size == 48 and case.clips == 2 for case in measured)


def test_a_step_of_the_contrastive_stage_is_measured_in_this_process_too() -> None:
    from benchmarks.memory import measure

    figures = measure(memory._case(bench((3,), part="step"), 3, "whole", {}))
    assert figures["peak_bytes"] > 0
    assert figures["seconds"] > 0


@pytest.mark.parametrize("words", [["--frames", "0"], ["--chunks", "0,2"], ["--clips", "-1"]])
def test_numbers_that_cannot_be_are_refused(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([DEMO, *words]) == 2
    assert "is not at least 1" in capsys.readouterr().err


@pytest.mark.long
def test_a_case_that_fails_says_why() -> None:
    case = memory._case(bench((4,)), 4, "whole", {})
    broken = type(case)(**{**vars(case), "frames": -1})
    said = memory._measure(broken)
    assert isinstance(said, str)
    assert said.startswith("status 1: ")
