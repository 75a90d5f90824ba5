"""The plan: steps, rates, and which clips each process sees."""

from __future__ import annotations

import dataclasses
import itertools
import math
import pickle
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.how2sign_lengths import real_lengths
from signfuse_dist.arrangement import share_out
from signfuse_dist.config import AugmentConfig, StageConfig, TrainConfig
from signfuse_dist.errors import UserError
from signfuse_dist.plan import (
    PADDING,
    ClipFrames,
    MicroBatches,
    Plan,
    divisors_that_fit,
    epoch_order,
    global_batch,
    learning_rate,
    make_plan,
)

STAGE = StageConfig(name="alignment", epochs=4, learning_rate=1e-3, warmup_epochs=1)


def _train(micro: int, size: int = 8, **changes: Any) -> TrainConfig:
    return TrainConfig(
        micro_batch_size=micro,
        global_batch_size=size,
        precision="fp32",
        gradient_clipping=1.0,
        **changes,
    )


def _plan(num_clips: int = 21, micro: int = 2, world: int = 2) -> Plan:
    return make_plan(num_clips, STAGE, _train(micro), world)


def test_counts_follow_from_clips_batch_and_processes() -> None:
    plan = _plan(num_clips=21, micro=2, world=2)
    assert plan.accumulation == 2  # 8 = 2 clips x 2 processes x 2
    assert plan.num_together == 4
    assert plan.steps_per_epoch == 3
    assert plan.total_steps == 12
    assert plan.warmup_steps == 3


def test_all_clips_of_a_step_are_pairs_only_with_gradient_caching() -> None:
    assert _plan(micro=2, world=2).num_pairs == 8
    assert _plan(micro=2, world=2).caches_gradients
    plain = make_plan(21, STAGE, _train(2, gradient_caching=False), 2)
    assert plain.num_pairs == 4  # InfoNCE does not accumulate
    assert not plain.caches_gradients
    assert not _plan(micro=4, world=2).caches_gradients  # all are held at once


def test_exactly_full_batches_need_no_extra_step() -> None:
    assert _plan(num_clips=24).steps_per_epoch == 3
    assert _plan(num_clips=25).steps_per_epoch == 4
    assert _plan(num_clips=1).steps_per_epoch == 1


def test_the_rate_warms_up_linearly_to_its_peak_and_falls_as_a_cosine_to_zero() -> None:
    plan = make_plan(80, STAGE, _train(4), 2)  # 10 steps an epoch
    rates = [learning_rate(step, plan, 1e-3) for step in range(plan.total_steps)]
    assert rates[:10] == pytest.approx([1e-4 * (i + 1) for i in range(10)])
    assert max(rates) == rates[10] == pytest.approx(1e-3)
    assert rates[25] == pytest.approx(0.5e-3)  # half way down the 30 steps after warmup
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert 0 < rates[-1] < 1e-5
    assert learning_rate(plan.total_steps, plan, 1e-3) == pytest.approx(0.0, abs=1e-12)
    for step in range(10, 40):
        printed = 1e-3 * (1 + math.cos(math.pi * (step - 10) / 30)) / 2
        assert rates[step] == pytest.approx(printed)


def test_without_warmup_the_first_step_has_the_peak() -> None:
    stage = StageConfig(name="alignment", epochs=2, learning_rate=1e-3, warmup_epochs=0)
    assert learning_rate(0, make_plan(8, stage, _train(4), 2), 1e-3) == pytest.approx(1e-3)


def _seen(plan: Plan, lengths: list[int], start: int = 0) -> list[list[list[int]]]:
    """Return, for each micro step, the clips of each rank."""
    stored = np.array(lengths)

    def frames_of(_: int, clips: np.ndarray) -> np.ndarray:
        return stored[clips]

    orders = [MicroBatches(plan, 7, frames_of, rank, start) for rank in range(plan.world_size)]
    ranks = [[order[i].clips for i in range(len(order))] for order in orders]
    return [list(clips) for clips in zip(*ranks, strict=True)]


def test_each_clip_is_seen_once_an_epoch_and_the_tail_is_padded_with_weight_zero() -> None:
    plan, lengths = _plan(num_clips=21), [5 + i % 7 for i in range(21)]
    micro = _seen(plan, lengths)
    assert len(micro) == plan.total_steps * plan.accumulation
    an_epoch = plan.steps_per_epoch * plan.accumulation
    orders = []
    for epoch in range(4):
        part = micro[epoch * an_epoch : (epoch + 1) * an_epoch]
        clips = [c for ranks in part for rank in ranks for c in rank]
        assert Counter(c for c in clips if c != PADDING) == dict.fromkeys(range(21), 1)
        assert clips.count(PADDING) == 24 - 21
        earlier = [c for ranks in part[:-2] for rank in ranks for c in rank]
        assert PADDING not in earlier  # only the last step of an epoch is padded
        orders.append(clips)
    assert orders[0] != orders[1]
    assert all(len(rank) == 2 for ranks in micro for rank in ranks)


def test_the_global_batches_do_not_depend_on_the_number_of_processes() -> None:
    lengths = [3 + (i * i) % 11 for i in range(21)]
    by_world = {}
    for world, micro_size in ((1, 8), (2, 4), (4, 2), (8, 1), (2, 1), (1, 2)):
        plan = make_plan(21, STAGE, _train(micro_size), world)
        micro = _seen(plan, lengths)
        size = plan.accumulation
        steps = [micro[i : i + size] for i in range(0, len(micro), size)]
        by_world[world, micro_size] = [
            sorted(c for ranks in step for rank in ranks for c in rank) for step in steps
        ]
    assert len({str(steps) for steps in by_world.values()}) == 1


def test_the_clips_that_are_held_at_once_depend_on_the_accumulation_only() -> None:
    """They share norm statistics, and without gradient caching they are the pairs of Eq. 21."""
    lengths = [3 + (i * i) % 11 for i in range(21)]
    pairs = [
        [sorted(c for rank in ranks for c in rank) for ranks in _seen(plan, lengths)]
        for plan in (_plan(micro=4, world=1), _plan(micro=2, world=2), _plan(micro=1, world=4))
    ]
    assert pairs[0] == pairs[1] == pairs[2]


@pytest.mark.parametrize("start", [0, 1, 3, 7, 11])
def test_starting_at_a_step_gives_what_would_have_come(start: int) -> None:
    plan, lengths = _plan(), list(range(1, 22))
    assert _seen(plan, lengths, start) == _seen(plan, lengths)[start * plan.accumulation :]


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    assert epoch_order(1, 2, 50).tolist() == epoch_order(1, 2, 50).tolist()
    assert sorted(epoch_order(1, 2, 50)) == list(range(50))
    assert epoch_order(1, 2, 50).tolist() != epoch_order(1, 3, 50).tolist()
    assert epoch_order(1, 2, 50).tolist() != epoch_order(2, 2, 50).tolist()


def test_a_step_beyond_the_order_is_all_padding() -> None:
    assert global_batch(np.arange(3), 0, 4).tolist() == [0, 1, 2, PADDING]
    assert global_batch(np.arange(3), 1, 4).tolist() == [PADDING] * 4


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_sharing_out_keeps_every_clip_and_gives_each_process_as_many(data: Any) -> None:
    world, each = data.draw(st.sampled_from([1, 2, 4])), data.draw(st.integers(1, 6))
    count = world * each
    frames = data.draw(st.lists(st.integers(0, 300), min_size=count, max_size=count))
    shares = share_out(np.array(frames), world)
    assert shares.shape == (world, each)
    assert sorted(shares.flatten().tolist()) == list(range(count))


def test_sharing_out_balances_frames_by_swaps_that_longest_first_misses() -> None:
    frames = np.array([8, 7, 6, 5, 4, 4])  # longest first, with room for three each: 16 and 18
    shares = share_out(frames, 2)
    assert sorted(frames[shares].sum(axis=1).tolist()) == [17, 17]


def test_places_of_weight_zero_are_spread_where_there_is_least_to_do() -> None:
    assert share_out(np.array([100, 10, 0, 0]), 2).tolist() == [[0, 3], [1, 2]]


def drawn_lengths(corpus: str, count: int) -> np.ndarray:
    """Clip lengths with the published mean, 99th percentile and maximum of a corpus, in frames."""
    drawn = np.random.default_rng(1)
    if corpus == "phoenix14t":  # mean 116.6, p99 259, max 475
        frames = np.clip(drawn.gamma(5.44, 116.6 / 5.44, count), 16, 475)
    else:  # How2Sign at 24 fps: mean 6.6 s, 0.11 s to 45.8 s, with a long tail
        frames = 24 * np.clip(drawn.lognormal(np.log(6.6) - 0.26, 0.72, count), 0.11, 45.8)
    return frames.astype(np.int64)


def balance(lengths: np.ndarray, world: int, steps: int = 12) -> float:
    """Return mean / max frames a process over steps of 8 clips a process: the time not waited."""
    order, size = epoch_order(0, 0, len(lengths)), 8 * world
    mean = most = 0.0
    for step in range(min(steps, len(lengths) // size)):
        frames = lengths[global_batch(order, step, size)]
        loads = frames[share_out(frames, world)].sum(axis=1)
        mean, most = mean + loads.mean(), most + loads.max()
    return mean / most


@pytest.mark.parametrize("world", [4, 5, 8, 16, 31, 32, 64, 128, 256])
@pytest.mark.parametrize(("corpus", "count"), [("phoenix14t", 7096), ("how2sign", 31_000)])
def test_processes_get_as_many_frames_as_each_other(corpus: str, count: int, world: int) -> None:
    lengths = drawn_lengths(corpus, count)
    assert balance(lengths, world) >= 0.97


@pytest.mark.parametrize("world", [4, 16, 64, 256])
def test_real_how2sign_clips_are_balanced(shared: Path, world: int) -> None:
    lengths = real_lengths(shared)
    assert len(lengths) > 4000
    assert balance(lengths, world) >= 0.97


def test_any_position_in_a_million_clips_is_reached_in_under_a_second() -> None:
    count = 1_000_000
    plan = make_plan(count, dataclasses.replace(STAGE, epochs=30), _train(8, 32), 4)
    config = AugmentConfig(speed=0.2, crop=0.1)
    lengths = np.full(count, 100, dtype=np.int32)
    began = time.process_time()
    frames = ClipFrames(lengths, 128, config, seed=3)
    order = MicroBatches(plan, 3, frames.counts, 2, start_step=plan.total_steps - 5)
    last = order[len(order) - 1]
    assert time.process_time() - began < 1.0
    assert len(last.clips) == 8
    assert last.epoch == 29
    assert len(pickle.dumps(order)) < 10 * lengths.nbytes  # what a loader worker is sent


def test_a_batch_that_does_not_divide_is_refused_and_what_divides_is_named() -> None:
    with pytest.raises(UserError) as error:
        make_plan(100, STAGE, _train(3, size=32), 4)
    message = str(error.value)
    assert "global_batch_size 32" in message
    assert "micro_batch_size 3 x 4 processes = 12" in message
    assert "1, 2, 4, 8" in message


def test_a_number_of_processes_that_cannot_divide_is_named() -> None:
    with pytest.raises(UserError, match="a number of processes that divides 32"):
        make_plan(100, STAGE, _train(1, size=32), 5)


def test_a_micro_batch_larger_than_the_global_batch_is_refused() -> None:
    with pytest.raises(UserError, match="micro_batch_size of 1, 2 divides"):
        make_plan(100, STAGE, _train(4, size=4), 2)


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(UserError, match="no clips"):
        make_plan(0, STAGE, _train(2), 2)


def test_fitting_micro_batches() -> None:
    assert divisors_that_fit(32, 4) == [1, 2, 4, 8]
    assert divisors_that_fit(32, 3) == []
    assert divisors_that_fit(6, 1) == [1, 2, 3, 6]


def test_the_plan_describes_itself() -> None:
    text = _plan().describe(contrastive=True)
    for part in ("21 clips", "2 processes x 2 clips x 2 accumulated = 8", "12 in all"):
        assert part in text
    assert "8 pairs in each contrastive loss (B of Eq. 21), by gradient caching" in text
    plain = make_plan(21, STAGE, _train(2, gradient_caching=False), 2).describe(contrastive=True)
    assert plain.endswith("  4 pairs in each contrastive loss (B of Eq. 21)")
    assert _plan().describe(contrastive=False).endswith("  no contrastive loss in this run")


def test_the_plan_of_a_split_smaller_than_the_batch_counts_its_clips_as_pairs() -> None:
    few = make_plan(5, STAGE, _train(2), 2).describe(contrastive=True)
    said = "  5 pairs in each contrastive loss (B of Eq. 21), by gradient caching"
    assert few.endswith(f"{said}: all that the split has, not 8")
