"""An evaluation, and the file that `signfuse translate` adds lines to, have one writer."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from helpers.lock_holder import lock_holder
from signfuse_dist.evaluation.evaluate import Processes, _hold
from signfuse_dist.evaluation.translate import _writing_alone
from signfuse_dist.locks import HeldError, holder_of
from signfuse_dist.run_folder import EvaluationFolder


def test_a_second_evaluation_into_one_folder_is_refused_on_every_process(tmp_path: Path) -> None:
    folder = EvaluationFolder(tmp_path / "evaluation" / "test")
    heard: list[object] = []

    class Two(Processes):
        """The first of two processes, whose other one hears what it says."""

        def gather(self, own):  # type: ignore[no-untyped-def]
            heard.append(own)
            return [own, own]

    one = Two(0, 2, torch.device("cpu"))
    with lock_holder(folder.lock) as other, ExitStack() as until_end:
        with pytest.raises(HeldError, match=f"the evaluation {folder.path} is held by pid"):
            _hold(folder, one, until_end, lambda: False)
        ((_, said),) = heard
        assert isinstance(said, HeldError)
        assert f"pid {other.pid} on" in str(said)
    with ExitStack() as until_end:
        assert not _hold(folder, one, until_end, lambda: False)
        assert holder_of(folder.lock) is not None
    assert list(tmp_path.iterdir()) == [], "an evaluation that came to nothing leaves nothing"


def test_what_another_process_has_evaluated_meanwhile_is_not_evaluated_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = EvaluationFolder(tmp_path / "evaluation" / "test")
    alone = Processes(0, 1, torch.device("cpu"))
    with ExitStack() as until_end:
        assert _hold(folder, alone, until_end, lambda: True)
    assert "another process has evaluated it meanwhile" in capsys.readouterr().out


def test_a_second_translation_into_one_file_is_refused_and_one_to_the_terminal_is_not(
    tmp_path: Path,
) -> None:
    out = tmp_path / "lines.jsonl"
    with lock_holder(out.with_name(".lines.jsonl.lock")):
        with pytest.raises(HeldError, match=f"the file {out} is held by pid"), _writing_alone(out):
            pass
        with _writing_alone(tmp_path / "others.jsonl"), _writing_alone(None):
            pass
    with _writing_alone(out):
        pass
    assert list(tmp_path.iterdir()) == []
