"""The command `signfuse train`: which stages it starts, where it goes on, what it refuses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from helpers.command_line import refused
from helpers.little_job import overrides, write_job
from helpers.project import free_port
from helpers.repository import ROOT
from signfuse_dist import nvidia
from signfuse_dist.cli import main
from signfuse_dist.jobs import local

DEMO = str(ROOT / "configs" / "experiment" / "demo.yaml")


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What `train` would have started, with the status of each taken from nothing: 0."""
    found: list[list[str]] = []

    def launch(asked: local.Launch, words: Sequence[str]) -> int:
        found.append([asked.file.name, str(asked.num_processes), *words])
        return 0

    monkeypatch.setattr(local, "_launch", launch)
    monkeypatch.setattr(local, "refuse_errors", lambda *_: None)  # nothing is packed
    return found


LAUNCH = ("--launch", str(ROOT / "launch" / "cpu_zero2.yaml"))


def test_train_starts_the_stages_in_order_with_the_words_it_was_given(
    launched: list[list[str]], tmp_path: Path
) -> None:
    output = f"train.output={tmp_path}"
    assert main(["train", DEMO, *LAUNCH, "--num-processes", "2", output, "train.seed=3"]) == 0
    stages = ("contrastive", "alignment", "finetune")
    words = [output, "train.seed=3"]
    assert launched == [["cpu_zero2.yaml", "2", DEMO, f"stage={s}", *words] for s in stages]


def test_train_starts_only_the_stages_that_are_used(
    launched: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"train.output={tmp_path}", "train.stages=[contrastive,finetune]"]
    assert main(["train", DEMO, *LAUNCH, *words]) == 0
    assert [call[3] for call in launched] == ["stage=contrastive", "stage=finetune"]
    error = refused(capsys, "train", DEMO, *LAUNCH, *words, "stage=alignment")
    assert "stage alignment is not among train.stages" in error


def test_train_goes_on_after_the_stages_that_are_finished(
    launched: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "demo" / "contrastive" / "model").mkdir(parents=True)
    assert main(["train", DEMO, *LAUNCH, f"train.output={tmp_path}"]) == 0
    assert [words[3] for words in launched] == ["stage=alignment", "stage=finetune"]
    assert "contrastive: already trained" in capsys.readouterr().out


def test_train_stops_at_the_stage_that_does_not_finish(
    launched: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(local, "_launch", lambda *words: 75)
    assert main(["train", DEMO, *LAUNCH, f"train.output={tmp_path}"]) == 75
    assert "stage contrastive did not finish" in capsys.readouterr().out
    monkeypatch.setattr(local, "_launch", lambda *words: 2)
    assert main(["train", DEMO, *LAUNCH, f"train.output={tmp_path}"]) == 2
    assert capsys.readouterr().out == "", "the launcher has said why"


def test_train_starts_nothing_where_check_has_an_error_and_says_warnings_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[Sequence[str]] = []
    monkeypatch.setattr(local, "_launch", lambda *words: started.append(words[1]) or 0)
    write_job(tmp_path / "job")
    (tmp_path / "job" / "shards" / "train" / "verified.json").unlink()
    launch = tmp_path / "launch.yaml"
    text = Path(LAUNCH[1]).read_text(encoding="utf-8")
    launch.write_text(f"{text}main_process_port: {free_port()}\n", encoding="utf-8")
    words = ["train", DEMO, "--launch", str(launch), *overrides(tmp_path / "job")]
    weights = tmp_path / "job" / "llm" / "model.safetensors"
    weights.rename(tmp_path / "away")
    capsys.readouterr()
    assert main(words) == 2
    printed = capsys.readouterr()
    assert started == []
    error = printed.err.splitlines()
    assert error[-2] == "error: demo on 2 processes: nothing was started; errors (1)"
    assert error[-1].startswith(f"  - LLM {tmp_path / 'job' / 'llm'}: ")
    assert [line for line in error[:-2] if not line.startswith("warning")] == []

    (tmp_path / "away").rename(weights)
    assert main(words) == 0
    assert len(started) == 3
    verified = [line for line in capsys.readouterr().err.splitlines() if "not verified" in line]
    assert len(verified) == 1


def test_train_finds_an_error_of_the_last_stage_before_the_first_has_begun(
    launched: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "configs"
    (folder / "experiment").mkdir(parents=True)
    for name in ("data", "model", "stage"):
        (folder / name).symlink_to(ROOT / "configs" / name)
    text = Path(DEMO).read_text(encoding="utf-8").replace("epochs: 14", "epochs: 0")
    (folder / "experiment" / "wrong.yaml").write_text(text, encoding="utf-8")
    error = refused(capsys, "train", str(folder / "experiment" / "wrong.yaml"), *LAUNCH)
    assert "stage.epochs: 0 is not at least 1" in error
    assert launched == []


@pytest.mark.parametrize(
    ("gpus", "number"), [("no GPU", 0), ("one GPU", 1), ("several GPUs", 2), ("several GPUs", 8)]
)
def test_train_takes_the_launch_file_that_its_help_names(
    gpus: str,
    number: int,
    launched: list[list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    monkeypatch.setattr(nvidia, "count_gpus", lambda _: number)
    words = [f"train.output={tmp_path}", "train.micro_batch_size=1"]
    assert main(["train", DEMO, *words]) == 0
    processes = str(number) if number > 1 else "None"
    assert {tuple(call[:2]) for call in launched} == {(local.DEFAULT_LAUNCH[gpus], processes)}
    assert f"{local.DEFAULT_LAUNCH[gpus]} with {gpus}" in text


def test_train_refuses_a_launch_that_cannot_be(
    launched: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no such file" in refused(capsys, "train", DEMO, "--launch", "nowhere.yaml")
    assert "--num-processes 0" in refused(capsys, "train", DEMO, *LAUNCH, "--num-processes", "0")
    assert launched == []
