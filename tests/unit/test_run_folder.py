"""What a run must have in common with its checkpoint."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from helpers.repository import ROOT
from signfuse_dist.config import load_run
from signfuse_dist.plan import data_position, make_plan
from signfuse_dist.run_folder import identify

CONFIGS = ROOT / "configs" / "experiment"


def identity(output: Path, *words: str, ids: tuple[str, ...] = ("a", "b")) -> dict[str, Any]:
    words = (f"train.output={output}", *words)
    run = load_run(str(CONFIGS / "demo.yaml"), None, words)
    split: Any = SimpleNamespace(ids=ids, lengths=np.array([3, 4], dtype=np.int32))
    return identify(
        run, {"train.seed": run.train.seed}, split, make_plan(2, run.stage, run.train, 2)
    )


def before(output: Path, stage: str, content: str) -> None:
    (output / "demo" / stage / "model").mkdir(parents=True, exist_ok=True)
    (output / "demo" / stage / "model" / "state.json").write_text(content)


def test_it_tells_other_clips_and_another_stage_before_apart(tmp_path: Path) -> None:
    before(tmp_path, "contrastive", "one")
    one = identity(tmp_path, "stage=alignment")
    assert identity(tmp_path, "stage=alignment") == one
    swapped = identity(tmp_path, "stage=alignment", ids=("b", "a"))
    assert [k for k in one if one[k] != swapped[k]] == ["clips_sha256"]
    before(tmp_path, "contrastive", "another")
    other = identity(tmp_path, "stage=alignment")
    assert [k for k in one if one[k] != other[k]] == ["starts_from"]
    seeded = identity(tmp_path, "stage=alignment", "train.seed=1")
    assert [k for k in other if other[k] != seeded[k]] == ["config", "config_sha256"]
    assert identity(tmp_path, "stage=contrastive")["starts_from"] is None


@pytest.mark.parametrize(
    ("words", "meeting"),
    [
        (["stage=contrastive"], 8),
        (["stage=contrastive", "train.micro_batch_size=2"], 4),
        (["stage=contrastive", "train.micro_batch_size=2", "model.norm=layer"], 8),
        (["stage=alignment", "train.stages=[alignment]"], None),
        (["stage=finetune", "train.stages=[finetune]"], 8),
        (["stage=finetune", "train.stages=[finetune]", "loss.contrastive_weight=0"], 8),
        (
            [
                "stage=finetune",
                "train.stages=[finetune]",
                "loss.contrastive_weight=0",
                "model.norm=layer",
            ],
            None,
        ),
        (
            [
                "stage=finetune",
                "train.stages=[finetune]",
                "loss.contrastive_weight=0",
                "model.norm=frozen",
                "model.visual_norm=local",
            ],
            8,
        ),
    ],
)
def test_how_many_clips_meet_counts_where_they_see_each_other(
    tmp_path: Path, words: list[str], meeting: int | None
) -> None:
    assert identity(tmp_path, *words)["meeting"] == meeting


def test_where_the_data_stands_follows_from_the_step() -> None:
    run = load_run(str(CONFIGS / "demo.yaml"), "contrastive")
    plan = make_plan(20, run.stage, run.train, 1)  # 3 steps an epoch
    assert data_position(plan, 5, 0) == {"seed": 5, "epoch": 0, "step": 0, "clips": 20}
    assert data_position(plan, 5, 7) == {"seed": 5, "epoch": 2, "step": 1, "clips": 20}
