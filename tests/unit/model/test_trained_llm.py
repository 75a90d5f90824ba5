"""A model whose LLM was trained whole: pushed to the hub as it is, and started from."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from helpers.model_factory import draw_clips, join
from helpers.repository import ROOT
from helpers.saved_models import config_of, finetuned, untrained
from helpers.stand_in_hub import TOKEN, stand_in_hub
from signfuse_dist.config import ModelConfig, RunConfig
from signfuse_dist.errors import UserError
from signfuse_dist.experiment import load_run
from signfuse_dist.model import parts, saved
from signfuse_dist.model.signfuse import SignFuse
from signfuse_dist.objective import prepare

DEMO = str(ROOT / "configs" / "experiment" / "demo.yaml")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    return config_of(tmp_path_factory.mktemp("llm"))


@pytest.fixture(scope="module")
def whole(config: ModelConfig) -> SignFuse:
    """Trained away from the LLM that it began with."""
    model = finetuned(dataclasses.replace(config, llm_training="full"))
    assert model.language_model is not None
    with torch.no_grad():
        for parameter in model.language_model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def folder(whole: SignFuse, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "model"
    whole.save_pretrained(folder)
    return folder


def likelihood(model: SignFuse) -> torch.Tensor:
    with torch.no_grad():
        found = model(join(draw_clips([5, 3, 8])), None, True).negative_log_likelihood
    assert found is not None
    return found


def test_it_is_pushed_with_its_llm_and_comes_back_bit_for_bit(
    whole: SignFuse, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has to ask for the LLM: there is no other. An earlier one of LoRA leaves nothing."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with stand_in_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        hub.files["somebody/signer"] = {"adapter/adapter_model.safetensors": b"of before"}
        hub.commits["somebody/signer"] = 0
        SignFuse.from_pretrained(folder).push_to_hub("somebody/signer", token=TOKEN)
        files = dict(hub.files["somebody/signer"])
    assert "llm/model.safetensors" in files
    assert not [name for name in files if name.startswith("adapter/")]
    assert whole.built_from.llm.encode() not in b"".join(
        text for name, text in files.items() if name.endswith((".json", ".md"))
    )
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(text)
    assert torch.equal(likelihood(SignFuse.from_pretrained(tmp_path)), likelihood(whole))


def run_of(config: ModelConfig, *words: str) -> RunConfig:
    words = ("train.stages=[finetune]", "train.start=START", *words)
    return dataclasses.replace(load_run(DEMO, "finetune", words), model=config)


def started(config: ModelConfig, start: Path, *words: str) -> SignFuse:
    run, model = run_of(config, *words), untrained(config)
    assert model.llm_reference is not None
    own = saved.own_state(model)
    chosen = parts.choose(start, run, own, model.llm_reference.fingerprint)
    parts.load(chosen, model)
    prepare(model, run.stage.name, run.loss)
    parts.load_lora(chosen, model)
    return model.eval()


@pytest.mark.parametrize("llm_training", ["full", "lora", "frozen"])
def test_it_is_started_from_with_its_own_llm_however_that_trains_then(
    config: ModelConfig, whole: SignFuse, folder: Path, tmp_path: Path, llm_training: str
) -> None:
    again = dataclasses.replace(config, llm=str(folder / "llm"), llm_training=llm_training)
    model = started(again, folder)
    assert torch.equal(likelihood(model), likelihood(whole))
    trained = {n for n, p in model.named_parameters() if p.requires_grad and "language" in n}
    assert bool(trained) == (llm_training != "frozen")
    assert all("lora_" in name for name in trained) == (llm_training != "full")
    model.save_pretrained(tmp_path / "after")
    assert torch.equal(likelihood(SignFuse.from_pretrained(tmp_path / "after")), likelihood(whole))


def test_with_the_llm_of_before_it_is_refused_by_name(config: ModelConfig, folder: Path) -> None:
    own = re.escape(str(folder / "llm"))
    with pytest.raises(UserError, match=f"adapter: was trained with the LLM {own}, and model.llm="):
        started(config, folder)
    parts_of = "train.start_parts=[visual,skeletal,fusion,temporal]"
    model = started(config, folder, parts_of)  # what reads no LLM fits any
    assert model.language_model is not None
