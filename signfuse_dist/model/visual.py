"""The visual stream, Eq. 2-3: ResNet on every real frame, then a strided temporal convolution.

The activations of ResNet-50 are most of a step's memory. Three ways to run it, one result:
whole (fastest), in chunks of frames (memory of one chunk whatever T, each chunk computed again in
the backward pass), or recomputed block by block (memory of the blocks' inputs, which grows with T).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.models.resnet import BasicBlock, Bottleneck

from signfuse_dist.batch import lay_out, length_mask
from signfuse_dist.errors import UserError
from signfuse_dist.model.norm import ImageBatchNorm
from signfuse_dist.model.vision import VisionModel

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
ARCHITECTURES: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    "resnet10": (BasicBlock, (1, 1, 1, 1)),
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
}


def image_norm(kind: str, num_channels: int) -> nn.Module:
    """Return a norm for feature maps; 16 channels a group, which stays within one frame."""
    if kind == "group":
        return nn.GroupNorm(max(1, num_channels // 16), num_channels)
    return ImageBatchNorm(num_channels, kind)


@dataclass(frozen=True)
class FrameBudget:
    """How the ResNet is run over the frames of a batch; the result is the same to rounding.

    Attributes:
        chunk: frames at once, None = all. In training each chunk is computed again in the
            backward pass, so its activations are all that is held.
        recompute_blocks: hold each residual block's input alone, and compute the block again.
        channels_last: lay out feature maps with the channels last, as decoded frames are; None =
            on a GPU, whose kernels for bfloat16 want them so.
    """

    chunk: int | None
    recompute_blocks: bool
    channels_last: bool | None


WHOLE = FrameBudget(chunk=None, recompute_blocks=False, channels_last=False)


class ResNet(nn.Module):
    """torchvision's ResNet without its classifier, with a width; parameters named as there.

    torchvision fixes the width of the stem at 64 channels; at width 64 the two are the same
    function of the same weights. The last norm of each residual branch starts at zero, so an
    untrained network is the identity plus the stem whatever its depth.
    """

    mean, std = IMAGENET_MEAN, IMAGENET_STD

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
        self.recompute_blocks = False
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

    @property
    def uses_batch(self) -> bool:
        """Whether frames see each other through batch statistics."""
        return isinstance(self.bn1, ImageBatchNorm) and self.bn1.uses_batch

    def forward(self, images: Tensor) -> Tensor:
        """Return GAP(ResNet(v_t)) of Eq. 2: ``[frames, 3, h, w]`` to ``[frames, output_dim]``."""
        again = self.recompute_blocks and torch.is_grad_enabled()
        x = images
        for part in (self._stem, *self.layer1, *self.layer2, *self.layer3, *self.layer4):
            x = _computed_again(part, x) if again else part(x)
        return x.mean(dim=(2, 3))

    def _stem(self, images: Tensor) -> Tensor:
        x: Tensor = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        return x


class GivenVectors(nn.Module):
    """In the place of a network of pictures: F_v of Eq. 2 is given, a vector a frame.

    Paper: ResNet-50 on every frame, trained. Here, on request (``model.visual_backbone:
    features:NAME``): vectors of models that were computed once. Because: the best published systems
    without glosses use frozen features, and no picture is decoded then.
    """

    uses_batch = False
    recompute_blocks = False
    mean, std = IMAGENET_MEAN, IMAGENET_STD

    def __init__(self, output_dim: int) -> None:
        super().__init__()
        self.output_dim = output_dim

    def forward(self, images: Tensor) -> Tensor:
        """Raise UserError: there is no network to show pictures to."""
        raise UserError(
            "the model was trained on feature sets (model.visual_backbone=features:...), and is "
            f"given {len(images)} pictures without vectors"
        )


class VisualStream(nn.Module):
    """Eq. 2-3: frames to ``visual`` features at half the frame rate."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: ResNet | VisionModel | GivenVectors,
        dim: int,
        kernel: int,
        stride: int,
        norm: nn.Module,
        budget: FrameBudget = WHOLE,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.budget = budget
        backbone.recompute_blocks = budget.recompute_blocks
        # No bias: the norm takes it away, and Adam would walk it along rounding noise.
        self.conv = nn.Conv1d(
            backbone.output_dim, dim, kernel, stride, padding=kernel // 2, bias=False
        )
        self.norm = norm
        self.register_buffer("mean", torch.tensor(backbone.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(backbone.std).view(3, 1, 1), persistent=False)

    def forward(
        self,
        frames: Tensor,
        frame_lengths: Tensor,
        step_lengths: Tensor,
        weight: Tensor,
        longest: int,
        vectors: Tensor | None = None,
    ) -> Tensor:
        """Return ``visual`` (F^_v of Eq. 3), zero beyond each clip's end.

        Args:
            frames: uint8 ``[sum(frame_lengths), 3, height, width]``: only real frames.
            frame_lengths: ``[batch]``, 0 for a clip without pictures.
            step_lengths: ``[batch]``, ceil(T / 2).
            weight: ``[batch]``; a clip of weight 0 enters no statistic.
            longest: frames of the longest clip, as the host knows them: nothing waits for a device.
            vectors: F_v of Eq. 2 where it was computed before, ``[sum(frame_lengths),
                visual_dim]``; the frames are not read then.

        Returns:
            ``[batch, steps, dim]``.
        """
        features = vectors
        if features is None:
            features = self.frame_features(frames, frame_lengths, weight)
        layout = lay_out(frame_lengths, longest, len(features))
        return self.shorten(layout.unpack(features), step_lengths, weight)

    def frame_features(self, frames: Tensor, frame_lengths: Tensor, weight: Tensor) -> Tensor:
        """Return F_v of Eq. 2, ``[sum(frame_lengths), visual_dim]``.

        Arguments as in :meth:`forward`. Where frames see each other through batch statistics,
        clips of weight 0 are left out and their features are zero.
        """
        if not self.backbone.uses_batch:
            return self._in_chunks(frames)
        counted = (weight > 0).repeat_interleave(frame_lengths, output_size=len(frames))
        of_counted = self._in_chunks(frames[counted])
        features = of_counted.new_zeros(len(frames), of_counted.shape[1])
        features[counted] = of_counted
        return features

    def _in_chunks(self, frames: Tensor) -> Tensor:
        """Frames stay uint8 until their chunk's turn, 0.15 MB each at 224 x 224.

        Of a network that is frozen nothing is kept for the backward pass, or computed again.
        """
        size, again = self.budget.chunk, torch.is_grad_enabled() and self._backbone_trains
        with torch.set_grad_enabled(again):
            return self._parts(frames, size, again)

    @property
    def _backbone_trains(self) -> bool:
        return any(p.requires_grad for p in self.backbone.parameters())

    def _parts(self, frames: Tensor, size: int | None, again: bool) -> Tensor:
        if size is None or len(frames) <= size:
            return self._features(frames)
        return torch.cat(
            [
                _computed_again(self._features, part) if again else self._features(part)
                for part in frames.split(size)
            ]
        )

    def _features(self, frames: Tensor) -> Tensor:
        last = self.budget.channels_last
        if last is None:
            last = frames.device.type == "cuda"
        layout = torch.channels_last if last else torch.contiguous_format
        # Decoded frames arrive with the channels last, and torch 2.15 on CPU corrupts the heap in
        # the backward pass of a strided 1x1 convolution over 4 such channels.
        images = frames.contiguous(memory_format=layout).to(self.mean.dtype)
        features: Tensor = self.backbone((images / 255 - self.mean) / self.std)
        return features

    def shorten(self, frame_features: Tensor, step_lengths: Tensor, weight: Tensor) -> Tensor:
        """Return ReLU(BN(Conv1D(F_v))) of Eq. 3 from ``[batch, frames, visual_dim]``."""
        x = self.conv(frame_features.transpose(1, 2))
        mask = length_mask(step_lengths, x.shape[2])
        x = torch.relu(self.norm(x, mask & (weight > 0)[:, None]))
        return (x * mask[:, None, :]).transpose(1, 2)


def _computed_again(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return ``function(x)``, holding ``x`` alone until the backward pass; nothing is drawn."""
    out: Tensor = checkpoint(function, x, use_reentrant=False, preserve_rng_state=False)
    return out
