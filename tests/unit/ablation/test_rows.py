"""The rows of the ablations: each builds, trains in each of its stages, and is counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from helpers.model_factory import draw_clips, join, small_config, small_model, tiny_llama
from helpers.repository import ROOT
from signfuse_dist.ablation.rows import AblationRow, read_ablation
from signfuse_dist.cli import main
from signfuse_dist.config import LossConfig, StageName
from signfuse_dist.experiment import load_stages
from signfuse_dist.model.cmfa import CrossModalFusion
from signfuse_dist.model.hta import TemporalPooling
from signfuse_dist.model.signfuse import SignFuse, count_parameters
from signfuse_dist.objective import StageObjective, prepare, set_mode

DEMO = str(ROOT / "configs" / "experiment" / "demo.yaml")
LLAMA_DIM = 4096
# The rows of `backbones` differ in the LLM alone, which these tests do not load.
ABLATIONS = [
    read_ablation(ROOT / "configs" / "ablation" / f"{name}.yaml")
    for name in ("components", "fusion", "layers", "scales", "stages")
]
ROWS = [(ablation.name, row) for ablation in ABLATIONS for row in ablation.rows]
each_row = pytest.mark.parametrize(
    "row",
    [row for _, row in ROWS],
    ids=[f"{name}-{row.name}".replace(" ", "_") for name, row in ROWS],
)


def changes(row: AblationRow, section: str) -> dict[str, Any]:
    """The row's words for one section, as values."""
    found = {}
    for word in row.overrides:
        key, _, text = word.partition("=")
        if key.startswith(f"{section}."):
            value = yaml.safe_load(text)
            found[key.partition(".")[2]] = tuple(value) if isinstance(value, list) else value
    return found


def losses(
    model: SignFuse, stage: StageName, config: LossConfig, batch: Any
) -> tuple[torch.Tensor, StageObjective]:
    objective = StageObjective(stage, config)
    sums = objective(model, batch)
    assert sums.keys() == objective.weights.keys()
    return torch.stack([objective.weights[n] * value for n, value in sums.items()]).sum(), objective


@each_row
def test_every_trained_parameter_gets_a_gradient_in_every_stage(row: AblationRow) -> None:
    """A process that skips a trained module stops all others."""
    config = LossConfig(**changes(row, "loss"))
    stages = [run.stage.name for run in load_stages(DEMO, row.overrides)]
    assert stages == list(changes(row, "train").get("stages", stages))
    batch = join(draw_clips([4, 3]))
    for stage in stages:
        model = small_model(**changes(row, "model"))
        prepare(model, stage, config)
        set_mode(model, stage)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # starts at zero, which hides A's gradient
                nn.init.normal_(parameter, std=0.1)
        before, _ = losses(model, stage, config, batch)
        before.backward()
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        assert trained
        for name, parameter in trained.items():
            assert parameter.grad is not None, (stage, name)
            assert parameter.grad.abs().max() > 0, (stage, name)
        torch.optim.SGD(trained.values(), lr=1e-4).step()
        after, _ = losses(model, stage, config, batch)
        assert after.item() < before.item(), stage


@each_row
@torch.no_grad()
def test_a_row_translates_and_a_clip_does_not_see_its_neighbours(row: AblationRow) -> None:
    model = small_model(**changes(row, "model"))
    clips = draw_clips([5, 1, 2])
    together, gate = model.embed_signs(model.encode(join(clips)))
    for place, clip in enumerate(clips):
        alone, _ = model.embed_signs(model.encode(join([clip])))
        torch.testing.assert_close(together[place : place + 1], alone, rtol=1e-4, atol=1e-5)
    gated = changes(row, "model")
    has_gate = gated.get("fusion", "cmfa") == "cmfa" and gated.get("fusion_layers", 2) > 0
    assert (gate is not None) == (has_gate and gated.get("streams", "both") == "both")


def test_the_table_counts_every_row_from_one_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    llm = tiny_llama().config
    llm.hidden_size = LLAMA_DIM
    llm.save_pretrained(tmp_path)
    names = ",".join(a.name for a in ABLATIONS)
    overrides = ["model=llama2_7b", f"model.llm={tmp_path}"]
    assert main(["ablate", names, DEMO, *overrides, "--parameters"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == [
        "stages",
        "visual",
        "skeletal",
        "fusion",
        "temporal",
        "adapter",
        "total",
    ]
    assert len(lines) == len(ROWS) == 30
    rows = dict(zip(((name, row.name) for name, row in ROWS), lines, strict=True))
    for (ablation, name), line in rows.items():
        assert line.startswith(ablation)
        assert name in line
        *parts, total = (int(cell.replace(",", "")) for cell in line.split()[-6:])
        assert total == sum(parts)
    full = int(rows["components", "+ progressive training"].split()[-1].replace(",", ""))
    assert full == pytest.approx(65.9e6, rel=0.01)  # Table 1
    # What each switch takes away, by the equations: d = 512.
    expected = {
        ("fusion", "both directions, no gate"): 3 * (1024 * 512 + 512),
        ("fusion", "V->S"): 3 * (1024 * 512 + 512 + 4 * 512 * 512 + 512),
        ("scales", "frame, segment"): (11 * 512 + 512) + (512 * 512 + 512) + 512 * 512,
        ("stages", "finetune alone"): 0,
    }
    for key, less in expected.items():
        assert full - int(rows[key].split()[-1].replace(",", "")) == less, key


def test_a_stream_that_is_left_out_is_not_built() -> None:
    for stream, other in (("visual", "skeletal"), ("skeletal", "visual")):
        model = SignFuse(small_config(streams=stream), (12, 1.0))
        assert getattr(model, other) is None
        assert other not in count_parameters(model)
        assert not any(name.startswith(other) for name in model.state_dict())


@pytest.mark.parametrize("stream", ["visual", "skeletal"])
def test_a_model_of_one_stream_does_not_read_the_other(stream: str) -> None:
    model = small_model(streams=stream)
    one, other = join(draw_clips([4, 3], seed=0)), join(draw_clips([4, 3], seed=1))
    mixed = (
        type(one)(**{**vars(one), "pose": other.pose, "joint_mask": other.joint_mask})
        if stream == "visual"
        else type(one)(**{**vars(one), "frames": other.frames})
    )
    with torch.no_grad():
        found, expected = (model.embed_signs(model.encode(batch))[0] for batch in (mixed, one))
    assert torch.equal(found, expected)


def test_one_stream_has_no_pairs_to_compare() -> None:
    model = small_model(streams="visual")
    with pytest.raises(ValueError, match=r"Eq\. 21 compares two streams"):
        model(join(draw_clips([3, 2])), "unimodal", False)


def test_fusion_without_a_layer_is_the_residual_of_equation_11() -> None:
    visual, skeletal = torch.randn(2, 1, 5, 4)
    mask = torch.arange(5)[None] < 3
    fused, gate = CrossModalFusion(4, 0, 2, 8, "cmfa", 1.0)(visual, skeletal, mask)
    assert gate is None
    torch.testing.assert_close(fused, (visual + skeletal) / 2 * mask[..., None])


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_without_hta_the_fused_features_are_pooled_as_they_are(steps: int) -> None:
    x = torch.randn(1, steps + 2, 4, dtype=torch.float64)
    found = TemporalPooling(3)(x, torch.tensor([steps]))
    expected = nn.AdaptiveAvgPool1d(3)(x[:, :steps].transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("features", "trained"),
    [
        ("unimodal", {"visual", "skeletal", "fusion"}),
        ("streams", {"visual", "skeletal"}),
        ("attended", {"visual", "skeletal", "fusion"}),
    ],
)
@pytest.mark.parametrize("fusion", ["cmfa", "no_gate"])
def test_the_contrastive_stage_trains_what_its_features_reach(
    features: str, trained: set[str], fusion: str
) -> None:
    config = LossConfig(contrastive_features=features)  # type: ignore[arg-type]
    model = small_model(fusion=fusion)
    prepare(model, "contrastive", config)
    total, _ = losses(model, "contrastive", config, join(draw_clips([4, 3])))
    total.backward()
    moving = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert {name.partition(".")[0] for name in moving} == trained
    for name, parameter in moving.items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    if features == "attended":
        assert all(".layers.0." in n and "_from_" in n for n in moving if n.startswith("fusion"))
