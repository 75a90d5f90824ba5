"""A clip that lacks a stream: the other stands on both sides, nothing else in the batch changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from helpers.model_factory import Example, draw_clips, join, small_model
from signfuse_dist.batch import SignBatch
from signfuse_dist.config import LossConfig
from signfuse_dist.errors import UserError
from signfuse_dist.model.flops import StepFlops
from signfuse_dist.model.llm import LanguageModel
from signfuse_dist.model.signfuse import SignFuse
from signfuse_dist.objective import StageObjective, prepare, set_mode

LENGTHS = (3, 1, 9, 2, 5)
PICTURES_ONLY, JOINTS_ONLY = (2,), (0, 3)


def _mixed(lengths: Sequence[int] = LENGTHS) -> list[Example]:
    clips = draw_clips(lengths)
    for i in PICTURES_ONLY:
        clips[i] = replace(clips[i], has_skeletal=False)
    for i in JOINTS_ONLY:
        clips[i] = replace(clips[i], has_visual=False)
    return clips


def _alone(model: SignFuse, streams: str) -> SignFuse:
    """Return the model of one stream that has this model's weights."""
    assert model.language_model is not None
    llm = LanguageModel(model.language_model.model, model.language_model.prompt.tolist())
    one = SignFuse(replace(model.built_from, streams=streams), llm)
    one.load_state_dict(model.state_dict(), strict=False)
    return one.eval()


@torch.no_grad()
def test_a_clip_of_one_stream_is_what_the_model_of_that_stream_makes_of_it() -> None:
    model, clips = small_model(norm="sync", visual_norm="frozen"), _mixed()
    found = model(join(clips), None, True).negative_log_likelihood
    for streams, places in (("visual", PICTURES_ONLY), ("skeletal", JOINTS_ONLY)):
        whole = [replace(clips[i], has_visual=True, has_skeletal=True) for i in places]
        expected = _alone(model, streams)(join(whole), None, True).negative_log_likelihood
        torch.testing.assert_close(found[list(places)], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@torch.no_grad()
def test_a_clip_is_the_same_alone_and_beside_clips_of_other_streams(training: bool) -> None:
    norms = ("layer", "group") if training else ("sync", "frozen")
    model, clips = small_model(norm=norms[0], visual_norm=norms[1]).train(training), _mixed()
    together, gates = model.embed_signs(model.encode(join(clips)))
    for i, clip in enumerate(clips):
        alone, gate = model.embed_signs(model.encode(join([clip])))
        torch.testing.assert_close(together[i], alone[0], rtol=1e-5, atol=1e-5)
        steps = gate.shape[1]
        torch.testing.assert_close(gates[i, :steps], gate[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", ["sync", "local"])
@torch.no_grad()
def test_a_missing_stream_enters_no_statistic(norm: str) -> None:
    """The norms of a stream end up as in a batch of those clips alone that have it."""
    found = small_model(norm=norm, visual_norm=norm).train()
    found.encode(join(_mixed()))
    for stream, missing in (("visual", JOINTS_ONLY), ("skeletal", PICTURES_ONLY)):
        expected = small_model(norm=norm, visual_norm=norm).train()
        expected.encode(join([c for i, c in enumerate(draw_clips(LENGTHS)) if i not in missing]))
        for name, buffer in getattr(expected, stream).named_buffers():
            torch.testing.assert_close(
                getattr(found, stream).get_buffer(name), buffer, rtol=1e-5, atol=1e-6
            )


def test_only_clips_with_pictures_go_through_the_visual_backbone() -> None:
    model, seen = small_model(), []
    model.visual.backbone.register_forward_hook(lambda part, given, out: seen.append(len(given[0])))
    model.encode(join(_mixed()))
    assert seen == [sum(n for i, n in enumerate(LENGTHS) if i not in JOINTS_ONLY)]


@pytest.mark.parametrize("visual_norm", ["frozen", "sync", "group"])
def test_every_parameter_has_a_gradient_where_no_clip_has_pictures(visual_norm: str) -> None:
    """Else DDP would wait for it. It is zero, as nothing was seen."""
    model = small_model(norm="sync", visual_norm=visual_norm)
    model.language_model = None
    set_mode(model, "contrastive")
    prepare(model, "contrastive", LossConfig())
    batch = join([replace(clip, has_visual=False) for clip in draw_clips((4, 2))])
    streams = model.encode(batch)
    streams.visual.sum().backward()
    for name, parameter in model.visual.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() == 0, name


def test_eq21_compares_the_clips_that_have_both_streams() -> None:
    model, objective = small_model(), StageObjective("contrastive", LossConfig())
    model.language_model = None
    clips = _mixed()
    both = [c for c in clips if c.has_visual and c.has_skeletal]
    assert objective.counts(join(clips))["contrastive"] == len(both) == 2
    found = objective(model, join(clips))["contrastive"]
    torch.testing.assert_close(found, objective(model, join(both))["contrastive"])
    summaries = objective.summarise(model, join(clips))
    (compared,) = objective.compare([join(clips)], [summaries])
    torch.testing.assert_close(compared.value, found.detach())
    assert objective.counts(join(draw_clips(LENGTHS)))["contrastive"] == len(LENGTHS)


def test_operations_are_those_of_the_streams_that_are_there() -> None:
    model = small_model()
    prepare(model, "contrastive", LossConfig())
    count = StepFlops(model, "unimodal", language=False)
    mixed = count(join(_mixed()))
    for stream, missing in (("visual", JOINTS_ONLY), ("skeletal", PICTURES_ONLY)):
        there = [c for i, c in enumerate(draw_clips(LENGTHS)) if i not in missing]
        assert mixed[stream] == count(join(there))[stream]
    assert mixed["fusion"] == count(join(draw_clips(LENGTHS)))["fusion"]


def test_a_clip_that_a_model_of_one_stream_cannot_read_is_named() -> None:
    model = _alone(small_model(), "skeletal")
    with pytest.raises(UserError, match=r"streams=skeletal needs joints.*none.*\n.*clip 2"):
        model.encode(join(_mixed()))
    _alone(small_model(), "visual").encode(join([_mixed()[2]]))


def test_a_clip_with_neither_stream_is_named_unless_its_weight_is_zero() -> None:
    clips = draw_clips((2, 3))
    clips[1] = replace(clips[1], has_visual=False, has_skeletal=False)
    with pytest.raises(UserError, match="clip 1"):
        join(clips)
    out = small_model().encode(join([clips[0], replace(clips[1], counted=False)]))
    assert out.visual.isfinite().all()


def test_pictures_are_augmented_where_they_are() -> None:
    """Each frame by its own clip's colour, though the clip before it has no pictures."""
    clips = draw_clips((2, 3))
    clips[0] = replace(clips[0], has_visual=False)
    batch = join(clips)
    same = torch.eye(3, 4)
    still = torch.eye(2, 3).repeat(2, 1, 1)
    changed = replace(batch, warp=still, colour=torch.stack((0 * same, same))).augmented()
    assert torch.equal(changed.frames, batch.frames)
    none = join([clips[0]])
    none = replace(none, warp=still[:1], colour=same[None]).augmented()
    assert len(none.frames) == 0


def test_the_streams_of_a_batch_go_with_it_to_a_device() -> None:
    batch: SignBatch = join(_mixed())
    moved = batch.to(torch.device("meta"))
    assert moved.has_visual is not None
    assert moved.has_visual.device.type == "meta"
    assert moved.known_visual == batch.known_visual == (False, True, True, False, True)
    assert moved.known_skeletal == (True, True, False, True, True)
