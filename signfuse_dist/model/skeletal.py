"""The skeletal stream, Eq. 4-5: an ST-GCN over 75 joints."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from signfuse_dist.batch import length_mask
from signfuse_dist.skeleton import NUM_JOINTS, normalized_adjacency


class SpatialGraphConv(nn.Module):
    """The sum inside Eq. 4: sum over k of D_k^-1/2 (A_k + I) D_k^-1/2 F W_k.

    The neighbours are gathered before W_k is applied, which is the same by associativity and
    cheaper: a layer has fewer channels coming in than going out. ``weight`` holds the W_k side by
    side, ``[out_channels, partitions * in_channels, 1, 1]``.
    """

    adjacency: Tensor

    def __init__(self, in_channels: int, out_channels: int, adjacency: Tensor) -> None:
        super().__init__()
        self.register_buffer("adjacency", adjacency, persistent=False)
        self.weight = nn.Conv2d(len(adjacency) * in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, in_channels, frames, joints]`` to ``[batch, out_channels, frames, joints]``."""
        gathered = torch.einsum("kvw,bctw->bkctv", self.adjacency, x)
        out: Tensor = self.weight(gathered.flatten(1, 2))
        return out


class SpatialTemporalBlock(nn.Module):
    """One ST-GCN layer: spatial graph convolution, then temporal convolution of kernel 9.

    Paper: Eq. 4, then "temporal convolution", no norm and no residual in print. Here: a norm
    before each ReLU and a residual around the block. Because: that is the ST-GCN it cites [25];
    four layers without them do not train.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int,
        adjacency: Tensor,
        make_norm: Callable[[int], nn.Module],
    ) -> None:
        super().__init__()
        self.spatial = SpatialGraphConv(in_channels, out_channels, adjacency)
        self.spatial_norm = make_norm(out_channels)
        # No bias: the norm takes it away, and Adam would walk it along rounding noise.
        self.temporal = nn.Conv2d(
            out_channels,
            out_channels,
            (kernel, 1),
            (stride, 1),
            (kernel // 2, 0),
            bias=False,
        )
        self.temporal_norm = make_norm(out_channels)
        self.stride = stride
        self.residual: nn.Module = nn.Identity()
        if in_channels != out_channels or stride != 1:
            self.residual = nn.Conv2d(in_channels, out_channels, 1, (stride, 1))

    def forward(self, x: Tensor, lengths: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``[batch, out_channels, ceil(frames / stride), joints]`` and the new lengths."""
        mask, counted = _masks(lengths, x.shape[2], weight)
        inner = torch.relu(self.spatial_norm(self.spatial(x), counted)) * mask[:, None, :, None]
        lengths = torch.div(lengths + self.stride - 1, self.stride, rounding_mode="floor")
        inner = self.temporal(inner)
        mask, counted = _masks(lengths, inner.shape[2], weight)
        out = torch.relu(self.temporal_norm(inner, counted) + self.residual(x))
        return out * mask[:, None, :, None], lengths


class SkeletalStream(nn.Module):
    """Eq. 4-5: joints to ``skeletal`` features at half the frame rate.

    Paper: the joints enter the first layer as they are. Here: each joint's coordinates are
    normalised first. Because: so does the ST-GCN it cites [25]; every joint shares the weights of
    Eq. 4, and beside the spread over the body the movements of one joint are too small to learn.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        kernel: int,
        make_norm: Callable[[int], nn.Module],
    ) -> None:
        super().__init__()
        adjacency = torch.from_numpy(normalized_adjacency()).float()
        self.input_norm = make_norm(2 * NUM_JOINTS)
        widths = [2, *channels]
        self.blocks = nn.ModuleList(
            SpatialTemporalBlock(a, b, kernel, stride, adjacency, make_norm)
            for a, b, stride in zip(widths[:-1], widths[1:], strides, strict=True)
        )

    def forward(
        self, pose: Tensor, joint_mask: Tensor, frame_lengths: Tensor, weight: Tensor
    ) -> Tensor:
        """Return ``skeletal`` (F^_s of Eq. 5), zero beyond each clip's end.

        Paper: "normalized coordinates". Here: the square frame from -1 to 1, missing joints at 0.
        Because: a missing joint then sits where it moves the mean least, and the mask says which.

        Args:
            pose: ``[batch, frames, joints, 2]`` in units of the square frame.
            joint_mask: bool ``[batch, frames, joints]``, True = the landmark was found.
            frame_lengths: ``[batch]``, 0 for a clip without joints.
            weight: ``[batch]``; a clip of weight 0 enters no statistic.

        Returns:
            ``[batch, steps, dim]``.
        """
        real = joint_mask & length_mask(frame_lengths, pose.shape[1])[:, :, None]
        _, counted = _masks(frame_lengths, pose.shape[1], weight)
        # Not a product: what stands in the place of a missing joint is not read, NaN or not.
        centred = torch.where(real[..., None], 2 * pose - 1, 0).flatten(2).transpose(1, 2)
        x = self.input_norm(centred, counted).transpose(1, 2).unflatten(2, (NUM_JOINTS, 2))
        x = (x * real[..., None]).permute(0, 3, 1, 2)
        lengths = frame_lengths
        for block in self.blocks:
            x, lengths = block(x, lengths, weight)
        skeletal: Tensor = x.mean(dim=3).transpose(1, 2)
        return skeletal


def _masks(lengths: Tensor, size: int, weight: Tensor) -> tuple[Tensor, Tensor]:
    mask = length_mask(lengths, size)
    return mask, mask & (weight > 0)[:, None]
