"""What the ST-GCN is told of each joint: coordinates in a frame, velocity, and whether it is there.

Paper: two coordinates, "normalized". Here: those of the square picture from -1 to 1 by default. On
request ``model.joint_frame: body``, with the hands also relative to their wrists,
``model.joint_velocity`` and ``model.joint_presence``. Because: in coordinates of the picture the
same sign is another one where the signer sits elsewhere or nearer; and at 0, where a missing joint
is put, another may really be.

The frame of the body is one of a clip, so that leaning and stepping stay what they are: its origin
is the middle of both shoulders and its unit their distance, each the median over the frames in
which both are found. A clip in which they never are found together, or never apart (tracks of hands
and a nose), has as origin the median of its nose, or of all its joints where that is never found
(hands alone), and as unit the median of the other joints' distances to it; one whose joints are all
in one place has the picture's unit. So every clip that is moved or scaled as a whole has the same
coordinates as before.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from signfuse_dist.config import ModelConfig
from signfuse_dist.skeleton import BODY, FACE, JOINT_INDEX, LEFT_HAND, RIGHT_HAND

_SHOULDERS = (JOINT_INDEX["left_shoulder"], JOINT_INDEX["right_shoulder"])
_NOSE = JOINT_INDEX["nose"]
# The joint of each hand that the others are told from, and the body's, where that is not found.
_WRISTS = {"left": ("left_hand_wrist", "left_wrist"), "right": ("right_hand_wrist", "right_wrist")}
_LEAST = 1e-3  # of a unit, in sides of the picture: below it is none


@dataclass(frozen=True)
class JointChannels:
    """Which channels there are; the defaults are the paper's two coordinates.

    Attributes:
        body: coordinates in the frame of the body, and of hands to their wrists.
        velocity: the change of both coordinates since the frame before.
        presence: 0 where a joint is found, -1 where it is missing from a frame.
    """

    body: bool = False
    velocity: bool = False
    presence: bool = False

    @classmethod
    def of(cls, config: ModelConfig) -> JointChannels:
        """Return those that a configuration asks for."""
        body = config.joint_frame == "body"
        return cls(body, config.joint_velocity, config.joint_presence)

    @property
    def num_coordinates(self) -> int:
        """How many channels of a joint are normalised: all but its presence."""
        return 2 + 2 * self.body + 2 * self.velocity

    @property
    def count(self) -> int:
        """How many channels of a joint there are in all."""
        return self.num_coordinates + self.presence

    def coordinates(self, pose: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Return the coordinates of joints and which of them are known.

        Args:
            pose: ``[batch, frames, joints, 2]`` in sides of the square picture.
            real: bool ``[batch, frames, joints]``, True = found, in a frame of its clip.

        Returns:
            ``[batch, frames, joints, num_coordinates]``, 0 where not known, and bool of the same
            shape. What stands in the place of a missing joint is not read, NaN or not.
        """
        pose = torch.where(real[..., None], pose, 0)
        parts, known = [2 * pose - 1], [real]
        if self.body:
            parts, known = [in_body(pose, real)], [real]
        if self.velocity:
            both = torch.zeros_like(real)
            both[:, 1:] = real[:, 1:] & real[:, :-1]
            moved = torch.zeros_like(parts[0])
            moved[:, 1:] = parts[0][:, 1:] - parts[0][:, :-1]
            parts.append(moved)
            known.append(both)
        if self.body:
            relative, there = _to_wrists(parts[0], real)
            parts.insert(1, relative)
            known.insert(1, there)
        valid = torch.stack(known, dim=-1).repeat_interleave(2, dim=-1)
        return torch.where(valid, torch.cat(parts, dim=-1), 0), valid


PRINTED = JointChannels()


@torch.no_grad()
def in_body(pose: Tensor, real: Tensor) -> Tensor:
    """Return joints in the frame of the body, ``[batch, frames, joints, 2]``.

    Arguments as of :meth:`JointChannels.coordinates`; missing joints are of any value.
    """
    left, right = (pose[:, :, i] for i in _SHOULDERS)
    seen = real[:, :, _SHOULDERS[0]] & real[:, :, _SHOULDERS[1]]
    origin = torch.stack([_median((left + right)[..., i] / 2, seen) for i in range(2)], dim=-1)
    unit = _median((left - right).norm(dim=-1), seen)
    usable = seen.any(dim=1) & (unit > _LEAST)
    head = torch.zeros_like(real)
    head[:, :, _NOSE] = real[:, :, _NOSE]
    centre = torch.where(head.any(dim=2, keepdim=True).any(dim=1, keepdim=True), head, real)
    every = pose.flatten(1, 2)
    middle = torch.stack([_median(every[..., i], centre.flatten(1, 2)) for i in range(2)], dim=-1)
    others = (real & ~head).flatten(1, 2)
    spread = _median((every - middle[:, None]).norm(dim=-1), others)
    spread = torch.where(spread > _LEAST, spread, 1)
    origin = torch.where(usable[:, None], origin, middle)
    unit = torch.where(usable, unit, spread)
    return (pose - origin[:, None, None]) / unit[:, None, None, None]


def _to_wrists(points: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Return hands' joints relative to their wrists, 0 for others, and where both are found."""
    relative, there = [], []
    for side, names in (("left", LEFT_HAND), ("right", RIGHT_HAND)):
        hand = slice(JOINT_INDEX[names[0]], JOINT_INDEX[names[-1]] + 1)
        own, of_body = (JOINT_INDEX[name] for name in _WRISTS[side])
        wrist = torch.where(real[:, :, own, None], points[:, :, own], points[:, :, of_body])
        relative.append(points[:, :, hand] - wrist[:, :, None])
        there.append(real[:, :, hand] & (real[:, :, own] | real[:, :, of_body])[:, :, None])
    rest = points.new_zeros(*points.shape[:2], len(BODY) + len(FACE), 2)
    none = torch.zeros_like(rest[..., 0], dtype=torch.bool)
    return torch.cat((*relative, rest), dim=2), torch.cat((*there, none), dim=2)


def _median(values: Tensor, there: Tensor) -> Tensor:
    """Return the median of those values of a row that are there, ``[rows, n]`` to ``[rows]``.

    0 where none is. By sorting: torch's median is refused on CUDA where kernels must repeat bits.
    """
    count = there.sum(dim=1, keepdim=True)
    ordered = values.masked_fill(~there, torch.inf).sort(dim=1, stable=True).values
    below = ordered.gather(1, (count - 1).clamp(min=0) // 2)
    above = ordered.gather(1, (count // 2).clamp(max=values.shape[1] - 1))
    return torch.where(count > 0, (below + above) / 2, 0).squeeze(1)
