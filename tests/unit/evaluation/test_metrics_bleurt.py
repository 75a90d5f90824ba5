"""BLEURT where the user has it: a stand-in package of the same interface, and its absence."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from signfuse_dist.errors import UserError
from signfuse_dist.evaluation.scores import score

TEXTS = {"a": "rain in the west", "b": "sun"}
OTHERS = {"a": "rain in the east", "b": "sun"}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "BLEURT-20"
    folder.mkdir()
    (folder / "bleurt_config.json").write_text("{}")
    return folder


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Put a package `bleurt` on the path; the list grows by the size of every call of it."""
    sizes: list[int] = []

    class BleurtScorer:
        def __init__(self, checkpoint: str) -> None:
            assert Path(checkpoint).name == "BLEURT-20"

        def score(self, *, references: list[str], candidates: list[str]) -> list[float]:
            sizes.append(len(candidates))
            pairs = zip(references, candidates, strict=True)
            return [0.75 if r == c else -0.25 for r, c in pairs]

    package, module = ModuleType("bleurt"), ModuleType("bleurt.score")
    module.BleurtScorer = BleurtScorer  # type: ignore[attr-defined]
    package.score = module  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bleurt", package)
    monkeypatch.setitem(sys.modules, "bleurt.score", module)
    return sizes


def test_a_checkpoint_scores_and_its_name_is_in_the_signature(
    calls: list[int], checkpoint: Path
) -> None:
    scores = score(OTHERS, TEXTS, "sacrebleu", bleurt=checkpoint)
    assert scores["BLEURT"].value == pytest.approx(25.0)  # mean of 75 and -25
    assert "checkpoint:BLEURT-20|mean:sentences" in scores["BLEURT"].signature
    assert scores.unavailable == {}
    assert calls == [2], "all sentences in one call"


def test_a_checkpoint_without_the_package_says_which_package(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Path
) -> None:
    monkeypatch.setitem(sys.modules, "bleurt", None)
    with pytest.raises(UserError, match="package `bleurt` is not installed"):
        score(OTHERS, TEXTS, "sacrebleu", bleurt=checkpoint)


def test_a_folder_that_is_no_checkpoint_is_refused(calls: list[int], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no bleurt_config\.json"):
        score(OTHERS, TEXTS, "sacrebleu", bleurt=tmp_path)
