"""Eq. 2-3: the ResNet against torchvision's, the temporal convolution against loops."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock
from torchvision.models.resnet import ResNet as TorchvisionResNet

from helpers.model_factory import scramble
from signfuse_dist.model.norm import BatchNorm, ImageBatchNorm, StepNorm
from signfuse_dist.model.visual import ResNet, VisualStream

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, in RGB order


def _groups(channels: int) -> nn.Module:
    return nn.GroupNorm(channels // 16, channels)


def _torchvision(architecture: str, norm: str) -> nn.Module:
    layer: Any = nn.BatchNorm2d if norm == "frozen" else _groups
    if architecture == "resnet10":
        return TorchvisionResNet(BasicBlock, [1, 1, 1, 1], norm_layer=layer)
    return getattr(torchvision.models, architecture)(weights=None, norm_layer=layer)


@pytest.mark.parametrize(
    ("architecture", "norm"),
    [("resnet50", "frozen"), ("resnet18", "group"), ("resnet10", "frozen")],
)
def test_the_backbone_is_torchvisions_with_the_same_weights(architecture: str, norm: str) -> None:
    theirs = scramble(_torchvision(architecture, norm)).double().eval()
    ours = ResNet(architecture, 64, norm).double()
    state = {
        name: tensor
        for name, tensor in theirs.state_dict().items()
        if not name.startswith("fc.") and not name.endswith("num_batches_tracked")
    }
    ours.load_state_dict(state, strict=True)
    theirs.fc = nn.Identity()
    images = torch.randn(2, 3, 33, 31, dtype=torch.float64, requires_grad=True)
    ours.train()  # frozen statistics and group norm are the same function in training
    found, expected = ours(images), theirs(images)
    assert found.shape == (2, 2048 if architecture == "resnet50" else 512)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    probe = torch.randn_like(found)
    pairs = zip(
        torch.autograd.grad((found * probe).sum(), [images, *ours.parameters()]),
        torch.autograd.grad((expected * probe).sum(), [images, *theirs.parameters()]),
        strict=True,
    )
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8 * float(b.abs().max() + 1))


def test_the_output_dimension_is_that_of_equation_2() -> None:
    with torch.device("meta"):
        assert ResNet("resnet50", 64, "frozen").output_dim == 2048


def test_a_frozen_norm_never_uses_or_changes_batch_statistics() -> None:
    norm = ImageBatchNorm(3, "frozen")
    x = torch.randn(4, 3, 5, 5) * 3 + 1
    before = norm(x)
    norm.train()
    torch.testing.assert_close(norm(x), before)
    torch.testing.assert_close(before, x / (1 + norm.eps) ** 0.5)
    assert torch.equal(norm.running_mean, torch.zeros(3))
    assert torch.equal(norm.running_var, torch.ones(3))


class _Colour(nn.Module):
    """Stands in for the ResNet: the mean colour of a picture."""

    output_dim, uses_batch = 3, False
    mean, std = MEAN, STD

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))


def test_frames_are_scaled_to_imagenet_colours_one_by_one() -> None:
    stream = VisualStream(_Colour(), 4, 3, 2, BatchNorm(4, "sync")).eval()
    scramble(stream)
    seen: list[Tensor] = []
    stream.backbone.register_forward_hook(lambda m, x, y: seen.append(y))
    frames = torch.randint(0, 256, (5, 3, 6, 6), dtype=torch.uint8)
    stream(frames, torch.tensor([3, 2]), torch.tensor([2, 1]), torch.ones(2), 3)
    assert len(seen[0]) == 5  # only real frames
    for frame, features in zip(frames.double(), seen[0], strict=True):
        for channel in range(3):
            expected = (frame[channel].mean() / 255 - MEAN[channel]) / STD[channel]
            assert float(features[channel]) == pytest.approx(float(expected), abs=1e-5)


def _convolved(features: Tensor, conv: nn.Conv1d) -> Tensor:
    """Conv1D of kernel 3, stride 2 over one clip, ``[frames, visual_dim]`` to ``[steps, dim]``."""
    num_frames, rows = len(features), []
    for step in range((num_frames + 1) // 2):
        total: Any = torch.zeros(conv.out_channels, dtype=torch.float64)
        for k in range(3):
            frame = 2 * step + k - 1
            if 0 <= frame < num_frames:
                total = total + conv.weight[:, :, k] @ features[frame]
        rows.append(total)
    return torch.stack(rows)


def _naive(clips: list[Tensor], stream: VisualStream) -> list[Tensor]:
    """ReLU(BN(Conv1D(F_v))) of Eq. 3, one clip at a time; BN over all their steps in training."""
    steps = [_convolved(clip, stream.conv) for clip in clips]
    norm: Any = stream.norm
    every = torch.cat(steps)
    out = []
    for clip in steps:
        if isinstance(norm, StepNorm):
            mean, variance = clip.mean(1, keepdim=True), clip.var(1, correction=0, keepdim=True)
        elif norm.training:
            mean, variance = every.mean(0), every.var(0, correction=0)
        else:
            mean, variance = norm.running_mean, norm.running_var
        scaled = (clip - mean) / (variance + 1e-5) ** 0.5 * norm.weight + norm.bias
        out.append(torch.clamp(scaled, min=0))
    return out


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", [partial(BatchNorm, policy="sync"), StepNorm])
@pytest.mark.parametrize("lengths", [(1,), (2,), (3,), (7, 1, 4, 2, 3)])
def test_equation_3(
    lengths: tuple[int, ...], kind: Callable[[int], nn.Module], training: bool
) -> None:
    torch.manual_seed(0)
    stream = VisualStream(_Colour(), 5, 3, 2, kind(5)).double()
    scramble(stream).train(training)
    clips = [torch.randn(n, 3, dtype=torch.float64, requires_grad=True) for n in lengths]
    padded = nn.utils.rnn.pad_sequence(clips, batch_first=True)
    expected = _naive(clips, stream)
    step_lengths = torch.tensor([-(-n // 2) for n in lengths])
    found = stream.shorten(padded, step_lengths, torch.ones(len(lengths)))
    assert found.shape[1] == -(-max(lengths) // 2)
    weights = [*clips, *stream.parameters()]
    probes = [torch.randn_like(e) for e in expected]
    real = [found[i, : len(e)] for i, e in enumerate(expected)]
    for i, (clip, right) in enumerate(zip(real, expected, strict=True)):
        torch.testing.assert_close(clip, right, rtol=1e-9, atol=1e-9)
        assert not found[i, len(right) :].any()  # zero beyond the clip's end
    losses = [
        torch.stack([(a * b).sum() for a, b in zip(side, probes, strict=True)]).sum()
        for side in (real, expected)
    ]
    for a, b in zip(*(torch.autograd.grad(x, weights) for x in losses), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
