"""The folder of a model stands alone: without its run and its shards, clips become sentences."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.project import Project
from helpers.repository import ROOT
from helpers.stand_in_hub import TOKEN, stand_in_hub
from helpers.untrained_run import write_run  # tests/helpers/untrained_run.py
from signfuse_dist import SignFuse
from signfuse_dist.cli import main
from signfuse_dist.data.joints import NoJoints
from signfuse_dist.errors import UserError
from signfuse_dist.evaluation.evaluate import evaluate
from signfuse_dist.model.usage import USAGE
from signfuse_dist.report.model_card import write_card

pytestmark = pytest.mark.usefixtures("one_thread")
NUM_CLIPS = 4


@pytest.fixture(scope="module")
def folder(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(project, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model and its card, away from the run."""
    write_card(folder)
    return shutil.copytree(folder / "model", tmp_path_factory.mktemp("elsewhere") / "model")


@pytest.fixture(scope="module")
def hypotheses(folder: Path) -> list[str]:
    """What an evaluation made of the clips' packed frames."""
    text = (evaluate(folder, "test", controls=()) / "hypotheses.jsonl").read_text(encoding="utf-8")
    of = {row["id"]: row["hypothesis"] for row in map(json.loads, text.splitlines())}
    return [of[f"test_{number:04d}"] for number in range(NUM_CLIPS)]


@pytest.fixture(scope="module")
def clips(project: Project) -> tuple[list[Path], list[Path]]:
    """Videos and their files of joints."""
    corpus, names = project.folder / "corpus", [f"test_{i:04d}" for i in range(NUM_CLIPS)]
    return (
        [corpus / "clips" / f"{name}.mp4" for name in names],
        [corpus / "joints" / f"{name}.npz" for name in names],
    )


def python_in(page: Path, marker: str) -> str:
    """Return the block of Python of a page that has ``marker``."""
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    (found,) = [block for block in blocks if marker in block]
    return str(found)


def run_elsewhere(program: str, folder: Path, **variables: str) -> str:
    """Run a program in a fresh process whose working folder is ``folder``."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    env |= variables
    words = [sys.executable, "-c", program]
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.long
def test_the_lines_of_the_card_translate_a_clip_in_another_folder(
    alone: Path,
    clips: tuple[list[Path], list[Path]],
    hypotheses: list[str],
    tmp_path: Path,
) -> None:
    program = python_in(alone / "README.md", "SignFuse").replace("FOLDER", str(alone))
    assert len([line for line in program.splitlines() if line]) == 3
    shutil.copy(clips[0][0], tmp_path / "clip.mp4")
    shutil.copy(clips[1][0], tmp_path / "clip.npz")
    assert run_elsewhere(program, tmp_path).strip() == repr(hypotheses[:1])


@pytest.mark.long
def test_the_lines_of_the_documentation_do_too(
    alone: Path, clips: tuple[list[Path], list[Path]], tmp_path: Path
) -> None:
    """Of a model that was trained without joints, for which MediaPipe is not asked."""
    model = SignFuse.from_pretrained(alone)
    assert model.usage is not None
    model.usage = replace(model.usage, extractor=NoJoints.name, extractor_version="1")
    model.save_pretrained(tmp_path / "runs" / "NAME" / "finetune" / "model")
    shutil.copy(clips[0][0], tmp_path / "clip.mp4")
    program = python_in(ROOT / "docs" / "training.md", ".translate([")
    expected = model.translate([tmp_path / "clip.mp4"])
    assert run_elsewhere(program, tmp_path).strip() == repr(expected)


def test_clips_get_the_sentences_that_their_packed_frames_got(
    alone: Path, clips: tuple[list[Path], list[Path]], hypotheses: list[str]
) -> None:
    """In their order, whatever is computed together, and without a warning."""
    model = SignFuse.from_pretrained(alone)
    videos, joints = clips
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model.translate(videos, joints=joints) == hypotheses
        two = model.translate(videos[::-1], joints=joints[::-1], batch_size=2)
    assert two == hypotheses[::-1]


def test_what_cannot_be_translated_is_named(
    alone: Path, clips: tuple[list[Path], list[Path]], tmp_path: Path
) -> None:
    model = SignFuse.from_pretrained(alone)
    videos, joints = clips
    with pytest.raises(UserError, match=r"absent\.mp4"):
        model.translate([videos[0], tmp_path / "absent.mp4"], joints=[joints[0]] * 2)
    with pytest.raises(UserError, match="did you mean 'num_beams'"):
        model.translate(videos, joints=joints, num_baems=2)
    with pytest.raises(UserError, match="give a list of videos"):
        model.translate(str(videos[0]), joints=joints)
    model.usage = None
    with pytest.raises(UserError, match=r"usage\.json"):
        model.translate(videos, joints=joints)


def test_joints_from_elsewhere_than_those_of_training_are_warned_of(
    alone: Path, clips: tuple[list[Path], list[Path]]
) -> None:
    model = SignFuse.from_pretrained(alone)
    assert model.usage is not None
    model.usage = replace(model.usage, extractor="mediapipe-holistic", extractor_version="0.10.9")
    videos, joints = clips
    with pytest.warns(UserWarning, match=r"came from mediapipe-holistic 0\.10\.9"):
        model.translate(videos[:1], joints=joints[:1])


def test_the_command_takes_the_folder_of_a_model_as_it_takes_its_run(
    alone: Path,
    folder: Path,
    clips: tuple[list[Path], list[Path]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [*map(str, clips[0]), "--joints", *map(str, clips[1])]
    assert main(["translate", str(folder), *words]) == 0
    of_run = capsys.readouterr().out
    assert main(["translate", str(alone), *words]) == 0
    assert capsys.readouterr().out == of_run
    beams = ["--decoding", "evaluation.num_beams=3"]
    assert main(["translate", str(alone), *words, *beams]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["decoding"]["num_beams"] == 3
    assert main(["translate", str(alone), *words, "--decoding", "data.stage_to=x"]) == 2
    assert "only evaluation.key=value can be changed here" in capsys.readouterr().err


def test_a_model_that_does_not_say_its_use_is_refused_with_what_to_give(
    alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    earlier = shutil.copytree(alone, tmp_path / "earlier")
    (earlier / USAGE).unlink()
    assert main(["translate", str(earlier), "clip.mp4"]) == 2
    assert "give the run folder" in capsys.readouterr().err


PUSH = """
from signfuse_dist import SignFuse
model = SignFuse.from_pretrained("ALONE")
for _ in range(2):  # the second time the repository is there
    print(model.push_to_hub("somebody/signer", with_llm=True, token="TOKEN"))
"""
FROM_THE_HUB = """
import sys
from signfuse_dist import SignFuse
from signfuse_dist.cli import main
model = SignFuse.from_pretrained("somebody/signer")
print(model.translate(["clip.mp4"], joints=["clip.npz"]))
sys.exit(main(["translate", "somebody/signer", "clip.mp4", "--joints", "clip.npz"]))
"""


@pytest.mark.long
def test_a_model_that_was_pushed_translates_by_its_name(
    alone: Path,
    clips: tuple[list[Path], list[Path]],
    hypotheses: list[str],
    tmp_path: Path,
) -> None:
    """The LLM goes with it; no path of the machine that pushed it does."""
    shutil.copy(clips[0][0], tmp_path / "clip.mp4")
    shutil.copy(clips[1][0], tmp_path / "clip.npz")
    with stand_in_hub() as hub:
        variables = {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        program = PUSH.replace("ALONE", str(alone)).replace("TOKEN", TOKEN)
        printed = run_elsewhere(program, tmp_path, **variables, HF_HOME=str(tmp_path / "a"))
        assert printed.split() == [f"{hub.address}/somebody/signer"] * 2
        files = hub.files["somebody/signer"]
        assert {"config.json", "model.safetensors", USAGE, "README.md"} < files.keys()
        assert "llm/model.safetensors" in files
        written = b"".join(text for name, text in files.items() if name.endswith(("json", "md")))
        llm = json.loads((alone / "config.json").read_text(encoding="utf-8"))["llm"]
        assert b'"./llm"' in files["config.json"]
        assert llm.encode() not in written
        told = run_elsewhere(FROM_THE_HUB, tmp_path, **variables, HF_HOME=str(tmp_path / "b"))
    by_python, by_command = told.splitlines()
    assert by_python == repr(hypotheses[:1])
    assert json.loads(by_command)["translation"] == hypotheses[0]
