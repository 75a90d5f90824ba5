"""A stop is asked for by a signal, remembered, and acted on at the end of a step."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from signfuse_dist.engine.stopping import REQUEUE, StopRequest

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_asks_for_a_stop_and_interrupts_nothing(number: signal.Signals) -> None:
    with StopRequest() as stop:
        assert not stop.asked
        signal.raise_signal(number)
        assert stop.asked


def test_a_second_ctrl_c_interrupts_at_once() -> None:
    with StopRequest():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_the_other_signals_may_come_twice(number: signal.Signals) -> None:
    """A scheduler sends them to every process and again to the group."""
    with StopRequest() as stop:
        signal.raise_signal(number)
        signal.raise_signal(number)
        assert stop.asked


def test_the_handlers_are_put_back_also_after_an_error() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]

    def fail() -> None:
        with StopRequest():
            assert signal.getsignal(signal.SIGTERM) != before[0]
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fail()
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_file_asks_for_a_stop_and_is_looked_for_once_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    stop = StopRequest(tmp_path / "stop")
    assert not stop.asked
    (tmp_path / "stop").touch()
    now[0] += 0.9
    assert not stop.asked, "a look costs a shared file system a request"
    now[0] += 0.2
    assert stop.asked
    (tmp_path / "stop").unlink()
    now[0] += 10
    assert stop.asked, "it is not taken back"


def test_the_status_is_the_one_that_schedulers_take_for_try_again() -> None:
    assert os.EX_TEMPFAIL == REQUEUE
