"""A saved model says how clips are brought to it, and loads with that."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.repository import ROOT
from helpers.saved_models import config_of, finetuned
from signfuse_dist.config import EvaluationConfig
from signfuse_dist.errors import UserError
from signfuse_dist.experiment import load_run
from signfuse_dist.files import read_state
from signfuse_dist.model.signfuse import SignFuse
from signfuse_dist.model.usage import USAGE, Usage, read_usage
from signfuse_dist.vector_source import VectorSource

DEMO = str(ROOT / "configs" / "experiment" / "demo.yaml")


def usage(**changes: Any) -> Usage:
    run = load_run(DEMO, "finetune", ["data.crop=signer", "evaluation.num_beams=3"])
    return replace(Usage.of(run, "mediapipe-holistic", "0.10.21"), **changes)


def test_a_run_says_frames_joints_decoding_and_licences() -> None:
    said = usage()
    assert (said.fps, said.frame_size, said.crop, said.max_frames) == (10, 48, "signer", 64)
    assert (said.joint_layout, said.joints_from) == ("signfuse-75", "mediapipe-holistic 0.10.21")
    assert (said.corpus, said.language, said.precision) == ("synthetic", "en", "fp32")
    assert isinstance(said.decoding, EvaluationConfig)
    assert said.decoding.num_beams == 3
    assert said.corpus_licence == "Apache-2.0; it shows nobody"
    assert said.llm_licence == "Apache-2.0, made by the demo"


def test_a_saved_model_loads_with_what_it_said_of_its_use(tmp_path: Path) -> None:
    model = finetuned(config_of(tmp_path / "llm"))
    model.usage = usage(fps=None)
    model.save_pretrained(tmp_path / "model")
    assert USAGE in read_state(tmp_path / "model")["files"]
    loaded = SignFuse.from_pretrained(tmp_path / "model")
    assert loaded.usage == model.usage
    loaded.save_pretrained(tmp_path / "again")
    assert read_state(tmp_path / "again") == read_state(tmp_path / "model")


def test_an_llm_in_a_folder_is_found_from_another_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    finetuned(config_of(Path("llm"))).save_pretrained("model")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert SignFuse.from_pretrained("../model").built_from.llm == str(tmp_path / "llm")


def test_a_model_of_an_earlier_version_says_nothing(tmp_path: Path) -> None:
    assert read_usage(tmp_path) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"frame_sise": 48}, "frame_sise"),
        ({"frame_size": "48"}, "frame_size"),
        ({"crop": "left"}, "crop"),
        ({"decoding": {"num_beams": 0}}, "num_beams"),
        ({"joint_layout": "coco-17"}, "joints of the layout 'coco-17'"),
    ],
)
def test_what_is_no_such_record_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    values = {**dataclasses.asdict(usage()), **changes}
    (tmp_path / USAGE).write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(UserError, match=words) as refused:
        read_usage(tmp_path)
    assert str(tmp_path / USAGE) in str(refused.value)


def test_a_model_with_its_llm_loads_where_that_llm_is_no_more(tmp_path: Path) -> None:
    """What transformers reads of it is copied, and nothing that is pickled."""
    model = finetuned(config_of(tmp_path / "llm"))
    (tmp_path / "llm" / "pytorch_model.bin").write_bytes(b"pickled")
    (tmp_path / "llm" / ".cache").mkdir()
    model.save_pretrained(tmp_path / "model", with_llm=True)
    (tmp_path / "llm").rename(tmp_path / "gone")
    (tmp_path / "model").rename(tmp_path / "moved")
    names = {p.name for p in (tmp_path / "moved" / "llm").iterdir()}
    assert {"config.json", "model.safetensors"} < names
    assert not names & {"pytorch_model.bin", ".cache"}
    assert str(tmp_path) not in (tmp_path / "moved" / "config.json").read_text(encoding="utf-8")
    loaded = SignFuse.from_pretrained(tmp_path / "moved")
    assert loaded.llm_reference is not None
    assert model.llm_reference is not None
    assert loaded.llm_reference.fingerprint == model.llm_reference.fingerprint
    loaded.save_pretrained(tmp_path / "again", with_llm=True)
    ours, theirs = (read_state(tmp_path / name)["files"] for name in ("again", "moved"))
    assert {**ours, "config.json": 0, "adapter/adapter_config.json": 0} == {
        **theirs,
        "config.json": 0,
        "adapter/adapter_config.json": 0,
    }


def test_a_card_goes_with_the_model_and_may_be_edited(tmp_path: Path) -> None:
    finetuned(config_of(tmp_path / "llm")).save_pretrained(tmp_path / "model")
    card = tmp_path / "model" / "README.md"
    card.write_text("# Signs", encoding="utf-8")
    SignFuse.from_pretrained(tmp_path / "model").save_pretrained(tmp_path / "again")
    edited = tmp_path / "again" / "README.md"
    assert edited.read_text(encoding="utf-8") == "# Signs"
    edited.write_text("# Signs of mine", encoding="utf-8")
    assert SignFuse.from_pretrained(tmp_path / "again").card == "# Signs of mine"


def test_an_llm_that_nobody_else_has_is_not_named_on_the_hub(tmp_path: Path) -> None:
    model = finetuned(config_of(tmp_path / "llm"))
    with pytest.raises(UserError, match="with_llm=True uploads it too") as refused:
        model.push_to_hub("somebody/signer")
    assert str(tmp_path / "llm") in str(refused.value)


def test_a_model_of_feature_sets_says_what_they_are(tmp_path: Path) -> None:
    computed = VectorSource(dim=3, dtype="float16", model="a/b", revision="c", fingerprint="d")
    theirs = VectorSource(dim=2, dtype="float32", published="theirs", rate=2.5, window=0.5)
    said = usage(features=(computed, theirs))
    (tmp_path / USAGE).write_text(said.to_json(), encoding="utf-8")
    assert read_usage(tmp_path) == said
    assert '"features"' not in usage().to_json()  # as before there were any
    broken = said.to_json().replace('"dim": 3', '"dim": "3"')
    (tmp_path / USAGE).write_text(broken, encoding="utf-8")
    with pytest.raises(UserError, match=r"features\.entry 1\.dim"):
        read_usage(tmp_path)
