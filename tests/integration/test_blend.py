"""A blend is trained: pictures with joints, joints alone, pictures alone, on 1, 2 and 4 processes.

Of two drawn corpora, and of a drawn one, RWTH-BOSTON-104 and OpenASL as they are published. The
same steps and losses on any number, killed and gone on with to the bit, and gone on with on
another number of processes.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from helpers.blended_project import add_published, add_tracks, blend
from helpers.project import Project
from helpers.repository import REAL_INPUTS
from helpers.trained import MEAN_TOLERANCE, log, mean_apart, weights
from signfuse_dist.cli import main

pytestmark = [pytest.mark.alone, pytest.mark.long]

STEPS = 10  # of an epoch of 40 draws
STAGE = ["stage=finetune", "train.stages=[finetune]", "model.norm=layer"]
LOSSES = ("total", "contrastive", "language", "alignment")


@pytest.fixture(scope="module", params=["synthetic tracks", "three corpora"])
def words(request: pytest.FixtureRequest, project: Project) -> list[str]:
    """Three times as many draws of pictures as of joints alone, which are asked by their own; or
    three corpora, those of joints with their published tables where these are at hand.
    """
    if request.param == "three corpora":
        published = REAL_INPUTS / "data" / "boston104"
        return [*STAGE, add_published(project, published if published.is_dir() else None)]
    add_tracks(project)
    return [*STAGE, blend(project, prompt="Translate the joints into a sentence:")]


def micro(processes: int) -> str:
    return f"train.micro_batch_size={4 // processes}"


@pytest.fixture(scope="module")
def two(project: Project, words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs on two processes, undisturbed."""
    output = tmp_path_factory.mktemp("two")
    project.train(output, 2, *words, "stage.epochs=2", micro(2))
    return output


@pytest.fixture(scope="module")
def killed(project: Project, words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, killed in the second epoch."""
    output = tmp_path_factory.mktemp("killed")
    metrics = output / "small" / "finetune" / "metrics.jsonl"
    project.train_until_killed(
        output,
        2,
        lambda: metrics.exists() and metrics.read_bytes().count(b"\n") >= 12,
        *words,
        "stage.epochs=2",
        micro(2),
    )
    return output


def corpora(words: list[str]) -> list[str]:
    return re.findall(r"corpus: (\w+)", words[-1])


def test_the_log_has_the_losses_and_development_scores_of_each_corpus(
    words: list[str], two: Path
) -> None:
    last = log(two, "finetune")[-1]
    for corpus in corpora(words):
        assert last[f"language/{corpus}"] > 0
        assert last[f"dev_language/{corpus}"] > 0
    pairs = [corpus for corpus in corpora(words) if f"contrastive/{corpus}" in last]
    assert pairs == ["synthetic"], "clips of one stream are no pairs"
    assert last["dev_language"] == last["dev_language/synthetic"], "the run's own selects"


@pytest.mark.parametrize("processes", [1, 4])
def test_any_number_of_processes_has_the_same_losses(
    project: Project, words: list[str], two: Path, tmp_path: Path, processes: int
) -> None:
    project.train(tmp_path, processes, *words, "stage.epochs=2", micro(processes))
    ours, theirs = log(tmp_path, "finetune"), log(two, "finetune")
    assert [line["step"] for line in ours] == list(range(1, 2 * STEPS + 1))
    for one, other in zip(ours, theirs, strict=True):
        for name in (key for key in other if key.partition("/")[0] in LOSSES):
            assert one[name] == pytest.approx(other[name], rel=3e-6), (one["step"], name)
        assert one["total"] == pytest.approx(other["total"], rel=1e-6)
    assert mean_apart(weights(tmp_path, "finetune"), weights(two, "finetune")) <= MEAN_TOLERANCE


@pytest.mark.parametrize("then", [2, 1, 4])
def test_killed_it_goes_on_to_the_bit_and_on_other_processes_to_rounding(
    project: Project, words: list[str], two: Path, killed: Path, tmp_path: Path, then: int
) -> None:
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    printed = project.train(tmp_path, then, *words, "stage.epochs=2", micro(then))
    assert "resuming after step" in printed
    apart = mean_apart(weights(tmp_path, "finetune"), weights(two, "finetune"))
    assert apart <= (0.0 if then == 2 else MEAN_TOLERANCE)


def test_another_blend_is_another_run(
    project: Project, words: list[str], two: Path, tmp_path: Path
) -> None:
    other = [*words[:-1], words[-1].replace("weight: ", "weight: 1"), "stage.epochs=2", micro(1)]
    printed = project.train(two, 1, *other, status=1)
    assert "data.blend was" in printed


def test_each_corpus_is_scored_by_its_name(
    words: list[str], two: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "tracks" not in corpora(words):
        pytest.skip("the others have no tracks")
    run = two / "small" / "finetune"
    for corpus in ([], ["--corpus", "tracks"]):
        words = ["evaluate", str(run), "--split", "test", "--controls", "none", *corpus]
        assert main(words) == 0
    assert main(["report", str(run), "--split", "test", "--name", "tracks"]) == 0
    report = (run / "evaluation" / "test@tracks" / "report.md").read_text(encoding="utf-8")
    assert "Scores of the corpora of the blend" in report
    assert "dev\\_language/tracks" in report
    assert main(["evaluate", str(run), "--split", "test", "--corpus", "track"]) == 2
    assert "did you mean 'tracks'" in capsys.readouterr().err
