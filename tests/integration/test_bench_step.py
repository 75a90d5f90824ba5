"""`python benchmarks/step.py`: both loops do the same, and the table has every component."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.step import BareLoop, StepBench, build_model, copy_of, main, make_case
from helpers.project import environment
from helpers.repository import ROOT

CPU = torch.device("cpu")


def bench(stage: str = "finetune") -> StepBench:
    return StepBench("demo", stage=stage, frames=4, tokens=5, repeats=1)  # type: ignore[arg-type]


def test_the_copy_shares_what_is_frozen_and_nothing_that_trains() -> None:
    case = make_case(bench())
    model = build_model(bench(), case, CPU)
    copied = dict(copy_of(model).named_parameters())
    shared = {name for name, p in model.named_parameters() if copied[name] is p}
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert shared == frozen
    assert frozen


def test_the_bare_loop_trains_and_divides_its_time_when_asked() -> None:
    case = make_case(bench())
    model = build_model(bench(), case, CPU)
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    loop = BareLoop(case, model, CPU)
    assert loop.take(case.batch).parts == {}
    loop.divide()
    taken = loop.take(case.batch)
    assert sum(taken.parts.values()) == pytest.approx(taken.seconds, rel=0.05)
    assert all(taken.parts[f"{part} backward"] > 0 for part in ("visual", "skeletal", "fusion"))
    moved = [n for n, p in model.named_parameters() if n in before and not p.equal(before[n])]
    assert len(moved) == len(before)


def test_cached_features_are_refused_where_encoders_train(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["demo", "--cached"]) == 2
    assert "give --stage alignment" in capsys.readouterr().err


@pytest.mark.long
def test_the_command_compares_the_engine_with_a_bare_loop() -> None:
    """The whole of it once, under ZeRO-2, which needs a process of its own."""
    done = subprocess.run(
        [
            sys.executable,
            "benchmarks/step.py",
            "demo",
            "--stage",
            "alignment",
            "--frames",
            "4",
            "--repeats",
            "1",
            "--cached",
            "--profile",
            "--ds-config",
            str(Path("ds_configs") / "zero2.json"),
        ],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ratio = re.search(
        r"milliseconds, processor +([\d.]+) +([\d.]+) +([\d.]+)   goal 1.05", done.stdout
    )
    assert ratio is not None, done.stdout
    bare, engine, said = (float(part) for part in ratio.groups())
    assert said == pytest.approx(engine / bare, rel=0.02)
    for part in (
        "visual forward",
        "skeletal forward",
        "fusion backward",
        "language_model backward",
        "optimizer",
    ):
        assert re.search(rf"^{part} ", done.stdout, re.MULTILINE), done.stdout
    assert "visual backward" not in done.stdout  # frozen
    assert re.search(r"from cached features: [\d.]+ ms a step, [\d.]+ times faster", done.stdout)
    assert done.stdout.count(" calls") == 5
