"""Batch norm by its three policies, along time and over feature maps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.model_factory import draw_clips, join, scramble, small_model
from helpers.repository import ROOT
from signfuse_dist.batch import length_mask
from signfuse_dist.config import LossConfig
from signfuse_dist.experiment import load_run
from signfuse_dist.model import norm as norm_module
from signfuse_dist.model.norm import BatchNorm, ImageBatchNorm
from signfuse_dist.objective import StageObjective, prepare, set_mode
from signfuse_dist.preflight.check import caveats

DEMO = str(ROOT / "configs" / "experiment" / "demo.yaml")
POLICIES = ("frozen", "sync", "local")


def _norm(policy: str, kind: type[Any] = BatchNorm) -> Any:
    return scramble(kind(5, policy).double())


def _steps() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, 7, dtype=torch.float64, generator=generator) * 3 + 2
    return x, length_mask(torch.tensor([7, 1, 4]), 7)


@pytest.mark.parametrize("policy", POLICIES)
def test_in_evaluation_every_policy_is_the_same_function(policy: str) -> None:
    x, counted = _steps()
    norm = _norm(policy).train(False)
    torch.testing.assert_close(norm(x, counted), _norm("sync").train(False)(x, counted))


def test_frozen_statistics_are_the_same_function_in_training_and_do_not_move() -> None:
    x, counted = _steps()
    norm = _norm("frozen").train(False)
    before, statistics = norm(x, counted), norm.running_mean.clone()
    norm.train()
    assert torch.equal(norm(x, counted), before)
    assert torch.equal(norm.running_mean, statistics)
    (gradient,) = torch.autograd.grad(norm(x, counted).sum(), norm.weight)
    assert gradient.any()


def test_local_statistics_are_those_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if another process with the same clips were there: sync counts it, local does not."""
    asked: list[Tensor] = []

    def double(x: Tensor) -> Tensor:
        asked.append(x)
        return 2 * x

    monkeypatch.setattr(norm_module, "sum_over_processes", double)
    x, counted = _steps()
    local, sync = _norm("local").train(), _norm("sync").train()
    found = local(x, counted)
    assert asked == []
    torch.testing.assert_close(found, sync(x, counted))
    assert len(asked) == 2
    torch.testing.assert_close(local.running_mean, sync.running_mean)
    assert not torch.allclose(local.running_var, sync.running_var)  # n / (n - 1) differs


@pytest.mark.parametrize("policy", ["sync", "local"])
def test_over_feature_maps_it_is_torchs_batch_norm(policy: str) -> None:
    ours, theirs = _norm(policy, ImageBatchNorm), nn.BatchNorm2d(5).double()
    theirs.load_state_dict({**ours.state_dict(), "num_batches_tracked": torch.tensor(0)})
    x = torch.randn(4, 5, 3, 2, dtype=torch.float64, requires_grad=True)
    probe = torch.randn_like(x)
    for training in (True, False):
        ours.train(training)
        theirs.train(training)
        torch.testing.assert_close(ours(x), theirs(x))
        for a, b in zip(
            torch.autograd.grad((ours(x) * probe).sum(), [x, *ours.parameters()]),
            torch.autograd.grad((theirs(x) * probe).sum(), [x, *theirs.parameters()]),
            strict=True,
        ):
            torch.testing.assert_close(a, b)


def _trained(policy: str, batch: Any) -> tuple[Any, ...]:
    model = small_model(visual_norm=policy, norm="sync")
    prepare(model, "contrastive", LossConfig())
    set_mode(model, "contrastive")
    (total,) = StageObjective("contrastive", LossConfig())(model, batch).values()
    total.backward()
    return (
        {n: p.grad for n, p in model.named_parameters() if p.grad is not None},
        dict(model.named_buffers()),
        total.detach(),
    )


@pytest.mark.parametrize("policy", POLICIES)
def test_clips_of_weight_zero_enter_no_statistic_of_the_resnet(policy: str) -> None:
    clips = draw_clips([3, 6, 2, 4])
    ghosts = [replace(clip, counted=False) for clip in clips[2:]]
    found = _trained(policy, join([clips[0], *ghosts, clips[1]]))
    expected = _trained(policy, join(clips[:2]))
    torch.testing.assert_close(found[2], expected[2], rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(found[:2], expected[:2], strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            torch.testing.assert_close(value, theirs[name], rtol=2e-3, atol=5e-5, msg=name)


@pytest.mark.parametrize("policy", ["sync", "local"])
def test_a_process_without_a_real_clip_teaches_the_resnet_nothing(policy: str) -> None:
    before = dict(small_model(visual_norm=policy, norm="sync").named_buffers())
    batch = join([replace(clip, counted=False) for clip in draw_clips([2, 1])])
    gradients, buffers, total = _trained(policy, batch)
    assert float(total) == 0.0
    trained = small_model(visual_norm=policy, norm="sync")
    prepare(trained, "contrastive", LossConfig())
    reached = {name for name, p in trained.named_parameters() if p.requires_grad}
    assert gradients.keys() == reached  # a process that skips one stops all others
    for name, gradient in gradients.items():
        assert not gradient.any(), name
    for name, buffer in before.items():
        assert torch.equal(buffers[name], buffer), name


@pytest.mark.parametrize("policy", ["sync", "local"])
def test_statistics_of_the_resnet_move_in_training(policy: str) -> None:
    before = dict(small_model(visual_norm=policy).named_buffers())
    _, after, _ = _trained(policy, join(draw_clips([3, 2])))
    name = "visual.backbone.layer3.0.bn1.running_mean"
    assert not torch.equal(after[name], before[name])


def test_local_statistics_are_warned_of_where_several_processes_train() -> None:
    run = load_run(DEMO, "finetune", ["model.norm=local"])
    (warning,) = caveats(run, 2)
    assert "model.norm=local" in warning
    assert "2 processes" in warning
    assert caveats(run, 1) == []
    assert caveats(load_run(DEMO, "finetune", ["model.norm=sync"]), 2) == []
    both = load_run(DEMO, "finetune", ["model.norm=local", "model.visual_norm=local"])
    assert len(caveats(both, 4)) == 2


def _shared(steps: list[int]) -> tuple[BatchNorm, Tensor, Tensor]:
    """Three joints of two coordinates, of which the second is there in few steps; seen 200 times.

    Return the norm, values ``[4, 6, 50]`` and which of them count.
    """
    generator = torch.Generator().manual_seed(0)
    norm = BatchNorm(6, "sync").double().train()
    norm.period = 2
    spread = torch.tensor([2.0, 20.0, 0.5, 5.0, 1.0, 10.0], dtype=torch.float64)[:, None]
    middle = torch.arange(6, dtype=torch.float64)[:, None]
    x = torch.randn(4, 6, 50, dtype=torch.float64, generator=generator) * spread + middle
    counted = torch.ones(4, 6, 50, dtype=torch.bool)
    counted[:, 2:4] = False
    counted[:, 2:4, steps] = True
    for _ in range(200):
        norm(x, counted)
    return norm, x, counted


def test_channels_that_share_a_variance_are_divided_by_that_of_all_their_values() -> None:
    norm, x, counted = _shared([3, 8])
    out = norm(x, counted)
    for of in (0, 1):
        apart = [x[:, c][counted[:, c]] for c in range(of, 6, 2)]
        variance = torch.cat([values - values.mean() for values in apart]).square().mean()
        for c, values in zip(range(of, 6, 2), apart, strict=True):
            expected = (x[:, c] - values.mean()) * torch.rsqrt(variance + norm.eps)
            torch.testing.assert_close(out[:, c][counted[:, c]], expected[counted[:, c]])


@pytest.mark.parametrize("steps", [[3, 8], [3], []])
def test_channels_that_share_a_variance_share_it_in_evaluation_too(steps: list[int]) -> None:
    """However seldom a joint is there, and where it never was."""
    norm, x, counted = _shared(steps)
    trained = norm(x, counted)
    found = norm.eval()(x, counted)
    assert torch.equal(norm.running_var[:2].repeat(3), norm.running_var)
    torch.testing.assert_close(found[counted], trained[counted], rtol=0.01, atol=1e-4)
