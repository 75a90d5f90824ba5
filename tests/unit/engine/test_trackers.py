"""Trackers: the same figures in the same steps, once each; a missing package is named at once."""

from __future__ import annotations

import importlib.util
import typing
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, WandBTracker
from accelerate.utils import LoggerType

from signfuse_dist.config import TrackerName
from signfuse_dist.engine import trackers
from signfuse_dist.engine.tracker_packages import PACKAGES
from signfuse_dist.errors import UserError

CONFIG = {"name": "demo", "model": {"dim": 16, "llm_revision": None, "scales": ["frame"]}}


def test_the_names_are_those_of_accelerate() -> None:
    assert set(typing.get_args(TrackerName)) == set(LOGGER_TYPE_TO_CLASS) == set(PACKAGES)


def test_a_tracker_that_is_not_installed_is_named_with_what_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="comet_ml is not installed: pip install comet-ml"):
        trackers.refuse_missing(("tensorboard", "comet_ml"))


def test_a_configuration_is_flattened_to_numbers_and_texts() -> None:
    assert trackers.flatten(CONFIG) == {
        "name": "demo",
        "model.dim": 16,
        "model.llm_revision": "None",
        "model.scales": "['frame']",
    }


def part_of_a_run(folder: Path, names: tuple[str, ...], start: int, steps: range) -> None:
    accelerator = Accelerator(cpu=True)
    trackers.start(accelerator, names, folder, CONFIG, start)
    for step in steps:
        accelerator.log({"total": 10.0 * start + step, "visual/seconds": 0.5}, step=step)
    accelerator.end_training()


def test_tensorboard_has_each_step_of_a_resumed_run_once(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    part_of_a_run(tmp_path, ("tensorboard",), 0, range(1, 6))
    part_of_a_run(tmp_path, ("tensorboard",), 3, range(4, 7))
    folder = tmp_path / "trackers" / "signfuse"
    found = events.EventAccumulator(str(folder)).Reload()
    values = [(event.step, event.value) for event in found.Scalars("total")]
    assert values == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 34.0), (5, 35.0), (6, 36.0)]
    assert found.Scalars("visual/seconds")[-1].value == 0.5


def test_a_resumed_run_is_the_same_run_of_weights_and_biases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a tracker in the place of Accelerate's, which would start a process of its own."""
    seen: list[tuple[str, Any]] = []

    class Recorder(WandBTracker):
        def start(self) -> None:
            seen.append(("start", self.init_kwargs))

        def store_init_configuration(self, values: dict[str, Any]) -> None:
            seen.append(("config", values))

        def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
            seen.append(("log", (step, values["total"])))

        def finish(self) -> None:
            seen.append(("finish", None))

    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", Recorder)
    monkeypatch.setattr(trackers, "refuse_missing", lambda names: None)
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: [LoggerType.WANDB])
    for start in (0, 1):
        part_of_a_run(tmp_path, ("wandb",), start, range(start + 1, start + 2))
    starts = [value for kind, value in seen if kind == "start"]
    assert len(starts) == 2
    assert starts[0] == starts[1]
    assert starts[0]["resume"] == "allow"
    assert starts[0]["id"] == (tmp_path / "wandb_run_id").read_text(encoding="utf-8")
    assert [value for kind, value in seen if kind == "log"] == [(1, 1.0), (2, 12.0)]
    assert ("config", trackers.flatten(CONFIG)) in seen
    assert seen[-1] == ("finish", None)


def test_no_tracker_writes_nothing(tmp_path: Path) -> None:
    part_of_a_run(tmp_path, (), 0, range(1, 2))
    assert list(tmp_path.iterdir()) == []
