"""What a stage takes of the model that `train.start` names: parts, what fits, merged LoRA."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.model_factory import draw_clips, join, scramble, small_config
from helpers.repository import ROOT
from helpers.saved_models import config_of, finetuned, untrained, write_llm
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
def start(config: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the last stage, with LoRA."""
    folder = tmp_path_factory.mktemp("start") / "model"
    finetuned(config).save_pretrained(folder)
    return folder


def run_of(config: ModelConfig, stage: str, *words: str) -> RunConfig:
    words = (f"train.stages=[{stage}]", "train.start=START", *words)
    return dataclasses.replace(load_run(DEMO, stage, words), model=config)


def started(config: ModelConfig, folder: Path, stage: str = "finetune", *words: str) -> SignFuse:
    """A model of a stage that was started as the trainer does it."""
    run = run_of(config, stage, *words)
    model = untrained(config, language=stage != "contrastive")
    prepared = choose(run, model, folder)
    parts.load(prepared, model)
    prepare(model, run.stage.name, run.loss)
    parts.load_lora(prepared, model)
    return model.eval()


def choose(run: RunConfig, model: SignFuse, folder: Path) -> parts.Chosen:
    llm = model.llm_reference
    return parts.choose(
        folder, run, saved.own_state(model), None if llm is None else llm.fingerprint
    )


def likelihood(model: SignFuse) -> torch.Tensor:
    with torch.no_grad():
        found = model(join(draw_clips([5, 3, 8])), None, True).negative_log_likelihood
    assert found is not None
    return found


def test_a_stage_that_takes_all_parts_computes_what_the_start_does(
    config: ModelConfig, start: Path
) -> None:
    model = started(config, start)
    assert torch.equal(likelihood(model), likelihood(SignFuse.from_pretrained(start)))
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert any("lora_" in name for name in trained), "and goes on training its LoRA"


def test_merged_lora_computes_the_same_without_matrices_and_survives_being_saved(
    config: ModelConfig, start: Path, tmp_path: Path
) -> None:
    every = "train.start_parts=[visual,skeletal,fusion,temporal,adapter,statistics,merged_lora]"
    model = started(config, start, "alignment", every)
    whole = likelihood(SignFuse.from_pretrained(start))
    assert torch.allclose(likelihood(model), whole, rtol=1e-5)
    without = started(config, start, "alignment", every.replace(",merged_lora", ""))
    assert not torch.allclose(likelihood(without), whole, rtol=1e-3)
    model.save_pretrained(tmp_path / "aligned")
    loaded = SignFuse.from_pretrained(tmp_path / "aligned")
    assert torch.equal(likelihood(loaded), likelihood(model))
    after = untrained(config)  # the stage after it starts from it as from any stage before
    saved.load_into(tmp_path / "aligned", after)
    prepare(after, "finetune", run_of(config, "finetune").loss)
    assert torch.equal(likelihood(after.eval()), likelihood(model))
    again = started(config, tmp_path / "aligned")
    assert torch.equal(likelihood(again), likelihood(model)), "and from a start"


@pytest.mark.parametrize(
    ("stage", "changes", "said"),
    [
        ("contrastive", {}, "adapter: stage contrastive has no LLM"),
        ("contrastive", {}, "lora: stage contrastive has no LLM"),
        ("alignment", {}, "lora: stage alignment trains no LoRA matrices; merged_lora"),
        ("finetune", {"lora_rank": 3}, r"lora: model\.lora_rank was 2, is 3"),
        ("finetune", {"num_heads": 4}, r"model\.num_heads was 2, is 4"),
        ("finetune", {"num_sign_tokens": 5}, r"model\.num_sign_tokens was 3, is 5"),
        ("finetune", {"ffn_multiplier": 2}, r"fusion: .* of another shape \['fusion\.layers\.0"),
        ("finetune", {"streams": "skeletal"}, r"visual: model\.streams=skeletal has none"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    config: ModelConfig, start: Path, stage: str, changes: dict[str, Any], said: str
) -> None:
    other = small_config(llm=config.llm, prompt=config.prompt, **changes)
    model = untrained(other, language=stage != "contrastive")
    with pytest.raises(UserError, match=said) as refused:
        choose(run_of(other, stage), model, start)
    assert "train.start_parts=[PART, ...]" in str(refused.value)


def test_parts_that_are_listed_are_taken_and_the_others_begin_anew(
    config: ModelConfig, start: Path
) -> None:
    other = small_config(llm=config.llm, prompt=config.prompt, num_sign_tokens=5, lora_rank=3)
    words = "train.start_parts=[visual,skeletal,statistics]"
    fresh, model = untrained(other), started(other, start, "finetune", words)
    theirs = saved.own_state(SignFuse.from_pretrained(start))
    ours = saved.own_state(model)
    same = {name.partition(".")[0] for name in ours if torch.equal(ours[name], theirs[name])}
    moved = {name.partition(".")[0] for name in ours if not torch.equal(ours[name], theirs[name])}
    assert moved == {"fusion", "temporal", "adapter"}
    assert {"visual", "skeletal"} <= same
    chosen = choose(run_of(other, "finetune", words), fresh, start)
    assert chosen.anew == ("fusion", "temporal", "adapter")
    assert chosen.describe()[1] == "begins anew: fusion, temporal, adapter"


def test_a_part_that_is_listed_and_not_there_is_refused(
    config: ModelConfig, tmp_path: Path
) -> None:
    untrained(config, language=False).save_pretrained(tmp_path / "model")
    run = run_of(config, "finetune", "train.start_parts=[visual,adapter,lora]")
    with pytest.raises(UserError, match="adapter: the start has none") as refused:
        choose(run, untrained(config), tmp_path / "model")
    assert "lora: the start has none" in str(refused.value)


def test_joints_alone_start_a_model_of_both_streams_whose_pictures_begin_anew(
    config: ModelConfig, tmp_path: Path
) -> None:
    alone = dataclasses.replace(config, streams="skeletal")
    scramble(untrained(alone)).save_pretrained(tmp_path / "model")
    chosen = choose(run_of(config, "finetune"), untrained(config), tmp_path / "model")
    assert (chosen.anew, chosen.needs_visual_weights) == (("visual",), True)


def test_statistics_are_left_out_where_the_norms_have_none(
    config: ModelConfig, tmp_path: Path
) -> None:
    synced = dataclasses.replace(config, norm="sync")
    scramble(untrained(synced)).save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="no norm statistics there: leave statistics out"):
        choose(run_of(config, "finetune"), untrained(config), tmp_path / "model")
    words = "train.start_parts=[visual,skeletal]"
    started(config, tmp_path / "model", "finetune", words)


def test_lora_of_another_llm_is_never_taken(
    config: ModelConfig, start: Path, tmp_path: Path
) -> None:
    write_llm(tmp_path / "other", seed=1)
    other = small_config(llm=str(tmp_path / "other"), prompt=config.prompt)
    for words in ([], ["train.start_parts=[lora]"], ["train.start_parts=[merged_lora]"]):
        with pytest.raises(UserError, match=r"was trained with the LLM .* is another"):
            choose(run_of(other, "finetune", *words), untrained(other), start)
