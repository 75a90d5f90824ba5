"""The DeepSpeed dictionary: complete before it is handed over, compared with the engine after."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from signfuse_dist.config import TrainConfig
from signfuse_dist.errors import UserError, raise_together
from signfuse_dist.files import locate, parse_json, read_text
from signfuse_dist.plan import Plan


def resolve(template: Path, plan: Plan, train: TrainConfig) -> dict[str, Any]:
    """Fill a template of ``ds_configs/`` so that nothing is left for anyone else to decide.

    The template owns memory (stage, buckets, offload); batch sizes come from the plan, precision
    and clipping from the experiment. Raises :class:`UserError` naming every key that is missing,
    misplaced or still "auto".
    """
    name = f"DeepSpeed template {template}"
    values = parse_json(read_text(locate(template), name), name)
    if not isinstance(values, dict):
        raise UserError(f"DeepSpeed template {template}: holds something else than an object")
    errors = [
        f"{key!r} does not belong there: {reason}"
        for key, reason in _NOT_IN_TEMPLATE.items()
        if key in values
    ]
    if "gradient_clipping" not in values:
        errors.append("'gradient_clipping' is missing")
    for section, key in _REQUIRED:
        if not isinstance(values.get(section), dict) or key not in values[section]:
            errors.append(f"{section!r} with {key!r} in it is missing")
    errors += [
        f"{key!r} is {value}, no finite number"
        for key, value in _leaves(values, "")
        if isinstance(value, float) and not math.isfinite(value)
    ]
    raise_together(errors, f"{name}: cannot be used")
    values["gradient_clipping"] = train.gradient_clipping
    values["torch_autocast"]["enabled"] = train.precision == "bf16"
    values["train_micro_batch_size_per_gpu"] = plan.micro_batch_size
    values["gradient_accumulation_steps"] = plan.accumulation
    values["train_batch_size"] = plan.global_batch_size
    errors = [f"{key} is still 'auto'" for key, value in _leaves(values, "") if value == "auto"]
    raise_together(errors, name)
    return dict(values)


# Without a list of modules DeepSpeed reduces the gradients of every nn.Linear and nn.Conv in
# bfloat16, 1e-3 from what plain DDP sums in float32.
_REQUIRED = (
    ("torch_autocast", "enabled"),
    ("torch_autocast", "lower_precision_safe_modules"),
    ("zero_optimization", "stage"),
)
_NOT_IN_TEMPLATE = {
    "train_batch_size": "the plan derives it",
    "train_micro_batch_size_per_gpu": "it is train.micro_batch_size",
    "gradient_accumulation_steps": "the plan derives it",
    "optimizer": "it is torch's AdamW, with stage.learning_rate",
    "scheduler": "the schedule is a function of the step",
    "bf16": "it casts the trained weights as well; torch_autocast keeps them in fp32",
    "fp16": "it casts the trained weights as well; torch_autocast keeps them in fp32",
}


def verify_live(engine: Any, resolved: dict[str, Any], world_size: int) -> None:
    """Ask the running engine what it does; raise RuntimeError where it is not what was asked."""
    actual = {
        "train_micro_batch_size_per_gpu": engine.train_micro_batch_size_per_gpu(),
        "gradient_accumulation_steps": engine.gradient_accumulation_steps(),
        "train_batch_size": engine.train_batch_size(),
        "gradient_clipping": engine.gradient_clipping(),
        "torch_autocast": engine.torch_autocast_enabled(),
        "lower_precision_safe_modules": engine.torch_autocast_lower_precision_safe_modules(),
        "zero_stage": engine.zero_optimization_stage(),
        "world_size": engine.dp_world_size,
        "bf16": engine.bfloat16_enabled(),
        "fp16": engine.fp16_enabled(),
    }
    expected = {
        **{key: resolved[key] for key in actual if key in resolved},
        "torch_autocast": resolved["torch_autocast"]["enabled"],
        "lower_precision_safe_modules": resolved["torch_autocast"]["lower_precision_safe_modules"],
        "zero_stage": resolved["zero_optimization"]["stage"],
        "world_size": world_size,
        "bf16": False,
        "fp16": False,
    }
    wrong = {k: (expected[k], actual[k]) for k in actual if expected[k] != actual[k]}
    if wrong:
        lines = [f"{k}: asked for {e}, running with {a}" for k, (e, a) in wrong.items()]
        raise RuntimeError("DeepSpeed does not run as configured: " + "; ".join(lines))


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield every value that is no object and no list, with the keys that lead to it."""
    if not isinstance(value, (dict, list)):
        yield path, value
        return
    dot = "." if path else ""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _leaves(inner, f"{path}{dot}{key}")
