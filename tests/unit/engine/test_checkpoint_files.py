"""Every kind of damage to a checkpoint: it is left for the one before, with the cause, or named."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from helpers.little_checkpoints import sign
from helpers.little_checkpoints import write_checkpoint as write
from signfuse_dist import files, tensor_files
from signfuse_dist.config import StageConfig, TrainConfig
from signfuse_dist.engine import checkpoint_files
from signfuse_dist.engine.checkpoint_files import (
    find_best,
    find_latest,
    list_checkpoints,
    refuse_other_position,
    refuse_other_run,
)
from signfuse_dist.errors import MachineError, UserError
from signfuse_dist.files import STATE, checksum
from signfuse_dist.plan import Plan, make_plan

WEIGHTS, OPTIMIZER = checkpoint_files.WEIGHTS, checkpoint_files.OPTIMIZER
Damage = Callable[[Path], None]


def said(**changes: Any) -> Damage:
    return lambda path: sign(path, **changes)


def position(**changes: int) -> Damage:
    return said(data={"seed": 0, "epoch": 1, "step": 2, "clips": 8, **changes})


def tensors(name: str, **changes: Any) -> Damage:
    """A file rewritten with other tensors and a right checksum; ``...`` removes one."""

    def rewrite(path: Path) -> None:
        found = {**load_file(path / name), **{n.replace("__", "."): v for n, v in changes.items()}}
        save_file({n: v for n, v in found.items() if v is not ...}, path / name)
        sign(path)

    return rewrite


def written(name: str, content: bytes, signed: bool = False) -> Damage:
    def overwrite(path: Path) -> None:
        (path / name).write_bytes(content)
        if signed:
            sign(path)

    return overwrite


def cut(name: str, share: float) -> Damage:
    def truncate(path: Path) -> None:
        os.truncate(path / name, int(share * (path / name).stat().st_size))

    return truncate


def flipped(name: str, place: int) -> Damage:
    def flip(path: Path) -> None:
        content = bytearray((path / name).read_bytes())
        content[place] ^= 4
        (path / name).write_bytes(content)

    return flip


def gone(name: str) -> Damage:
    return lambda path: (path / name).unlink()


def emptied(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()


def a_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_bytes(b"not a folder")


def a_broken_link(path: Path) -> None:
    shutil.rmtree(path)
    path.symlink_to("nowhere")


def of_another_step(path: Path) -> None:
    shutil.rmtree(path)
    shutil.copytree(path.with_name("step_00000004"), path)


def a_fifo(path: Path) -> None:
    (path / STATE).unlink()
    os.mkfifo(path / STATE)


def a_folder(name: str) -> Damage:
    def replace(path: Path) -> None:
        (path / name).unlink()
        (path / name).mkdir()

    return replace


NAN, INF = np.full((2, 3), np.nan, np.float32), np.full((2, 3), -np.inf, np.float32)
SQUARES = "first__weight__exp_avg_sq"
DAMAGES: dict[str, tuple[Damage, str]] = {
    "weights cut": (cut(WEIGHTS, 0.5), "weights.safetensors is damaged: its checksum"),
    "weights empty": (cut(WEIGHTS, 0), "weights.safetensors is damaged: its checksum"),
    "moments cut by a byte": (cut(OPTIMIZER, 0.999), "optimizer.safetensors is damaged"),
    "a bit of a weight": (flipped(WEIGHTS, -1), "weights.safetensors is damaged"),
    "a bit of a header": (flipped(OPTIMIZER, 3), "optimizer.safetensors is damaged"),
    "no weights": (gone(WEIGHTS), "weights.safetensors is missing"),
    "no moments": (gone(OPTIMIZER), "optimizer.safetensors is missing"),
    "a folder for weights": (a_folder(WEIGHTS), "weights.safetensors is missing"),
    "no state": (gone(STATE), "state.json: cannot be read"),
    "a folder for a state": (a_folder(STATE), "state.json: cannot be read"),
    "a FIFO for a state": (a_fifo, "state.json: cannot be read (it is a FIFO)"),
    "an empty folder": (emptied, "state.json: cannot be read"),
    "a file for the folder": (a_file, "state.json: cannot be read (Not a directory)"),
    "a link to nowhere": (a_broken_link, "state.json: cannot be read"),
    "a copy of another step": (of_another_step, "state.json is damaged: it is of step 4"),
    "a state cut": (cut(STATE, 0.7), "state.json: cannot be read"),
    "a bit of a state": (flipped(STATE, 30), "state.json"),
    "a state of zeros": (written(STATE, bytes(300)), "state.json: cannot be read"),
    "a state that is no UTF-8": (written(STATE, b'{"step": "\xff"}'), "state.json: cannot be read"),
    "a list": (written(STATE, b"[6]"), "state.json: cannot be read"),
    "nested without end": (written(STATE, b"[" * 60_000), "state.json: cannot be read"),
    "nested deep": (said(run=json.loads('{"a":' * 40 + "0" + "}" * 40)), "nested deeper than 20"),
    "a number of 5,000 digits": (written(STATE, b'{"step": ' + b"9" * 5000), "cannot be read"),
    "files as a list": (said(files=[WEIGHTS, OPTIMIZER]), "state.json: cannot be read"),
    "a checksum that is a number": (said(files={WEIGHTS: 1}), "state.json is damaged: it lists no"),
    "no step": (said(step=...), "state.json is damaged: step: missing"),
    "a step in words": (said(step="6"), "state.json is damaged: step: '6' is not an int"),
    "a step that is true": (said(step=True), "state.json is damaged: step: True is not an int"),
    "another step": (said(step=7), "state.json is damaged: it is of step 7"),
    "a negative step": (said(step=-6), "state.json is damaged: step: -6 is not at least 1"),
    "no position": (said(data=...), "state.json is damaged: data: missing"),
    "a position that is a list": (said(data=[1, 2]), "state.json is damaged: data: expected"),
    "a negative epoch": (position(epoch=-1), "data.epoch: -1 is not at least 0"),
    "a position of another step": (position(epoch=3), "step 6 is not step 2 of epoch 3"),
    "a position beyond the epoch": (position(step=5), "step 6 is not step 5 of epoch 1"),
    "more clips broken than there are": (said(broken_clips=9), "9 clips of 8 are broken"),
    "a score that is not finite": (said(score=float("nan")), "score: nan is not a finite number"),
    "no run": (said(run=...), "state.json is damaged: run: missing"),
    "a run in words": (said(run="mine"), "state.json is damaged: run: 'mine' is not a mapping"),
    "a later version": (said(version=2), "state.json is damaged: version: 2 is not at most 1"),
    "no safetensors": (written(WEIGHTS, bytes(64), True), "it is no whole safetensors file"),
    "a header of 4 GB": (written(WEIGHTS, b"\xff" * 64, True), "it is no whole safetensors file"),
    "a weight missing": (tensors(WEIGHTS, first__weight=...), "2 moments are missing, unknown"),
    "all weights missing": (tensors(WEIGHTS, first__weight=..., mean=...), "2 moments are missing"),
    "a moment missing": (tensors(OPTIMIZER, **{SQUARES: ...}), "1 moments are missing"),
    "a moment too many": (tensors(OPTIMIZER, last__exp_avg=NAN), "1 moments are missing, unknown"),
    "a moment of another shape": (
        tensors(OPTIMIZER, **{SQUARES: np.ones((3, 2), np.float32)}),
        "not of the shape and dtype of their weights, ['first.weight.exp_avg_sq']",
    ),
    "a moment of another dtype": (
        tensors(OPTIMIZER, **{SQUARES: np.ones((2, 3), np.float64)}),
        "not of the shape and dtype of their weights",
    ),
    "weights of another dtype": (
        tensors(WEIGHTS, first__weight=np.ones((2, 3), np.int32)),
        "2 moments are missing, unknown or not of the shape and dtype",
    ),
    "a weight that is NaN": (tensors(WEIGHTS, first__weight=NAN), "6 numbers of first.weight are"),
    "a weight that is infinite": (tensors(WEIGHTS, first__weight=INF), "are not finite"),
    "a statistic that is NaN": (tensors(WEIGHTS, mean=NAN[0]), "3 numbers of mean are not finite"),
    "a moment that is NaN": (tensors(OPTIMIZER, first__weight__exp_avg=NAN), "are not finite"),
    "squares below zero": (
        tensors(OPTIMIZER, **{SQUARES: np.full((2, 3), -1, np.float32)}),
        "first.weight.exp_avg_sq has negative squares",
    ),
    "more steps taken than there were": (
        tensors(OPTIMIZER, steps_taken=np.array(7, np.float32)),
        "7 steps taken of 6",
    ),
    "no step taken": (tensors(OPTIMIZER, steps_taken=np.array(0, np.float32)), "0 steps taken"),
    "steps taken in a row": (
        tensors(OPTIMIZER, steps_taken=np.ones(2, np.float32)),
        "steps_taken is no number of F32",
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_checkpoint_goes_back_one_and_says_in_a_line_why_and_what_is_lost(
    tmp_path: Path, kind: str
) -> None:
    damage, cause = DAMAGES[kind]
    write(tmp_path, 4, score=1.0)
    damage(write(tmp_path, 6, score=0.5))
    lines: list[str] = []
    found = find_latest(tmp_path, lines.append)
    assert found is not None
    assert found.step == 4
    (line,) = lines
    assert "\n" not in line
    assert line.startswith(f"checkpoint {tmp_path / 'step_00000006'} is not used: ")
    assert cause in line
    assert line.endswith(
        "; going back to step 4, what was trained since, up to step 6, is trained again"
    )


@pytest.mark.parametrize("kind", DAMAGES)
def test_where_none_is_whole_each_is_named_and_nothing_starts_over(
    tmp_path: Path, kind: str
) -> None:
    damage, cause = DAMAGES[kind]
    before = write(tmp_path, 4)
    damage(write(tmp_path, 6))
    flipped(WEIGHTS, -1)(before)
    with pytest.raises(UserError) as refused:
        find_latest(tmp_path, pytest.fail)
    headline, newest, oldest = str(refused.value).splitlines()
    assert "no checkpoint is whole, and a stage does not start over by itself" in headline
    assert newest.startswith("  - step_00000006: ")
    assert cause in newest
    assert oldest.startswith("  - step_00000004: ")
    assert "weights.safetensors is damaged" in oldest


def test_whole_ones_are_found_without_a_word_and_no_folder_holds_none(tmp_path: Path) -> None:
    assert find_latest(tmp_path / "none", pytest.fail) is None
    assert find_best(tmp_path / "none", pytest.fail) is None
    write(tmp_path, 4, score=1.0)
    write(tmp_path, 6, score=2.0)
    found, best = find_latest(tmp_path, pytest.fail), find_best(tmp_path, pytest.fail)
    assert found is not None
    assert best is not None
    assert (found.step, found.broken_clips, best.step) == (6, 1, 4)


def test_several_damaged_ones_are_a_line_each(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        path = write(tmp_path, step)
        if step > 2:
            gone(WEIGHTS)(path)
    lines: list[str] = []
    found = find_latest(tmp_path, lines.append)
    assert found is not None
    assert found.step == 2
    since = "; going back to step 2, what was trained since, up to step {}, is trained again"
    assert lines[0].endswith(since.format(6))
    assert lines[1].endswith(since.format(4))
    assert len(lines) == 2


def test_names_in_a_damaged_file_steer_no_terminal(tmp_path: Path) -> None:
    write(tmp_path, 4)
    path = write(tmp_path, 6)
    save_file({"\x1b[2J\nok.exp_avg": NAN}, path / OPTIMIZER)
    sign(path)
    lines: list[str] = []
    find_latest(tmp_path, lines.append)
    assert "\x1b" not in lines[0]
    assert "\n" not in lines[0]


def test_a_damaged_best_one_is_named_and_the_next_best_is_taken(tmp_path: Path) -> None:
    """Also where its score cannot be read: it may have been the best."""
    write(tmp_path, 2, score=3.0)
    write(tmp_path, 4, score=2.0)
    flipped(OPTIMIZER, -1)(write(tmp_path, 6, score=1.0))
    written(STATE, b"{")(write(tmp_path, 8, score=0.5))
    lines: list[str] = []
    found = find_best(tmp_path, lines.append)
    assert found is not None
    assert found.step == 4
    assert ["step_00000006 is not used" in lines[0], "step_00000008 is not" in lines[1]] == [
        True,
        True,
    ]
    for step in (2, 4):
        gone(WEIGHTS)(tmp_path / f"step_{step:08d}")
    with pytest.raises(UserError, match=r"(?s)no checkpoint is whole.*02:.*04:.*06:.*08:"):
        find_best(tmp_path, pytest.fail)


@pytest.mark.parametrize(
    ("number", "kind", "cause"),
    [
        (
            errno.EACCES,
            UserError,
            "cannot be read .Permission denied.; ask its owner for the right",
        ),
        (errno.EPERM, UserError, "cannot be read .Operation not permitted.; ask its owner"),
        (errno.EIO, MachineError, "Input/output error .EIO.; no input is to blame"),
        (errno.ESTALE, MachineError, "Stale file handle"),
        (errno.EMFILE, MachineError, "Too many open files"),
    ],
)
def test_what_may_not_or_cannot_be_read_now_is_an_error_and_no_reason_to_go_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type, cause: str
) -> None:
    write(tmp_path, 4)
    newest = write(tmp_path, 6)

    def fail(path: Path) -> str:
        if path == newest / OPTIMIZER:
            raise OSError(number, os.strerror(number), str(path))
        return checksum(path)

    monkeypatch.setattr(files, "checksum", fail)
    with pytest.raises(UserError, match=cause) as refused:
        find_latest(tmp_path, pytest.fail)
    assert type(refused.value) is kind
    assert str(newest / OPTIMIZER) in str(refused.value)


def test_a_folder_of_checkpoints_that_cannot_be_listed_is_not_one_without_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file: cannot be read \(Not a directory\)"):
        list_checkpoints(tmp_path / "file")

    def refuse(path: Path) -> list[str]:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(UserError, match=r"cannot be read \(Permission denied\); ask"):
        find_latest(tmp_path, pytest.fail)


def plan_of(num_clips: int, epochs: int) -> Plan:
    train = TrainConfig(
        micro_batch_size=2, global_batch_size=2, precision="fp32", gradient_clipping=1.0
    )
    stage = StageConfig(name="finetune", epochs=epochs, learning_rate=1e-3, warmup_epochs=0)
    return make_plan(num_clips, stage, train, 1)


def test_a_position_that_is_not_that_of_the_run_is_damage(tmp_path: Path) -> None:
    write(tmp_path, 4)
    write(tmp_path, 6)
    fits = partial(refuse_other_position, plan=plan_of(8, 2), seed=0)
    found = find_latest(tmp_path, pytest.fail, fits)
    assert found is not None
    assert found.step == 6
    sign(found.path, data={"seed": 0, "epoch": 1, "step": 2, "clips": 7})
    lines: list[str] = []
    found = find_latest(tmp_path, lines.append, fits)
    assert found is not None
    assert found.step == 4
    assert "step_00000006/state.json is damaged: data.clips was 7, is 8" in lines[0]
    lines.clear()
    found = find_latest(tmp_path, lines.append, partial(fits, plan=plan_of(8, 1)))
    assert found is not None
    assert found.step == 4
    assert "step was 6 of 4" in lines[0]


def test_one_of_another_run_is_refused_and_the_one_before_is_not_asked(tmp_path: Path) -> None:
    write(tmp_path, 4)
    write(tmp_path, 6, run={"config": {"train.seed": 1}})
    expected = {"run": {"config": {"train.seed": 0}}}
    with pytest.raises(UserError, match=r"06 is a .* another run: run.config.train.seed was 1"):
        find_latest(tmp_path, pytest.fail, lambda found: refuse_other_run(found, expected))


def test_bfloat16_among_the_weights_is_no_damage(tmp_path: Path) -> None:
    """A buffer of an LLM may be: nothing here looks into it."""
    write(tmp_path, 4)
    header = {"buffer": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}
    text = json.dumps(header).encode()
    (tmp_path / "bf16").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    tensor_files.refuse_not_finite(tmp_path / "bf16")
    assert tensor_files.read_infos(tmp_path / "bf16") == {"buffer": ("BF16", (2,))}
