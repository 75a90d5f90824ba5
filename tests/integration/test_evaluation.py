"""From a finished stage to sentences, scores and a report; no training is needed for that."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.project import Project, environment, free_port
from helpers.repository import ROOT
from helpers.untrained_run import write_run  # tests/helpers/untrained_run.py
from signfuse_dist.cli import main
from signfuse_dist.config import AugmentConfig
from signfuse_dist.data.loader import ClipBatches
from signfuse_dist.data.split import open_split
from signfuse_dist.errors import UserError
from signfuse_dist.evaluation import evaluate as evaluate_module
from signfuse_dist.evaluation.asked import trained_run
from signfuse_dist.evaluation.evaluate import Processes, evaluate
from signfuse_dist.evaluation.translator import Translator, load_translator
from signfuse_dist.experiment import load_run
from signfuse_dist.model import saved
from signfuse_dist.plan import ClipFrames, MicroBatch, make_plan
from signfuse_dist.run_folder import begin

NUM_TEST = 5
pytestmark = pytest.mark.usefixtures("one_thread")
FILES = ("hypotheses.jsonl", "scores.json", "gates.npz", "attention.npz")


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
    assert scores["controls"].keys() == {"shuffled", "blank", "masked_joints"}
    assert scores["decoding"]["num_beams"] == 2
    for part in (scores["scores"], *scores["controls"].values()):
        assert part["num_samples"] == NUM_TEST
        assert {"BLEU-1", "BLEU-4", "chrF", "ROUGE-L", "METEOR"} <= part["metrics"].keys()
        for metric in part["metrics"].values():
            assert metric["signature"]
    steps = {entry.id: (entry.num_frames + 1) // 2 for entry in split.entries()}
    with np.load(evaluated / "gates.npz", allow_pickle=False) as gates:
        assert {name: gates[name].shape for name in gates.files} == {
            name: (count,) for name, count in steps.items()
        }
        assert all(((gates[n] > 0) & (gates[n] < 1)).all() for n in gates.files)
    with np.load(evaluated / "attention.npz", allow_pickle=False) as maps:
        ways = ("visual_from_skeletal", "skeletal_from_visual")
        assert {name: maps[name].shape for name in maps.files} == {
            f"{way}/{name}": (count, count) for name, count in steps.items() for way in ways
        }
        for name in maps.files:  # each query's weights are shares of the keys
            np.testing.assert_allclose(maps[name].sum(axis=1), 1.0, atol=1e-5)
    assert not (evaluated / "parts").exists()
    assert json.loads((evaluated / "evaluation.json").read_text())["processes"] == 1


def _split(folder: Path) -> tuple[str, Any]:
    run = trained_run(folder)
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


def test_evaluating_again_from_a_copy_on_the_nodes_disk_gives_the_same_bytes(
    folder: Path, evaluated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {name: (evaluated / name).read_bytes() for name in FILES}
    printed = []
    for is_there in (True, False):
        if not is_there:
            (evaluated / "scores.json").unlink()
        words = ["evaluate", str(folder), "--split", "test", f"data.stage_to={tmp_path}"]
        assert main(words) == 0
        printed.append(capsys.readouterr().out)
        assert {name: (evaluated / name).read_bytes() for name in FILES} == before
    assert len(list(tmp_path.glob("signfuse-*/*/manifest.json"))) == 1, "copied once it decodes"
    again, anew = printed
    assert again == f"{evaluated}: already evaluated\n\n{anew}"
    assert "BLEU-4" in anew
    assert "the videos shuffled among the sentences" in anew


def test_another_decoding_gets_a_name_and_overwrites_nothing(
    folder: Path,
    evaluated: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy = tmp_path / "small" / "finetune"
    shutil.copytree(folder, copy)
    words = ["evaluate", str(copy), "--split", "test", "evaluation.num_beams=1"]
    with monkeypatch.context() as patch:
        patch.setattr(evaluate_module, "load_translator", lambda *_: pytest.fail("loaded"))
        assert main(words) == 2
        error = capsys.readouterr().err
    assert "other settings (evaluation.num_beams was 2, is 1)" in error
    assert "--name NAME" in error
    assert main([*words, "--name", "../greedy"]) == 2
    assert "--name '../greedy' is not a name" in capsys.readouterr().err
    named = [*words, "--name", "greedy"]
    assert main([*named, "--controls", "none"]) == 0
    theirs, ours = copy / "evaluation" / "test", copy / "evaluation" / "test@greedy"
    for name in FILES:
        assert (theirs / name).read_bytes() == (evaluated / name).read_bytes(), name
    assert json.loads((ours / "scores.json").read_text())["decoding"]["num_beams"] == 1
    card = (copy / "model" / "README.md").read_text().replace("\\", "")
    assert (
        "On the split test@greedy, 5 sentences, preset sacrebleu, decoded with batch_size" in card
    )
    # Its report, which is older once a control was added.
    assert main(["report", str(copy), "--split", "test", "--name", "greedy"]) == 0
    assert "test@greedy" in (ours / "report.html").read_text(encoding="utf-8")
    capsys.readouterr()
    assert main([*named, "--controls", "none"]) == 0
    assert "is older than these scores" not in capsys.readouterr().out
    assert main([*named, "--controls", "shuffled"]) == 0
    told = f"{ours / 'report.html'} is older than these scores; write it anew: signfuse report"
    assert f"{told} {copy} --split test --name greedy\n" in capsys.readouterr().out
    assert main([*named, "--controls", "blank"]) == 0
    controls = json.loads((ours / "scores.json").read_text())["controls"]
    assert controls.keys() == {"shuffled", "blank"}, "no control is lost"
    assert main(["report", str(copy), "--split", "test", "--name", "greedy"]) == 0
    capsys.readouterr()
    assert main(["compare", str(theirs), str(ours), "--preset", "sacrebleu"]) == 0
    compared = capsys.readouterr().out
    assert f"against the baseline {theirs}" in compared


@pytest.mark.parametrize("changed", ["model", "split"])
def test_scores_of_another_model_or_another_packing_are_not_overwritten(
    project: Project, folder: Path, evaluated: Path, tmp_path: Path, changed: str
) -> None:
    copy = tmp_path / "small" / "finetune"
    shutil.copytree(folder, copy)
    if changed == "model":
        with (copy / "model" / "state.json").open("a") as file:
            file.write("\n")
    else:
        shutil.copytree(project.folder / "shards" / "dev", tmp_path / "shards" / "test")
        config = (copy / "config.yaml").read_text()
        shards = str(project.folder / "shards")
        (copy / "config.yaml").write_text(config.replace(shards, str(tmp_path / "shards")))
    what = "the model" if changed == "model" else "the packed split"
    with pytest.raises(UserError, match=f"other settings \\({what} was another\\)"):
        evaluate(copy, "test")


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
        [sys.executable, "-m", "signfuse_dist.cli", *words],
        cwd=ROOT,
        text=True,
        env={**environment(), **place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def on_processes(folder: Path, world: int) -> list[tuple[int, str]]:
    """Evaluate as a launcher starts it; return status and output of each process."""
    port = free_port()
    started = [start(folder, rank, world, port) for rank in range(world)]
    try:
        printed = [process.communicate(timeout=400)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, text) for process, text in zip(started, printed, strict=True)]


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.long)])
def test_several_processes_write_what_one_wrote_byte_for_byte(
    folder: Path, evaluated: Path, tmp_path: Path, world: int
) -> None:
    copy = tmp_path / "small" / "finetune"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("evaluation"))
    (first, told), *others = on_processes(copy, world)
    assert [first, *(status for status, _ in others)] == [0] * world, told + str(others)
    for name in FILES:
        theirs = (copy / "evaluation" / "test" / name).read_bytes()
        assert theirs == (evaluated / name).read_bytes(), name
    assert "BLEU-4" in told
    assert all("BLEU-4" not in text for _, text in others)
    assert not (copy / "evaluation" / "test" / "parts").exists()


@pytest.mark.parametrize("controls", [("shuffled", "blank", "masked_joints"), ()])
def test_a_killed_evaluation_goes_on_where_it_was(
    folder: Path,
    evaluated: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    controls: tuple[str, ...],
) -> None:
    """It dies in its second batch, its last line torn; what was whole is not decoded again.

    One of the whole lines is of another process: there were more of them then.
    """
    copy = tmp_path / "small" / "finetune"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("evaluation"))
    seen: list[tuple[str, ...]] = []
    translate = Translator.translate

    def translate_until(self: Translator, batch: Any) -> Any:
        if len(seen) == 3:
            raise SystemExit("killed")
        seen.append(batch.ids)
        return translate(self, batch)

    monkeypatch.setattr(Translator, "translate", translate_until)
    with pytest.raises(SystemExit):
        evaluate(copy, "test", controls=("blank", "masked_joints"))
    (part,) = (copy / "evaluation" / "test" / "parts").glob("*/*")
    _, first, second, third = part.read_bytes().split(b"\n")
    assert part.name == "rank-0.jsonl"
    part.with_name("rank-7.jsonl").write_bytes(first)
    part.write_bytes(second + b"\n" + third[:-5])
    part.with_name("part-0123456789abcdef.jsonl").write_bytes(b"01234567 " + third)
    again: list[tuple[str, ...]] = []

    def translate_on(self: Translator, batch: Any) -> Any:
        again.append(batch.ids)
        return translate(self, batch)

    monkeypatch.setattr(Translator, "translate", translate_on)
    evaluate(copy, "test", controls=controls)
    assert "of an earlier version, is decoded again" in capsys.readouterr().err
    # Three batches (2 + 2 + 1 clips), each in each way; two units of the first were whole.
    assert len(again) == (3 * 3 - 2 if controls else 3 - 1)
    results = copy / "evaluation" / "test"
    assert not (results / "parts").exists()
    for name in FILES if controls else ("hypotheses.jsonl", "gates.npz", "attention.npz"):
        assert (results / name).read_bytes() == (evaluated / name).read_bytes(), name


def test_decoding_can_be_changed_by_words_and_is_recorded(
    folder: Path, evaluated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "small" / "finetune"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("evaluation"))
    words = ["evaluate", str(copy), "--split", "test", "--controls", "none"]
    assert main([*words, "evaluation.max_new_tokens=1", "evaluation.num_beams=1"]) == 0
    scores = json.loads((copy / "evaluation" / "test" / "scores.json").read_text())
    assert scores["decoding"]["max_new_tokens"] == scores["decoding"]["num_beams"] == 1
    assert scores["controls"] == {}
    short, long = pairs(copy / "evaluation" / "test"), pairs(evaluated)
    assert all(len(short[n]["hypothesis"]) < len(row["hypothesis"]) for n, row in long.items())
    capsys.readouterr()
    assert main([*words, "evaluation.num_beans=2", "data.shards=elsewhere"]) == 2
    error = capsys.readouterr().err
    assert "did you mean 'num_beams'" in error
    assert "'data.shards=elsewhere': only evaluation.key=value" in error
    assert main([*words[:-1], "blnk"]) == 2
    assert "did you mean 'blank'" in capsys.readouterr().err


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
    assert "clips cannot be translated (1)" in error
    assert f"{name}: shard-000000.tar" in error
    assert "signfuse verify" in error
    assert not (folder / "evaluation" / "test" / "scores.json").exists()


def test_a_clip_that_another_process_could_not_read_stops_this_one_as_well(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the process with the whole clips would wait for the other without an end."""
    folder = write_run(project, tmp_path)
    other: Any = ({}, ["clip seven: shard-000000.tar, clip seven: torn"])
    monkeypatch.setattr(Processes, "gather", lambda self, own: [own, other])
    with pytest.raises(UserError, match=r"clip seven: shard-000000\.tar"):
        evaluate(folder, "test")
    assert not (folder / "evaluation" / "test" / "scores.json").exists()


def test_a_model_whose_numbers_overflow_is_named_by_its_clips_at_once(
    project: Project, tmp_path: Path
) -> None:
    folder = write_run(project, tmp_path)
    translator = load_translator(folder, torch.device("cpu"))
    with torch.no_grad():
        # Finite, so that the file is read; what it multiplies is not.
        translator.model.adapter.norm.weight.fill_(3e38)  # type: ignore[union-attr]
    translator.model.save_pretrained(folder / "model")
    with pytest.raises(UserError, match=r"clips cannot be translated \(1\)(.|\n)*not finite"):
        evaluate(folder, "test")
    assert not (folder / "evaluation").exists()


def test_clips_without_a_text_are_named_before_anything_is_decoded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = evaluate_module.Split.entries

    def without_text(self: Any) -> Iterator[Any]:
        yield from (replace(e, text=" ") if e.id.endswith("3") else e for e in entries(self))

    monkeypatch.setattr(evaluate_module.Split, "entries", without_text)
    monkeypatch.setattr(Translator, "translate", lambda *_: pytest.fail("decoded"))
    with pytest.raises(UserError, match="1 of 5 clips have no text to score against: 'test_0003'"):
        evaluate(folder, "test", name="without-text")


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
    assert main(["evaluate", str(folder), "--split", "other"]) == 2
    error = capsys.readouterr().err
    assert os.path.join("shards", "other", "manifest.json") in error


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
    begin(run, make_plan(20, run.stage, run.train, 1), None, main=True)
    model.save_pretrained(run.folder / "model")
    assert main(["evaluate", str(run.folder), "--split", "test"]) == 2
    assert "contrastive stage has no LLM" in capsys.readouterr().err
