"""Which clips lie together: the same steps, less waiting and padding, and exact by default."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from helpers.how2sign_lengths import real_lengths
from signfuse_dist.arrangement import AS_DRAWN, PICTURE, Arrangement, deal, sees_micro_batch
from signfuse_dist.blend import Blend, BlendedMicroBatches, BlendFrames, share_draws
from signfuse_dist.config import AugmentConfig, StageConfig, TrainConfig
from signfuse_dist.experiment import load_stages
from signfuse_dist.plan import PADDING, ClipFrames, MicroBatches, Plan, make_plan

STAGE = StageConfig(name="alignment", epochs=2, learning_rate=1e-3, warmup_epochs=1)
BY_LENGTH, BUCKET = Arrangement(by_length=True), Arrangement(by_length=True, bucket=64)
SIZES = (150, 90)
BLEND = Blend(SIZES, share_draws(SIZES, (1.0, 1.0), None), seed=4)


def plan_of(num_clips: int, micro: int, world: int, accumulation: int = 1) -> Plan:
    train = TrainConfig(
        micro_batch_size=micro,
        global_batch_size=micro * world * accumulation,
        precision="fp32",
        gradient_clipping=1.0,
    )
    return make_plan(num_clips, STAGE, train, world)


def how2sign(count: int, max_frames: int = 512) -> ClipFrames:
    """Clips as long as How2Sign's at 24 fps: 6.6 s on average, 0.11 s to 45.8 s, a long tail."""
    seconds = np.random.default_rng(1).lognormal(np.log(6.6) - 0.26, 0.72, count)
    lengths = (24 * np.clip(seconds, 0.11, 45.8)).astype(np.int32)
    return ClipFrames(lengths, max_frames, AugmentConfig(), seed=0)


def kept(order: MicroBatches, frames: ClipFrames, steps: int) -> float:
    """Return the share of some steps that is neither waiting nor padding.

    Processes wait for each other at each micro batch. The ResNet sees real frames alone, all else
    as many places as the longest clip has.
    """
    needed = computed = 0
    for step in range(steps):
        clips, _ = order.of_all(step)
        each = frames.counts(0, clips.reshape(-1)).reshape(clips.shape)
        places = each.max(axis=2) * each.shape[2]
        needed += (PICTURE + 1) * each.sum()
        computed += (PICTURE * each.sum(axis=2) + places).max(axis=1).sum() * each.shape[1]
    return float(needed / computed)


@pytest.mark.parametrize("world", [4, 16, 64, 256])
@pytest.mark.parametrize("micro", [1, 2, 4, 8])
def test_a_bucket_leaves_95_percent_of_a_step_of_one_micro_batch(micro: int, world: int) -> None:
    frames = how2sign(31_000)
    plan = plan_of(31_000, micro, world)
    steps = min(64, plan.steps_per_epoch - 1)
    assert kept(MicroBatches(plan, 0, frames.counts, 0, 0, BUCKET), frames, steps) >= 0.95


@pytest.mark.parametrize(("micro", "world"), [(1, 4), (1, 32), (2, 16), (8, 4), (8, 8)])
def test_a_bucket_of_real_how2sign_clips_leaves_95_percent(
    shared: Path, micro: int, world: int
) -> None:
    lengths = real_lengths(shared)
    assert len(lengths) > 4000
    frames = ClipFrames(lengths.astype(np.int32), 512, AugmentConfig(), seed=0)
    plan = plan_of(len(lengths), micro, world)
    steps = plan.num_clips // plan.global_batch_size
    drawn, bucket = (
        kept(MicroBatches(plan, 0, frames.counts, 0, 0, how), frames, min(64, steps))
        for how in (AS_DRAWN, BUCKET)
    )
    assert bucket >= 0.95
    assert drawn < 0.75


@pytest.mark.parametrize(("micro", "world"), [(1, 4), (2, 4), (1, 8), (2, 16), (4, 16), (8, 64)])
def test_clips_sorted_into_eight_micro_batches_lose_less_by_waiting_and_padding(
    micro: int, world: int
) -> None:
    frames = how2sign(31_000)
    plan = plan_of(31_000, micro, world, accumulation=8)
    ways = AS_DRAWN, BY_LENGTH, BUCKET
    orders = [MicroBatches(plan, 0, frames.counts, 0, 0, how) for how in ways]
    drawn, by_length, bucket = (kept(order, frames, 6) for order in orders)
    assert by_length >= 0.8
    assert by_length >= 1.25 * drawn
    assert bucket >= 0.95


def test_each_process_gets_as_much_over_the_step_where_they_wait_only_at_its_end() -> None:
    frames = np.random.default_rng(0).integers(10, 500, 32)
    loads = frames[BY_LENGTH.arrange(frames, accumulation=8, world_size=4)].sum(axis=(0, 2))
    assert loads.min() >= 0.97 * loads.max()


def orders_of(arrangement: Arrangement, micro: int, world: int, accumulation: int) -> MicroBatches:
    draws = np.random.default_rng(2).integers(1, 300, 240).astype(np.int32)
    frames = ClipFrames(draws, 256, AugmentConfig(speed=0.2), seed=4)
    plan = plan_of(240, micro, world, accumulation)
    return MicroBatches(plan, 4, frames.counts, 0, 0, arrangement)


def blended(arrangement: Arrangement, micro: int, world: int, accumulation: int) -> MicroBatches:
    draws = np.random.default_rng(2).integers(1, 300, 240).astype(np.int32)
    frames = BlendFrames(draws, 256, AugmentConfig(speed=0.2), seed=4)
    plan = plan_of(BLEND.num_draws, micro, world, accumulation)
    return BlendedMicroBatches(plan, BLEND, frames.counts, 0, 0, arrangement)


def steps_of(order: MicroBatches, start: int = 0) -> list[list[tuple[int, int]]]:
    """Return the clips of each step, each with how often it came before."""
    found = []
    for step in range(start, order.plan.total_steps):
        clips, times = order.of_all(step)
        found.append(sorted(zip(clips.flat, times.flat, strict=True)))
    return found


@pytest.mark.parametrize("make", [orders_of, blended])
@pytest.mark.parametrize("arrangement", [BY_LENGTH, Arrangement(True, 4), Arrangement(False, 4)])
def test_the_global_batches_depend_on_no_number_of_processes(
    make: object, arrangement: Arrangement
) -> None:
    assert callable(make)
    shapes = [(1, 1, 14), (7, 2, 1), (1, 7, 2)]
    seen = [steps_of(make(arrangement, *shape)) for shape in shapes]
    assert all(steps == seen[0] for steps in seen)
    assert steps_of(make(arrangement, 1, 7, 2), start=11) == seen[0][11:]
    drawn = steps_of(make(AS_DRAWN, 7, 2, 1))
    assert (drawn == seen[0]) == (arrangement.bucket == 0)
    an_epoch = len(drawn) // 2
    for first in (0, an_epoch):  # the same clips of an epoch, and its last step is as drawn
        those = [steps[first : first + an_epoch] for steps in (drawn, seen[0])]
        one, other = (Counter(clip for step in steps for clip in step) for steps in those)
        assert one == other
        assert seen[0][first + an_epoch - 1] == drawn[first + an_epoch - 1]


def test_the_clips_that_are_held_at_once_depend_on_the_accumulation_only() -> None:
    seen = []
    for micro, world in ((8, 1), (4, 2), (1, 8)):
        order = orders_of(Arrangement(True, 4), micro, world, 2)
        seen.append([np.sort(order.of_all(s)[0].reshape(2, -1)).tolist() for s in range(30)])
    assert seen[0] == seen[1] == seen[2]


def test_a_process_finds_its_own_micro_batches_anywhere_and_in_any_order() -> None:
    plan = plan_of(240, 2, 4, 2)
    lengths = np.random.default_rng(2).integers(1, 300, 240).astype(np.int32)
    frames = ClipFrames(lengths, 256, AugmentConfig(), 4)
    ranks = [MicroBatches(plan, 4, frames.counts, r, 3, Arrangement(True, 5)) for r in range(4)]
    for item in np.random.default_rng(0).permutation(len(ranks[0])):
        steps, part = divmod(int(item), 2)
        whole = MicroBatches(plan, 4, frames.counts, 0, 0, Arrangement(True, 5))
        clips = whole.of_all(3 + steps)[0][part]
        assert [order[int(item)].clips for order in ranks] == clips.tolist()


def test_buckets_differ_from_epoch_to_epoch_and_the_longest_step_is_anywhere() -> None:
    order = orders_of(Arrangement(bucket=4), 2, 4, 2)
    longest = []
    for epoch in range(2):
        steps = [order.of_all(15 * epoch + s)[0].reshape(-1) for s in range(15)]
        sums = [order.frames_of(epoch, clips).sum() for clips in steps]
        longest.append([int(np.argmax(sums[i : i + 3])) for i in (0, 3, 7, 11)])
    assert longest[0] != longest[1]
    assert len(set(longest[0])) > 1


def test_a_bucket_of_a_blend_keeps_the_share_of_each_corpus_in_each_step() -> None:
    drawn, dealt = blended(AS_DRAWN, 16, 1, 1), blended(Arrangement(bucket=5), 16, 1, 1)

    def shares(order: MicroBatches) -> list[int]:
        return [int((order.of_all(s)[0] < SIZES[0]).sum()) for s in range(15)]

    assert shares(drawn) == shares(dealt)
    sums = [int(dealt.frames_of(*reversed(_flat(dealt, s))).sum()) for s in range(15)]
    as_drawn = [int(drawn.frames_of(*reversed(_flat(drawn, s))).sum()) for s in range(15)]
    assert np.std(sums) > 2 * np.std(as_drawn)


def _flat(order: MicroBatches, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    clips, times = order.of_all(step)
    return clips.reshape(-1), times.reshape(-1)


@pytest.mark.parametrize("seed", range(4))
def test_a_step_with_more_clips_of_a_corpus_than_others_has_as_many_afterwards(seed: int) -> None:
    corpora = np.array([[0, 0, 0, 1], [0, 1, 1, 1], [0, 0, 1, 1]])
    frames = np.arange(12).reshape(3, 4)
    dealt = deal(frames, corpora, [seed])
    assert sorted(dealt.reshape(-1)) == list(range(12))
    assert (corpora.reshape(-1)[dealt].sum(axis=1) == corpora.sum(axis=1)).all()


def test_the_padding_of_the_last_step_lies_in_its_last_micro_batches() -> None:
    order = orders_of(BY_LENGTH, 2, 7, 4)  # 240 clips, 56 a step: 40 places of the last are empty
    clips, _ = order.of_all(4)
    assert (clips == PADDING).sum(axis=(1, 2)).tolist() == [0, 12, 14, 14]


@pytest.mark.parametrize(
    ("words", "seen"),
    [
        ((), [True, False, True]),  # batch norms train in the first stage and the last
        (("model.norm=layer",), [False, False, False]),
        (("model.norm=layer", "train.gradient_caching=false"), [True, False, True]),
        (("model.norm=layer", "model.visual_norm=local"), [True, False, True]),
        # Without a ResNet nothing has the norm of one.
        (
            ("model.norm=layer", "model.visual_norm=local", "model.visual_backbone=features:a"),
            [False, False, False],
        ),
        (
            (
                "model.norm=frozen",
                "train.gradient_caching=false",
                "loss.contrastive_weight=0",
            ),
            [True, False, False],
        ),
    ],
)
def test_by_default_clips_are_sorted_where_nothing_sees_which_of_them_meet(
    words: tuple[str, ...], seen: list[bool]
) -> None:
    runs = load_stages("phoenix14t", list(words))
    assert [sees_micro_batch(run) for run in runs] == seen
    assert [not Arrangement.of(run).by_length for run in runs] == seen


def test_the_key_decides_and_says_so() -> None:
    length = load_stages("phoenix14t", ["train.arrangement=length", "train.bucket=64"])
    drawn = load_stages("phoenix14t", ["train.arrangement=drawn"])
    assert {Arrangement.of(run) for run in length} == {BUCKET}
    assert {Arrangement.of(run) for run in drawn} == {AS_DRAWN}
    assert BUCKET.describe() == (
        "a step's clips are sorted by length into its micro batches, those of 64 steps into these "
        "steps (train.bucket)"
    )
    assert not AS_DRAWN.describe()
