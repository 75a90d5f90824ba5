"""A job in which everything is in order, to be broken and checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from helpers.little_job import overrides
from helpers.repository import ROOT
from signfuse_dist.cli import main

DEMO = str(ROOT / "configs" / "experiment" / "demo.yaml")


@dataclass
class Job:
    """A job in which everything is in order, to be broken."""

    folder: Path
    capsys: pytest.CaptureFixture[str]
    words: list[str] = field(default_factory=list)
    options: list[str] = field(default_factory=list)

    @property
    def llm(self) -> Path:
        return self.folder / "llm"

    @property
    def overrides(self) -> list[str]:
        return [*overrides(self.folder), *self.words]

    def split(self, name: str) -> Path:
        return self.folder / "shards" / name

    def launch(self, **settings: object) -> Path:
        """Write a launch file that differs from that of a CPU node in some settings."""
        values = yaml.safe_load((ROOT / "launch" / "cpu_zero2.yaml").read_text("utf-8"))
        path = self.folder / "launch.yaml"
        path.write_text(yaml.safe_dump({**values, **settings}), encoding="utf-8")
        return path

    def check(self, status: int) -> list[str]:
        """Run the check, assert how it ends, and return the lines of its findings."""
        path = self.launch() if "--launch" not in self.options else None
        launch = ["--launch", str(path)] if path else []
        command = ["check", DEMO, "--world-size", "2", *launch, *self.options, *self.overrides]
        assert main(command) == status
        return self.capsys.readouterr().out.splitlines()

    def finds(self, level: str, *parts: str) -> str:
        """Return the one finding of this level, with all these words in it."""
        lines = self.check(1 if level == "error" else 0)
        found = [line for line in lines if line.startswith(level)]
        assert len(found) == 1, "\n".join(lines)
        for part in parts:
            assert part in found[0]
        return found[0]
