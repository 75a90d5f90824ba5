"""What the check before a job finds: one line each, with what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

Level = Literal["ok", "warning", "error"]
# How the job that is looked at is started: `accelerate launch` or torchrun, `signfuse train`, or
# the scripts of slurm/ on other machines.
StartedBy = Literal["accelerate", "train", "sbatch"]


class Finding(NamedTuple):
    """``fix`` says what to do; "" where nothing has to be done."""

    level: Level
    what: str
    value: str
    fix: str = ""

    @property
    def said(self) -> str:
        """What was found and what to do, without the level."""
        return f"{self.what}: {self.value}" + (f". {self.fix}" if self.fix else "")

    def __str__(self) -> str:
        return f"{self.level:7s}  {self.said}"


def ok(what: str, value: str) -> Finding:
    """Return a finding that asks for nothing."""
    return Finding("ok", what, value)


def warning(what: str, value: str, fix: str) -> Finding:
    """Return what may go well."""
    return Finding("warning", what, value, fix)


def error(what: str, value: str, fix: str) -> Finding:
    """Return what ends a job."""
    return Finding("error", what, value, fix)


def summary(findings: Sequence[Finding]) -> str:
    """Return all findings, errors last, and how many there are of each."""
    order = ("ok", "warning", "error")
    counts = [sum(f.level == level for f in findings) for level in order]
    lines = [str(f) for level in order for f in findings if f.level == level]
    return "\n".join([*lines, f"{counts[2]} errors, {counts[1]} warnings, {counts[0]} in order"])
