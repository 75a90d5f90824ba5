"""What processes know together of a step: what they lose by waiting and padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from helpers.broken_steps import Breaking
from helpers.model_factory import draw_clips, join
from signfuse_dist.batch import SignBatch
from signfuse_dist.engine.guards import Agreed, Agreement


def window(*batches: list[int]) -> list[SignBatch]:
    """Return micro batches of clips of so many frames."""
    return [join(draw_clips(lengths)) for lengths in batches]


def exchange(monkeypatch: pytest.MonkeyPatch, *windows: list[SignBatch]) -> list[Agreed]:
    """Return what each of several processes knows after an exchange."""
    monkeypatch.setattr(dist, "new_group", lambda **_: "hosts")
    brought: list[Tensor] = []
    known: list[Agreed] = []

    def note(tensor: Tensor, group: Any) -> None:
        brought.append(tensor.clone())

    def add(tensor: Tensor, group: Any) -> None:
        tensor.copy_(torch.stack(brought).sum(dim=0))

    for reduce in (note, add):
        monkeypatch.setattr(dist, "all_reduce", reduce)
        for rank, own in enumerate(windows):
            monkeypatch.setattr(dist, "get_rank", lambda own=rank: own)
            agreed = Agreement(Breaking(), len(windows)).exchange(own, stop_asked=False)
            known += [agreed] if reduce is add else []
    return known


def test_processes_that_are_even_over_the_step_wait_in_each_of_its_micro_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = exchange(monkeypatch, window([8], [2]), window([2], [8]))
    assert known[0] == known[1]
    assert (known[0].frames, known[0].needed, known[0].slowest) == (20, 4 * 20, 4 * 16)
    assert known[0].clips == 4


def test_padding_is_lost_but_of_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    (alone,) = exchange(monkeypatch, window([8, 2]))
    assert (alone.needed, alone.slowest) == (4 * 10, 3 * 10 + 2 * 8)


def test_a_clip_of_weight_zero_is_not_needed_and_features_have_no_pictures() -> None:
    (batch,) = window([8, 2])
    batch.weight[0] = 0.0
    assert batch.work == (4 * 2, 3 * 10 + 2 * 8)
    features = batch.with_features(torch.zeros(2, 4, 3), torch.zeros(2, 4, 3))
    assert features.work == (2, 2 * 8)
