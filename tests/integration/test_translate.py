"""New clips through the command: one line a video, in order, whatever is wrong with another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers.blended_project import add_tracks
from helpers.project import Project
from helpers.untrained_run import write_run  # tests/helpers/untrained_run.py
from signfuse_dist.cli import main
from signfuse_dist.data.joints import NoJoints
from signfuse_dist.errors import UserError
from signfuse_dist.evaluation.choices import Limits
from signfuse_dist.evaluation.evaluate import evaluate
from signfuse_dist.evaluation.new_clips import ClipReader, find_videos
from signfuse_dist.experiment import load_run
from signfuse_dist.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(project, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def evaluated(folder: Path) -> Path:
    return evaluate(folder, "test")


def clip(project: Project, number: int) -> tuple[str, str]:
    """Return a clip of the corpus and its joints."""
    corpus = project.folder / "corpus"
    name = f"test_{number:04d}"
    return str(corpus / "clips" / f"{name}.mp4"), str(corpus / "joints" / f"{name}.npz")


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_as_many_files_of_joints_are_needed_as_videos(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["translate", str(folder), "one.mp4", "two.mp4", "--joints", "one.npz"]) == 2
    assert "--joints names 1 files for 2 videos" in capsys.readouterr().err


def test_translate_names_a_missing_video_goes_on_and_ends_with_status_1(
    project: Project, folder: Path, evaluated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a video gets the sentence that its packed clip got: frames go through the same path."""
    (first, first_joints), (second, second_joints) = clip(project, 0), clip(project, 1)
    absent = "absent.mp4"
    words = ["translate", str(folder), first, absent, second]
    assert main([*words, "--joints", first_joints, first_joints, second_joints]) == 1
    printed = capsys.readouterr()
    told = lines(printed.out)
    assert [line["video"] for line in told] == [first, second]
    rows = lines((evaluated / "hypotheses.jsonl").read_text(encoding="utf-8"))
    hypotheses = {row["id"]: row["hypothesis"] for row in rows}
    for line in told:
        assert line["translation"] == hypotheses[Path(line["video"]).stem]
        assert line["num_frames"] > 0
        assert line["notes"] == []
    errors = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert absent in errors[0]
    assert main(["translate", str(folder), first, "--joints", first_joints]) == 0


def test_a_model_of_joints_alone_gives_joints_the_sentences_of_their_packed_clips(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No video is there, and nothing looks for a pose extractor."""
    add_tracks(project)
    words = ["model.streams=skeletal", "train.stages=[finetune]", "loss.contrastive_weight=0"]
    run = write_run(project, tmp_path, *words, f"data.shards={project.folder / 'tracks'}")
    evaluate(run, "test", controls=())
    text = RunFolder(run).evaluation("test").hypotheses.read_text(encoding="utf-8")
    hypotheses = {row["id"]: row["hypothesis"] for row in lines(text)}
    joints = [clip(project, number)[1] for number in range(3)]
    capsys.readouterr()
    assert main(["translate", str(run), *joints, str(tmp_path / "absent.pose")]) == 1
    printed = capsys.readouterr()
    told = {Path(line["video"]).stem: line["translation"] for line in lines(printed.out)}
    assert told == {Path(path).stem: hypotheses[f"t-{Path(path).stem}"] for path in joints}
    assert "absent.pose" in printed.err


def test_joints_that_are_missing_or_too_few_are_an_error_of_their_video(
    project: Project, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video, _ = clip(project, 0)
    few = tmp_path / "few.npz"
    np.savez(few, pose=np.zeros((1, 75, 2), np.float32), mask=np.ones((1, 75), bool))
    words = ["translate", str(folder), video, video, "--joints"]
    assert main([*words, str(tmp_path / "absent.npz"), str(few)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "absent.npz" in printed.err
    assert "few.npz has 1 frames" in printed.err


def test_the_best_candidates_come_with_falling_scores_and_begin_with_the_translation(
    project: Project, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video, joints = clip(project, 0)
    words = ["translate", str(folder), video, "--joints", joints]
    assert main(words) == 0
    (alone,) = lines(capsys.readouterr().out)
    assert "candidates" not in alone
    assert main([*words, "--nbest", "2"]) == 0
    (line,) = lines(capsys.readouterr().out)
    first, second = line["candidates"]
    assert first["text"] == line["translation"] == alone["translation"]
    assert 0 > first["score"] >= second["score"]
    assert main([*words, "--nbest", "3"]) == 2  # the experiment has two beams
    assert "add --decoding evaluation.num_beams=3" in capsys.readouterr().err
    assert main([*words, "--nbest", "3", "--decoding", "evaluation.num_beams=3"]) == 0
    (line,) = lines(capsys.readouterr().out)
    assert len(line["candidates"]) == 3
    assert line["decoding"]["num_beams"] == 3
    assert main([*words, "--decoding", "evaluation.num_baems=3"]) == 2
    assert "did you mean 'num_beams'" in capsys.readouterr().err


def test_two_processes_write_the_lines_of_one_and_a_call_that_was_killed_goes_on(
    project: Project, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos, joints = zip(*(clip(project, number) for number in range(4)), strict=True)
    words = ["translate", str(folder), *videos, "--joints", *joints]
    assert main(words) == 0
    expected = capsys.readouterr().out
    out = tmp_path / "translations.jsonl"
    torn = expected.index("\n") + 20
    out.write_text(expected[:torn], encoding="utf-8")
    assert main([*words, "--out", str(out), "--workers", "2"]) == 0
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"{out}: holds 1 of 4" in printed.err
    assert out.read_text(encoding="utf-8") == expected
    assert main([*words, "--out", str(out), "--nbest", "2"]) == 2
    assert "choose another file" in capsys.readouterr().err
    other = ("--decoding", "evaluation.length_penalty=2")
    assert main([*words, "--out", str(out), *other]) == 2
    assert "'length_penalty': 2.0" in capsys.readouterr().err
    assert out.read_text(encoding="utf-8") == expected


def test_a_clip_longer_than_the_model_reads_is_thinned_out_and_says_so(project: Project) -> None:
    data = load_run(project.experiment, "finetune", ["data.max_frames=5"]).data
    video, joints = clip(project, 0)
    found = ClipReader(data, None).read(Path(video), Path(joints))
    assert len(found.chosen) == 5 < len(found.encoded.jpegs)
    (note,) = found.notes
    assert note.startswith(f"too long: of {len(found.encoded.jpegs)} frames the model saw 5")


def test_a_clip_without_a_person_says_so_once(
    project: Project, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video, joints = clip(project, 0)
    nobody = tmp_path / "nobody.npz"
    with np.load(joints) as arrays:
        np.savez(nobody, pose=arrays["pose"], mask=np.zeros_like(arrays["mask"]))
    assert main(["translate", str(folder), video, "--joints", str(nobody)]) == 0
    (line,) = lines(capsys.readouterr().out)
    assert len(line["notes"]) == 1
    assert "no person was found" in line["notes"][0]


def test_folders_stand_for_their_videos_or_are_a_clip_of_frames(tmp_path: Path) -> None:
    videos, frames, both, none = (tmp_path / name for name in ("videos", "frames", "both", "none"))
    for path in (
        videos / "b.mp4",
        videos / "a.webm",
        videos / "notes.txt",
        frames / "1.png",
        both / "a.mp4",
        both / "1.jpg",
        none / "a.txt",
    ):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    missing = tmp_path / "missing.mp4"
    assert find_videos([videos, frames, missing]) == [
        videos / "a.webm",
        videos / "b.mp4",
        frames,
        missing,
    ]
    with pytest.raises(UserError, match="holds 1 videos and 1 pictures"):
        find_videos([both])
    with pytest.raises(UserError, match="none holds no videos"):
        find_videos([none])


def test_a_folder_of_frames_has_the_rate_it_is_given(project: Project, tmp_path: Path) -> None:
    """Without one it would be read at the corpus's."""
    data = load_run(project.experiment, "finetune", ["data.fps=5"]).data
    for number in range(10):
        Image.new("RGB", (32, 32)).save(tmp_path / f"{number:02d}.png")
    assert len(ClipReader(data, NoJoints()).read(tmp_path).encoded.jpegs) == 10
    assert len(ClipReader(data, NoJoints(), folder_fps=10).read(tmp_path).encoded.jpegs) == 5


def test_clips_beyond_the_limits_are_refused_while_they_are_read(project: Project) -> None:
    data = load_run(project.experiment, "finetune", []).data
    video = Path(clip(project, 0)[0])

    def read(limits: Limits) -> None:
        ClipReader(data, NoJoints(), limits=limits).read(video)

    read(Limits(max_seconds=60, max_work_seconds=60))
    with pytest.raises(UserError, match=r"longer than 0\.5 s"):
        read(Limits(max_seconds=0.5, max_work_seconds=60))
    with pytest.raises(UserError, match="took longer than 0 s"):
        read(Limits(max_seconds=60, max_work_seconds=0))
    with pytest.raises(UserError, match="is too large"):
        read(Limits(max_seconds=60, max_work_seconds=60, max_pixels=100))
