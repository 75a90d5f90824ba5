"""Wrong values are refused by their keys: the same ones, with the same text, in any release."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from helpers.repository import ROOT
from signfuse_dist.config import EvaluationConfig, LossConfig, ModelConfig, TrainConfig, names_with
from signfuse_dist.errors import UserError
from signfuse_dist.experiment import load_resolved, load_run
from signfuse_dist.sections import SECTIONS, keys_with

EXPECTED = "expected section.key=value (or data=, model=, stage=, recipe=NAME)"

DEMO = str(ROOT / "configs/experiment/demo.yaml")

REFUSED = [
    ("model.dim=zero", "model.dim: 'zero' is not an int"),
    ("model.dim=true", "model.dim: True is not an int"),
    ("model.dim='8'", "model.dim: '8' is not an int"),
    ("model.dim=8.0", "model.dim: 8.0 is not an int"),
    ("model.dim=2.5", "model.dim: 2.5 is not an int"),
    ("model.dim=null", "model.dim: None is not an int"),
    ("model.dim=[8]", "model.dim: [8] is not an int"),
    ("model.dim=0", "model.dim: 0 is not at least 1"),
    ("train.seed=-1", "train.seed: -1 is not at least 0"),
    ("train.micro_batch_size='2'", "train.micro_batch_size: '2' is not an int"),
    ("stage.epochs=0", "stage.epochs: 0 is not at least 1"),
    ("data.frame_size=8", "data.frame_size: 8 is not at least 16"),
    ("loss.temperature=0", "loss.temperature: 0.0 is not at least 1e-06"),
    ("loss.temperature=0.0", "loss.temperature: 0.0 is not at least 1e-06"),
    ("loss.temperature=.nan", "loss.temperature: nan is not a finite number"),
    ("loss.temperature=warm", "loss.temperature: 'warm' is not a number"),
    ("loss.temperature=true", "loss.temperature: True is not a number"),
    ("loss.temperature=null", "loss.temperature: None is not a number"),
    ("loss.contrastive_weight=-0.1", "loss.contrastive_weight: -0.1 is not at least 0"),
    ("stage.learning_rate=-1e-3", "stage.learning_rate: -0.001 is not at least 0"),
    ("stage.learning_rate=1e-3x", "stage.learning_rate: '1e-3x' is not a number"),
    ("stage.learning_rate=[1]", "stage.learning_rate: [1] is not a number"),
    ("data.fps=0", "data.fps: 0.0 is not at least 0.001"),
    ("data.fps=fast", "data.fps: 'fast' is not a number"),
    ("data.fps=true", "data.fps: True is not a number"),
    ("data.fps={a: 1}", "data.fps: {'a': 1} is not a number"),
    ("train.hang_seconds=0.5", "train.hang_seconds: 0.5 is not at least 1"),
    ("train.num_workers=-1", "train.num_workers: -1 is not at least 0"),
    ("train.num_workers=many", "train.num_workers: 'many' is not an int"),
    ("model.visual_checkpoint=1", "model.visual_checkpoint: 1 is not a bool"),
    ("model.visual_checkpoint='yes'", "model.visual_checkpoint: 'yes' is not a bool"),
    ("model.llm=3", "model.llm: 3 is not a str"),
    ("model.llm=null", "model.llm: None is not a str"),
    ("model.llm_revision=7", "model.llm_revision: 7 is not a str"),
    (
        "model.norm=synk",
        "model.norm: 'synk' is not one of frozen, sync, local, layer; did you mean 'sync'?",
    ),
    ("train.precision=fp8", "train.precision: 'fp8' is not one of fp32, bf16"),
    ("train.precision=16", "train.precision: 16 is not one of fp32, bf16; did you mean 'bf16'?"),
    ("train.precision=null", "train.precision: None is not one of fp32, bf16"),
    (
        "loss.contrastive_features=unimodel",
        "loss.contrastive_features: 'unimodel' is not one of unimodal, streams, attended; "
        "did you mean 'unimodal'?",
    ),
    (
        "data.bleu_tokenizer=zhh",
        "data.bleu_tokenizer: 'zhh' is not one of 13a, zh, char; did you mean 'zh'?",
    ),
    ("model.skeletal_channels=[16, wide, 64, 96]", "model.skeletal_channels: 'wide' is not an int"),
    ("model.skeletal_channels=7", "model.skeletal_channels: 7 is not a list"),
    ("model.skeletal_channels=[16, true, 64, 96]", "model.skeletal_channels: True is not an int"),
    (
        "model.scales=[frame, minute]",
        "model.scales: 'minute' is not one of frame, segment, sequence",
    ),
    ("model.scales=frame", "model.scales: 'frame' is not a list"),
    (
        "train.trackers=[tensorbord]",
        "train.trackers: 'tensorbord' is not one of aim, clearml, comet_ml, dvclive, mlflow, "
        "swanlab, tensorboard, trackio, wandb; did you mean 'tensorboard'?",
    ),
    (
        "train.stages=[fine]",
        "train.stages: 'fine' is not one of contrastive, alignment, finetune; "
        "did you mean 'finetune'?",
    ),
    ("train.stages=!!set {finetune}", "train.stages: {'finetune'} is not a list"),
    ("model.num_head=4", "model: unknown key 'num_head'; did you mean 'num_heads'?"),
    ("los.temperature=1", "'los.temperature=1': no section 'los'; did you mean 'loss'?"),
    (
        "train.micro_batch_sise=4",
        "train: unknown key 'micro_batch_sise'; did you mean 'micro_batch_size'?",
    ),
    ("augment.color=0.1", "augment: unknown key 'color'; did you mean 'colour'?"),
    ("augment.crop=-0.1", "augment.crop: -0.1 is not at least 0"),
    ("augment.crop=1", "augment.crop: 1.0 is not below 1"),
    ("augment.colour=3", "augment.colour: 3.0 is not below 1"),
    ("train.weight_average=0", "train.weight_average: 0.0 is not above 0"),
    ("model.dropout=1", "model.dropout: 1.0 is not below 1"),
    ("evaluation.num_beams=0", "evaluation.num_beams: 0 is not at least 1"),
    ("evaluation.length_penalty=x", "evaluation.length_penalty: 'x' is not a number"),
    ("nonsense", f"'nonsense': {EXPECTED}"),
    (
        "nonsense=1",
        f"'nonsense=1': {EXPECTED}",
    ),
    (
        "model.dim=[1",
        "'model.dim=[1', line 1, column 3: not YAML: while parsing a flow sequence; expected ',' "
        "or ']', but got '<stream end>'",
    ),
    ("stage.name=first", "stage.name: 'first' is not one of contrastive, alignment, finetune"),
]

MANY = {
    "model.dim=zero": "model.dim: 'zero' is not an int",
    "model.dims=3": "model: unknown key 'dims'; did you mean 'dim'?",
    "train.precision=fp8": "train.precision: 'fp8' is not one of fp32, bf16",
    "loss.temperature=-1": "loss.temperature: -1.0 is not at least 1e-06",
    "train.seed=-1": "train.seed: -1 is not at least 0",
    "data.fps=[1]": "data.fps: [1] is not a number",
    "nonsense": f"'nonsense': {EXPECTED}",
}


def refused(*overrides: str) -> list[str]:
    with pytest.raises(UserError) as error:
        load_run(DEMO, "finetune", overrides)
    return [line.removeprefix("  - ") for line in str(error.value).splitlines()[1:]]


@pytest.mark.parametrize(("override", "message"), REFUSED, ids=[o for o, _ in REFUSED])
def test_a_wrong_override_is_refused_with_its_key_and_what_is_wrong(
    override: str, message: str
) -> None:
    assert refused(override) == [message]


def test_a_key_that_takes_a_number_or_a_word_says_what_either_would_be() -> None:
    said = ["model.visual_chunk: 0 is not at least 1", "model.visual_chunk: 0 is not one of auto"]
    assert refused("model.visual_chunk=0") == said
    said = [
        "model.lora_targets: 'q_proj' is not a list",
        "model.lora_targets: 'q_proj' is not one of all",
    ]
    assert refused("model.lora_targets=q_proj") == said
    assert "model.lora_targets: 3 is not a str" in refused("model.lora_targets=[q_proj, 3]")


def test_every_error_of_every_override_comes_at_once() -> None:
    assert sorted(refused(*MANY)) == sorted(MANY.values())


def test_every_error_of_a_resolved_configuration_comes_at_once(tmp_path: Path) -> None:
    plain = load_run(DEMO, "alignment").to_dict()
    path = tmp_path / "config.yaml"
    plain["train"] = {"seed": "x", "precison": "fp32"}
    plain["loss"] = {"tau": 1, 3: 4}
    path.write_text(yaml.safe_dump(plain))
    with pytest.raises(UserError) as error:
        load_resolved(path)
    for message in (
        "train.micro_batch_size: missing; it has no default",
        "train.precision: missing; it has no default",
        "train.gradient_clipping: missing; it has no default",
        "train.seed: 'x' is not an int",
        "train: unknown key 'precison'; did you mean 'precision'?",
        "loss: unknown key 'tau'",
        "loss: unknown key '3'",
    ):
        assert message in str(error.value)
    assert "(7)" in str(error.value)


@pytest.mark.parametrize("text", [".nan", ".inf", "-.inf"])
def test_the_power_of_the_length_is_a_number(text: str) -> None:
    (message,) = refused(f"evaluation.length_penalty={text}")
    assert message.startswith("evaluation.length_penalty: ")


@pytest.mark.parametrize(
    ("cls", "values"),
    [
        (LossConfig, {"temperature": 0}),
        (LossConfig, {"tau": 0.07}),
        (EvaluationConfig, {"num_beams": True}),
        (EvaluationConfig, {"num_beams": "4"}),
        (TrainConfig, {}),
    ],
)
def test_a_section_is_checked_wherever_it_is_made(cls: type, values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        cls(**values)


def test_a_section_is_a_plain_dataclass_that_cannot_be_changed() -> None:
    loss = LossConfig()
    assert dataclasses.asdict(loss)["temperature"] == loss.temperature == 0.07
    defaults = {item.name: item.default for item in dataclasses.fields(ModelConfig)}
    assert defaults["dim"] == ModelConfig.dim == 512
    assert dataclasses.replace(loss, temperature=1).temperature == 1.0
    with pytest.raises(ValidationError):
        dataclasses.replace(loss, temperature=0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        loss.temperature = 1.0  # type: ignore[misc]


def test_what_may_differ_where_a_model_is_loaded_may_differ_from_the_stage_before() -> None:
    assert {"llm", "visual_chunk", "attention"} <= set(names_with(ModelConfig, "load"))
    assert {"llm", "lora_rank", "norm"} <= set(names_with(ModelConfig, "load", "stage"))
    assert "dim" not in names_with(ModelConfig, "load", "stage", "resume")
    assert set(keys_with("load", "stage")) <= {f"model.{name}" for name in names_of("model")}


def names_of(section: str) -> list[str]:
    return [item.name for item in dataclasses.fields(SECTIONS[section])]


def test_how_a_run_is_decoded_may_change_when_it_goes_on() -> None:
    assert {f"evaluation.{n}" for n in names_of("evaluation")} <= set(keys_with("resume"))
