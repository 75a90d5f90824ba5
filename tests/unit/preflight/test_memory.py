"""The arithmetic of parameters and activations is that of the model and of measurements."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from benchmarks import fake_cuda
from helpers.model_factory import small_config, tiny_llama
from helpers.repository import ROOT
from signfuse_dist.ablation.rows import read_ablation
from signfuse_dist.config import LossConfig, ModelConfig, RunConfig, StageName
from signfuse_dist.errors import UserError
from signfuse_dist.experiment import load_stages
from signfuse_dist.model.cmfa import FusionLayer
from signfuse_dist.model.llm import add_lora
from signfuse_dist.model.signfuse import SignFuse, count_parameters
from signfuse_dist.objective import prepare
from signfuse_dist.preflight import memory
from signfuse_dist.preflight.check import Target, check_job
from signfuse_dist.preflight.llm_files import LLMFiles
from signfuse_dist.synthetic.llm_shapes import ShapeName, llm_shape

LLM_DIM = 576


def runs(*words: str) -> list[RunConfig]:
    return load_stages("demo", ["data=table", "model=smollm2_135m", *words])


def on_meta(config: ModelConfig) -> SignFuse:
    with torch.device("meta"):
        return SignFuse(config, (LLM_DIM, 1.0))


ABLATIONS = ROOT / "configs" / "ablation"
ROWS = [
    row
    for name in ("components", "fusion", "layers", "scales", "stages")
    for row in read_ablation(ABLATIONS / f"{name}.yaml").rows
]
WORDS = {row.overrides for row in ROWS} | {
    ("model.visual_backbone=resnet18", "model.visual_weights=null"),
    ("model.visual_backbone=resnet10", "model.visual_weights=null", "model.visual_width=16"),
    ("model.visual_norm=group", "model.norm=layer"),
    ("model.joint_frame=body", "model.joint_presence=true"),
    ("model.joint_velocity=true",),
    ("model.joint_pooling=groups",),
    ("model.joints=[nose,left_hand]", "model.joint_pooling=groups"),
    ("model.skeletal_channels=[512,512,512,512]", "model.ffn_multiplier=2"),
}


@pytest.mark.parametrize("words", sorted(WORDS), ids=" ".join)
def test_parameters_are_those_of_the_model(words: tuple[str, ...]) -> None:
    config = runs(*words)[-1].model
    expected = count_parameters(on_meta(config))
    assert memory.parameters(config, LLM_DIM) == expected


def with_name(config: ModelConfig, field: str, name: str) -> ModelConfig:
    """A configuration as one whose choices were extended, and nothing else was."""
    changed = replace(config)
    object.__setattr__(changed, field, name)
    return changed


def test_a_fusion_that_is_unknown_to_the_model_too_is_refused_by_name() -> None:
    """It is asked of the model, which has no such layer; nothing is counted as zero."""
    run = runs()[-1]
    config = with_name(run.model, "fusion", "gated_mean")
    with pytest.raises(UserError, match=r"model\.fusion=gated_mean cannot be built: .*gated_mean"):
        memory.parameters(config, LLM_DIM)
    changed = replace(run)
    object.__setattr__(changed, "model", config)
    findings = {f.what: f for f in check_job([changed], [], Target(1, None, 80.0))}
    assert findings["parameters of model.fusion=gated_mean"].level == "error"
    assert not any(what.startswith("memory of a GPU") for what in findings)


def test_a_layer_of_no_known_fusion_is_not_built() -> None:
    with pytest.raises(UserError, match=r"model\.fusion=gated_mean: no layer is built for it"):
        FusionLayer(8, 2, 16, "gated_mean")


def test_a_backbone_without_arithmetic_is_refused_by_name() -> None:
    config = with_name(runs()[-1].model, "visual_backbone", "resnet34")
    with pytest.raises(UserError, match="visual_backbone=resnet34"):
        memory.frame_bytes(config, 224, True)


@pytest.mark.parametrize("stage", ["contrastive", "alignment", "finetune"])
@pytest.mark.parametrize("features", ["unimodal", "streams", "attended"])
def test_trained_parameters_are_those_of_the_stage(stage: StageName, features: str) -> None:
    config, loss = runs()[0].model, replace(LossConfig(), contrastive_features=features)
    model = on_meta(config)
    prepare(model, stage, loss)
    expected = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert memory.count_trained(config, loss, stage, LLM_DIM, 0) == expected


def test_lora_is_that_of_peft() -> None:
    llm, config = tiny_llama(), small_config(lora_targets=None)
    files = LLMFiles(None, llm.config.to_dict())  # type: ignore[arg-type]
    adapted = add_lora(llm, config)
    expected = sum(p.numel() for n, p in adapted.named_parameters() if "lora_" in n)
    assert files.lora_parameters(config) == expected


# docs/benchmarks.md, ResNet-50 whole in float32, in MB of a process: it holds other things too.
MEASURED = [(16, 1629), (32, 3007)]


@pytest.mark.parametrize(("frames", "measured"), MEASURED)
def test_activations_of_the_resnet_are_near_what_was_measured(frames: int, measured: float) -> None:
    estimated = frames * memory.frame_bytes(runs()[0].model, 224, bf16=False).most / 1e6
    assert estimated == pytest.approx(measured, rel=0.2)


CLIPS, FRAMES = 4, 32


def last_stage(*words: str) -> RunConfig:
    """The last stage of the paper's model, four clips of 32 frames a process."""
    words = ("model=llama2_7b", f"train.micro_batch_size={CLIPS}", *words)
    return load_stages("phoenix14t", list(words))[-1]


def peak(run: RunConfig, part: str, llm: Any = None) -> fake_cuda.Peak:
    config, bf16 = run.model, run.train.precision == "bf16"
    batch = fake_cuda.blank_batch(config, CLIPS, FRAMES, 64, run.data.frame_size)
    if part == "fusion":
        batch = fake_cuda.with_blank_features(config, batch, bf16)
    build = {
        "visual": lambda: fake_cuda.visual_part(config),
        "skeletal": lambda: fake_cuda.skeletal_part(config),
        "fusion": lambda: fake_cuda.fusion_part(config, 4096),
        "llm": lambda: fake_cuda.llm_part(config, llm),
    }[part]
    return fake_cuda.measure(build, batch, bf16)


WAYS = {
    "whole": (),
    "chunks": ("model.visual_chunk=32",),
    "by blocks": ("model.visual_checkpoint=true",),
    "by blocks in fp32": ("model.visual_checkpoint=true", "train.precision=fp32"),
    "resnet18": ("model.visual_backbone=resnet18",),
}
RARE = ("by blocks in fp32", "resnet18")


@pytest.mark.parametrize(
    "way", [pytest.param(w, marks=[pytest.mark.long] if w in RARE else []) for w in WAYS]
)
def test_the_resnet_takes_what_fake_tensors_find(way: str) -> None:
    run = last_stage(*WAYS[way])
    kept, again = memory._visual_bytes(run, CLIPS * FRAMES)
    pictures = CLIPS * FRAMES * 3 * 224**2  # the batch, which the passes are given
    assert kept + again - pictures == pytest.approx(peak(run, "visual").most, rel=0.1)


@pytest.mark.parametrize(
    "words",
    [
        ("train.precision=bf16",),
        pytest.param(("train.precision=fp32",), marks=pytest.mark.long),
        pytest.param(
            ("model.joint_frame=body", "model.joint_statistics=present"), marks=pytest.mark.long
        ),
        ("model.joints=[left_hand,right_hand]", "model.joint_pooling=groups"),
    ],
    ids=str,
)
def test_the_st_gcn_takes_what_fake_tensors_find(words: tuple[str, ...]) -> None:
    run = last_stage(*words)
    estimated = memory._skeletal_bytes(run, CLIPS * FRAMES)
    assert estimated == pytest.approx(peak(run, "skeletal").most, rel=0.1)


@pytest.mark.parametrize(
    "words",
    [
        (),
        pytest.param(("model.fusion=concat",), marks=pytest.mark.long),
        pytest.param(("model.fusion_layers=1",), marks=pytest.mark.long),
        pytest.param(("train.precision=fp32",), marks=pytest.mark.long),
        pytest.param(("model.positions=distance",), marks=pytest.mark.long),
        pytest.param(
            ("model.positions=sinusoidal", "train.precision=fp32"), marks=pytest.mark.long
        ),
    ],
    ids=str,
)
def test_cmfa_hta_and_sla_take_what_fake_tensors_find(words: tuple[str, ...]) -> None:
    run = last_stage(*words)
    estimated = memory._fusion_bytes(run, CLIPS * FRAMES, 4096)
    assert estimated == pytest.approx(peak(run, "fusion").most, rel=0.1)


def test_what_distance_adds_to_the_scores_is_counted() -> None:
    """Found by fake tensors: 17.2 MB for 8 clips of 512 frames in bf16, 1.4 for 128 frames."""
    words = ("train.micro_batch_size=8", "data.max_frames=512")
    for frames, more in ((512, 17.2e6), (128, 1.4e6)):
        without, with_bias = (
            memory._fusion_bytes(
                last_stage(*words, f"data.max_frames={frames}", f"model.positions={kind}"),
                8 * frames,
                4096,
            )
            for kind in ("none", "distance")
        )
        assert with_bias - without == pytest.approx(more, rel=0.2)


@pytest.mark.parametrize("llm_training", ["lora", pytest.param("full", marks=pytest.mark.long)])
@pytest.mark.parametrize("name", fake_cuda.LLMS)
def test_an_llm_takes_what_fake_tensors_find(
    name: ShapeName, llm_training: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 6 layers: each is like the other, and the figure without layers is that of the logits."""
    shape, run = llm_shape(name), last_stage(f"model.llm_training={llm_training}")
    for key in ("num_hidden_layers", "num_layers", "num_decoder_layers"):
        if key in shape.to_dict():
            setattr(shape, key, 6)
    auto = AutoModelForSeq2SeqLM if shape.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        count = sum(p.numel() for p in auto.from_config(shape).parameters())
    monkeypatch.setattr(LLMFiles, "num_weights", count)
    files = LLMFiles(None, shape.to_dict())  # type: ignore[arg-type]
    assert memory._language(run, files) == pytest.approx(peak(run, "llm", shape).most, rel=0.1)


@pytest.fixture
def llama(monkeypatch: pytest.MonkeyPatch) -> LLMFiles:
    """LLaMA-2 7B as its configuration says it is, without its weights."""
    monkeypatch.setattr(LLMFiles, "num_weights", 6.74e9)
    shape = llm_shape("llama2_7b").to_dict()
    return LLMFiles(None, shape)  # type: ignore[arg-type]


def test_an_llm_that_trains_whole_has_its_weights_gradients_and_moments(llama: LLMFiles) -> None:
    """Under ZeRO-2 on 4 GPUs: 4 bytes a weight on each, and 16 a weight shared by all of them."""
    lora, full, frozen = (
        memory.estimate(last_stage(f"model.llm_training={how}"), llama, 128, 4, 0)
        for how in ("lora", "full", "frozen")
    )
    assert (lora.llm, full.llm, frozen.llm) == (2 * 6.74e9, 0.0, 2 * 6.74e9)
    assert full.weights - frozen.weights == pytest.approx(4 * 6.74e9)
    assert full.optimizer - frozen.optimizer == pytest.approx(16 / 4 * 6.74e9)
    assert lora.weights - frozen.weights == pytest.approx(
        4 * llama.lora_parameters(last_stage().model)
    )
    said = memory.advise(last_stage("model.llm_training=full"), 4)
    assert "model.llm_training=lora (now full)" in said
    assert "llm_quantization" not in said
    averaged = memory.estimate(last_stage("train.weight_average=0.99"), llama, 128, 4, 0)
    model = last_stage().model
    of_lora = llama.lora_parameters(model)
    trained = memory.count_trained(model, LossConfig(), "finetune", 4096, of_lora)
    assert averaged.weights - lora.weights == pytest.approx(4 * trained)


def resolve(run: RunConfig, llm: LLMFiles, gigabytes: float | None, frames: int) -> RunConfig:
    given = None if run.stage.name == "contrastive" else llm
    return memory.resolve_chunk(run, given, frames, 4, 0, gigabytes)


@pytest.mark.parametrize("experiment", ["phoenix14t", "csl_daily", "how2sign"])
def test_a_shipped_experiment_fits_into_80_gb_as_it_is(experiment: str, llama: LLMFiles) -> None:
    for run in load_stages(experiment, []):
        assert run.model.visual_chunk == "auto"
        frames = run.train.micro_batch_size * run.data.max_frames
        resolved = resolve(run, llama, 80.0, frames)
        given = None if run.stage.name == "contrastive" else llama
        need = memory.estimate(resolved, given, frames, 4, 0)
        how = memory.say_chunk(run.model, resolved.model)
        finding = memory.judge_gpu(resolved, need, frames, 80.0, how, 4)
        assert finding.level == "ok", finding
        assert "model.visual_chunk: auto" in finding.value


def test_auto_is_whole_where_it_fits_and_the_largest_chunk_that_fits_where_not(
    llama: LLMFiles,
) -> None:
    run = load_stages("phoenix14t", [])[-1]
    chunks = [resolve(run, llama, gb, 2048).model.visual_chunk for gb in (200, 80, 40, 8)]
    assert chunks == [None, 512, 256, 16]
    assert resolve(run, llama, 80, 300).model.visual_chunk is None
    assert resolve(run, llama, None, 2048).model.visual_chunk is None  # a CPU
    without = memory.resolve_chunk(run, None, 2048, 4, 0, 80.0)  # an LLM that is not here yet
    assert without.model.visual_chunk == 64


@pytest.mark.parametrize("said", ["null", "100"])
def test_a_run_that_says_its_chunk_keeps_it(said: str, llama: LLMFiles) -> None:
    run = load_stages("phoenix14t", [f"model.visual_chunk={said}"])[-1]
    assert resolve(run, llama, 24.0, 2048) is run


def test_norms_that_see_the_batch_are_run_whole(llama: LLMFiles) -> None:
    run = load_stages("phoenix14t", ["model.visual_norm=sync"])[-1]
    assert resolve(run, llama, 24.0, 2048).model.visual_chunk is None
