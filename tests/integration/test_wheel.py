"""The wheel, installed elsewhere and used from another folder, has all that the commands read."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.repository import ROOT
from signfuse_dist import __version__

SHIPPED = ("signfuse_dist", "configs", "ds_configs", "launch")  # folders of which the wheel is made
READ_RESOURCES = """
from pathlib import Path
import signfuse_dist
from signfuse_dist.engine.ds_config import resolve
from signfuse_dist.evaluation.protocols import PRESETS
from signfuse_dist.experiment import load_run
from signfuse_dist.plan import make_plan
from signfuse_dist.report.markup import environment
from signfuse_dist.report import published
assert published.table3_markdown()
run = load_run("demo", "finetune")
template = Path("ds_configs/zero2.json")  # as launch files name it, in the trainer's folder
resolved = resolve(template, make_plan(20, run.stage, run.train, 2), run.train)
assert resolved["zero_optimization"]["stage"] == 2
print(signfuse_dist.__file__)
print(len(PRESETS), *sorted(environment().list_templates()))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which the wheel of a copy of the sources was installed, without network."""
    source, wheels = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheels")
    for folder in SHIPPED:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, source / folder, ignore=ignored)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    run(source, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(wheels))
    (wheel,) = wheels.glob("*.whl")
    target = tmp_path_factory.mktemp("installed")
    run(source, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel))
    return target


def run(folder: Path, *words: str, status: int = 0, python_path: Path | None = None) -> str:
    """Run Python in a folder, assert how it ends and return what was printed."""
    variables = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    if python_path is not None:
        variables["PYTHONPATH"] = str(python_path)
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == status, done.stdout
    return done.stdout


def test_the_wheel_has_every_file_of_the_package(installed: Path) -> None:
    expected = set()
    for folder in SHIPPED:
        inside = Path() if folder == "signfuse_dist" else Path("signfuse_dist")
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                expected.add(inside / path.relative_to(ROOT))
    files = {path.relative_to(installed) for path in (installed / "signfuse_dist").rglob("*")}
    assert expected - files == set()


def test_its_command_checks_scores_and_reads_its_files_from_another_folder(
    installed: Path, tmp_path: Path
) -> None:
    def signfuse(*words: str, status: int = 0) -> str:
        script = str(installed / "bin" / "signfuse")
        return run(tmp_path, script, *words, status=status, python_path=installed)

    assert signfuse("--version") == f"signfuse {__version__}\n"
    launch = "launch/cpu_zero2.yaml"
    text = signfuse("check", "demo", "--world-size", "2", "--launch", launch, status=1)
    assert "error    training split shards/synthetic/train: " in text
    assert f"ok       launch file {launch}: 2 processes" in text
    assert "memory of a GPU" in text
    unknown = signfuse("check", "dmo", "--world-size", "2", status=2)
    assert "did you mean 'demo'?" in unknown
    assert "phoenix14t" in unknown
    assert "did you mean 'components'?" in signfuse(
        "ablate", "componets", "demo", "--plan", status=2
    )
    tiny = "configs/ablation/tiny/backbones.yaml"
    assert "manifest.json" in signfuse("ablate", tiny, "ablation_demo", "--plan", status=2)
    for name in ("ours.txt", "theirs.txt"):
        (tmp_path / name).write_text("the cat sees the dog and the bird\n")
    files = ("--hypotheses", "ours.txt", "--references", "theirs.txt")
    assert "BLEU-4" in signfuse("score", *files, "--preset", "neccam")
    where, resources = run(tmp_path, "-c", READ_RESOURCES, python_path=installed).splitlines()
    assert Path(where).is_relative_to(installed)
    assert "report.html.j2" in resources
