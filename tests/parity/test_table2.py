"""Table 2: epochs, rates and warmup of each stage; batch, weight decay, temperature, lambdas."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from helpers.repository import ROOT
from signfuse_dist.config import LossConfig, StageName, TrainConfig
from signfuse_dist.engine.loop import make_optimizer
from signfuse_dist.experiment import load_run

TABLE = {
    "contrastive": {"epochs": 30, "learning_rate": 1e-4, "warmup_epochs": 3},
    "alignment": {"epochs": 20, "learning_rate": 5e-5, "warmup_epochs": 2},
    "finetune": {"epochs": 15, "learning_rate": 2e-5, "warmup_epochs": 1},
}


@pytest.mark.parametrize("stage", TABLE)
def test_a_stage_file_holds_its_column_of_table_2(stage: StageName) -> None:
    assert yaml.safe_load((ROOT / f"configs/stage/{stage}.yaml").read_text()) == TABLE[stage]


@pytest.mark.parametrize("stage", TABLE)
def test_an_experiment_without_stage_settings_gets_the_column(
    stage: StageName, tmp_path: Path
) -> None:
    folder = tmp_path / "experiment"
    folder.mkdir()
    for name in ("data", "model", "stage"):
        (tmp_path / name).symlink_to(ROOT / "configs" / name)
    (folder / "paper.yaml").write_text(
        "use: {data: synthetic, model: llama2_7b}\n"
        "train: {micro_batch_size: 8, precision: bf16, gradient_clipping: 1.0}\n"
    )
    run = load_run(str(folder / "paper.yaml"), stage)
    found = {key: getattr(run.stage, key) for key in TABLE[stage]}
    assert found == TABLE[stage]
    assert isinstance(run.stage.learning_rate, float)


def test_what_all_stages_share_is_the_papers() -> None:
    train = TrainConfig(micro_batch_size=8, precision="bf16", gradient_clipping=1.0)
    assert train.global_batch_size == 32
    assert train.weight_decay == 0.01
    loss = LossConfig()
    assert loss.temperature == 0.07
    assert (loss.contrastive_weight, loss.alignment_weight) == (0.1, 0.05)


def test_the_optimizer_is_adamw_with_decay_on_matrices() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    optimizer = make_optimizer(model, 1e-4, 0.01)
    assert isinstance(optimizer, torch.optim.AdamW)
    decays = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert {n: decays[id(p)] for n, p in model.named_parameters()} == {
        "0.weight": 0.01,
        "0.bias": 0.0,
        "1.weight": 0.0,
        "1.bias": 0.0,
    }
