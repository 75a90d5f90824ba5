"""Where the time of a step goes: the parts add up, and nothing is asked of the device before."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor, nn

from signfuse_dist.engine.timing import Timeline

CPU = torch.device("cpu")
SLOW = 0.05


class _Slow(torch.autograd.Function):
    """Takes 50 ms forward and 100 ms backward."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        time.sleep(SLOW)
        return 2 * x

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        time.sleep(2 * SLOW)
        return 2 * grad


class _Part(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return _Slow.apply(x), None


def test_time_is_divided_among_forward_backward_and_the_rest_and_adds_up() -> None:
    parts = {"first": [_Part()], "second": [_Part(), _Part()]}
    timeline = Timeline(CPU, parts)
    timeline.restart()
    began = time.perf_counter()
    x = torch.ones(1, requires_grad=True)
    for modules in parts.values():
        for module in modules:
            x, _ = module(x)
    time.sleep(SLOW)
    x.sum().backward()
    timeline.mark("optimizer")
    time.sleep(SLOW)
    found = timeline.take()
    took = time.perf_counter() - began
    assert sum(found.values()) == pytest.approx(took, abs=SLOW / 2)
    assert found["first forward"] >= SLOW
    assert found["second forward"] >= 2 * SLOW
    assert found["first backward"] >= 2 * SLOW
    assert found["second backward"] >= 4 * SLOW
    assert found["optimizer"] >= SLOW
    assert found["other"] >= SLOW
    assert found["second backward"] > found["first backward"]


def test_a_part_that_is_frozen_has_no_backward_pass() -> None:
    frozen, trained = nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 2)
    timeline = Timeline(CPU, {"frozen": [frozen], "trained": [trained]})
    timeline.restart()
    trained(frozen(torch.ones(1, 2))).sum().backward()
    found = timeline.take()
    assert found["frozen backward"] == 0.0
    assert found["trained backward"] > 0.0
    assert found["frozen forward"] > 0.0


def test_taking_begins_again_and_detached_modules_mark_nothing() -> None:
    part = nn.Linear(2, 2)
    timeline = Timeline(CPU, {"part": [part]})
    part(torch.ones(1, 2))
    assert timeline.take()["part forward"] > 0.0
    assert set(timeline.take().values()) == {0.0}
    timeline.detach()
    part(torch.ones(1, 2))
    assert set(timeline.take().values()) == {0.0}
