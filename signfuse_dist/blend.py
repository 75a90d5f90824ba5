"""Which clip each draw of a blend is: several corpora, each with its share of every step.

An epoch of a blend has as many draws as its corpora have clips together, and each corpus gets its
share of them (:func:`share_draws`). A corpus is gone through wholly, in an order drawn anew each
time, before a clip of it comes again; this goes on across epochs. The draws of a corpus are spread
evenly over the epoch (Webster's method), so that every step has of each corpus what its share
says, but for rounding.

All of it is a pure function of (seed, epoch, step, clips and draws of each corpus, global batch):
the clips of a step are computed from its number, without an order of the epoch in memory. A corpus
of ten million clips costs what one of ten costs. Imports no torch.

Paper: names one corpus. Here: any number, by weight. Because: what is known to help most is data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from signfuse_dist.arrangement import AS_DRAWN, Arrangement
from signfuse_dist.draws import CLIPS, GOLDEN, NUMBERS, SUBSET, hashed, mixed
from signfuse_dist.errors import UserError
from signfuse_dist.plan import PADDING, ClipFrames, FramesOf, MicroBatches, Plan, Times

_ROUNDS = 10  # of the permutation; four are the least that look like chance
_ROUND_KEYS = np.arange(1, _ROUNDS + 1, dtype=np.uint64) * GOLDEN
_ORDER = 2  # streams of numpy's generator: 1 is the augmentation of a single corpus
_COLUMNS = 7  # numbers that augmentation takes
_STEPS_AHEAD = 500  # in which the fullest micro batch is looked for

Places = NDArray[np.int64]


def share_draws(
    sizes: Sequence[int], weights: Sequence[float], temperature: float | None
) -> tuple[int, ...]:
    """Return how many draws of an epoch each corpus gets; they add up to the clips of all.

    By ``weights`` alone where ``temperature`` is None, else by weight x clips^(1 / temperature):
    1 is by clips, above it small corpora get more than their clips. Largest remainders round.

    Raises UserError where a corpus would get none, and for numbers that no share can be told of.
    """
    total = sum(sizes)
    try:
        exponent = 0.0 if temperature is None else 1.0 / temperature
        each = [w * float(n) ** exponent for n, w in zip(sizes, weights, strict=True)]
        countable = 0 < total * sum(each) < math.inf
    except (OverflowError, ZeroDivisionError):
        countable = False
    if not countable:
        how = "" if temperature is None else f" under data.blend_temperature {temperature:g}"
        raise UserError(
            f"data.blend: weights {', '.join(f'{w:g}' for w in weights)}{how} come to no share "
            "that can be counted; give numbers nearer to 1"
        )
    exact = [total * share / sum(each) for share in each]
    draws = [int(value) for value in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda c: (draws[c] - exact[c], c))
    for corpus in by_remainder[: total - sum(draws)]:
        draws[corpus] += 1
    if 0 in draws:
        raise UserError(
            f"data.blend: entry {draws.index(0) + 1} gets none of the {total} draws of an epoch; "
            "give it a larger weight, or leave it out"
        )
    return tuple(draws)


@dataclass(frozen=True)
class Blend:
    """The draws of a blend.

    Attributes:
        sizes: clips of each corpus.
        draws: draws of an epoch that each gets.
        seed: of the order.
    """

    sizes: tuple[int, ...]
    draws: tuple[int, ...]
    seed: int

    @property
    def num_draws(self) -> int:
        """Draws of an epoch."""
        return sum(self.draws)

    def before(self, draw: int) -> list[int]:
        """Return how many of the first ``draw`` draws of an epoch are of each corpus.

        Webster's method: the j-th of the m draws of a corpus stands at (2j + 1) / 2m of the epoch,
        and what stands first is drawn first; of equals, the corpus that is named first.
        """
        total = self.num_draws
        # What surely comes first, by integers alone; the few that are left, one by one.
        sure = max(0, draw - len(self.draws))
        taken = [(2 * m * sure + total) // (2 * total) for m in self.draws]
        stands = [Fraction(2 * t + 1, 2 * m) for t, m in zip(taken, self.draws, strict=True)]
        for _ in range(draw - sum(taken)):
            first = stands.index(min(stands))
            taken[first] += 1
            stands[first] += Fraction(1, self.draws[first])
        return taken

    def drawn(self, epoch: int, step: int, size: int) -> tuple[Places, Places]:
        """Return the clips of one step, ``[size]``, and how often each was drawn before.

        A clip is its place among those of all corpora, one corpus after the other. At the end of
        an epoch there may be fewer than ``size``: then :data:`~signfuse_dist.plan.PADDING`.
        """
        first, last = (min(k, self.num_draws) for k in (step * size, (step + 1) * size))
        begin, end = self.before(first), self.before(last)
        counts = np.array(end) - np.array(begin)
        corpus = np.repeat(np.arange(len(counts)), counts)
        within = np.arange(len(corpus)) - np.repeat(np.cumsum(counts) - counts, counts)
        passed = np.array([epoch * m + b for m, b in zip(self.draws, begin, strict=True)])
        sizes = np.array(self.sizes)
        times, place = np.divmod(passed[corpus] + within, sizes[corpus])
        order = np.random.default_rng([self.seed, epoch, step, _ORDER]).permutation(size)
        key = hashed(self.seed, CLIPS, corpus, times)
        clips = np.full(size, PADDING, dtype=np.int64)
        clips[order[: len(corpus)]] = (np.cumsum(sizes) - sizes)[corpus] + permuted(
            place, sizes[corpus], key
        )
        often = np.zeros(size, dtype=np.int64)
        often[order[: len(corpus)]] = times
        return clips, often


def choose_clips(num_clips: int, count: int) -> Places:
    """Return which ``count`` clips of a corpus ``data.blend``'s ``max_clips`` takes, ``[count]``.

    The same for every seed, and more of them hold those of fewer.
    """
    key = hashed(0, SUBSET, np.zeros(count, dtype=np.int64))
    return permuted(np.arange(count), np.full(count, num_clips), key)


def permuted(places: Places, sizes: Places, keys: NDArray[np.uint64]) -> Places:
    """Return where each place goes in a permutation of so many, drawn by its key; all ``[n]``.

    A Feistel network over the numbers of two digits, in bases whose product is the size or a
    little more; what falls outside goes through it again.
    """
    low = np.ceil(np.sqrt(sizes)).astype(np.uint64)
    high = -(-sizes // low.astype(np.int64))
    bases = low, high.astype(np.uint64)
    result = places.copy()
    todo = np.arange(len(places))
    while len(todo):
        result[todo] = _round_trip(result[todo], (bases[0][todo], bases[1][todo]), keys[todo])
        todo = todo[result[todo] >= sizes[todo]]
    return result


def _round_trip(
    places: Places, bases: tuple[NDArray[np.uint64], NDArray[np.uint64]], keys: NDArray[np.uint64]
) -> Places:
    digits = list(np.divmod(places.astype(np.uint64), bases[0]))[::-1]
    for number in range(_ROUNDS):
        moved, other = number % 2, 1 - number % 2
        by = mixed(keys + _ROUND_KEYS[number] + digits[other])
        digits[moved] = (digits[moved] + by % bases[moved]) % bases[moved]
    result: Places = (digits[1] * bases[0] + digits[0]).astype(np.int64)
    return result


class BlendedMicroBatches(MicroBatches):
    """One process's micro batches of a blend; each is found from its number alone.

    A bucket of steps keeps of each corpus, in each step, what its share says.
    """

    def __init__(
        self,
        plan: Plan,
        blend: Blend,
        frames_of: FramesOf,
        rank: int,
        start_step: int,
        arrangement: Arrangement = AS_DRAWN,
    ) -> None:
        super().__init__(plan, blend.seed, frames_of, rank, start_step, arrangement)
        self.blend = blend

    def _drawn(self, epoch: int, first: int, last: int) -> tuple[Places, Places]:
        size = self.plan.global_batch_size
        steps = [self.blend.drawn(epoch, step, size) for step in range(first, last)]
        clips, times = zip(*steps, strict=True)
        return np.stack(clips), np.stack(times)

    def _times(self, times: Places) -> Times:
        return times

    def _corpora(self, clips: Places) -> Places:
        return np.searchsorted(np.cumsum(self.blend.sizes), clips, side="right")

    def _looked_through(self, epochs: int) -> int:
        """Return as many steps as are looked through in a second, at most."""
        return min(epochs * self.plan.steps_per_epoch, _STEPS_AHEAD)


class BlendFrames(ClipFrames):
    """The frames of the clips of a blend, and what is drawn for each time that one comes."""

    def _numbers(self, times: Times, clips: Places) -> NDArray[np.float64]:
        columns = np.arange(_COLUMNS)[None, :]
        often = np.broadcast_to(times, clips.shape)
        words = hashed(self.seed, NUMBERS, clips[:, None], often[:, None], columns)
        return (words >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0
