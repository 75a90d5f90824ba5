"""From a finished stage to sentences, scores and a report; no training is needed for that."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, Project, environment, free_port  # tests/integration/conftest.py
from untrained_run import write_run  # tests/integration/untrained_run.py

from signfuse_dist.augment import ClipFrames
from signfuse_dist.cli import main
from signfuse_dist.config import AugmentConfig
from signfuse_dist.config_load import load_run
from signfuse_dist.data.loader import ClipBatches
from signfuse_dist.data.split import open_split
from signfuse_dist.errors import UserError
from signfuse_dist.evaluation import decode
from signfuse_dist.evaluation.decode import evaluate, load_translator
from signfuse_dist.model import saved
from signfuse_dist.plan import MicroBatch, make_plan
from signfuse_dist.train import open_folder

NUM_TEST = 5


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As launched processes have: more threads sum in another order, and drawn weights let it show.

    What was trained is surer of its words.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(project, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def evaluated(folder: Path) -> Path:
    """The folder of results of one process."""
    return evaluate(folder, "test")


def pairs(path: Path) -> dict[str, dict[str, str]]:
    lines = (path / "hypotheses.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["id"]: row for row in map(json.loads, lines)}


def test_evaluation_writes_sentences_scores_and_gates(folder: Path, evaluated: Path) -> None:
    assert evaluated == folder / "evaluation" / "test"
    rows = pairs(evaluated)
    split = open_split(*_split(folder))
    assert rows.keys() == {entry.id for entry in split.entries()}
    assert list(rows) == sorted(rows)
    references = {entry.id: entry.text for entry in split.entries()}
    assert {n: row["reference"] for n, row in rows.items()} == references
    assert len({row["hypothesis"] for row in rows.values()}) > 1, "the clips must tell apart"
    assert "| BLEU-4 |" in (folder / "model" / "README.md").read_text(encoding="utf-8")
    scores = json.loads((evaluated / "scores.json").read_text())
    for part in ("scores", "control"):
        assert scores[part]["num_samples"] == NUM_TEST
        assert {"BLEU-1", "BLEU-4", "chrF", "ROUGE-L", "METEOR"} <= scores[part]["metrics"].keys()
        for metric in scores[part]["metrics"].values():
            assert metric["signature"]
    steps = {entry.id: (entry.num_frames + 1) // 2 for entry in split.entries()}
    with np.load(evaluated / "gates.npz", allow_pickle=False) as gates:
        assert {name: gates[name].shape for name in gates.files} == {
            name: (count,) for name, count in steps.items()
        }
        assert all(((gates[n] > 0) & (gates[n] < 1)).all() for n in gates.files)


def _split(folder: Path) -> tuple[str, Any]:
    run = load_translator(folder, torch.device("cpu")).run
    return run.shards("test"), run.data


def test_the_report_is_written_from_the_command(
    evaluated: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(folder), "--split", "test"]) == 0
    assert capsys.readouterr().out.strip() == str(evaluated / "report.html")
    page = (evaluated / "report.html").read_text(encoding="utf-8")
    text = (evaluated / "report.md").read_text(encoding="utf-8")
    for row in pairs(evaluated).values():
        assert row["reference"] in page
        assert row["reference"].rstrip(".") in text
    assert "BLEU-4" in text
    assert "data:image/" in page


def test_evaluating_again_gives_the_same_bytes(
    folder: Path, evaluated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("hypotheses.jsonl", "scores.json", "gates.npz")
    before = {name: (evaluated / name).read_bytes() for name in names}
    assert main(["evaluate", str(folder), "--split", "test"]) == 0
    assert {name: (evaluated / name).read_bytes() for name in names} == before
    printed = capsys.readouterr().out
    assert "BLEU-4" in printed
    assert "the videos shuffled among the sentences" in printed


def test_a_clip_alone_gets_the_sentence_and_gate_it_got_among_others(
    folder: Path, evaluated: Path
) -> None:
    rows, translator = pairs(evaluated), load_translator(folder, torch.device("cpu"))
    split = open_split(*_split(folder))
    frames = ClipFrames(split.lengths, 64, AugmentConfig(), seed=0)
    dataset = ClipBatches(split, [MicroBatch([i], 0) for i in range(NUM_TEST)], frames, None)
    with np.load(evaluated / "gates.npz", allow_pickle=False) as gates:
        for place in range(NUM_TEST):
            (alone,) = translator.translate(dataset[place])
            assert alone.text == rows[alone.id]["hypothesis"]
            assert np.abs(alone.gate - gates[alone.id]).max() <= 1e-5


def start(folder: Path, rank: int, world: int, port: int) -> subprocess.Popen[str]:
    words = ["evaluate", str(folder), "--split", "test"]
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    return subprocess.Popen(
        [sys.executable, "-m", "signfuse_dist.cli", *words], cwd=REPOSITORY, text=True,
        env={**environment(), **place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def on_two_processes(folder: Path) -> list[tuple[int, str]]:
    """Evaluate as a launcher starts it; return status and output of each process."""
    port = free_port()
    started = [start(folder, rank, 2, port) for rank in range(2)]
    try:
        printed = [process.communicate(timeout=200)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, text) for process, text in zip(started, printed, strict=True)]


def test_two_processes_write_what_one_wrote_byte_for_byte(
    folder: Path, evaluated: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "small" / "finetune"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("evaluation"))
    (first, told), (second, silent) = on_two_processes(copy)
    assert (first, second) == (0, 0), told + silent
    for name in ("hypotheses.jsonl", "scores.json"):
        assert (copy / "evaluation" / "test" / name).read_bytes() == (
            evaluated / name
        ).read_bytes(), name
    # One process may use more threads than one of two, which rounds otherwise.
    folders = (copy / "evaluation" / "test", evaluated)
    theirs, ours = (dict(np.load(f / "gates.npz", allow_pickle=False)) for f in folders)
    assert theirs.keys() == ours.keys()
    for name, gate in ours.items():
        np.testing.assert_allclose(theirs[name], gate, atol=1e-6)
    assert "BLEU-4" in told
    assert "BLEU-4" not in silent


def with_damaged_clip(project: Project, folder: Path) -> tuple[str, str]:
    """Copy the test shards, damage one clip; return its id and the word that points there."""
    shutil.copytree(project.folder / "shards" / "test", folder / "test")
    run = load_run(project.experiment, "finetune", [f"data.shards={folder}"])
    split = open_split(run.shards("test"), run.data)
    with (folder / "test" / split.shard_of(2)).open("r+b") as file:
        file.seek(split.members_of(2)["jpegs"][0])
        file.write(bytes(64))
    return split.ids[2], f"data.shards={folder}"


def test_a_damaged_clip_is_named_and_no_score_over_fewer_clips_is_written(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, word = with_damaged_clip(project, tmp_path / "shards")
    folder = write_run(project, tmp_path / "runs", word)
    assert main(["evaluate", str(folder), "--split", "test"]) == 2
    error = capsys.readouterr().err
    assert "clips cannot be read (1)" in error
    assert f"{name}: shard-000000.tar" in error
    assert "signfuse verify" in error
    assert not (folder / "evaluation").exists()


def test_a_clip_that_another_process_could_not_read_stops_this_one_as_well(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the process with the whole clips would wait for the other without an end."""
    folder = write_run(project, tmp_path)
    monkeypatch.setattr(decode, "_processes", lambda: (0, 2, torch.device("cpu")))
    other: decode.Share = ([], ["clip seven: shard-000000.tar, clip seven: torn"])
    monkeypatch.setattr(decode, "_gathered", lambda own, world: [own, other])
    with pytest.raises(UserError, match=r"clip seven: shard-000000\.tar"):
        evaluate(folder, "test")
    assert not (folder / "evaluation").exists()


def test_a_mistaken_preset_is_found_before_anything_is_decoded(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, word = with_damaged_clip(project, tmp_path / "shards")
    folder = write_run(project, tmp_path / "runs", word, "data.metric_preset=sacreblue")
    assert main(["evaluate", str(folder), "--split", "test"]) == 2
    error = capsys.readouterr().err
    assert "did you mean 'sacrebleu'" in error
    assert "cannot be read" not in error


def test_a_split_that_was_not_packed_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(folder), "--split", "dev"]) == 2
    error = capsys.readouterr().err
    assert os.path.join("shards", "dev", "manifest.json") in error


def test_a_damaged_model_is_named(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(project, tmp_path)
    with (folder / "model" / "model.safetensors").open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\xff\xff\xff\xff")
    assert main(["evaluate", str(folder), "--split", "test"]) == 2
    assert "model.safetensors is damaged" in capsys.readouterr().err


def test_the_stage_without_an_llm_cannot_translate(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = load_run(project.experiment, "contrastive", [f"train.output={tmp_path}"])
    model, _ = saved.build(run.model, language=False)
    open_folder(run, make_plan(20, run.stage, run.train, 1), None, main=True)
    model.save_pretrained(run.folder / "model")
    assert main(["evaluate", str(run.folder), "--split", "test"]) == 2
    assert "contrastive stage has no LLM" in capsys.readouterr().err
