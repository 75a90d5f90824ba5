"""Augmentation as numbers: what is drawn for each clip of an epoch, and how many frames that makes.

Everything is a function of (seed, epoch, place of the clip in its split): any number of processes
and workers draws the same, and a run that goes on draws what it would have drawn. One draw holds
for a whole clip, and for its picture and its joints alike. Importing this module imports no torch;
:meth:`signfuse_dist.batch.SignBatch.augmented` applies the numbers to the pictures.

Paper: names no augmentation.
Here: four kinds, each off by default. There is no mirroring.
Because: labs use them, and which suits a corpus is theirs to say; but a mirrored signer signs with
the other hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from signfuse_dist.config import AugmentConfig

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


class ClipFrames:
    """How many frames each clip of a split has in an epoch, and which; with what was drawn."""

    def __init__(
        self, lengths: NDArray[np.int32], max_frames: int, augment: AugmentConfig, seed: int
    ) -> None:
        """``lengths`` are the frames of each clip as stored, ``[clips]``."""
        self.lengths, self.max_frames = lengths, max_frames
        self.augment, self.seed = augment, seed

    def draw(self, epoch: int, clips: NDArray[np.int64]) -> Draw | None:
        """Return what is drawn for these clips in this epoch; None when augmentation is off."""
        c = self.augment
        if not (c.crop or c.scale or c.colour or c.speed):
            return None
        v = _uniforms(self.seed, epoch, len(self.lengths))[clips].astype(np.float64)
        return Draw(
            zoom=(1 + c.scale) ** v[:, 0],
            shift_x=c.crop * v[:, 1],
            shift_y=c.crop * v[:, 2],
            brightness=1 + c.colour * v[:, 3],
            contrast=1 + c.colour * v[:, 4],
            saturation=1 + c.colour * v[:, 5],
            speed=(1 + c.speed) ** v[:, 6],
        )

    def counts(self, epoch: int, clips: NDArray[np.int64]) -> NDArray[np.int64]:
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
