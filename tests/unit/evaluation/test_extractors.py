"""The joints of a new clip come from what found those of training, or it is said what differs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.repository import ROOT
from helpers.signers import InTheMiddle
from signfuse_dist.data.joints import JointsFile, NoJoints
from signfuse_dist.errors import UserError
from signfuse_dist.evaluation import extractors
from signfuse_dist.evaluation.extractors import difference, extractor_for
from signfuse_dist.experiment import load_run
from signfuse_dist.model.usage import Usage

asked: list[float] = []
"""How surely a body must be seen, of every extractor that was chosen in a test."""
DEMO = str(ROOT / "configs" / "experiment" / "demo.yaml")


@pytest.fixture(autouse=True)
def mediapipe(monkeypatch: pytest.MonkeyPatch) -> InTheMiddle:
    """Stands where MediaPipe is chosen."""
    found = InTheMiddle()
    found.name, found.version = "mediapipe-holistic", "0.10.21"

    def chosen(model: Path | None, visibility: float) -> InTheMiddle:
        asked.append(visibility)
        return found

    asked.clear()
    monkeypatch.setattr(extractors, "choose_extractor", chosen)
    return found


def trained_with(name: str | None, version: str | None) -> Usage:
    return Usage.of(load_run(DEMO, "finetune"), name, version)


def test_a_model_that_saw_no_joints_sees_none_of_a_new_clip() -> None:
    usage = trained_with(NoJoints.name, NoJoints.version)
    extractor = extractor_for(usage, None)
    assert isinstance(extractor, NoJoints)
    assert difference(usage, extractor) is None
    with pytest.raises(UserError, match=r"pose model x\.task: the model was trained without"):
        extractor_for(usage, Path("x.task"))


@pytest.mark.parametrize("usage", [("mediapipe-holistic", "0.10.21"), (None, None)])
def test_the_same_extractor_or_an_unknown_one_is_not_spoken_of(
    usage: tuple[Any, Any], mediapipe: InTheMiddle
) -> None:
    extractor = extractor_for(trained_with(*usage), None)
    assert extractor is mediapipe
    assert difference(trained_with(*usage), extractor) is None


@pytest.mark.parametrize(
    ("name", "version", "words"),
    [
        ("mediapipe-holistic", "0.10.9", "came from mediapipe-holistic 0.10.9"),
        ("mediapipe-tasks", "1.0+ab", "came from mediapipe-tasks 1.0+ab"),
        (JointsFile.name, JointsFile.version, "came from files beside its clips"),
    ],
)
def test_another_extractor_is_named_with_that_of_training(
    name: str, version: str, words: str
) -> None:
    usage = trained_with(name, version)
    said = difference(usage, extractor_for(usage, None))
    assert said is not None
    assert "from mediapipe-holistic 0.10.21" in said
    assert words in said


def test_a_body_must_be_seen_as_surely_as_in_training() -> None:
    extractor_for(trained_with("mediapipe-holistic", "0.10.21+visibility0.5"), None)
    extractor_for(trained_with("mediapipe-holistic", "0.10.21"), None)
    extractor_for(trained_with(None, None), None)
    assert asked == [0.5, 0, 0]


def test_files_of_joints_are_as_in_training_or_said_to_be_files() -> None:
    usage = trained_with(JointsFile.name, JointsFile.version)
    assert difference(usage, None) is None
    said = difference(replace(usage, extractor="mediapipe-holistic"), None)
    assert said is not None
    assert "from the files that are given" in said
