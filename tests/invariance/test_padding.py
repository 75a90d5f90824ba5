"""A clip's output does not depend on its neighbours in the batch, nor does training on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.model_factory import draw_clips, join, scramble, small_config, small_model
from signfuse_dist.batch import SignBatch, length_mask
from signfuse_dist.config import EvaluationConfig, LossConfig, StageName
from signfuse_dist.model.cmfa import CrossModalFusion
from signfuse_dist.model.hta import TemporalAggregation
from signfuse_dist.model.norm import BatchNorm, StepNorm
from signfuse_dist.model.signfuse import SignFuse
from signfuse_dist.model.skeletal import SkeletalStream
from signfuse_dist.model.sla import SignLanguageAdapter
from signfuse_dist.objective import StageObjective, prepare, set_mode

LENGTHS = (3, 1, 9, 2, 5)
STAGES: tuple[StageName, ...] = ("contrastive", "alignment", "finetune")
Outputs = Callable[[SignBatch], list[Tensor]]


def _visual(model: Any) -> Outputs:
    def run(batch: SignBatch) -> list[Tensor]:
        steps = (batch.frame_lengths + 1) // 2
        longest = batch.pose.shape[1]
        out = model.visual(batch.frames, batch.frame_lengths, steps, batch.weight, longest)
        return _cut(out, steps)

    return run


def _skeletal(model: Any) -> Outputs:
    def run(batch: SignBatch) -> list[Tensor]:
        out = model.skeletal(batch.pose, batch.joint_mask, batch.frame_lengths, batch.weight)
        return _cut(out, (batch.frame_lengths + 1) // 2)

    return run


def _cmfa(model: Any) -> Outputs:
    def run(batch: SignBatch) -> list[Tensor]:
        streams = model.encode(batch)
        fused, gate = model.fusion(streams.visual, streams.skeletal, streams.mask)
        return _cut(torch.cat((fused, gate[:, :, None]), dim=2), streams.step_lengths)

    return run


def _hta(model: Any) -> Outputs:
    def run(batch: SignBatch) -> list[Tensor]:
        streams = model.encode(batch)
        fused, _ = model.fusion(streams.visual, streams.skeletal, streams.mask)
        return list(model.temporal(fused, streams.step_lengths))

    return run


def _sla(model: Any) -> Outputs:
    return lambda batch: list(model.embed_signs(model.encode(batch))[0])


def _summaries(features: str) -> Callable[[Any], Outputs]:
    def make(model: Any) -> Outputs:
        return lambda batch: list(torch.stack(model.summarise(model.encode(batch), features), 1))

    return make


def _language(model: Any) -> Outputs:
    return lambda batch: list(model(batch, None, True).negative_log_likelihood)


def _distance(model: Any) -> Outputs:
    objective = StageObjective("alignment", LossConfig())

    def run(batch: SignBatch) -> list[Tensor]:
        one_clip = [replace(batch, weight=row) for row in torch.eye(len(batch.weight))]
        return [objective(model, clip)["distance"] for clip in one_clip]

    return run


PARTS = {
    "visual": _visual, "skeletal": _skeletal, "cmfa": _cmfa, "hta": _hta, "sla": _sla,
    "unimodal": _summaries("unimodal"), "streams": _summaries("streams"),
    "attended": _summaries("attended"), "language": _language, "distance": _distance,
}  # fmt: skip


def _cut(x: Tensor, lengths: Tensor) -> list[Tensor]:
    return [clip[:length] for clip, length in zip(x, lengths.tolist(), strict=True)]


def _close(found: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    ("norm", "visual_norm", "training"),
    [("sync", "frozen", False), ("layer", "group", False), ("layer", "frozen", True)],
    ids=["batch-eval", "layer-eval", "layer-train"],
)
@torch.no_grad()
def test_a_clip_is_the_same_alone_and_beside_longer_ones(
    norm: str, visual_norm: str, training: bool, part: str
) -> None:
    model = small_model(norm=norm, visual_norm=visual_norm).train(training)
    run, clips = PARTS[part](model), draw_clips(LENGTHS)
    alone = [run(join([clip]))[0] for clip in clips]
    _close(run(join(clips)), alone)
    back = [4, 2, 0, 3, 1]
    _close(run(join([clips[i] for i in back])), [alone[i] for i in back])


@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_translation_is_the_same_alone_and_beside_longer_clips(num_beams: int) -> None:
    model = small_model(seed=2, norm="sync", visual_norm="frozen")
    config = EvaluationConfig(num_beams=num_beams, max_new_tokens=6)

    def translate(batch: SignBatch) -> list[list[int]]:
        sign_embeddings, _ = model.embed_signs(model.encode(batch))
        rows = model.language_model.generate(sign_embeddings, config, end=1)
        return [row[: row.index(1)] if 1 in row else row for row in rows]

    clips = draw_clips(LENGTHS)
    alone = [translate(join([clip]))[0] for clip in clips]
    assert translate(join(clips)) == alone
    assert len({tuple(row) for row in alone}) > 1  # else the test could not fail


@torch.no_grad()
def test_rubbish_beyond_a_clips_end_is_never_read() -> None:
    """Modules that take padded features must not rely on being given zeros there."""
    config = small_config()
    mask = length_mask(torch.tensor([2, 5]), 5)
    clean = torch.randn(2, 5, config.dim) * mask[:, :, None]
    dirty = clean + 9.0 * ~mask[:, :, None]
    fusion = scramble(CrossModalFusion(config.dim, 2, 2, 32, "cmfa", 1.0))
    temporal = scramble(TemporalAggregation(config.dim, (1, 5, 11), (1, 2, 4), 7, 2))
    lengths = torch.tensor([2, 5])
    fused = fusion(clean, clean.flip(2), mask)[0]
    torch.testing.assert_close(fusion(dirty, dirty.flip(2), mask)[0], fused)
    torch.testing.assert_close(temporal(dirty, lengths), temporal(clean, lengths))


@pytest.mark.parametrize("norm", ["sync", "layer"])
@pytest.mark.parametrize("num_frames", [1, 2, 3, 5, 13])
def test_short_and_odd_clips_train_and_translate(num_frames: int, norm: str) -> None:
    model = small_model(norm=norm)
    prepare(model, "finetune", LossConfig())
    set_mode(model, "finetune")
    batch = join(draw_clips([num_frames]))
    streams = model.encode(batch)
    assert streams.visual.shape == streams.skeletal.shape == (1, -(-num_frames // 2), 16)
    sums = StageObjective("finetune", LossConfig())(model, batch)
    torch.stack(list(sums.values())).sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


def _trained(model: Any, stage: StageName, batch: SignBatch) -> tuple[Any, ...]:
    """Return losses, gradients and buffers after one backward pass of a stage."""
    prepare(model, stage, LossConfig())
    set_mode(model, stage)
    sums = StageObjective(stage, LossConfig())(model, batch)
    torch.stack(list(sums.values())).sum().backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return sums, gradients, dict(model.named_buffers())


@pytest.mark.parametrize("stage", STAGES)
def test_clips_of_weight_zero_change_no_loss_gradient_or_running_statistic(
    stage: StageName,
) -> None:
    clips = draw_clips([3, 6, 2, 9])
    ghosts = [replace(clip, counted=False) for clip in clips[2:]]
    found = _trained(small_model(norm="sync"), stage, join([clips[0], *ghosts, clips[1]]))
    expected = _trained(small_model(norm="sync"), stage, join(clips[:2]))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            torch.testing.assert_close(value, theirs[name], rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.parametrize("visual_norm", ["frozen", "sync", "group"])
@pytest.mark.parametrize("stage", STAGES)
def test_the_order_of_the_clips_changes_no_loss_gradient_or_running_statistic(
    stage: StageName, visual_norm: str
) -> None:
    clips = draw_clips([3, 6, 1, 2])
    orders = [[0, 1, 2, 3], [2, 0, 3, 1]]
    found, expected = (
        _trained(
            small_model(norm="sync", visual_norm=visual_norm),
            stage,
            join([clips[i] for i in order]),
        )
        for order in orders
    )
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            torch.testing.assert_close(value, theirs[name], rtol=1e-3, atol=5e-5, msg=name)


@pytest.mark.parametrize("stage", STAGES)
def test_a_batch_without_a_real_clip_teaches_nothing(stage: StageName) -> None:
    """With accumulation, the last micro batches of an epoch can be all places of weight zero."""
    model = small_model(norm="sync")
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    batch = join([replace(clip, counted=False) for clip in draw_clips([1, 1])])
    sums, gradients, buffers = _trained(model, stage, batch)
    assert not any(float(value.detach()) for value in sums.values())
    for name, gradient in gradients.items():
        assert not gradient.any(), name
    for name, buffer in before.items():
        if not name.startswith("language_model."):  # PEFT wraps the LLM under other names
            assert torch.equal(buffers[name], buffer), name


def test_every_module_of_the_encoders_works_in_training_beside_longer_clips() -> None:
    """The same as for the whole model, in float64, where any leak is far above rounding."""
    skeletal = scramble(SkeletalStream((4, 6), (2, 1), 9, StepNorm).double())
    clips = draw_clips([3, 8])
    both, alone = join(clips), join(clips[:1])
    found, expected = (
        skeletal(b.pose.double(), b.joint_mask, b.frame_lengths, b.weight) for b in (both, alone)
    )
    torch.testing.assert_close(found[0, :2], expected[0], rtol=1e-12, atol=1e-12)


def test_the_adapter_treats_each_clip_by_itself() -> None:
    adapter = scramble(SignLanguageAdapter(16, 12, 3, 0.02)).double()
    x = torch.randn(4, 7, 16, dtype=torch.float64)
    torch.testing.assert_close(adapter(x)[2:3], adapter(x[2:3]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("joints", [None, 3])
def test_sync_batch_norm_is_torchs_on_the_concatenated_real_steps(joints: int | None) -> None:
    lengths, trailing = torch.tensor([4, 1, 7]), () if joints is None else (joints,)
    ours, theirs = BatchNorm(5, "sync").double(), nn.BatchNorm1d(5).double()
    scramble(ours)
    state = {**ours.state_dict(), "num_batches_tracked": torch.tensor(0)}
    theirs.load_state_dict(state)
    x = torch.randn(3, 5, 7, *trailing, dtype=torch.float64) + 100  # a mean far from zero
    x.requires_grad_()
    counted = length_mask(lengths, 7)
    order = (0, 2, 1) if joints is None else (0, 2, 3, 1)

    def real(values: Tensor) -> Tensor:
        return values.permute(order)[counted].reshape(-1, 5)

    probe = torch.randn(real(x).shape, dtype=torch.float64)
    for training in (True, False):
        ours.train(training)
        theirs.train(training)
        found, expected = real(ours(x, counted)), theirs(real(x))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        for a, b in zip(
            torch.autograd.grad((found * probe).sum(), [x, *ours.parameters()]),
            torch.autograd.grad((expected * probe).sum(), [x, *theirs.parameters()]),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(ours.running_mean, theirs.running_mean)
        torch.testing.assert_close(ours.running_var, theirs.running_var)


def test_only_real_frames_reach_the_resnet() -> None:
    model: SignFuse = small_model()
    seen: list[int] = []
    model.visual.backbone.register_forward_hook(lambda m, x, y: seen.append(len(x[0])))
    model.encode(join(draw_clips(LENGTHS)))
    assert seen == [sum(LENGTHS)]
