"""The visual stream, Eq. 2-3: ResNet on every real frame, then a strided temporal convolution."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from signfuse_dist.batch import length_mask
from signfuse_dist.model.norm import FrozenBatchNorm2d

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
ARCHITECTURES: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    "resnet10": (BasicBlock, (1, 1, 1, 1)),
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
}


class StepwiseNorm(Protocol):
    """A norm along time: see :mod:`signfuse_dist.model.norm`."""

    def __call__(self, x: Tensor, counted: Tensor) -> Tensor: ...


def image_norm(kind: str, num_channels: int) -> nn.Module:
    """Return a norm for feature maps; 16 channels a group, which stays within one frame."""
    if kind == "frozen_batch":
        return FrozenBatchNorm2d(num_channels)
    return nn.GroupNorm(max(1, num_channels // 16), num_channels)


class ResNet(nn.Module):
    """torchvision's ResNet without its classifier, with a width; parameters named as there.

    torchvision fixes the width of the stem at 64 channels; at width 64 the two are the same
    function of the same weights. The last norm of each residual branch starts at zero, so an
    untrained network is the identity plus the stem whatever its depth.
    """

    def __init__(self, architecture: str, width: int, norm: str) -> None:
        super().__init__()
        self.block, depths = ARCHITECTURES[architecture]
        self.norm, self.planes = norm, width
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = image_norm(norm, width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = self._layer(width, depths[0], stride=1)
        self.layer2 = self._layer(2 * width, depths[1], stride=2)
        self.layer3 = self._layer(4 * width, depths[2], stride=2)
        self.layer4 = self._layer(8 * width, depths[3], stride=2)
        self.output_dim = self.planes
        self._initialise()

    def _layer(self, planes: int, depth: int, stride: int) -> nn.Sequential:
        def norm(channels: int) -> nn.Module:
            return image_norm(self.norm, channels)

        blocks: list[nn.Module] = []
        for i in range(depth):
            out, step = planes * self.block.expansion, stride if i == 0 else 1
            skip = None
            if step != 1 or self.planes != out:
                conv = nn.Conv2d(self.planes, out, 1, stride=step, bias=False)
                skip = nn.Sequential(conv, norm(out))
            blocks.append(self.block(self.planes, planes, step, skip, norm_layer=norm))
            self.planes = out
        return nn.Sequential(*blocks)

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)
            elif isinstance(module, BasicBlock):
                nn.init.zeros_(module.bn2.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Return GAP(ResNet(v_t)) of Eq. 2: ``[frames, 3, h, w]`` to ``[frames, output_dim]``."""
        x: Tensor = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.mean(dim=(2, 3))


class VisualStream(nn.Module):
    """Eq. 2-3: frames to ``visual`` features at half the frame rate."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, backbone: ResNet, dim: int, kernel: int, stride: int, norm: nn.Module
    ) -> None:
        super().__init__()
        self.backbone = backbone
        # No bias: the norm takes it away, and Adam would walk it along rounding noise.
        self.conv = nn.Conv1d(
            backbone.output_dim, dim, kernel, stride, padding=kernel // 2, bias=False
        )
        self.norm = norm
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def forward(self, frames: Tensor, frame_lengths: Tensor, step_lengths: Tensor,
                weight: Tensor) -> Tensor:  # fmt: skip
        """Return ``visual`` (F^_v of Eq. 3), zero beyond each clip's end.

        Args:
            frames: uint8 ``[sum(frame_lengths), 3, height, width]``: only real frames.
            frame_lengths: ``[batch]``; step_lengths: ``[batch]``, ceil(T / 2).
            weight: ``[batch]``; a clip of weight 0 enters no statistic.

        Returns:
            ``[batch, steps, dim]``.
        """
        # Contiguous: decoded frames arrive with the channels last, and torch 2.15 on CPU corrupts
        # the heap in the backward pass of a strided 1x1 convolution over 4 such channels.
        images = frames.contiguous().to(self.mean.dtype)
        features = self.backbone((images / 255 - self.mean) / self.std)
        mask = length_mask(frame_lengths, int(frame_lengths.max()))
        padded = features.new_zeros(*mask.shape, features.shape[-1])
        padded[mask] = features
        return self.shorten(padded, step_lengths, weight)

    def shorten(self, frame_features: Tensor, step_lengths: Tensor, weight: Tensor) -> Tensor:
        """Return ReLU(BN(Conv1D(F_v))) of Eq. 3 from ``[batch, frames, visual_dim]``."""
        x = self.conv(frame_features.transpose(1, 2))
        mask = length_mask(step_lengths, x.shape[2])
        x = torch.relu(self.norm(x, mask & (weight > 0)[:, None]))
        return (x * mask[:, None, :]).transpose(1, 2)
