"""The skeletal stream, Eq. 4-5: an ST-GCN over 75 joints."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from signfuse_dist.batch import length_mask
from signfuse_dist.model.dropout import ClipDropout
from signfuse_dist.model.joint_channels import PRINTED, JointChannels
from signfuse_dist.model.norm import BatchNorm
from signfuse_dist.skeleton import JOINT_GROUPS, JOINT_INDEX, JOINTS, normalized_adjacency


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
        self.dropout = ClipDropout()
        self.residual: nn.Module = nn.Identity()
        if in_channels != out_channels or stride != 1:
            self.residual = nn.Conv2d(in_channels, out_channels, 1, (stride, 1))

    def forward(
        self, x: Tensor, lengths: Tensor, weight: Tensor, there: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return ``[batch, out_channels, ceil(frames / stride), joints]`` and the new lengths.

        ``there``, bool ``[batch, frames, joints]``, are the joints that the norms count; None: all.
        """
        mask, counted = _masks(lengths, x.shape[2], weight)
        inner = self.spatial_norm(self.spatial(x), _of_joints(counted, there))
        inner = torch.relu(inner) * mask[:, None, :, None]
        lengths = torch.div(lengths + self.stride - 1, self.stride, rounding_mode="floor")
        inner = self.temporal(inner)
        mask, counted = _masks(lengths, inner.shape[2], weight)
        there = shortened(there, self.stride)
        inner = self.temporal_norm(inner, _of_joints(counted, there))
        # In the memory order of coordinates last, which joints come in, torch 2.15's strided 1 x 1
        # convolution of fewer than 8 channels writes beyond its memory on a CPU.
        before = x if self.stride == 1 else x.contiguous()
        out = torch.relu(self.dropout(inner) + self.residual(before))
        return out * mask[:, None, :, None], lengths


class MeanOverJoints(nn.Module):
    """The mean of Eq. 5."""

    def forward(self, x: Tensor, there: Tensor | None) -> Tensor:
        """Return ``[batch, channels, steps]`` of ``[batch, channels, steps, joints]``.

        ``there``, bool ``[batch, steps, joints]``, are the joints that count; None: all. A step
        without any has the mean over all.
        """
        if there is None:
            return x.mean(dim=3)
        keep = (there | ~there.any(dim=2, keepdim=True))[:, None].to(x.dtype)
        return (x * keep).sum(dim=3) / keep.sum(dim=3)


class MeansOfGroups(nn.Module):
    """A mean of each hand, of the body and of the face, and a linear layer over them side by side.

    Paper: Eq. 5, one mean. Here: on request (``model.joint_pooling: groups``) four. Because: both
    hands share every weight of Eq. 4 and the graph is its own mirror image, so that in one mean
    nothing but the gains of the first norm tells the left hand from the right.
    """

    def __init__(self, dim: int, joints: Sequence[str]) -> None:
        super().__init__()
        groups = [[n for n in names if n in joints] for names in JOINT_GROUPS.values()]
        self.sizes = [len(names) for names in groups if names]
        self.mean = MeanOverJoints()
        self.linear = nn.Linear(len(self.sizes) * dim, dim, bias=False)

    def forward(self, x: Tensor, there: Tensor | None) -> Tensor:
        """As :class:`MeanOverJoints`."""
        masks = [None] * len(self.sizes) if there is None else there.split(self.sizes, dim=2)
        means = [self.mean(*of) for of in zip(x.split(self.sizes, dim=3), masks, strict=True)]
        out: Tensor = self.linear(torch.cat(means, dim=1).transpose(1, 2))
        return out.transpose(1, 2)


class SkeletalStream(nn.Module):
    """Eq. 4-5: joints to ``skeletal`` features at half the frame rate.

    Paper: the joints enter the first layer as they are. Here: each joint's coordinates are
    normalised first. Because: so does the ST-GCN it cites [25]; every joint shares the weights of
    Eq. 4, and beside the spread over the body the movements of one joint are too small to learn.
    With ``model.joint_spread: shared`` each loses its own mean, and all are divided by one
    deviation. Because: divided by its own, a joint that hardly moves in the frame of the body, as
    the nose or a shoulder, has its noise made as large as a hand's movement.

    Paper: Eq. 5 is a mean over all joints. Here: so by default, and a missing joint counts in every
    norm, at 0 in the first. With ``model.joint_statistics: present`` norms and mean count the
    joints that are there; after a stride, those of any of a step's frames. A step without any joint
    has the mean over all. Because: with 30 % of a joint missing at 0, its real values come out of
    the first norm with a deviation of 0.48 and a mean of +0.62.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        kernel: int,
        make_norm: Callable[[int], nn.Module],
        inputs: JointChannels = PRINTED,
        statistics: str = "all",
        joints: Sequence[str] = JOINTS,
        pooling: str = "mean",
        spread: str = "each",
    ) -> None:
        super().__init__()
        self.inputs, self.statistics, self.strides = inputs, statistics, tuple(strides)
        self.joints = None if joints == JOINTS else [JOINT_INDEX[name] for name in joints]
        adjacency = torch.from_numpy(normalized_adjacency(joints)).float()
        self.input_norm = make_norm(inputs.num_coordinates * len(joints))
        if spread == "shared" and isinstance(self.input_norm, BatchNorm):
            self.input_norm.period = inputs.num_coordinates
        widths = [inputs.count, *channels]
        self.blocks = nn.ModuleList(
            SpatialTemporalBlock(a, b, kernel, stride, adjacency, make_norm)
            for a, b, stride in zip(widths[:-1], widths[1:], strides, strict=True)
        )
        self.pooling: MeanOverJoints | MeansOfGroups = MeanOverJoints()
        if pooling == "groups":
            self.pooling = MeansOfGroups(widths[-1], joints)

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
        inside, counted = _masks(frame_lengths, pose.shape[1], weight)
        real = joint_mask & inside[:, :, None]
        values, known = self.inputs.coordinates(pose, real)
        if self.joints is not None:
            values, known, real = (x[:, :, self.joints] for x in (values, known, real))
        there = real if self.statistics == "present" else None
        if there is not None:
            counted = counted[:, None] & known.flatten(2).transpose(1, 2)
        x = self.input_norm(values.flatten(2).transpose(1, 2), counted).transpose(1, 2)
        x = x.unflatten(2, known.shape[2:]) * known
        if self.inputs.presence:
            # Not 1 and 0: where no joint is missing that is a constant before the first norm, whose
            # gradient is rounding, and Adam would walk along it.
            lost = (inside[:, :, None] & ~real)[..., None]
            x = torch.cat((x, -lost.to(x.dtype)), dim=3)
        x, lengths = x.permute(0, 3, 1, 2), frame_lengths
        for block, stride in zip(self.blocks, self.strides, strict=True):
            x, lengths = block(x, lengths, weight, there)
            there = shortened(there, stride)
        skeletal: Tensor = self.pooling(x, there).transpose(1, 2)
        return skeletal


def shortened(there: Tensor | None, stride: int) -> Tensor | None:
    """Return which joints are there in any of a step's frames, ``[batch, steps, joints]``."""
    if there is None or stride == 1:
        return there
    rows = there.transpose(1, 2).float()
    any_of = F.max_pool1d(rows, stride, ceil_mode=True)
    return any_of.transpose(1, 2) > 0


def _of_joints(counted: Tensor, there: Tensor | None) -> Tensor:
    return counted if there is None else (counted[:, :, None] & there)[:, None]


def _masks(lengths: Tensor, size: int, weight: Tensor) -> tuple[Tensor, Tensor]:
    mask = length_mask(lengths, size)
    return mask, mask & (weight > 0)[:, None]
