"""The DeepSpeed dictionary: nothing in it is left to be guessed, and the engine obeys it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.repository import ROOT
from signfuse_dist.config import StageConfig, TrainConfig
from signfuse_dist.engine.ds_config import resolve, verify_live
from signfuse_dist.errors import UserError
from signfuse_dist.plan import Plan, make_plan

SHIPPED = sorted((ROOT / "ds_configs").glob("*.json"))
TEMPLATE: dict[str, Any] = {
    "gradient_clipping": "auto",
    "torch_autocast": {
        "enabled": "auto",
        "dtype": "bfloat16",
        "lower_precision_safe_modules": [],
    },
    "zero_optimization": {"stage": 2},
}


def train_config(**changes: Any) -> TrainConfig:
    values = {"micro_batch_size": 2, "precision": "fp32", "gradient_clipping": 0.5}
    return TrainConfig(**{**values, "global_batch_size": 16, **changes})


def plan(train: TrainConfig) -> Plan:
    stage = StageConfig(name="contrastive", epochs=1, learning_rate=1e-3, warmup_epochs=0)
    return make_plan(20, stage, train, world_size=2)


def resolved(template: Path, **changes: Any) -> dict[str, Any]:
    train = train_config(**changes)
    return resolve(template, plan(train), train)


def written(folder: Path, value: Any) -> Path:
    path = folder / "template.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


@pytest.mark.parametrize("template", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_template_is_resolved_to_the_last_value(template: Path) -> None:
    values = resolved(template)
    assert '"auto"' not in json.dumps(values)
    assert values["train_micro_batch_size_per_gpu"] == 2
    assert values["gradient_accumulation_steps"] == 4
    assert values["train_batch_size"] == 16
    assert values["gradient_clipping"] == 0.5
    assert values["torch_autocast"]["enabled"] is False
    assert isinstance(values["zero_optimization"]["stage"], int)


def test_there_are_templates_to_resolve() -> None:
    assert "zero2.json" in [path.name for path in SHIPPED]


@pytest.mark.parametrize("template", SHIPPED, ids=lambda path: path.name)
def test_bf16_turns_autocast_on_and_nothing_else(template: Path) -> None:
    fp32, bf16 = resolved(template), resolved(template, precision="bf16")
    assert bf16["torch_autocast"].pop("enabled") is True
    assert fp32["torch_autocast"].pop("enabled") is False
    assert bf16["torch_autocast"]["dtype"] == "bfloat16"
    assert bf16 == fp32
    assert not {"bf16", "fp16"} & bf16.keys()


MISPLACED = (
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps",
    "optimizer", "scheduler", "bf16", "fp16",
)  # fmt: skip


@pytest.mark.parametrize("key", MISPLACED)
def test_what_another_file_owns_is_refused_by_name(tmp_path: Path, key: str) -> None:
    with pytest.raises(UserError, match=f"'{key}' does not belong there") as refused:
        resolved(written(tmp_path, {**TEMPLATE, key: {"enabled": False}}))
    assert str(tmp_path / "template.json") in str(refused.value)


@pytest.mark.parametrize("key", TEMPLATE)
def test_what_a_template_must_have_is_asked_for_by_name(tmp_path: Path, key: str) -> None:
    without = {k: v for k, v in TEMPLATE.items() if k != key}
    with pytest.raises(UserError, match=f"'{key}'.* is missing"):
        resolved(written(tmp_path, without))


@pytest.mark.parametrize("section", ["torch_autocast", "zero_optimization"])
@pytest.mark.parametrize("value", [3, {}, "auto"])
def test_a_section_that_is_not_one_is_refused(tmp_path: Path, section: str, value: Any) -> None:
    with pytest.raises(UserError, match=section):
        resolved(written(tmp_path, {**TEMPLATE, section: value}))


def test_all_errors_of_a_template_come_together(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        resolved(written(tmp_path, {"optimizer": {}, "bf16": {}}))
    for name in ("optimizer", "bf16", "gradient_clipping", "torch_autocast", "zero_optimization"):
        assert f"'{name}'" in str(refused.value)


def test_a_value_that_is_still_auto_is_named_by_its_place(tmp_path: Path) -> None:
    deep = {"stage": 2, "offload": [{"device": "auto"}], "reduce_bucket_size": "auto"}
    with pytest.raises(UserError) as refused:
        resolved(written(tmp_path, {**TEMPLATE, "zero_optimization": deep}))
    assert "zero_optimization.reduce_bucket_size is still 'auto'" in str(refused.value)
    assert "zero_optimization.offload.0.device is still 'auto'" in str(refused.value)


@pytest.mark.parametrize("text", ["{", "[]", "3", "null"])
def test_a_template_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"template\.json"):
        resolved(written(tmp_path, text))


def test_a_template_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.json"):
        resolved(tmp_path / "absent.json")


class Engine:
    """Answers as DeepSpeed's engine does, from a table."""

    def __init__(self, **changes: Any) -> None:
        answers = {
            "train_micro_batch_size_per_gpu": 2,
            "gradient_accumulation_steps": 4,
            "train_batch_size": 16,
            "gradient_clipping": 0.5,
            "torch_autocast_enabled": False,
            "torch_autocast_lower_precision_safe_modules": [],
            "zero_optimization_stage": 2,
            "bfloat16_enabled": False,
            "fp16_enabled": False,
        }
        self.dp_world_size = changes.pop("dp_world_size", 2)
        self._answers = {**answers, **changes}

    def __getattr__(self, name: str) -> Any:
        return lambda: self._answers[name]


def test_an_engine_that_obeys_is_accepted(tmp_path: Path) -> None:
    verify_live(Engine(), resolved(written(tmp_path, TEMPLATE)), 2)
    bf16 = resolved(written(tmp_path, TEMPLATE), precision="bf16")
    verify_live(Engine(torch_autocast_enabled=True), bf16, 2)


@pytest.mark.parametrize(
    ("answer", "value", "said"),
    [
        ("train_micro_batch_size_per_gpu", 1, "asked for 2, running with 1"),
        ("gradient_accumulation_steps", 1, "asked for 4, running with 1"),
        ("train_batch_size", 32, "asked for 16, running with 32"),
        ("gradient_clipping", 1.0, "asked for 0.5, running with 1.0"),
        ("torch_autocast_enabled", True, "torch_autocast: asked for False"),
        (
            "torch_autocast_lower_precision_safe_modules",
            ["torch.nn.modules.linear.Linear"],
            "lower_precision_safe_modules: asked for []",
        ),
        ("zero_optimization_stage", 0, "zero_stage: asked for 2, running with 0"),
        ("dp_world_size", 1, "world_size: asked for 2, running with 1"),
        ("bfloat16_enabled", True, "bf16: asked for False, running with True"),
        ("fp16_enabled", True, "fp16: asked for False, running with True"),
    ],
)
def test_an_engine_that_does_something_else_is_stopped(
    tmp_path: Path, answer: str, value: Any, said: str
) -> None:
    with pytest.raises(RuntimeError, match="does not run as configured") as stopped:
        verify_live(Engine(**{answer: value}), resolved(written(tmp_path, TEMPLATE)), 2)
    assert said in str(stopped.value)
    assert str(stopped.value).count("asked for") == 1
