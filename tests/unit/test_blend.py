"""Which clip each draw of a blend is: shares, whole passes, steps that depend on nothing else."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest

from signfuse_dist.blend import (
    Blend,
    BlendedMicroBatches,
    BlendFrames,
    choose_clips,
    permuted,
    share_draws,
)
from signfuse_dist.config import AugmentConfig, StageConfig, TrainConfig
from signfuse_dist.errors import UserError
from signfuse_dist.plan import PADDING, Plan, make_plan

SIZES = (7, 50, 23)
BLEND = Blend(SIZES, share_draws(SIZES, (3.0, 1.0, 1.0), None), seed=5)
STAGE = StageConfig(name="contrastive", epochs=3, learning_rate=1e-3, warmup_epochs=0)


def plan_of(blend: Blend, world: int, batch: int, micro: int = 1) -> Plan:
    train = TrainConfig(
        micro_batch_size=micro, global_batch_size=batch, precision="fp32", gradient_clipping=1.0
    )
    return make_plan(blend.num_draws, STAGE, train, world)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 12, 97, 1000, 4099])
def test_a_permutation_has_each_place_once(size: int) -> None:
    places = np.arange(size)
    for key in (0, 1, 2**63):
        keys = np.full(size, key, dtype=np.uint64)
        found = permuted(places, np.full(size, size), keys)
        assert sorted(found) == list(places)


def test_every_place_of_a_permutation_is_as_likely_for_each_clip() -> None:
    """Chi-squared with 81 degrees of freedom over 20,000 drawn permutations of 10."""
    count, size = 20_000, 10
    keys = np.arange(count, dtype=np.uint64).repeat(size) * np.uint64(0x9E3779B97F4A7C15)
    places = np.tile(np.arange(size), count)
    found = permuted(places, np.full(len(places), size), keys)
    table = np.zeros((size, size))
    np.add.at(table, (places, found), 1)
    expected = count / size
    assert ((table - expected) ** 2 / expected).sum() < 135  # once in 10,000 keys above
    pairs = Counter(zip(found[::size], found[1::size], strict=True))
    assert len(pairs) == 90, "each pair of neighbours comes"
    assert max(pairs.values()) < 1.5 * count / 90


@pytest.mark.parametrize(
    ("weights", "temperature", "draws"),
    [
        ((1.0, 1.0), None, (500, 500)),
        ((3.0, 1.0), None, (750, 250)),
        ((1.0, 1.0), 1.0, (100, 900)),  # by clips
        ((2.0, 1.0), 1.0, (182, 818)),
        ((1.0, 1.0), 2.0, (250, 750)),  # 10 : 30
    ],
)
def test_a_corpus_gets_its_share_by_weight_clips_or_temperature(
    weights: tuple[float, ...], temperature: float | None, draws: tuple[int, ...]
) -> None:
    assert share_draws((100, 900), weights, temperature) == draws


def test_a_corpus_that_would_never_be_drawn_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.blend: entry 2 gets none of the 20 draws"):
        share_draws((10, 10), (1.0, 0.001), None)


@pytest.mark.parametrize(
    ("weights", "temperature"),
    [((1e308, 1e308), None), ((1e307, 1.0), None), ((1.0, 1.0), 1e-300), ((1.0, 1.0), 5e-324)],
)
def test_numbers_of_which_no_share_can_be_told_are_refused(
    weights: tuple[float, ...], temperature: float | None
) -> None:
    with pytest.raises(UserError, match=r"data\.blend: weights .* come to no share"):
        share_draws((100, 900), weights, temperature)


def test_every_step_has_of_each_corpus_what_its_share_says() -> None:
    shares = np.array(BLEND.draws) / BLEND.num_draws
    counts = np.array([BLEND.before(k) for k in range(BLEND.num_draws + 1)])
    assert counts[-1].tolist() == list(BLEND.draws)
    assert (counts.sum(axis=1) == np.arange(len(counts))).all()
    assert (np.diff(counts, axis=0) >= 0).all()
    assert np.abs(counts - np.arange(len(counts))[:, None] * shares).max() <= 1


def corpus_of(clips: np.ndarray) -> np.ndarray:
    return np.searchsorted(np.cumsum(SIZES), clips, side="right")


def test_a_corpus_is_gone_through_wholly_before_a_clip_of_it_comes_again() -> None:
    """Across the ends of epochs too; how often a clip was drawn before is said with it."""
    seen: list[Counter[int]] = [Counter() for _ in SIZES]
    steps = plan_of(BLEND, 1, 8).steps_per_epoch
    for epoch in range(4):
        for step in range(steps):
            clips, times = BLEND.drawn(epoch, step, 8)
            assert PADDING not in clips or step == steps - 1
            real = clips != PADDING
            drawn = sorted(zip(times[real].tolist(), clips[real].tolist(), strict=True))
            for often, clip in drawn:
                of = seen[corpus_of(np.array(clip))]
                assert of[clip] == often
                of[clip] += 1
        for counts, size, draws in zip(seen, SIZES, BLEND.draws, strict=True):
            assert sum(counts.values()) == (epoch + 1) * draws
            least = (epoch + 1) * draws // size
            assert {counts[c] for c in counts} <= {least, least + 1} or least == 0
    orders = [tuple(BLEND.drawn(epoch, 0, 8)[0]) for epoch in range(4)]
    assert len(set(orders)) == 4


def test_a_blend_of_one_corpus_is_an_epoch_of_each_clip_once() -> None:
    blend = Blend((13,), (13,), seed=1)
    for epoch in (0, 1):
        clips = np.concatenate([blend.drawn(epoch, step, 4)[0] for step in range(4)])
        assert sorted(clips[clips != PADDING]) == list(range(13))


@pytest.mark.parametrize("augment", [AugmentConfig(), AugmentConfig(speed=0.3, crop=0.1)])
def test_all_processes_together_see_the_same_steps_whatever_their_number(
    augment: AugmentConfig,
) -> None:
    lengths = np.random.default_rng(0).integers(5, 300, BLEND.num_draws).astype(np.int32)
    frames = BlendFrames(lengths, 256, augment, seed=5)
    seen = {}
    for world in (1, 2, 4):
        plan = plan_of(BLEND, world, 8, micro=8 // world)
        ranks = [BlendedMicroBatches(plan, BLEND, frames.counts, r, 3) for r in range(world)]
        seen[world] = [
            sorted(
                (clip, int(often))
                for rank in ranks
                for clip, often in zip(rank[item].clips, rank[item].epoch, strict=True)
            )
            for item in range(len(ranks[0]))
        ]
    assert seen[1] == seen[2] == seen[4]


@pytest.mark.parametrize("world", [4, 32, 256])
def test_processes_are_balanced(world: int) -> None:
    """Clips of a mean of 100 frames and of 15, as of two corpora."""
    draw = np.random.default_rng(0)
    sizes = (40_000, 60_000)
    lengths = np.concatenate([draw.gamma(4, 25, sizes[0]), draw.gamma(3, 5, sizes[1])])
    lengths = np.clip(lengths, 4, 256).astype(np.int32)
    blend = Blend(sizes, share_draws(sizes, (1.0, 1.0), None), seed=0)
    frames = BlendFrames(lengths, 256, AugmentConfig(), seed=0)
    plan = plan_of(blend, world, 8 * world, micro=8)
    shares = []
    for item in range(3):
        loads = []
        for rank in range(0, world, max(1, world // 8)):
            batch = BlendedMicroBatches(plan, blend, frames.counts, rank, 0)[item]
            loads.append(int(frames.counts(np.array(batch.epoch), np.array(batch.clips)).sum()))
        shares.append(np.mean(loads) / max(loads))
    assert np.mean(shares) >= 0.97


def test_what_augmentation_draws_depends_on_how_often_the_clip_came_alone() -> None:
    frames = BlendFrames(np.full(80, 50, np.int32), 256, AugmentConfig(crop=0.1), seed=5)
    clips, times = np.array([3, 70]), np.array([0, 2])
    one = frames.draw(times, clips)
    other = frames.draw(times[::-1].copy(), clips[::-1].copy())
    assert one is not None
    assert other is not None
    assert (one.shift_x == other.shift_x[::-1]).all()
    again = frames.draw(times + 1, clips)
    assert again is not None
    assert (one.shift_x != again.shift_x).all()
    many = frames.draw(np.zeros(10_000, np.int64), np.arange(10_000))
    assert many is not None
    assert np.abs(many.shift_x).max() <= 0.1
    assert abs(many.shift_x.mean()) < 0.003
    assert abs(many.shift_x.std() - 0.1 / 3**0.5) < 0.002


def test_max_clips_takes_the_same_clips_for_every_seed_and_fewer_are_among_more() -> None:
    few, more = choose_clips(100, 25), choose_clips(100, 60)
    assert len(set(few)) == 25
    assert few.tolist() == more[:25].tolist()
    assert few.max() < 100


def test_a_position_among_ten_million_clips_is_found_at_once() -> None:
    sizes = (9_000_000, 900_000, 100_000)
    blend = Blend(sizes, share_draws(sizes, (1.0, 1.0, 3.0), 5.0), seed=0)
    frames = BlendFrames(np.full(sum(sizes), 100, np.int32), 256, AugmentConfig(speed=0.1), 0)
    plan = plan_of(blend, 8, 256, micro=32)
    began = time.perf_counter()
    BlendedMicroBatches(plan, blend, frames.counts, 0, 2 * plan.steps_per_epoch + 777)[0]
    assert time.perf_counter() - began < 0.5
