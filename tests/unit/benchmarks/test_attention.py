"""`python benchmarks/attention.py`: figures for what is here, reasons for what is not."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from benchmarks import attention as bench_module
from benchmarks.attention import AttentionBench, _peak_on_cpu, main, measure, run
from signfuse_dist.errors import UserError
from signfuse_dist.model.attention import BACKENDS


def _bench(**changes: Any) -> AttentionBench:
    values: dict[str, Any] = {
        "lengths": (4, 9),
        "batch_size": 2,
        "dim": 16,
        "heads": 2,
        "dtype": torch.float32,
        "device": torch.device("cpu"),
        "repeats": 1,
        **changes,
    }
    return AttentionBench(**values)


def test_every_backend_is_measured_or_said_to_be_missing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--lengths", "4,9", "--dim", "16", "--heads", "2", "--repeats", "1"]
    assert main([*words, "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    for backend in ("flash_attention_2", "varlen"):
        assert f"not here: {backend}: it needs a CUDA GPU, and this is cpu" in out
    rows = re.findall(r"^ +(\d+) +[\d.]+ ms +[\d.]+ MB +[\d.]+ ms +[\d.]+ MB$", out, re.M)
    assert rows == ["4", "9"]
    assert "T" in out
    assert all(backend in out for backend in BACKENDS)
    assert "8 clips of T/4 to T steps, dim 16, 2 heads, float32, cpu" in out


def test_memory_on_a_cpu_is_the_most_that_was_held_at_once() -> None:
    def allocate() -> None:
        first = torch.empty(2**20, dtype=torch.uint8)
        second = torch.empty(2**21, dtype=torch.uint8)
        del first
        third = torch.empty(2**19, dtype=torch.uint8)
        del second, third

    assert _peak_on_cpu(allocate) == 2**20 + 2**21


def test_eager_holds_the_weights_that_sdpa_does_not() -> None:
    bench = _bench(dim=16, heads=2)
    costs = {backend: measure(bench, backend, 256) for backend in ("sdpa", "eager")}
    assert costs["eager"] is not None
    assert costs["sdpa"] is not None
    weights = 2 * 2 * 256 * 256 * 4  # clips, heads, queries, keys, bytes
    assert costs["eager"].peak_bytes > costs["sdpa"].peak_bytes + weights
    assert costs["eager"].seconds > 0


def test_too_little_memory_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(bench_module, "attend", fail)
    assert run(_bench()).count("out of memory") == 4


def test_clips_go_from_a_quarter_to_all_of_the_length() -> None:
    assert _bench(batch_size=4).step_lengths(64).tolist() == [64, 48, 32, 16]
    assert _bench(batch_size=1).step_lengths(7).tolist() == [7]


@pytest.mark.parametrize(
    "changes",
    [{"dim": 15}, {"heads": 0}, {"lengths": (4, 0)}, {"batch_size": 0}, {"repeats": 0}],
)
def test_numbers_that_make_no_sense_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="at least 1"):
        run(_bench(**changes))


def test_words_that_are_no_numbers_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--lengths", "64,many"])
    assert stopped.value.code == 2
    assert "'64,many' is not numbers with commas between" in capsys.readouterr().err


def test_a_gpu_that_is_not_there_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--device", "cuda"]) == 2
    assert "--device cuda: torch sees no GPU here" in capsys.readouterr().err
