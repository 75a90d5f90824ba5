"""Eq. 4-5: the ST-GCN against matrix products written out for each frame and partition."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.model_factory import draw_clips, join, scramble
from signfuse_dist.model.norm import BatchNorm, StepNorm
from signfuse_dist.model.skeletal import SkeletalStream, SpatialGraphConv, SpatialTemporalBlock
from signfuse_dist.skeleton import (
    FACE,
    JOINT_INDEX,
    JOINTS,
    LEFT_HAND,
    NUM_JOINTS,
    RIGHT_HAND,
    choose_joints,
    partitioned_adjacency,
)

KERNEL = 9
SYNC = partial(BatchNorm, policy="sync")


def _printed_adjacency() -> Tensor:
    """D^-1/2 (A + I) D^-1/2 for each partition, with the matrices as Eq. 4 prints them."""
    out = []
    for adjacency in torch.from_numpy(partitioned_adjacency()):
        connected = adjacency + torch.eye(NUM_JOINTS, dtype=torch.float64)
        degrees = torch.diag(connected.sum(dim=1) ** -0.5)
        out.append(degrees @ connected @ degrees)
    return torch.stack(out)


def _make_exact(module: nn.Module) -> nn.Module:
    """Put the graph in float64: the module holds it as float32 constants."""
    for part in module.modules():
        if isinstance(part, SpatialGraphConv):
            torch.testing.assert_close(
                part.adjacency.double(), _printed_adjacency(), rtol=1e-6, atol=1e-7
            )
            part.adjacency = _printed_adjacency()
    return module


def _spatial(frames: Tensor, conv: SpatialGraphConv) -> Tensor:
    """The sum of Eq. 4 for one clip, ``[frames, joints, in]`` to ``[frames, joints, out]``."""
    graph, weights = _printed_adjacency(), conv.weight.weight[:, :, 0, 0]
    partitions = weights.chunk(3, dim=1)  # W_k transposed, side by side
    rows = []
    for frame in frames:
        rows.append(sum(graph[k] @ frame @ partitions[k].T for k in range(3)))
    return torch.stack(rows)


def _temporal(frames: Tensor, conv: nn.Conv2d, stride: int) -> Tensor:
    num_frames, rows = len(frames), []
    for step in range(-(-num_frames // stride)):
        total: Any = torch.zeros(1, conv.out_channels, dtype=torch.float64)
        for k in range(KERNEL):
            frame = stride * step + k - KERNEL // 2
            if 0 <= frame < num_frames:
                total = total + frames[frame] @ conv.weight[:, :, k, 0].T
        rows.append(total.expand(NUM_JOINTS, -1))
    return torch.stack(rows)


def _norm(clips: list[Tensor], norm: Any, there: list[Tensor] | None = None) -> list[Tensor]:
    """``there``: bool of a clip's frames and joints, or of its very shape; None: all count."""
    if there is None:
        there = [torch.ones(clip.shape[:2], dtype=torch.bool) for clip in clips]
    there = [
        t.reshape(*t.shape, *(1,) * (3 - t.ndim)).expand(c.shape)
        for c, t in zip(clips, there, strict=True)
    ]
    out = []
    for clip, kept in zip(clips, there, strict=True):
        if isinstance(norm, StepNorm):
            values = [f[k] if k.any() else f.flatten() for f, k in zip(clip, kept, strict=True)]
            mean = torch.stack([v.mean() for v in values])[:, None, None]
            variance = torch.stack([v.var(correction=0) for v in values])[:, None, None]
        elif norm.training:
            every = [
                torch.cat([c[..., i][k[..., i]] for c, k in zip(clips, there, strict=True)])
                for i in range(clip.shape[2])
            ]
            mean = torch.stack([v.mean() for v in every])
            variance = torch.stack([v.var(correction=0) for v in every])
        else:
            mean, variance = norm.running_mean, norm.running_var
        out.append((clip - mean) / (variance + 1e-5) ** 0.5 * norm.weight + norm.bias)
    return out


def _block(
    clips: list[Tensor], block: Any, there: list[Tensor] | None = None
) -> tuple[list[Tensor], list[Tensor] | None]:
    """One ST-GCN layer, ``[frames, joints, in]`` each, all clips for the norms' statistics."""
    inner = _norm([_spatial(clip, block.spatial) for clip in clips], block.spatial_norm, there)
    inner = [_temporal(torch.relu(x), block.temporal, block.stride) for x in inner]
    if there is not None:
        there = [torch.stack([p.any(dim=0) for p in t.split(block.stride)]) for t in there]
    out = []
    for clip, x in zip(clips, _norm(inner, block.temporal_norm, there), strict=True):
        skip = clip
        if isinstance(block.residual, nn.Conv2d):
            matrix = block.residual.weight[:, :, 0, 0].T
            skip = torch.stack([f @ matrix + block.residual.bias for f in clip[:: block.stride]])
        out.append(torch.relu(x + skip))
    return out, there


def _coordinates(clips: list[Any], norm: Any, present: bool) -> list[Tensor]:
    """Joints from -1 to 1 in the square frame, each coordinate normalised; a missing joint is 0."""
    inputs = [(2 * c.pose.double() - 1) * c.joint_mask[..., None] for c in clips]
    there = None
    if present:
        there = [c.joint_mask.repeat_interleave(2, dim=1)[:, None] for c in clips]
    normalised = _norm([x.reshape(-1, 1, 2 * NUM_JOINTS) for x in inputs], norm, there)
    return [
        x.reshape(-1, NUM_JOINTS, 2) * clip.joint_mask[..., None]
        for x, clip in zip(normalised, clips, strict=True)
    ]


def test_the_spatial_sum_of_equation_4() -> None:
    conv = SpatialGraphConv(2, 5, _printed_adjacency()).double()
    x = torch.randn(3, NUM_JOINTS, 2, dtype=torch.float64, requires_grad=True)
    found = conv(x.permute(2, 0, 1)[None])[0].permute(1, 2, 0)
    expected = _spatial(x, conv)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    probe = torch.randn_like(found)
    weights = [x, conv.weight.weight]
    for a, b in zip(
        torch.autograd.grad((found * probe).sum(), weights),
        torch.autograd.grad((expected * probe).sum(), weights),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("num_frames", [1, 2, 3, 11])
def test_a_layer_is_spatial_then_temporal_with_norms_and_a_residual(
    num_frames: int, stride: int
) -> None:
    channels = 3 if stride == 1 else 4
    block = SpatialTemporalBlock(3, channels, KERNEL, stride, _printed_adjacency(), SYNC)
    scramble(block.double()).eval()
    x = torch.randn(num_frames, NUM_JOINTS, 3, dtype=torch.float64, requires_grad=True)
    found, lengths = block(x.permute(2, 0, 1)[None], torch.tensor([num_frames]), torch.ones(1))
    ((expected,), _) = _block([x], block)
    assert lengths.tolist() == [-(-num_frames // stride)]
    real = found[0].permute(1, 2, 0)
    torch.testing.assert_close(real, expected, rtol=1e-9, atol=1e-9)
    probe = torch.randn_like(expected)
    inputs = [x, *block.parameters()]
    for a, b in zip(
        torch.autograd.grad((real * probe).sum(), inputs),
        torch.autograd.grad((expected * probe).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("statistics", ["all", "present"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", [SYNC, StepNorm])
def test_equation_5_of_clips_of_odd_lengths(
    kind: Callable[[int], nn.Module], training: bool, statistics: str
) -> None:
    """Of clips with joints missing, and of a frame in which none is found."""
    stream = SkeletalStream(
        (4, 3, 5, 6), (1, 1, 2, 1), KERNEL, kind, statistics=statistics
    ).double()
    scramble(_make_exact(stream)).train(training)
    clips, present = draw_clips([7, 1, 3]), statistics == "present"
    clips[2].joint_mask[2] = False
    batch = join(clips)
    found = stream(batch.pose.double(), batch.joint_mask, batch.frame_lengths, batch.weight)
    layers = _coordinates(clips, stream.input_norm, present)
    there = [clip.joint_mask for clip in clips] if present else None
    for block in stream.blocks:
        layers, there = _block(layers, block, there)
    kept = there or [torch.ones(layer.shape[:2], dtype=torch.bool) for layer in layers]
    expected = [
        torch.stack([s[k].mean(0) if k.any() else s.mean(0) for s, k in zip(x, t, strict=True)])
        for x, t in zip(layers, kept, strict=True)
    ]
    assert found.shape == (3, 4, 6)
    probes = [torch.randn_like(e) for e in expected]
    ours, naive = torch.zeros(()).double(), torch.zeros(()).double()
    for i, (right, probe) in enumerate(zip(expected, probes, strict=True)):
        real = found[i, : len(right)]
        torch.testing.assert_close(real, right, rtol=1e-8, atol=1e-8)
        assert not found[i, len(right) :].any()
        ours, naive = ours + (real * probe).sum(), naive + (right * probe).sum()
    weights = list(stream.parameters())
    for a, b in zip(*(torch.autograd.grad(x, weights) for x in (ours, naive)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("statistics", ["all", "present"])
def test_the_means_of_groups_are_joined_by_a_linear_layer(statistics: str) -> None:
    """Of a clip with joints missing, and of one without a right hand."""
    joints = choose_joints(["nose", "left_hand", "right_hand"])
    stream = SkeletalStream(
        (4, 6), (2, 1), KERNEL, SYNC, statistics=statistics, joints=joints, pooling="groups"
    ).double()
    scramble(stream).eval()
    clips = draw_clips([7, 4])
    clips[1].joint_mask[:, [JOINT_INDEX[name] for name in RIGHT_HAND]] = False
    batch, seen = join(clips), []
    stream.pooling.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    found = stream(batch.pose.double(), batch.joint_mask, batch.frame_lengths, batch.weight)
    ((x, there),) = seen
    matrices = stream.pooling.linear.weight.chunk(3, dim=1)
    for clip, length in enumerate([4, 2]):
        for step in range(length):
            expected = torch.zeros(6, dtype=torch.float64)
            for names, matrix in zip((LEFT_HAND, RIGHT_HAND, ("nose",)), matrices, strict=True):
                places = [joints.index(name) for name in names]
                if there is not None and there[clip, step, places].any():
                    places = [p for p in places if there[clip, step, p]]
                expected = expected + matrix @ x[clip, :, step, places].mean(dim=1)
            torch.testing.assert_close(found[clip, step], expected, rtol=1e-9, atol=1e-9)
    assert not found[1, 2:].any()


def test_one_mean_does_not_tell_the_hands_apart_and_groups_do() -> None:
    """The graph is its own mirror image and both sides share all weights."""
    mirrored = [JOINT_INDEX[_mirror(name)] for name in JOINTS]
    batch = join(draw_clips([5]))
    sides = [(batch.pose, batch.joint_mask)]
    sides.append((batch.pose[:, :, mirrored], batch.joint_mask[:, :, mirrored]))
    for pooling in ("mean", "groups"):
        stream = SkeletalStream((4, 6), (1, 1), KERNEL, SYNC, pooling=pooling).eval()
        one, other = (stream(pose, mask, batch.frame_lengths, batch.weight) for pose, mask in sides)
        assert torch.allclose(one, other, atol=1e-5) == (pooling == "mean")


def test_joints_that_are_not_chosen_are_not_read() -> None:
    joints = choose_joints(["left_hand", "body"])
    stream = scramble(SkeletalStream((4, 6), (1, 1), KERNEL, StepNorm, joints=joints)).eval()
    batch = join(draw_clips([5]))
    changed = batch.pose.clone()
    changed[:, :, [JOINT_INDEX[name] for name in (*RIGHT_HAND, *FACE)]] += 1.0
    found = [
        stream(pose, batch.joint_mask, batch.frame_lengths, batch.weight)
        for pose in (batch.pose, changed)
    ]
    assert torch.equal(*found)


def _mirror(name: str) -> str:
    sides = {"left": "right", "right": "left"}
    return "_".join(sides.get(word, word) for word in name.split("_"))


def test_a_missing_joint_does_not_depend_on_what_is_written_there() -> None:
    stream = scramble(SkeletalStream((4, 6), (2, 1), KERNEL, StepNorm)).eval()
    batch = join(draw_clips([5]))
    moved = batch.pose.masked_fill(~batch.joint_mask[..., None], 3.0)
    found = [
        stream(pose, batch.joint_mask, batch.frame_lengths, batch.weight)
        for pose in (batch.pose, moved)
    ]
    assert torch.equal(*found)
