from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from helpers.repository import ROOT
from signfuse_dist.garbage import importing, uncollected


def test_the_collector_is_still_within_a_block_and_at_work_behind_it() -> None:
    with uncollected():
        with uncollected():
            assert not gc.isenabled()
        assert not gc.isenabled()  # the inner block did not begin it
    assert gc.isenabled()
    with pytest.raises(ValueError, match="in the block"), uncollected():
        raise ValueError("in the block")
    assert gc.isenabled()


def test_nothing_is_set_apart_where_nothing_is_imported() -> None:
    before = gc.get_freeze_count()
    with importing():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() == before


def test_the_collector_is_at_work_where_a_program_has_been_imported() -> None:
    code = (
        "import gc, signfuse_dist.jobs.launcher; assert gc.isenabled(); "
        "assert gc.get_freeze_count() > 1000"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_trainer_ends_without_a_word_of_what_was_set_apart() -> None:
    """Libraries that count their objects complain at the end of those that nobody has collected."""
    command = [sys.executable, "-c", "import signfuse_dist.train"]
    ended = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert (ended.stdout, ended.stderr) == ("", "")


def test_nothing_of_scipy_stays_hidden_behind_meteor() -> None:
    code = (
        "import sys; from signfuse_dist.evaluation.metrics import _meteor_of_nltk as meteor; "
        "meteor(); import scipy.stats; assert 'scipy.sparse' in sys.modules; "
        "assert None not in sys.modules.values()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
