"""What the ST-GCN is told of joints: the frame of the body, velocity, presence, and statistics."""

from __future__ import annotations

from dataclasses import replace
from statistics import median
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.model_factory import draw_clips, join, scramble, small_config, small_model
from signfuse_dist.batch import SignBatch, length_mask
from signfuse_dist.config import LossConfig
from signfuse_dist.model.building import build_skeletal
from signfuse_dist.model.flops import StepFlops
from signfuse_dist.model.joint_channels import JointChannels, in_body
from signfuse_dist.objective import prepare
from signfuse_dist.skeleton import JOINT_INDEX, JOINTS, NUM_JOINTS

SHOULDERS = [JOINT_INDEX["left_shoulder"], JOINT_INDEX["right_shoulder"]]
NOSE = JOINT_INDEX["nose"]
HAND = slice(JOINT_INDEX["left_hand_wrist"], JOINT_INDEX["left_hand_pinky_4"] + 1)
EVERY = {"joint_frame": "body", "joint_velocity": True, "joint_presence": True}
SHARED = {**EVERY, "joint_spread": "shared"}
PRESENT = {"joint_statistics": "present"}


def _moved(batch: SignBatch, by: float = 0.1, factor: float = 1.1) -> SignBatch:
    return replace(batch, pose=batch.pose * factor + torch.tensor([by, -by]))


def _without(batch: SignBatch, joints: Any) -> SignBatch:
    mask = batch.joint_mask.clone()
    mask[:, :, joints] = False
    return replace(batch, joint_mask=mask)


@torch.no_grad()
def _run(batch: SignBatch, **config: Any) -> Tensor:
    torch.manual_seed(0)
    stream: Any = scramble(build_skeletal(small_config(**{"norm": "sync", **config}))).eval()
    out: Tensor = stream(batch.pose, batch.joint_mask, batch.joint_lengths, batch.weight)
    return out


def _change(batch: SignBatch, **config: Any) -> float:
    """How far the features of a moved and scaled clip are from those of the clip itself."""
    before = _run(batch, **config)
    return float((_run(_moved(batch), **config) - before).norm() / before.norm())


def test_the_frame_of_the_body_is_the_median_of_a_clips_shoulders() -> None:
    clips = draw_clips([5, 8, 1], seed=2)
    batch = join([replace(clip, pose=clip.pose.double()) for clip in clips])
    found = in_body(batch.pose, batch.joint_mask & (batch.pose != 7).all(-1))
    for i, clip in enumerate(clips):
        seen = [t for t, row in enumerate(clip.joint_mask) if row[SHOULDERS].all()]
        left, right = (clip.pose[seen, s].double() for s in SHOULDERS)
        origin = [median(((left + right) / 2)[:, k].tolist()) for k in range(2)]
        unit = median((left - right).norm(dim=1).tolist())
        expected = (clip.pose.double() - torch.tensor(origin, dtype=torch.float64)) / unit
        there = clip.joint_mask
        torch.testing.assert_close(found[i, : len(clip.pose)][there], expected[there])


@pytest.mark.parametrize(
    "more",
    [{}, EVERY, PRESENT, {**SHARED, **PRESENT}],
    ids=["frame", "every channel", "present", "shared"],
)
def test_a_clip_that_is_moved_and_scaled_is_the_same_in_the_frame_of_the_body(more: Any) -> None:
    batch = join(draw_clips([6, 3, 9]))
    of_body = _change(batch, **{"joint_frame": "body", **more})
    of_image = _change(batch, **{**more, "joint_frame": "image"})
    print(f"change of the features: image {of_image:.3f}, body {of_body:.1e}")
    assert of_body < 1e-4
    assert of_image > 0.02


@pytest.mark.parametrize(
    "missing", [[SHOULDERS[0]], list(range(NOSE + 1, NUM_JOINTS))], ids=["one", "hands and nose"]
)
@pytest.mark.parametrize("nose", [True, False], ids=["nose", "no nose"])
def test_a_clip_without_shoulders_is_measured_from_its_nose(missing: Any, nose: bool) -> None:
    """As tracks of hands and a nose are; hands alone from the middle of all."""
    batch = _without(join(draw_clips([6, 3])), missing if nose else [*missing, NOSE])
    assert _change(batch, joint_frame="body") < 1e-4
    pose, mask = batch.pose[:1, :6].double(), batch.joint_mask[:1, :6]
    others = mask.clone()
    others[:, :, NOSE] = False
    centre = pose[:, :, NOSE][mask[:, :, NOSE]] if nose else pose[mask]
    origin = torch.tensor([median(centre[:, k].tolist()) for k in range(2)], dtype=torch.float64)
    unit = median((pose[others] - origin).norm(dim=1).tolist())
    torch.testing.assert_close(in_body(pose, mask)[mask], (pose[mask] - origin) / unit)


def test_joints_in_one_place_and_no_joints_are_finite() -> None:
    one = _without(join(draw_clips([4])), [i for i in range(NUM_JOINTS) if i != 3])
    still = replace(one, pose=torch.full_like(one.pose, 0.4))
    for batch in (still, _without(still, 3)):
        for config in (EVERY, {**EVERY, **PRESENT}):
            assert _run(batch, **config).isfinite().all()
    assert _change(still, joint_frame="body") < 1e-4


def test_hands_are_also_told_from_their_wrists() -> None:
    inputs = JointChannels(body=True)
    batch = join(draw_clips([4], seed=1))
    mask = torch.ones_like(batch.joint_mask)
    values, known = inputs.coordinates(batch.pose, mask)
    body = in_body(batch.pose, mask)
    relative = body[:, :, HAND] - body[:, :, HAND][:, :, :1]
    torch.testing.assert_close(values[:, :, HAND, 2:], relative)
    assert known[:, :, HAND, 2:].all()
    others = [i for i, name in enumerate(JOINTS) if "_hand_" not in name]
    assert not values[:, :, others, 2:].any()
    assert not known[:, :, others, 2:].any()
    mask[:, 1, HAND.start] = False  # the hand's own wrist is lost: the body's is taken
    mask[:, 2, [HAND.start, JOINT_INDEX["left_wrist"]]] = False
    values, known = inputs.coordinates(batch.pose, mask)
    body = in_body(batch.pose, mask)
    relative = body[:, 1, HAND][:, 1:] - body[:, 1, JOINT_INDEX["left_wrist"]][:, None]
    torch.testing.assert_close(values[:, 1, HAND, 2:][:, 1:], relative)
    assert not known[:, 2, HAND, 2:].any()
    assert not values[:, 2, HAND, 2:].any()


def test_velocity_is_the_change_between_two_frames_in_which_a_joint_is_found() -> None:
    batch = join(draw_clips([5], seed=3))
    batch.joint_mask[:, 2, 7] = False
    values, known = JointChannels(velocity=True).coordinates(batch.pose, batch.joint_mask)
    assert not known[:, 0, :, 2:].any()  # nothing was before
    assert not known[:, 2:4, 7, 2:].any()
    for frame in range(1, 5):
        both = batch.joint_mask[0, frame] & batch.joint_mask[0, frame - 1]
        moved = 2 * (batch.pose[0, frame] - batch.pose[0, frame - 1])
        torch.testing.assert_close(values[0, frame, both, 2:], moved[both])
        assert torch.equal(known[0, frame, :, 2], both)


def test_presence_tells_a_lost_joint_from_one_that_is_where_the_mean_is() -> None:
    """A lost joint is at 0 after the first norm, and so is one at the mean."""
    for presence in (False, True):
        torch.manual_seed(0)
        stream: Any = build_skeletal(small_config(norm="sync", joint_presence=presence)).eval()
        batch = join(draw_clips([4]))
        batch.pose[:, :, HAND] = 0.5
        batch.joint_mask[:, :, HAND] = True
        lost = _without(batch, HAND)
        out = [
            stream(b.pose, b.joint_mask, b.joint_lengths, b.weight).detach() for b in (batch, lost)
        ]
        assert torch.allclose(*out) == (not presence)


def test_presence_teaches_nothing_where_no_joint_is_missing() -> None:
    """Its gradient would be rounding, along which Adam walks, and on no two machines alike."""
    stream: Any = scramble(build_skeletal(small_config(norm="sync", **EVERY))).train()
    batch = join(draw_clips([6, 3]))
    mask = torch.ones_like(batch.joint_mask)
    stream(batch.pose, mask, batch.joint_lengths, batch.weight).square().sum().backward()
    gradient = stream.blocks[0].spatial.weight.weight.grad
    per_partition = stream.inputs.count
    assert not gradient[:, per_partition - 1 :: per_partition].any()
    assert gradient.any()


def _spread(statistics: str, joint: int = 20) -> tuple[float, float]:
    """Mean and deviation of a joint's x after the first norm, where it is found in 70 % of frames.

    The signer's joint moves by a hundredth of the picture about a place right of its middle.
    """
    torch.manual_seed(0)
    batch = join(draw_clips([200]))
    batch.pose[:, :, joint, 0] = 0.7 + 0.01 * torch.randn(200)
    batch.joint_mask[:, :, joint] = torch.rand(200) > 0.3
    stream: Any = build_skeletal(small_config(norm="sync", joint_statistics=statistics)).train()
    seen: list[Tensor] = []
    stream.input_norm.register_forward_hook(lambda part, given, out: seen.append(out.detach()))
    stream(batch.pose, batch.joint_mask, batch.joint_lengths, batch.weight)
    values = seen[0][0, 2 * joint, batch.joint_mask[0, :, joint]]
    return float(values.mean()), float(values.std())


def test_missing_joints_do_not_squeeze_those_that_are_there() -> None:
    mean, deviation = _spread("all")
    assert mean > 0.5
    assert deviation < 0.2
    mean, deviation = _spread("present")
    assert mean == pytest.approx(0, abs=1e-4)
    assert deviation == pytest.approx(1, abs=0.02)


def test_a_joint_that_no_clip_of_a_batch_has_moves_no_statistic_of_its_own() -> None:
    stream: Any = scramble(build_skeletal(small_config(norm="sync", **PRESENT))).train()
    before = stream.input_norm.running_mean.clone()
    batch = _without(join(draw_clips([5, 3])), 4)
    out = stream(batch.pose, batch.joint_mask, batch.joint_lengths, batch.weight)
    assert out.isfinite().all()
    same = stream.input_norm.running_mean == before
    assert same.nonzero().flatten().tolist() == [8, 9]


def _into_first_layer(stream: Any, batch: SignBatch) -> Tensor:
    seen: list[Tensor] = []
    kept = stream.blocks[0].register_forward_pre_hook(lambda part, given: seen.append(given[0]))
    stream(batch.pose, batch.joint_mask, batch.joint_lengths, batch.weight)
    kept.remove()
    return seen[0].detach()


def test_a_joint_that_hardly_moves_stays_small_where_joints_share_a_deviation() -> None:
    torch.manual_seed(0)
    batch = join(draw_clips([200, 150]))
    batch.pose[:, :, NOSE] = 0.5 + 0.01 * torch.randn(2, 200, 2)
    real = batch.joint_mask & length_mask(batch.frame_lengths, 200)[:, :, None]
    spreads = {}
    for of in ("each", "shared"):
        config = small_config(norm="sync", joint_spread=of, **PRESENT)
        stream: Any = build_skeletal(config).train()
        x = _into_first_layer(stream, batch).permute(0, 2, 3, 1)
        assert not x[~real].any()
        means = torch.stack([x[:, :, j][real[:, :, j]].mean(0) for j in range(NUM_JOINTS)])
        torch.testing.assert_close(means, torch.zeros(NUM_JOINTS, 2), atol=1e-4, rtol=0)
        torch.testing.assert_close(x[real].std(0), torch.ones(2), atol=0.01, rtol=0)
        spreads[of] = float(x[:, :, NOSE, 0][real[:, :, NOSE]].std())
    assert spreads["each"] == pytest.approx(1, abs=0.05)
    assert spreads["shared"] < 0.1


@pytest.mark.parametrize("channels", [EVERY, SHARED], ids=["each", "shared"])
@pytest.mark.parametrize("norm", ["sync", "layer"])
@torch.no_grad()
def test_a_clip_is_the_same_alone_and_beside_others_with_every_channel(
    norm: str, channels: dict[str, Any]
) -> None:
    config = {**channels, **PRESENT, "norm": norm}
    clips = draw_clips((3, 1, 9, 2, 5))
    together = _run(join(clips), **config)
    for i, clip in enumerate(clips):
        alone = _run(join([clip]), **config)[0]
        torch.testing.assert_close(together[i, : len(alone)], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [EVERY, {**EVERY, **PRESENT}], ids=["all", "present"])
def test_what_stands_at_a_missing_joint_is_not_read(config: Any) -> None:
    batch = join(draw_clips([5, 3]))
    rubbish = batch.pose.masked_fill(~batch.joint_mask[..., None], float("nan"))
    odd = replace(batch)
    object.__setattr__(odd, "pose", rubbish)  # the batch itself looks at real joints alone
    assert torch.equal(_run(batch, **config), _run(odd, **config))


def test_channels_train_and_their_operations_are_counted() -> None:
    model = small_model(**EVERY, **PRESENT)
    prepare(model, "contrastive", LossConfig())
    batch = join(draw_clips([5, 3]))
    count = StepFlops(model, "unimodal", language=False)(batch)["skeletal"]
    plain = small_model()
    prepare(plain, "contrastive", LossConfig())
    assert count.forward > StepFlops(plain, "unimodal", language=False)(batch)["skeletal"].forward
    model.encode(batch).skeletal.sum().backward()
    assert all(p.grad is not None for p in model.skeletal.parameters())


def test_a_strided_convolution_of_few_channels_has_them_in_order() -> None:
    """Elsewhere torch 2.15 writes beyond its memory (docs/log.md): a crash minutes later."""
    stream: Any = build_skeletal(small_config(skeletal_strides=(2, 1, 1, 1), norm="sync"))
    orders = []
    first = stream.blocks[0].residual
    first.register_forward_pre_hook(lambda _, given: orders.append(given[0].is_contiguous()))
    batch = join(draw_clips([5, 8], seed=2))
    stream(batch.pose, batch.joint_mask, batch.joint_lengths, batch.weight)
    assert first.stride == (2, 1)
    assert orders == [True]
