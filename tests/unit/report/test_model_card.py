"""The model card: filled in from the run, and no mark-up of anybody's text in it."""

from __future__ import annotations

import html
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.repository import ROOT
from signfuse_dist.config import RunConfig
from signfuse_dist.evaluation.scores import Score, Scores, SplitScores, write_split_scores
from signfuse_dist.experiment import load_run
from signfuse_dist.model.usage import USAGE, Usage
from signfuse_dist.report.model_card import write_card

DEMO = str(ROOT / "configs" / "experiment" / "demo.yaml")
FINGERPRINT = "ab" * 32
HOSTILE = "<script>alert(1)</script> | [x](http://evil) `code`\n# heading"


def written(folder: Path, run: RunConfig, **saved: Any) -> str:
    """Lay out a run folder as training leaves it, and return the card."""
    (folder / "model" / "adapter").mkdir(parents=True, exist_ok=True)
    config = {"llm_fingerprint": FINGERPRINT, "llm_commit": None, **saved}
    (folder / "model" / "config.json").write_text(json.dumps(config))
    (folder / "config.yaml").write_text(yaml.safe_dump(run.to_dict()), encoding="utf-8")
    plan = {"num_clips": 480, "total_steps": 840, "world_size": 2, "num_pairs": 8}
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "versions.json").write_text(json.dumps({"torch": "2.15.0", "python": "3.11.2"}))
    (folder / "metrics.jsonl").write_text('{"step": 1}\n{"step": 840, "total": 0.512345}\n')
    return write_card(folder).read_text(encoding="utf-8")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.chdir(tmp_path)  # where no demo has left an LLM: a folder is no name on the hub
    return load_run(DEMO, "finetune")


def front_matter(card: str) -> dict[str, Any]:
    assert card.startswith("---\n")
    return dict(yaml.safe_load(card.split("---\n")[1]))


@pytest.mark.parametrize(
    ("crop", "words"),
    [
        ("none", "48 x 48, 12.5 a second"),
        ("signer", "48 x 48 cut around the signer's joints, 12.5 a second"),
        ("box", "48 x 48 cut around the corpus's boxes, 12.5 a second"),
    ],
)
def test_a_card_says_how_frames_are_cropped(
    tmp_path: Path, run: RunConfig, crop: Any, words: str
) -> None:
    data = replace(run.data, crop=crop, frame_size=48, fps=12.5)
    assert html.unescape(words) in html.unescape(written(tmp_path, replace(run, data=data)))


def test_a_card_says_what_the_run_was(tmp_path: Path, run: RunConfig) -> None:
    card = written(tmp_path, run)
    for part in (
        "# demo, stage finetune",
        "| corpus | synthetic |",
        "train, 480 clips",
        "14, 840 optimizer steps",
        "0.0015, 1 epochs of warmup",
        "8 over 2 processes",
        "| last losses | total 0.5123 |",
        "| torch | 2.15.0 |",
        FINGERPRINT,
        "Not evaluated.",
        "resnet10, width 8, group norm",
        "| fusion | cmfa |",
        "| its layers | 1 |",
        "SignFuse.from_pretrained",
        "that PEFT loads",
    ):
        assert part in card, part
    assert front_matter(card) == {
        "library_name": "signfuse_dist",
        "tags": ["sign-language-translation"],
        "language": ["en"],
        "base_model": "shards/synthetic/tiny_llm",
    }


def test_the_scores_of_every_evaluated_split_are_in_it(tmp_path: Path, run: RunConfig) -> None:
    def scores(value: float) -> Scores:
        return Scores("sacrebleu", 60, {"BLEU-4": Score(value, "nrefs:1|tok:13a")}, {}, (), ())

    for split, value in (("dev", 51.5), ("test", 52.25)):
        (tmp_path / "evaluation" / split).mkdir(parents=True)
        results = SplitScores(scores(value), {"shuffled": scores(5.0)})
        write_split_scores(tmp_path / "evaluation" / split / "scores.json", results)
    card = written(tmp_path, run)
    assert "split dev, 60 sentences" in card
    assert "| BLEU-4 | 52.25 | 5.00 | nrefs:1\\|tok:13a |" in card
    assert "| BLEU-4 | 51.50 | 5.00 |" in card
    assert "Not evaluated" not in card


def test_text_of_others_cannot_be_mark_up(tmp_path: Path, run: RunConfig) -> None:
    hostile = replace(
        run,
        name=HOSTILE,
        data=replace(run.data, corpus=HOSTILE, language=HOSTILE, train_split=HOSTILE),
        model=replace(run.model, llm="a: [b\n---\nlicense: mit", prompt=HOSTILE),
    )
    card = written(tmp_path, hostile)
    assert "<script" not in card
    assert "[x](" not in card
    assert "\n# heading" not in card
    found = front_matter(card)
    assert found["base_model"] == "a: [b\n---\nlicense: mit"
    assert "language" not in found
    assert "license" not in found


def test_the_encoders_alone_do_not_claim_to_translate(tmp_path: Path) -> None:
    card = written(tmp_path, load_run(DEMO, "contrastive"), llm_fingerprint=None)
    assert "do not translate" in card
    assert "generate" not in card
    assert "fingerprint" not in card
    assert "base_model" not in front_matter(card)


def test_what_cannot_be_read_is_named_and_the_rest_is_written(
    tmp_path: Path, run: RunConfig
) -> None:
    (tmp_path / "evaluation" / "test").mkdir(parents=True)
    (tmp_path / "evaluation" / "test" / "scores.json").write_text("{")
    written(tmp_path, run)
    (tmp_path / "versions.json").unlink()
    (tmp_path / "plan.json").write_text("[]")
    (tmp_path / "metrics.jsonl").write_text("")
    card = write_card(tmp_path).read_text(encoding="utf-8")
    assert "versions.json: cannot be read" in card
    assert "plan.json: not a batch plan" in card
    assert "scores.json" in card
    assert "unknown clips" in card
    assert "| last losses | unknown |" in card


@pytest.mark.parametrize(
    ("extractor", "joints", "words"),
    [
        ("mediapipe-holistic", "found by mediapipe-holistic 0.10.21", '(["clip.mp4"])'),
        ("synthetic", "of files beside the clips", '(["clip.mp4"], joints=["clip.npz"])'),
        ("none", "signfuse-75, none", '(["clip.mp4"])'),
    ],
)
def test_a_card_says_what_found_the_joints_and_how_clips_are_translated(
    tmp_path: Path, run: RunConfig, extractor: str, joints: str, words: str
) -> None:
    usage = Usage.of(run, extractor, "0.10.21")
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / USAGE).write_text(usage.to_json(), encoding="utf-8")
    card = written(tmp_path / "run", run)
    assert joints in html.unescape(card)
    assert f"model.translate{words})" in card


def test_a_card_states_licences_and_no_folder_above_the_llm(tmp_path: Path, run: RunConfig) -> None:
    (tmp_path / "private" / "signs").mkdir(parents=True)
    model = replace(run.model, llm=str(tmp_path / "private" / "signs"), llm_licence=None)
    data = replace(run.data, licence="mine alone")
    card = written(tmp_path / "run", replace(run, model=model, data=data))
    assert "| licence of the corpus | mine alone |" in card
    assert "| its licence | not stated |" in card
    assert "| language model | signs, a folder |" in card
    assert "private" not in card
