"""The plan: which clips each process sees at each step, which of their frames, and what is drawn.

Everything here is a pure function of the configuration, the clip lengths, the seed and the number
of processes. The order of the clips does not depend on the number of processes, so the state of the
data is ``(seed, epoch, step)``. What augmentation draws is a function of (seed, epoch, place of the
clip in its split): any number of processes and workers draws the same, and a run that goes on draws
what it would have drawn. So are the keys from which :mod:`signfuse_dist.model.dropout` draws. One
draw holds for a whole clip, and for its picture and its joints alike;
:meth:`signfuse_dist.batch.SignBatch.augmented` applies it to the pictures. Importing this module
imports no torch.

Paper: names no augmentation.
Here: seven kinds, each off by default. There is no mirroring.
Because: labs use them, and which suits a corpus is theirs to say; but a mirrored signer signs with
the other hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from signfuse_dist.arrangement import AS_DRAWN, Arrangement, deal, share_out
from signfuse_dist.config import AugmentConfig, StageConfig, TrainConfig
from signfuse_dist.draws import KEYS, LOST, SPANS, hashed, uniform
from signfuse_dist.errors import UserError

PADDING = -1  # the place of a clip of weight zero: keeps every process in step at the epoch's tail


@dataclass(frozen=True)
class Plan:
    """Counts derived from the configuration; nothing here is typed by a user.

    ``num_pairs`` is B of Eq. 21: the global batch with gradient caching, and without it the clips
    of one micro batch over all processes, since InfoNCE does not accumulate.
    """

    num_clips: int
    world_size: int
    micro_batch_size: int
    global_batch_size: int
    accumulation: int
    num_pairs: int
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int

    @property
    def num_together(self) -> int:
        """The clips of one micro batch over all processes."""
        return self.micro_batch_size * self.world_size

    @property
    def caches_gradients(self) -> bool:
        """Whether more clips meet in Eq. 21 than are held at once."""
        return self.num_pairs > self.num_together

    def describe(self, contrastive: bool) -> str:
        """Return the plan as lines for a terminal.

        ``contrastive``: whether a loss of the stage compares clips.
        """
        return "\n".join(
            (
                f"  {self.num_clips} clips, {self.world_size} processes x "
                f"{self.micro_batch_size} clips x {self.accumulation} accumulated = "
                f"{self.global_batch_size} a step",
                f"  {self.steps_per_epoch} steps an epoch, {self.total_steps} in all, "
                f"{self.warmup_steps} of warmup",
                f"  {self._pairs()}" if contrastive else "  no contrastive loss in this run",
            )
        )

    def _pairs(self) -> str:
        pairs = min(self.num_pairs, self.num_clips)
        how = ", by gradient caching" if self.caches_gradients and pairs > self.num_together else ""
        few = "" if pairs == self.num_pairs else f": all that the split has, not {self.num_pairs}"
        return f"{pairs} pairs in each contrastive loss (B of Eq. 21){how}{few}"


def make_plan(num_clips: int, stage: StageConfig, train: TrainConfig, world_size: int) -> Plan:
    """Derive the plan; raise :class:`UserError` where the batch does not divide."""
    if num_clips < 1:
        raise UserError("the training split has no clips; pack it first (signfuse pack)")
    together = train.micro_batch_size * world_size
    if train.global_batch_size % together:
        fits = divisors_that_fit(train.global_batch_size, world_size)
        advice = (
            f"train.micro_batch_size of {', '.join(map(str, fits))} divides"
            if fits
            else f"use a number of processes that divides {train.global_batch_size}"
        )
        raise UserError(
            f"train.global_batch_size {train.global_batch_size} does not divide by "
            f"train.micro_batch_size {train.micro_batch_size} x {world_size} processes "
            f"= {together}: {advice}"
        )
    steps_per_epoch = math.ceil(num_clips / train.global_batch_size)
    return Plan(
        num_clips=num_clips,
        world_size=world_size,
        micro_batch_size=train.micro_batch_size,
        global_batch_size=train.global_batch_size,
        accumulation=train.global_batch_size // together,
        num_pairs=train.global_batch_size if train.gradient_caching else together,
        steps_per_epoch=steps_per_epoch,
        total_steps=steps_per_epoch * stage.epochs,
        warmup_steps=steps_per_epoch * stage.warmup_epochs,
    )


def divisors_that_fit(global_batch_size: int, world_size: int) -> list[int]:
    """Return the micro batch sizes that divide the global batch on ``world_size`` processes."""
    if world_size < 1 or global_batch_size % world_size:
        return []
    each = global_batch_size // world_size
    return [size for size in range(1, each + 1) if each % size == 0]


def learning_rate(step: int, plan: Plan, peak: float) -> float:
    """Return the rate of optimizer step ``step`` (from 0): linear warmup, then cosine to zero.

    Section 4.2: "cosine annealing with linear warmup", counted in optimizer steps. The first step
    has ``peak / warmup_steps``, so no step is spent at zero.
    """
    if step < plan.warmup_steps:
        return peak * (step + 1) / plan.warmup_steps
    progress = (step - plan.warmup_steps) / max(1, plan.total_steps - plan.warmup_steps)
    return peak * 0.5 * (1.0 + math.cos(math.pi * progress))


def data_position(plan: Plan, seed: int, step: int) -> dict[str, int]:
    """Return where the data stands after ``step`` steps; the next clips follow from it."""
    epoch, within = divmod(step, plan.steps_per_epoch)
    return {"seed": seed, "epoch": epoch, "step": within, "clips": plan.num_clips}


def epoch_order(seed: int, epoch: int, num_clips: int) -> NDArray[np.int64]:
    """Return the clips of one epoch in order, each exactly once, on any number of processes."""
    return np.random.default_rng([seed, epoch]).permutation(num_clips)


def global_batch(order: NDArray[np.int64], step: int, size: int) -> NDArray[np.int64]:
    """Return the clips of one optimizer step, padded with :data:`PADDING` to ``size``."""
    batch = np.full(size, PADDING, dtype=np.int64)
    clips = order[step * size : (step + 1) * size]
    batch[: len(clips)] = clips
    return batch


Times = int | NDArray[np.int64]
"""How often clips were drawn before: the epoch, or one number a clip of a blend, ``[clips]``."""


def times_at(times: Times, chosen: NDArray[Any]) -> Times:
    """Return the times of some of the clips."""
    return times if isinstance(times, int) else times[chosen]


class MicroBatch(NamedTuple):
    """Clips that one process holds at once; a place of weight zero is :data:`PADDING`."""

    clips: list[int]
    epoch: Times


FramesOf = Callable[[Times, NDArray[np.int64]], NDArray[np.int64]]
"""Returns how many frames each of some clips has in an epoch."""


Clips = NDArray[np.int64]
"""Clips by their places in a split, or a number for each."""
_NONE: Clips = np.empty(0, dtype=np.int64)
_TWICE = (_NONE, _NONE)
_CLIPS_AT_ONCE = 1 << 17  # are looked through


class MicroBatches:
    """One process's micro batches from a step to the end of training, each found when asked for.

    Going to any place costs one permutation of the clips and, the first time in an epoch, nothing
    else: a million clips take tens of milliseconds. The clips that all processes hold at once are
    chosen before they are shared out, so that what meets in a batch norm, and without gradient
    caching in a contrastive loss, depends on the accumulation only. Which clips lie together, an
    :class:`~signfuse_dist.arrangement.Arrangement` says; the clips of a step depend on its bucket.
    """

    def __init__(
        self,
        plan: Plan,
        seed: int,
        frames_of: FramesOf,
        rank: int,
        start_step: int,
        arrangement: Arrangement = AS_DRAWN,
    ) -> None:
        self.plan, self.seed, self.frames_of = plan, seed, frames_of
        self.rank, self.start_step, self.arrangement = rank, start_step, arrangement
        # Of an epoch, a bucket and a step, each as one tuple: threads that ask at once find it
        # whole, or make it again.
        self._order: tuple[int, Clips] = (-1, _NONE)
        self._bucket: tuple[tuple[int, int], Clips, Clips] = ((-1, -1), *_TWICE)
        self._arranged: tuple[int, Clips, Clips] = (-1, *_TWICE)

    def __len__(self) -> int:
        return (self.plan.total_steps - self.start_step) * self.plan.accumulation

    def __getitem__(self, item: int) -> MicroBatch:
        if not 0 <= item < len(self):
            raise IndexError(item)
        steps, part = divmod(item, self.plan.accumulation)
        clips, times = self.of_all(self.start_step + steps)
        return MicroBatch(clips[part, self.rank].tolist(), self._times(times[part, self.rank]))

    def of_all(self, step: int) -> tuple[Clips, Clips]:
        """Return the clips of a step on all processes, and how often each was drawn before.

        Both ``[accumulation, world_size, clips of a micro batch]``.
        """
        kept, clips, times = self._arranged
        if kept != step:
            epoch, within = divmod(step, self.plan.steps_per_epoch)
            clips, times = (of[0] for of in self._steps(epoch, within, within + 1))
            frames = self._frames(clips, times)
            plan = self.plan
            places = self.arrangement.arrange(frames, plan.accumulation, plan.world_size)
            clips, times = clips[places], times[places]
            self._arranged = step, clips, times
        return clips, times

    def fullest(self, epochs: int) -> int:
        """Return the item with the most frames over all processes, of the next ``epochs`` epochs.

        It is the same on every process.
        """
        return self._fullest(epochs)[0]

    def most_frames(self, epochs: int) -> int:
        """Return the frames of the process that has most to do in the fullest micro batch."""
        frames = self._fullest(epochs)[1]
        return int(frames[share_out(frames, self.plan.world_size)].sum(axis=1).max())

    def _fullest(self, epochs: int) -> tuple[int, Clips]:
        """Return the fullest item, and the frames of its clips on all processes."""
        plan, step, most = self.plan, self.start_step, -1
        item, found = 0, np.zeros(plan.num_together, dtype=np.int64)
        stop = min(step + self._looked_through(epochs), plan.total_steps)
        at_once = max(1, _CLIPS_AT_ONCE // plan.global_batch_size)
        while step < stop:
            epoch, first = divmod(step, plan.steps_per_epoch)
            last = min(plan.steps_per_epoch, first + min(stop - step, at_once))
            frames = self._frames(*self._steps(epoch, first, last))
            if self.arrangement.by_length:
                frames = -np.sort(-frames, axis=1)
            together = frames.reshape(-1, plan.num_together)
            sums = together.sum(axis=1)
            if sums.max() > most:
                most, place = int(sums.max()), int(sums.argmax())
                item = (step - self.start_step) * plan.accumulation + place
                found = together[place]
            step += last - first
        return item, found

    def _looked_through(self, epochs: int) -> int:
        """Return in how many steps the fullest micro batch is looked for."""
        to_end = self.plan.steps_per_epoch - self.start_step % self.plan.steps_per_epoch
        return to_end + (epochs - 1) * self.plan.steps_per_epoch

    def _frames(self, clips: Clips, times: Clips) -> Clips:
        """Return the frames of clips of any shape, those drawn in one epoch; padding has none."""
        real = clips != PADDING
        frames = np.zeros(clips.shape, dtype=np.int64)
        if real.any():
            frames[real] = self.frames_of(self._times(times[real]), clips[real])
        return frames

    def _steps(self, epoch: int, first: int, last: int) -> tuple[Clips, Clips]:
        """Return the clips of steps of an epoch, padded, and how often each was drawn before.

        Both ``[steps, clips]``.
        """
        full = self.plan.num_clips // self.plan.global_batch_size
        if not self.arrangement.bucket or first >= full:  # the last step of few clips is as drawn
            return self._drawn(epoch, first, last)
        bounds = self.arrangement.bounds(full)
        parts = []
        while first < last:
            if first >= full:
                parts.append(self._drawn(epoch, first, last))
                break
            number = int(np.searchsorted(bounds, first, side="right")) - 1
            begin, end = int(bounds[number]), min(int(bounds[number + 1]), last)
            dealt, often = self._dealt(epoch, number, begin, int(bounds[number + 1]))
            parts.append((dealt[first - begin : end - begin], often[first - begin : end - begin]))
            first = end
        clips, times = zip(*parts, strict=True)
        return np.concatenate(clips), np.concatenate(times)

    def _dealt(self, epoch: int, number: int, first: int, last: int) -> tuple[Clips, Clips]:
        """Return the clips of a bucket, and how often each was drawn before, step by step."""
        kept, clips, times = self._bucket
        if kept != (epoch, number):
            clips, times = self._drawn(epoch, first, last)
            frames = self._frames(clips, times)
            places = deal(frames, self._corpora(clips), (self.seed, epoch, number))
            clips, times = clips.reshape(-1)[places], times.reshape(-1)[places]
            self._bucket = (epoch, number), clips, times
        return clips, times

    def _drawn(self, epoch: int, first: int, last: int) -> tuple[Clips, Clips]:
        """Return what :meth:`_steps` does, of steps as they are drawn."""
        size = self.plan.global_batch_size
        rest = self._order_of(epoch)[first * size :]
        clips = global_batch(rest, 0, (last - first) * size).reshape(-1, size)
        return clips, np.full(clips.shape, epoch, dtype=np.int64)

    def _times(self, times: Clips) -> Times:
        """Return how often clips were drawn before: of a corpus alone, as its one epoch."""
        return int(times[0])

    def _corpora(self, clips: Clips) -> Clips:
        """Return the number of the corpus of each clip."""
        return np.zeros(clips.shape, dtype=np.int64)

    def _order_of(self, epoch: int) -> Clips:
        kept, order = self._order
        if epoch != kept:
            order = epoch_order(self.seed, epoch, self.plan.num_clips)
            self._order = epoch, order
        return order

    def __getstate__(self) -> dict[str, object]:
        """Travel to loader workers without what is kept, which they make themselves."""
        kept = {"_order": (-1, _NONE), "_bucket": ((-1, -1), *_TWICE), "_arranged": (-1, *_TWICE)}
        return {**vars(self), **kept}


_STREAM = 1  # the order of an epoch is drawn from (seed, epoch), this from (seed, epoch, 1)
_COLUMNS = 7
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as JPEG has it


@dataclass(frozen=True)
class Draw:
    """What was drawn for n clips; every field is float64 ``[n]``."""

    zoom: NDArray[np.float64]
    """Factor of size about the middle of the square."""
    shift_x: NDArray[np.float64]
    shift_y: NDArray[np.float64]
    """Where the middle goes, in units of the square."""
    brightness: NDArray[np.float64]
    contrast: NDArray[np.float64]
    saturation: NDArray[np.float64]
    speed: NDArray[np.float64]
    """Factor of the playback speed: 2 has half the frames."""

    def moved(self, points: NDArray[np.float32], i: int) -> NDArray[np.float32]:
        """Return joints ``[..., 2]`` in units of the square where clip i's picture shows them."""
        middle = np.array([0.5, 0.5])
        shift = np.array([self.shift_x[i], self.shift_y[i]])
        return np.asarray((points - middle) * self.zoom[i] + middle + shift, dtype=np.float32)

    def warps(self) -> NDArray[np.float32]:
        """Return float32 ``[n, 2, 3]``: where to look for each point of the new picture.

        In torch's coordinates for ``grid_sample``, from -1 to 1 over the square.
        """
        out = np.zeros((len(self.zoom), 2, 3), dtype=np.float32)
        out[:, 0, 0] = out[:, 1, 1] = 1 / self.zoom
        out[:, 0, 2], out[:, 1, 2] = -2 * self.shift_x / self.zoom, -2 * self.shift_y / self.zoom
        return out

    def colours(self) -> NDArray[np.float32]:
        """Return float32 ``[n, 3, 4]``: new RGB from (R, G, B, 1), all from 0 to 1.

        Saturation mixes with the pixel's luma, brightness scales, contrast spreads about 0.5.
        """
        s, gain = self.saturation[:, None, None], (self.brightness * self.contrast)[:, None, None]
        mix = s * np.eye(3) + (1 - s) * np.broadcast_to(_LUMA, (3, 3))
        bias = np.repeat(0.5 * (1 - self.contrast)[:, None, None], 3, axis=1)
        return np.asarray(np.concatenate([gain * mix, bias], axis=2), dtype=np.float32)


@dataclass(frozen=True)
class Hidden:
    """What n clips do not show while training.

    ``pictures`` and ``joints`` are bool ``[n]``: which clips lose that stream, where they have both
    (no clip loses both). ``spans`` is float32 ``[n, 2, 2]``, where a span of the pictures' features
    and one of the joints' begins and ends, as shares of the clip; None: nowhere.
    """

    pictures: NDArray[np.bool_]
    joints: NDArray[np.bool_]
    spans: NDArray[np.float32] | None


class ClipFrames:
    """How many frames each clip of a split has in an epoch, and which; with what was drawn."""

    def __init__(
        self, lengths: NDArray[np.int32], max_frames: int, augment: AugmentConfig, seed: int
    ) -> None:
        """``lengths`` are the frames of each clip as stored, ``[clips]``."""
        self.lengths, self.max_frames = lengths, max_frames
        self.augment, self.seed = augment, seed

    def draw(self, epoch: Times, clips: NDArray[np.int64]) -> Draw | None:
        """Return what is drawn for these clips in this epoch; None when augmentation is off."""
        c = self.augment
        if not (c.crop or c.scale or c.colour or c.speed):
            return None
        v = self._numbers(epoch, clips)
        return Draw(
            zoom=(1 + c.scale) ** v[:, 0],
            shift_x=c.crop * v[:, 1],
            shift_y=c.crop * v[:, 2],
            brightness=1 + c.colour * v[:, 3],
            contrast=1 + c.colour * v[:, 4],
            saturation=1 + c.colour * v[:, 5],
            speed=(1 + c.speed) ** v[:, 6],
        )

    def keys(self, times: Times, clips: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return what all that is random inside these clips is drawn from, ``[clips]``, from 0."""
        words = hashed(self.seed, KEYS, clips, np.broadcast_to(times, clips.shape))
        return (words >> np.uint64(1)).astype(np.int64)

    def hidden(self, times: Times, clips: NDArray[np.int64]) -> Hidden | None:
        """Return what these clips do not show this time; None when nothing is hidden."""
        c = self.augment
        if not (c.drop_stream or c.mask_spans):
            return None
        often, spans = np.broadcast_to(times, clips.shape), None
        lost = uniform(hashed(self.seed, LOST, clips, often))
        if c.mask_spans:
            columns = np.arange(4)[None, :]
            v = uniform(hashed(self.seed, SPANS, clips[:, None], often[:, None], columns))
            lengths = c.mask_spans * v[:, :2]
            starts = v[:, 2:] * (1 - lengths)
            spans = np.stack((starts, starts + lengths), axis=2).astype(np.float32)
        half = c.drop_stream / 2
        return Hidden(lost < half, (lost >= half) & (lost < c.drop_stream), spans)

    def _numbers(self, epoch: Times, clips: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the numbers of these clips, from -1 to 1, ``[clips, 7]``."""
        assert isinstance(epoch, int)
        drawn: NDArray[np.float64] = _uniforms(self.seed, epoch, len(self.lengths))[clips].astype(
            np.float64
        )
        return drawn

    def counts(self, epoch: Times, clips: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many frames each of these clips has in this epoch, 1 to ``max_frames``."""
        stored = self.lengths[clips]
        drawn = self.draw(epoch, clips)
        played = stored if drawn is None else np.rint(stored / drawn.speed)
        return np.clip(played, 1, self.max_frames).astype(np.int64)


def spread_frames(num_frames: int, count: int) -> list[int]:
    """Return ``count`` frames of a clip of ``num_frames``, evenly spread; nothing is drawn."""
    return [int((i + 0.5) * num_frames / count) for i in range(count)]


@lru_cache(maxsize=1)
def _uniforms(seed: int, epoch: int, num_clips: int) -> NDArray[np.float32]:
    """Return the numbers of a whole epoch, from -1 to 1, float32 ``[num_clips, 7]``.

    A million clips take about 40 ms and 28 MB.
    """
    drawn = np.random.default_rng([seed, epoch, _STREAM]).random(
        (num_clips, _COLUMNS), dtype=np.float32
    )
    return 2 * drawn - 1
