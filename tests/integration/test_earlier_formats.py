"""What version 0.1.0 wrote is read: shards, configurations, models, a checkpoint, an evaluation.

tests/fixtures/earlier_run/README.md says how it was made. ``expected.json`` there holds figures
that version 0.1.0 computed with :func:`figures_of_clips` and :func:`figures_of_model`. Every path
in those files is relative, so each test works in a copy of the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from helpers.repository import ROOT
from signfuse_dist.cli import main

FIXTURE = ROOT / "tests" / "fixtures" / "earlier_run"
EXPERIMENT = "configs/experiment/small.yaml"
STAGES = ("contrastive", "alignment", "finetune")
FINETUNE = Path("runs", "small", "finetune")
EXPECTED = json.loads((FIXTURE / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture
def earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what version 0.1.0 wrote, with the working directory in it."""
    folder = tmp_path / "earlier_run"
    shutil.copytree(FIXTURE, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return folder


def packed(folder: Path, stage: str = "finetune", **changes: Any) -> Any:
    """Open the training split of a saved configuration, ``changes`` of its data section applied."""
    from dataclasses import replace

    from signfuse_dist.data.split import open_split

    data = configuration(folder, stage).data
    return open_split(folder / data.shards / data.train_split, replace(data, **changes))


def configuration(folder: Path, stage: str) -> Any:
    from signfuse_dist.experiment import load_resolved

    return load_resolved(folder / "runs" / "small" / stage / "config.yaml")


def clips_of(split: Any) -> list[Any]:
    from signfuse_dist.data.shard import read_clip

    places = range(len(split))
    return [read_clip(split.folder, split.shard_of(i), split.members_of(i)) for i in places]


def figures_of_clips(folder: Path) -> dict[str, Any]:
    """Return of each training clip its record, the colours of its frames and its joints' digests.

    Two JPEG decoders may differ by one in a pixel, so of the decoded frames there are the means of
    each frame's quarters, and of their JPEGs as they lie in the tar a digest.
    """
    from signfuse_dist.data.shard import read_pose

    split = packed(folder)
    mirrored = packed(folder, poses="mirrored").poses
    figures: dict[str, Any] = {}
    for place, (clip, entry) in enumerate(zip(clips_of(split), split.entries(), strict=True)):
        joints = read_pose(mirrored.folder, mirrored.shard_of(place), mirrored.members_of(place))
        offset, size = split.members_of(place)["jpegs"]
        tar = (folder / "shards" / "train" / split.shard_of(place)).read_bytes()
        figures[split.ids[place]] = {
            "shard": split.shard_of(place),
            "record": clip.record,
            "text": entry.text,
            "signer": entry.signer,
            "shape": list(clip.frames.shape),
            "quarters": clip.frames.reshape(-1, 2, 8, 2, 8, 3).mean(axis=(2, 4)).round(2).tolist(),
            "jpegs": hashlib.sha256(tar[offset : offset + size]).hexdigest(),
            "pose": digest(clip.pose, "<f4"),
            "mask": digest(clip.mask, "?"),
            "joints found": int(clip.mask.sum()),
            "mirrored pose": digest(joints.pose, "<f4"),
            "mirrored mask": digest(joints.mask, "?"),
        }
    return figures


def digest(array: Any, dtype: str) -> str:
    return hashlib.sha256(np.ascontiguousarray(array, np.dtype(dtype)).tobytes()).hexdigest()


def figures_of_model(folder: Path) -> dict[str, Any]:
    """Return what the models of two stages compute of the training clips, one batch of them.

    The working directory must be ``folder``: the models name their LLM by a relative path.
    """
    from signfuse_dist import SignFuse

    contrastive = SignFuse.from_pretrained(folder / "runs" / "small" / "contrastive" / "model")
    model = SignFuse.from_pretrained(folder / FINETUNE / "model")
    batch = batch_of(packed(folder), model.tokenizer)
    with torch.no_grad():
        f_v, f_s = contrastive(batch, "unimodal", False).summaries
        output = model(batch, "unimodal", True)
        _, gate = model.embed_signs(model.encode(batch))
    rows = model.generate(batch, num_beams=2, max_new_tokens=16).tolist()
    return {
        "f_v of stage contrastive": f_v.tolist(),
        "f_s of stage contrastive": f_s.tolist(),
        "f_v": output.summaries[0].tolist(),
        "sign embeddings": output.sign_embeddings.tolist(),
        "negative log likelihood": output.negative_log_likelihood.tolist(),
        "gate": gate.tolist(),
        "sentences": [model.tokenizer.decode(row) for row in rows],
    }


def batch_of(split: Any, tokenizer: Any) -> Any:
    """Return all clips of a split in one batch, put together here and not by the loader."""
    from torch.nn.utils.rnn import pad_sequence

    from signfuse_dist.batch import SignBatch

    clips = clips_of(split)
    frames = [torch.from_numpy(clip.frames).permute(0, 3, 1, 2) for clip in clips]
    tokens = [torch.tensor(tokenizer.encode(entry.text)) for entry in split.entries()]
    return SignBatch(
        ids=tuple(split.ids),
        frames=torch.cat(frames).contiguous(),
        pose=pad_sequence([torch.from_numpy(clip.pose) for clip in clips], batch_first=True),
        joint_mask=pad_sequence([torch.from_numpy(clip.mask) for clip in clips], batch_first=True),
        frame_lengths=torch.tensor([len(clip.frames) for clip in clips]),
        weight=torch.ones(len(clips)),
        tokens=pad_sequence(tokens, batch_first=True),
        text_lengths=torch.tensor([len(row) for row in tokens]),
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return what a stage's model trained, its LoRA matrices among them."""
    from safetensors.torch import load_file

    return {
        **load_file(folder / FINETUNE / "model" / "model.safetensors"),
        **load_file(folder / FINETUNE / "model" / "adapter" / "adapter_model.safetensors"),
    }


def log(folder: Path) -> list[dict[str, Any]]:
    text = (folder / FINETUNE / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_shards_are_whole_and_hold_the_same_clips(
    earlier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("shards/train", "shards/train/poses/mirrored", "shards/dev"):
        assert main(["verify", folder, "--workers", "0"]) == 0
        assert capsys.readouterr().out == f"{folder}: whole\n"
    figures, expected = figures_of_clips(earlier), EXPECTED["clips"]
    assert list(figures) == list(expected) == ["train_0000", "train_0001", "train_0002"]
    for name, clip in figures.items():
        quarters = clip.pop("quarters")
        assert np.allclose(quarters, expected[name]["quarters"], rtol=0, atol=1)
        assert clip == {key: expected[name][key] for key in clip}
    assert packed(earlier).manifest.num_dropped == 1


def test_a_check_finds_shards_runs_and_llm_in_order(
    earlier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The stamps of `signfuse verify` count too: nothing is packed or verified again."""
    assert main(["check", EXPERIMENT, "--world-size", "1"]) == 0
    printed = capsys.readouterr().out
    for split in ("training split shards/train", "development split shards/dev"):
        assert re.search(rf"^ok +{split}: verified", printed, re.MULTILINE), printed
    assert printed.count("this stage is trained already") == 3, printed


@pytest.mark.parametrize("stage", STAGES)
def test_a_saved_configuration_is_read_with_every_value(earlier: Path, stage: str) -> None:
    text = (earlier / "runs" / "small" / stage / "config.yaml").read_text(encoding="utf-8")
    written, run = yaml.safe_load(text), configuration(earlier, stage).to_dict()
    assert run.pop("name") == written.pop("name") == "small"
    assert run["stage"]["name"] == stage
    for section, values in written.items():
        assert values == {key: run[section][key] for key in values}, section


def test_models_give_the_same_outputs_and_sentences(earlier: Path) -> None:
    figures, expected = figures_of_model(earlier), dict(EXPECTED["model"])
    texts = [clip["text"] for clip in EXPECTED["clips"].values()]
    assert figures.pop("sentences") == expected.pop("sentences") == texts
    assert figures.keys() == expected.keys()
    for name, value in figures.items():
        assert torch.allclose(
            torch.tensor(value), torch.tensor(expected[name]), rtol=1e-5, atol=1e-5
        ), name


def test_a_run_is_evaluated_again_with_the_same_translations(earlier: Path) -> None:
    again = earlier / FINETUNE / "evaluation" / "train"
    before = FIXTURE / FINETUNE / "evaluation" / "train"
    shutil.rmtree(again)
    assert main(["evaluate", str(FINETUNE), "--split", "train", "--controls", "shuffled"]) == 0
    name = "hypotheses.jsonl"
    assert (again / name).read_text("utf-8") == (before / name).read_text("utf-8")
    with np.load(again / "gates.npz") as ours, np.load(before / "gates.npz") as theirs:
        assert set(ours) == set(theirs) == set(EXPECTED["clips"])
        for clip in ours:
            assert np.allclose(ours[clip], theirs[clip], rtol=0, atol=1e-5)


def test_a_report_is_written_of_an_earlier_evaluation(
    earlier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From its scores.json, as it says in a copy that holds a score which nothing else gives."""
    evaluation = earlier / FINETUNE / "evaluation" / "train"
    path = evaluation / "scores.json"
    scores = json.loads(path.read_text("utf-8"))
    chrf = scores["controls"]["masked_joints"]["metrics"]["chrF"]
    assert chrf["value"] == pytest.approx(50.14, abs=0.005)
    chrf["value"] = 12.344
    path.write_text(json.dumps(scores), "utf-8")
    assert main(["report", str(FINETUNE), "--split", "train"]) == 0
    report = (evaluation / "report.md").read_text("utf-8")
    assert "12.34" in report
    assert "50.14" not in report
    for clip in EXPECTED["clips"].values():
        assert clip["text"] in report
    assert (evaluation / "report.html").stat().st_size > 10_000
    capsys.readouterr()
    hypotheses = str(evaluation / "hypotheses.jsonl")
    assert main(["score", "--hypotheses", hypotheses, "--preset", "sacrebleu"]) == 0
    assert re.search(r"^BLEU-4 +100\.00 ", capsys.readouterr().out, re.MULTILINE)


def test_a_stopped_stage_goes_on_to_the_same_weights_and_trained_stages_are_left_alone(
    earlier: Path,
) -> None:
    """The model of the last stage is taken away, so that step 100 of 120 is what there is."""
    shutil.rmtree(earlier / FINETUNE / "model")
    # One after the other in one process: each start of the trainer costs ten seconds of imports.
    script = f"""
import sys
from signfuse_dist.train import main
sys.stderr = sys.stdout
words = [["stage=contrastive"], ["stage=alignment"], ["stage=finetune", "train.seed=1"],
         ["stage=finetune"], ["stage=finetune"]]
print("statuses", [main([{EXPERIMENT!r}, *more]) for more in words])
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=earlier,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    assert "statuses [0, 0, 2, 0, 0]" in done.stdout, done.stdout
    for stage in STAGES:
        assert done.stdout.count(f"stage {stage} is already trained; nothing to do") == 1
    assert "train.seed was 0, is 1" in done.stdout
    assert done.stdout.count("resuming after step 100 of 120") == 1
    ours, theirs = weights(earlier), weights(FIXTURE)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.allclose(value, theirs[name], rtol=0, atol=2e-4), name
    logged, before = log(earlier), log(FIXTURE)
    assert [line["step"] for line in logged] == [line["step"] for line in before]
    assert logged[-1]["step"] == 120
    assert logged[-1]["total"] == pytest.approx(before[-1]["total"], rel=1e-4)
    assert logged[-1]["dev_language"] == pytest.approx(before[-1]["dev_language"], rel=1e-4)
