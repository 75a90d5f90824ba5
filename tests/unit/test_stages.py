"""The stage table of section 3.7: what trains, what stays still, what each stage loads."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from helpers.model_factory import (
    draw_clips,
    join,
    small_config,
    small_model,
    tiny_llama,
    tiny_tokenizer,
)
from signfuse_dist.config import STAGES, LossConfig, StageConfig, StageName
from signfuse_dist.engine.loop import make_optimizer, set_learning_rate
from signfuse_dist.errors import UserError
from signfuse_dist.experiment import load_run
from signfuse_dist.model import llm as llm_module
from signfuse_dist.model import saved
from signfuse_dist.model.losses import contrastive
from signfuse_dist.model.norm import ImageBatchNorm
from signfuse_dist.model.signfuse import SignFuse, Streams
from signfuse_dist.objective import StageObjective, prepare, set_mode
from signfuse_dist.stages import needs_language_model, previous, rate_factor

# Section 3.7, by the names of Figure 1: CNN, ST-GCN, CMFA, HTA, SLA, LoRA.
TABLE: dict[StageName, set[str]] = {
    "contrastive": {"visual.", "skeletal.", "fusion."},
    "alignment": {"fusion.", "temporal.", "adapter."},
    "finetune": {"visual.", "skeletal.", "fusion.", "temporal.", "adapter.", "llm"},
}
CLIPS = (5, 3, 8)


def _belongs(name: str, stage: StageName) -> bool:
    if name.startswith("language_model."):
        return "lora_" in name and "llm" in TABLE[stage]
    return name.startswith(tuple(TABLE[stage]))


def _after_backward(stage: StageName, **changes: Any) -> Any:
    model = small_model(**changes)
    prepare(model, stage, LossConfig())
    set_mode(model, stage)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # starts at zero, which hides A's gradient
            nn.init.normal_(parameter, std=0.1)
    objective = StageObjective(stage, LossConfig())
    sums = objective(model, join(draw_clips(CLIPS)))
    torch.stack([objective.weights[n] * value for n, value in sums.items()]).sum().backward()
    return model


@pytest.mark.parametrize("visual_norm", ["group", "frozen"])
@pytest.mark.parametrize("stage", TABLE)
def test_exactly_the_parameters_of_the_table_train_and_each_gets_a_gradient(
    stage: StageName, visual_norm: str
) -> None:
    model = _after_backward(stage, visual_norm=visual_norm)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in model.named_parameters() if _belongs(n, stage)}
    found = {
        n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0
    }
    assert found == trained
    assert all(p.grad is None for n, p in model.named_parameters() if n not in trained)
    named = {"llm": "language_model."}
    assert all(any(n.startswith(named.get(p, p)) for n in trained) for p in TABLE[stage])


@pytest.mark.parametrize("stage", TABLE)
def test_every_trained_parameter_is_reached_with_synchronised_batch_norm(stage: StageName) -> None:
    """None may be skipped: a process that skips one stops all others."""
    model = _after_backward(stage, norm="sync")
    assert {n for n, p in model.named_parameters() if p.grad is not None} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }


@pytest.mark.parametrize("stage", TABLE)
def test_what_is_frozen_is_in_evaluation_mode(stage: StageName) -> None:
    model = small_model(norm="sync", visual_norm="frozen")
    prepare(model, stage, LossConfig())
    set_mode(model, stage)
    modes = {name: part.training for name, part in model.named_children()}
    assert modes == {
        **{n: f"{n}." in TABLE[stage] for n in modes if n != "language_model"},
        "language_model": "llm" in TABLE[stage],
    }
    norms = [m for m in model.visual.backbone.modules() if isinstance(m, ImageBatchNorm)]
    assert norms
    assert not any(norm.uses_batch for norm in norms)


def test_frozen_encoders_keep_their_running_statistics_in_the_alignment_stage() -> None:
    before = dict(small_model(norm="sync").named_buffers())
    after = dict(_after_backward("alignment", norm="sync").named_buffers())
    for name, buffer in before.items():
        assert torch.equal(after[name], buffer), name


def test_the_frozen_language_model_is_untouched_by_a_step() -> None:
    model = _after_backward("finetune")
    before = {n: p.clone() for n, p in model.named_parameters()}
    torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != _belongs(name, "finetune"), name


def test_the_contrastive_stage_loads_no_language_model(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def refuse(name: str, **_: Any) -> Any:
        asked.append(name)
        raise OSError("no such model")

    for auto in ("AutoTokenizer", "AutoModelForCausalLM", "AutoConfig"):
        owner = getattr(llm_module, auto, None) or getattr(__import__("transformers"), auto)
        monkeypatch.setattr(owner, "from_pretrained", refuse)
    model, tokenizer = saved.build(small_config(), needs_language_model("contrastive"))
    assert asked == []
    assert tokenizer is None
    assert model.language_model is None
    assert model.adapter is None
    prepare(model, "contrastive", LossConfig())
    set_mode(model, "contrastive")
    sums = StageObjective("contrastive", LossConfig())(model, join(draw_clips(CLIPS)))
    assert list(sums) == ["contrastive"]


@pytest.mark.parametrize("stage", ["alignment", "finetune"])
def test_the_other_stages_load_the_language_model_of_the_configuration(
    stage: StageName, tmp_path: Path
) -> None:
    tiny_llama().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    config = small_config(llm=str(tmp_path), llm_dtype="bfloat16", attention="eager")
    model, tokenizer = saved.build(config, needs_language_model(stage))
    assert tokenizer is not None
    assert model.language_model is not None
    assert model.adapter is not None
    assert model.adapter.mlp[2].out_features == 12  # d_LLM, read from the model
    assert {p.dtype for p in model.language_model.parameters()} == {torch.bfloat16}
    assert model.language_model.attention == "eager"


def test_each_stage_starts_from_the_one_before() -> None:
    used = ("contrastive", "alignment", "finetune")
    assert [previous(stage, used) for stage in used] == [None, "contrastive", "alignment"]


def test_a_stage_starts_from_the_one_before_it_among_those_that_are_used() -> None:
    assert previous("finetune", ("contrastive", "finetune")) == "contrastive"
    assert previous("alignment", ("alignment", "finetune")) is None
    assert previous("finetune", ("finetune",)) is None


def test_an_average_is_over_real_clips_and_real_tokens() -> None:
    batch = join(draw_clips([3, 3, 3]))
    batch.weight[1] = 0.0
    counts = StageObjective("finetune", LossConfig()).counts(batch)
    assert counts == {"language": 1 + 5, "distance": 2.0, "contrastive": 2.0}


def _random_streams(clips: int, seed: int) -> Streams:
    """Pictures and joints that have nothing to do with each other."""
    drawn = torch.Generator().manual_seed(seed)
    visual, skeletal = torch.randn(2, clips, 6, 16, generator=drawn)
    return Streams(visual, skeletal, torch.full((clips,), 6))


@pytest.mark.parametrize(
    ("features", "leaks"), [("unimodal", False), ("streams", False), ("attended", True)]
)
def test_only_attended_summaries_see_the_other_stream(features: str, leaks: bool) -> None:
    model = SignFuse(small_config(), None)
    streams = _random_streams(4, 0)
    streams.visual.requires_grad_()
    streams.skeletal.requires_grad_()
    visual, skeletal = model.summarise(streams, features)
    for summary, other in ((visual, streams.skeletal), (skeletal, streams.visual)):
        (gradient,) = torch.autograd.grad(
            summary.sum(), [other], allow_unused=True, retain_graph=True
        )
        assert (gradient is not None and bool(gradient.any())) == leaks


@pytest.mark.parametrize(("features", "leaks"), [("unimodal", False), ("attended", True)])
def test_attended_summaries_meet_the_loss_by_leakage(features: str, leaks: bool) -> None:
    """The streams are unrelated, so no honest feature pairs clips that it was not trained on."""
    torch.manual_seed(0)
    model = SignFuse(small_config(fusion_layers=1), None)
    optimizer = torch.optim.Adam(model.fusion.parameters(), lr=1e-2)
    for step in range(60):
        summaries = model.summarise(_random_streams(16, step), features)
        optimizer.zero_grad()
        contrastive(*summaries, torch.ones(16), 0.07).mean().backward()
        optimizer.step()
    with torch.no_grad():
        summaries = model.summarise(_random_streams(64, 1000), features)
        held_out = float(contrastive(*summaries, torch.ones(64), 0.07).mean())
    chance = math.log(64)
    assert (held_out < chance - 0.5) if leaks else (held_out > chance - 0.1)


def test_training_smooths_labels_and_a_score_does_not() -> None:
    model, batch = small_model(), join(draw_clips(CLIPS))
    config = LossConfig(label_smoothing=0.2)
    prepare(model, "finetune", config)
    plain = model(batch, None, True).negative_log_likelihood.sum()
    smoothed = StageObjective("finetune", config)(model, batch)["language"]
    unsmoothed = StageObjective("finetune", LossConfig())(model, batch)["language"]
    assert torch.equal(unsmoothed, plain)
    assert abs(smoothed.item() - plain.item()) > 0.01


def test_a_part_has_its_own_rate_and_the_schedule_acts_on_all() -> None:
    model = small_model()
    prepare(model, "finetune", LossConfig())
    stage = StageConfig(
        name="finetune",
        epochs=1,
        learning_rate=0.01,
        warmup_epochs=0,
        rates={"visual": 0.1, "llm": 0.0, "temporal": 0.1},
    )
    optimizer = make_optimizer(model, 0.01, 0.3, factor_of=lambda n: rate_factor(n, stage))
    set_learning_rate(optimizer, 0.004)
    rates = {p: g["lr"] for g in optimizer.param_groups for p in g["params"]}
    decays = {p: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    factors = {"visual": 0.1, "language_model": 0.0, "temporal": 0.1}
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert rates.keys() == set(trained.values())
    for name, parameter in trained.items():
        assert rates[parameter] == pytest.approx(0.004 * factors.get(name.split(".")[0], 1.0))
        assert decays[parameter] == (0.3 if parameter.ndim > 1 else 0.0)
    assert len(optimizer.param_groups) == 5  # LoRA's matrices have no gain and no bias


def test_parts_that_a_stage_does_not_train_have_no_rate() -> None:
    with pytest.raises(
        UserError, match=r"stage\.rates names temporal, llm, which stage contrastive"
    ):
        load_run("demo", "contrastive", ["stage.rates={temporal: 2, llm: 1, visual: 0.1}"])
    words = ["stage.finetune.rates={llm: 1, visual: 0.1}"]
    assert load_run("demo", "contrastive", words).stage.rates is None
    assert load_run("demo", "finetune", words).stage.rates == {"llm": 1.0, "visual": 0.1}
    alone = ["model.streams=skeletal", "loss.contrastive_weight=0", "train.stages=[finetune]"]
    for part, words in {
        "visual": alone,
        "fusion": ["model.fusion_layers=0"],
        "temporal": ["model.scales=[]"],
    }.items():
        with pytest.raises(UserError, match=rf"stage\.rates names {part}, which stage finetune"):
            load_run("demo", "finetune", [*words, f"stage.rates={{{part}: 2}}"])
    with pytest.raises(UserError, match=r"stage\.rates: 'eyes' is not one of visual,"):
        load_run("demo", "finetune", ["stage.rates={eyes: 1}"])


@pytest.mark.parametrize("llm_training", ["lora", "full", "frozen"])
def test_what_of_the_llm_trains_is_chosen_and_in_the_last_stage_alone(llm_training: Any) -> None:
    for stage in STAGES:
        model = small_model(llm_training=llm_training)
        prepare(model, stage, LossConfig())
        of_llm = {n: p for n, p in model.language_model.named_parameters() if p.requires_grad}
        lora = {n for n, _ in model.language_model.named_parameters() if "lora_" in n}
        if stage != "finetune" or llm_training == "frozen":
            assert not of_llm
            assert not lora
        elif llm_training == "lora":
            assert of_llm.keys() == lora
        else:
            assert not lora
            assert len(of_llm) == len(list(model.language_model.parameters()))


def test_an_llm_that_does_not_train_has_no_rate_and_a_quantized_one_is_not_trained_whole() -> None:
    with pytest.raises(UserError, match=r"stage\.rates names llm, which stage finetune does not"):
        load_run("demo", "finetune", ["stage.rates={llm: 1}", "model.llm_training=frozen"])
    with pytest.raises(
        UserError, match=r"llm_training=full .*model\.llm_quantization=8bit has not"
    ):
        load_run("demo", "finetune", ["model.llm_training=full", "model.llm_quantization=8bit"])
