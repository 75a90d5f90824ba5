"""Who is to blame when a job stands still, from the beats of its processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from signfuse_dist.engine.marks import WAITING

_NAMED = 8


class Beat(NamedTuple):
    """The last that is known of a process; ``silent`` where it has not changed since."""

    rank: int
    host: str
    pid: int
    number: int
    """Of the beat: it grows while the process lives."""
    phase: str
    step: int
    seconds: float
    """Since ``phase`` began, by the process's own clock."""
    ended: str = ""
    silent: bool = False


def judge(beats: Sequence[Beat], seconds: float) -> str:
    """Return who is to blame, and what the others do.

    Those who are silent; else those who do something by themselves while others wait for them,
    furthest behind; else everybody. ``seconds`` is ``train.hang_seconds``.
    """
    silent = [beat for beat in beats if beat.silent]
    # Only who stands still for about as long as the others can be what they wait for.
    stuck = [b for b in beats if b.phase != WAITING and b.seconds >= seconds / 2]
    behind = [b for b in stuck if b.step == min(other.step for other in stuck)]
    blamed = silent or behind or list(beats)
    lines = [_silent(beat) if beat.silent else _stuck(beat) for beat in blamed[:_NAMED]]
    if len(blamed) > _NAMED:
        lines.append(f"and {len(blamed) - _NAMED} more")
    others = Counter(_doing(b) for b in beats if b not in blamed)
    if others:
        said = ", ".join(f"{count} {doing}" for doing, count in others.most_common(_NAMED))
        lines.append(f"of the others: {said}")
    elif not silent and len(blamed) > 1:
        lines.append("none is ahead of the others: a collective that does not come back?")
    return "; ".join(lines)


def _silent(beat: Beat) -> str:
    what = (
        beat.ended or f"it was killed, or its machine is frozen or gone; last seen {_doing(beat)}"
    )
    return f"{_name(beat)} gives no sign of life: {what}"


def _stuck(beat: Beat) -> str:
    return f"{_name(beat)} does not get on: {_doing(beat)} for {beat.seconds:.0f} s"


def _doing(beat: Beat) -> str:
    return f"{beat.phase} (step {beat.step})" if beat.step else beat.phase


def _name(beat: Beat) -> str:
    return f"process {beat.rank} (host {beat.host}, pid {beat.pid})"
