"""README, "Pre-train and fine-tune": its commands, run as they stand, on a small project."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from helpers.blended_project import add_tracks
from helpers.project import FRAME_SIZE, Project, environment, free_port
from helpers.repository import ROOT
from signfuse_dist.experiment import load_resolved
from signfuse_dist.model.usage import read_usage
from signfuse_dist.report.published import extra_data

pytestmark = [pytest.mark.alone, pytest.mark.long]


def commands() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.partition("## Pre-train and fine-tune\n")[2].partition("\n## ")[0]
    (block,) = re.findall(r"```\n(.*?)```", section, re.DOTALL)
    return block.strip().splitlines()


@pytest.fixture
def here(project: Project, tmp_path: Path) -> Path:
    """A working folder with experiments BIG and NAME; the corpora of the README are drawn ones."""
    add_tracks(project)
    shutil.copytree(project.folder / "configs", tmp_path / "configs")
    drawn = yaml.safe_load((tmp_path / "configs/data/synthetic.yaml").read_text(encoding="utf-8"))
    of = {"how2sign": project.folder / "shards", "phoenix14t": project.folder / "tracks"}
    for corpus, shards in of.items():
        own = {"corpus": corpus, "shards": str(shards), "frame_size": FRAME_SIZE}
        path = tmp_path / "configs" / "data" / f"{corpus}.yaml"
        path.write_text(yaml.safe_dump({**drawn, **own}))
    shutil.copytree(ROOT / "launch", tmp_path / "launch")
    launch = tmp_path / "launch" / "cpu_zero2.yaml"
    text = launch.read_text(encoding="utf-8")
    launch.write_text(f"{text}\nmain_process_port: {free_port()}\n")
    small = yaml.safe_load(Path(project.experiment).read_text(encoding="utf-8"))
    del small["data"]
    for name, corpus in (("BIG", "how2sign"), ("NAME", "phoenix14t")):
        experiment = {**small, "use": {**small["use"], "data": corpus}}
        path = tmp_path / "configs" / "experiment" / f"{name}.yaml"
        path.write_text(yaml.safe_dump(experiment))
    return tmp_path


def test_the_commands_of_the_readme_pre_train_blend_and_fine_tune(here: Path) -> None:
    for line in commands():
        program, *words = shlex.split(line)
        assert program == "signfuse"
        done = subprocess.run(
            [sys.executable, "-m", "signfuse_dist.cli", *words],
            cwd=here,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=1800,
            check=False,
        )
        # Splits that nobody has verified are a warning, and no error.
        assert done.returncode == 0, f"{line}\n{done.stdout}"
    assert (here / "runs/BIG/finetune/evaluation/test@phoenix14t/scores.json").is_file()
    tuned = here / "runs" / "NAME" / "finetune"
    run, usage = load_resolved(tuned / "config.yaml"), read_usage(tuned / "model")
    assert run.origin is not None
    assert usage is not None
    assert [trained.run for trained in usage.history] == [
        "BIG/contrastive",
        "BIG/alignment",
        "BIG/finetune",
        "NAME/finetune",
    ]
    assert usage.history[:3] == run.origin.history
    assert [corpus.name for corpus in usage.history[0].corpora] == ["how2sign", "phoenix14t"]
    assert extra_data(run, "phoenix14t")[0] == "how2sign (BIG/contrastive)"
    assert "started from" in (tuned / "model" / "README.md").read_text(encoding="utf-8")
