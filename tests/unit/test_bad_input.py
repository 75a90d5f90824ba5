"""Bad input of the model: an error by name or a stated result; not-a-number never passes on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from helpers.model_factory import Example, draw_clips, join, scramble, small_model, tiny_tokenizer
from signfuse_dist.batch import SignBatch
from signfuse_dist.config import LossConfig
from signfuse_dist.errors import UserError
from signfuse_dist.model.norm import StepNorm
from signfuse_dist.model.skeletal import SkeletalStream
from signfuse_dist.model.text_tokenizer import TextTokenizer
from signfuse_dist.objective import StageObjective, prepare, set_mode

LENGTHS = (5, 3, 4)
LEFT_HAND = slice(0, 21)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_joint_that_was_found_and_is_not_finite_is_refused_by_clip(value: float) -> None:
    clips = draw_clips(LENGTHS)
    clips[1].joint_mask[2, 40] = True
    clips[1].pose[2, 40, 1] = value
    with pytest.raises(UserError, match="joints that are not finite") as error:
        join(clips)
    assert "clip 1" in str(error.value)
    assert "clip 0" not in str(error.value)


def outcome(model: Any, batch: SignBatch) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        output = model(batch, "unimodal", True)
        return {
            "sign_embeddings": output.sign_embeddings,
            "summary": output.summaries[1],
            "likelihood": output.negative_log_likelihood,
        }


def test_what_stands_where_a_joint_is_missing_or_a_clip_has_ended_is_not_read() -> None:
    batch, model = join(draw_clips(LENGTHS)), small_model()
    ended = torch.arange(5)[None] >= batch.frame_lengths[:, None]
    unread = (~batch.joint_mask | ended[:, :, None])[..., None].expand_as(batch.pose)
    dirty = replace(batch, pose=batch.pose.masked_fill(unread, float("nan")))
    for name, value in outcome(model, dirty).items():
        assert torch.equal(value, outcome(model, batch)[name]), name


def without_joints(clip: Example, joints: slice) -> Example:
    mask = clip.joint_mask.clone()
    mask[:, joints] = False
    return replace(clip, joint_mask=mask)


def black(clip: Example) -> Example:
    return replace(clip, frames=torch.zeros_like(clip.frames))


POOR = {
    "no joint at all": lambda clip: without_joints(clip, slice(None)),
    "a hand missing throughout": lambda clip: without_joints(clip, LEFT_HAND),
    "black frames": black,
    "nothing at all": lambda clip: black(without_joints(clip, slice(None))),
}
each_poor = pytest.mark.parametrize("spoil", POOR.values(), ids=POOR)


@each_poor
@pytest.mark.parametrize("norm", ["sync", "layer"])
def test_a_poor_clip_trains_with_finite_gradients_alone_and_among_others(
    norm: str, spoil: Any
) -> None:
    clips = draw_clips(LENGTHS)
    for batch in ([spoil(clips[0])], [spoil(clips[0]), *clips[1:]]):
        model = small_model(norm=norm)
        prepare(model, "finetune", LossConfig())
        set_mode(model, "finetune")
        sums = StageObjective("finetune", LossConfig())(model, join(batch))
        torch.stack(list(sums.values())).sum().backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, name
                assert parameter.grad.isfinite().all(), name


@each_poor
def test_a_poor_clip_translates_by_what_is_left_and_changes_no_other(spoil: Any) -> None:
    clips = draw_clips(LENGTHS)
    model = small_model(norm="sync", visual_norm="frozen")
    found = outcome(model, join([spoil(clips[0]), *clips[1:]]))
    clean = outcome(model, join(clips))
    for name, value in found.items():
        assert value.isfinite().all(), name
        torch.testing.assert_close(value[1:], clean[name][1:])
        if name != "summary":
            assert not torch.allclose(value[0], clean[name][0]), name


def test_without_any_joint_the_skeletal_stream_says_the_same_of_every_clip() -> None:
    """A stated result: the picture alone decides."""
    stream = scramble(SkeletalStream((4, 6), (2, 1), 9, StepNorm)).eval()
    none = [without_joints(clip, slice(None)) for clip in draw_clips([5, 5])]
    batch = join(none)
    found = stream(batch.pose, batch.joint_mask, batch.frame_lengths, batch.weight)
    torch.testing.assert_close(found[0], found[1])
    some = join([without_joints(clip, LEFT_HAND) for clip in draw_clips([5, 5])])
    found = stream(some.pose, some.joint_mask, some.frame_lengths, some.weight)
    assert not torch.allclose(found[0], found[1])


def test_broken_weights_are_named_by_clip_and_make_no_sentence() -> None:
    model = small_model()
    model.tokenizer = TextTokenizer(tiny_tokenizer(), "translate the sign")
    with torch.no_grad():
        model.skeletal.blocks[0].spatial.weight.weight[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"(?s)sign tokens are not finite.*clip 0.*clip 2"):
        model.generate(join(draw_clips(LENGTHS)))
