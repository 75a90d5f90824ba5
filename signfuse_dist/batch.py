"""The batch: what the data gives and the model takes, tensors with lengths, masks from lengths."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from signfuse_dist.arrangement import PICTURE
from signfuse_dist.errors import raise_together


def length_mask(lengths: Tensor, size: int) -> Tensor:
    """Return bool ``[batch, size]``, True where a position is real."""
    return torch.arange(size, device=lengths.device)[None, :] < lengths[:, None]


@dataclass(frozen=True)
class TokenLayout:
    """Where the real positions of a padded batch are.

    Attributes:
        shape: (batch, steps) of the padded batch.
        places: int64 ``[tokens]``, the real ones among batch * steps; None = all are.
        offsets: int32 ``[batch + 1]``, where each clip begins, and the end.
    """

    shape: tuple[int, int]
    places: Tensor | None
    offsets: Tensor

    def pack(self, x: Tensor) -> Tensor:
        """``[batch, steps, ...]`` to ``[tokens, ...]``."""
        flat = x.flatten(0, 1)
        return flat if self.places is None else flat.index_select(0, self.places)

    def unpack(self, packed: Tensor) -> Tensor:
        """``[tokens, ...]`` to ``[batch, steps, ...]``, zero where there is no token."""
        flat = packed
        if self.places is not None:
            batch, steps = self.shape
            flat = packed.new_zeros(batch * steps, *packed.shape[1:])
            flat = flat.index_copy(0, self.places, packed)
        return flat.reshape(*self.shape, *packed.shape[1:])


def lay_out(lengths: Tensor, size: int, count: int) -> TokenLayout:
    """Return where clips are whose padding comes last; nothing waits for a device.

    Args:
        lengths: int64 ``[batch]``.
        size: positions of the padded batch, the longest clip's at least.
        count: the sum of the lengths, which the host knows.
    """
    ends = lengths.cumsum(0)
    clip = torch.arange(len(lengths), device=lengths.device)
    clip = clip.repeat_interleave(lengths, output_size=count)
    within = torch.arange(count, device=lengths.device) - (ends - lengths)[clip]
    offsets = torch.cat((ends.new_zeros(1), ends)).to(torch.int32)
    return TokenLayout((len(lengths), size), clip * size + within, offsets)


def pooling_weights(lengths: Tensor, size: int, pooled_length: int) -> Tensor:
    """Return the matrix of adaptive average pooling over real steps only, in float64.

    ``[batch, pooled_length, size]``: row i averages steps floor(i L / P) to ceil((i + 1) L / P),
    torch's AdaptiveAvgPool1d with L the clip's own length. Clips shorter than P repeat steps.
    """
    out = torch.arange(pooled_length, device=lengths.device)[None, :]
    ends = (out + 1) * lengths[:, None]
    start = torch.div(out * lengths[:, None], pooled_length, rounding_mode="floor")
    stop = torch.div(ends + pooled_length - 1, pooled_length, rounding_mode="floor")
    step = torch.arange(size, device=lengths.device)[None, None, :]
    inside = (step >= start[:, :, None]) & (step < stop[:, :, None])
    return inside.double() / (stop - start)[:, :, None]


def _where(has: Tensor | None, values: Tensor) -> Tensor:
    """Return ``values`` ``[batch]``, 0 where a clip has not; None: every clip has."""
    return values if has is None else values * has.to(values.dtype)


_AUGMENTED_AT_ONCE = 64  # frames


def _changed(frames: Tensor, warp: Tensor, colour: Tensor) -> Tensor:
    """Return uint8 frames ``[n, 3, height, width]``, coloured, then moved; one row each a frame.

    Beyond a picture its edge goes on: beside black stripes, of another width in each clip, stage 1
    learned nothing (docs/log.md).
    """
    with torch.autocast(frames.device.type, enabled=False):
        images = frames.float()
        mixed = torch.einsum("nij,njhw->nihw", colour[:, :, :3], images)
        images = (mixed + 255 * colour[:, :, 3, None, None]).clamp(0, 255)
        grid = F.affine_grid(warp, list(images.shape), align_corners=False)
        moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
        return moved.round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class SignBatch:
    """Clips of different lengths, padded at the end.

    Only real frames are carried (``frames`` is the clips' frames one after the other), so nothing
    downstream can compute on a padded picture. Of a clip without pictures there are none among
    them, and its joints say how long it is.

    Attributes:
        ids: the clips' names, ``batch`` of them; "" for a place of weight zero.
        frames: uint8 ``[sum(picture_lengths), 3, height, width]``.
        pose: float32 ``[batch, frames, joints, 2]``, x and y in the square frame; what stands
            where a joint is missing is not read.
        joint_mask: bool ``[batch, frames, joints]``, True = the landmark was found.
        frame_lengths: int64 ``[batch]``.
        weight: float32 ``[batch]``: 1, or 0 for a clip that counts in no loss and no statistic.
        tokens: int64 ``[batch, tokens]``, the target text with its end token, or None without LLM.
        text_lengths: int64 ``[batch]``, real tokens with the end token, or None without LLM.
        faults: what was wrong with the clips that could not be read and got weight 0.
        warp: float32 ``[batch, 2, 3]``, a change of place and size that the frames still need, in
            the coordinates of ``grid_sample``; the joints have had theirs. None: no augmentation.
        colour: float32 ``[batch, 3, 4]``, new RGB from (R, G, B, 1), or None like ``warp``.
        visual: F^_v of Eq. 3, ``[batch, steps, dim]``, zero beyond each clip's end, computed
            before in place of the frames: then there are no frames and no joints, and the
            encoders are not run. None: not computed, or a model without this stream.
        skeletal: F^_s of Eq. 5, likewise.
        frame_vectors: float32 ``[sum(picture_lengths), dim]``, what of the frames was computed
            before and is given in their place (``model.visual_backbone: features:NAME``): then
            there are no frames. None: the frames are there.
        spans: float32 ``[batch, 2, 2]``, where a span of the visual and one of the skeletal
            features is hidden, as shares of the clip; None: nowhere.
        draws: int64 ``[batch]``, from which dropout draws; None: it cannot.
        has_visual: bool ``[batch]``, True = the clip has pictures; None: every clip has. Where a
            clip has none, its skeletal features stand on both sides of CMFA.
        has_skeletal: bool ``[batch]``, True = the clip has joints, whether or not any was found;
            None: every clip has. Where a clip has none, its visual features stand on both sides.
        corpus: int64 ``[batch]``, the number of the clip's corpus in a blend; None: of one corpus.
        known_lengths: ``frame_lengths`` as the host knows them, filled in where the batch is made
            in its memory; None for one that was made on a device. Asking that would make the host
            wait.
        known_visual: ``has_visual`` likewise, always None where that is.
        known_skeletal: ``has_skeletal`` likewise.
        known_corpus: ``corpus`` likewise.
    """

    ids: tuple[str, ...]
    frames: Tensor
    pose: Tensor
    joint_mask: Tensor
    frame_lengths: Tensor
    weight: Tensor
    tokens: Tensor | None = None
    text_lengths: Tensor | None = None
    faults: tuple[str, ...] = ()
    warp: Tensor | None = None
    colour: Tensor | None = None
    visual: Tensor | None = None
    skeletal: Tensor | None = None
    frame_vectors: Tensor | None = None
    spans: Tensor | None = None
    draws: Tensor | None = None
    has_visual: Tensor | None = None
    has_skeletal: Tensor | None = None
    corpus: Tensor | None = None
    known_lengths: tuple[int, ...] | None = None
    known_visual: tuple[bool, ...] | None = None
    known_skeletal: tuple[bool, ...] | None = None
    known_corpus: tuple[int, ...] | None = None

    @property
    def picture_lengths(self) -> Tensor:
        """Int64 ``[batch]``: the frames that each clip has among ``frames``."""
        return _where(self.has_visual, self.frame_lengths)

    @property
    def joint_lengths(self) -> Tensor:
        """Int64 ``[batch]``: the frames of which each clip has joints."""
        return _where(self.has_skeletal, self.frame_lengths)

    @property
    def has_both(self) -> Tensor | None:
        """Bool ``[batch]``, True = the clip has both streams; None: every clip has."""
        if self.has_visual is None or self.has_skeletal is None:
            return self.has_skeletal if self.has_visual is None else self.has_visual
        return self.has_visual & self.has_skeletal

    @property
    def pair_weight(self) -> Tensor:
        """``weight`` in Eq. 21: 0 also for a clip of one stream, which is no pair."""
        return _where(self.has_both, self.weight)

    @property
    def work(self) -> tuple[float, float]:
        """What the batch needs, and what is computed for it, in units of a frame of joints alone.

        The ResNet, :data:`~signfuse_dist.arrangement.PICTURE` units a picture, sees real frames
        alone; all else has as many places for each clip as the longest has frames. Clips of weight
        zero are not needed. On the host.
        """
        needed = (self.frame_lengths * self.weight).sum()
        computed = len(self.frame_lengths) * self.frame_lengths.max()
        if len(self.frames):
            needed = needed + PICTURE * (self.picture_lengths * self.weight).sum()
            computed = computed + PICTURE * len(self.frames)
        return float(needed), float(computed)

    def augmented(self) -> SignBatch:
        """Return the batch with ``colour`` and ``warp`` applied to its frames, on their device.

        A few frames at a time, so that the memory for it does not grow with the batch.
        """
        if self.warp is None or self.colour is None:
            return self
        count = len(self.frames)
        clip = torch.arange(len(self.warp), device=self.warp.device)
        clip = clip.repeat_interleave(self.picture_lengths, output_size=count)
        frames = torch.empty_like(self.frames, memory_format=torch.contiguous_format)
        for part in torch.arange(count, device=clip.device).split(_AUGMENTED_AT_ONCE):
            if not len(part):
                break  # a batch without pictures
            which = clip[part]
            frames[part] = _changed(self.frames[part], self.warp[which], self.colour[which])
        return replace(self, frames=frames, warp=None, colour=None)

    def with_features(self, visual: Tensor | None, skeletal: Tensor | None) -> SignBatch:
        """Return the batch with features in place of its frames and joints."""
        return replace(
            self,
            frames=self.frames[:0],
            frame_vectors=None,
            pose=self.pose[:, :0],
            joint_mask=self.joint_mask[:, :0],
            warp=None,
            colour=None,
            visual=visual,
            skeletal=skeletal,
        )

    def __post_init__(self) -> None:
        """Raise :class:`UserError` naming clips with a joint that was found and is not finite.

        One such value would make every loss and weight not-a-number. Clips that count and have
        neither stream are named as well. Looked at on the CPU alone, where every batch is made:
        asking a GPU would make it wait.
        """
        if self.frame_lengths.device.type == "cpu":
            object.__setattr__(self, "known_lengths", tuple(self.frame_lengths.tolist()))
            for name in ("visual", "skeletal"):
                has: Tensor | None = getattr(self, f"has_{name}")
                known = None if has is None else tuple(has.tolist())
                object.__setattr__(self, f"known_{name}", known)
            of = None if self.corpus is None else tuple(self.corpus.tolist())
            object.__setattr__(self, "known_corpus", of)
            self._refuse_empty()
        # The sum of all is finite only if each of them is. By numpy: torch's threads cost loader
        # threads more than the sum does.
        if self.pose.device.type != "cpu" or math.isfinite(self.pose.detach().numpy().sum()):
            return
        real = self.joint_mask & length_mask(self.frame_lengths, self.pose.shape[1])[:, :, None]
        odd = (real & ~self.pose.isfinite().all(dim=-1)).flatten(1).any(dim=1).tolist()
        raise_together(
            [name for name, is_odd in zip(self.ids, odd, strict=True) if is_odd],
            "clips with joints that are not finite (mark missing ones in joint_mask)",
        )

    def _refuse_empty(self) -> None:
        if self.known_visual is None or self.known_skeletal is None:
            return
        there = zip(self.ids, self.known_visual, self.known_skeletal, strict=True)
        raise_together(
            [name for name, seen, tracked in there if name and not (seen or tracked)],
            "clips with neither pictures nor joints (give them weight 0)",
        )

    def to(self, device: torch.device) -> SignBatch:
        """Copy to ``device`` without waiting (the loader pins the memory)."""
        return self._with_each(lambda tensor: tensor.to(device, non_blocking=True))

    @property
    def nbytes(self) -> int:
        """The bytes of its tensors."""
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, Tensor))

    def pin_memory(self) -> SignBatch:
        """Return the batch in page-locked memory; what is there already is not copied."""
        return self._with_each(lambda tensor: tensor.pin_memory())

    def _with_each(self, change: Callable[[Tensor], Tensor]) -> SignBatch:
        changed: dict[str, Any] = {
            name: change(value) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **changed)
