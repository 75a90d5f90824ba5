"""The page on reproducing the paper: every command parses, every line of arithmetic is right."""

from __future__ import annotations

import ast
import operator
import re
import shlex
from collections.abc import Callable

import pytest

from helpers.repository import ROOT
from signfuse_dist import cli
from signfuse_dist.cli import data as data_commands
from signfuse_dist.config import STAGES, LossConfig
from signfuse_dist.corpora import csl_daily, how2sign, phoenix14t
from signfuse_dist.evaluation.protocols import find_preset
from signfuse_dist.experiment import find_experiment, load_run
from signfuse_dist.stages import loss_weights

TEXT = (ROOT / "docs" / "reproducing.md").read_text(encoding="utf-8")
_FENCES = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
COMMANDS = [line for kind, block in _FENCES if not kind for line in block.splitlines()]
SUMS = [line for kind, block in _FENCES if kind == "text" for line in block.splitlines()]
_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip


def words_of(line: str) -> list[str]:
    """The words after `signfuse`, of a command that runs it in one way or another."""
    words = shlex.split(line)
    if words[0] == "signfuse":
        return words[1:]
    if words[0] == "accelerate":
        return words[words.index("signfuse_dist.cli") + 1 :]
    assert words[0] in ("sbatch", "bash")
    script = next(word for word in words if word.startswith("slurm/"))
    assert (ROOT / script).is_file()
    command = {"slurm/pack.sh": "pack", "slurm/ablate.sh": "ablate"}.get(script, "train")
    return [command, *words[words.index(script) + 1 :]]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_is_one_that_the_parser_takes(
    line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    options = cli.parse(cli.build_parser(), words_of(line))
    if hasattr(options, "experiment"):  # and its configuration is accepted
        load_run(str(find_experiment(options.experiment)), "finetune", options.overrides)
    if hasattr(options, "preset"):
        find_preset(options.preset)
    if getattr(options, "launch", None) is not None:
        assert (ROOT / options.launch).is_file()


def test_the_runs_that_are_evaluated_are_those_that_are_trained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    trained, named = set(), set()
    for line in COMMANDS:
        options = cli.parse(cli.build_parser(), words_of(line))
        if line.startswith("signfuse train"):
            file = str(find_experiment(options.experiment))
            trained.add(str(load_run(file, "finetune", options.overrides).folder))
        named |= set(re.findall(r"runs/[\w/]+/finetune", line))
    assert len(trained) == 10
    assert trained == named


def test_every_split_is_packed_and_verified_where_the_run_reads_it() -> None:
    for corpus in ("phoenix14t", "csl_daily", "how2sign"):
        data = load_run(str(ROOT / "configs" / "experiment" / f"{corpus}.yaml"), "finetune").data
        folders = {
            f"{data.shards}/{s}" for s in (data.train_split, data.dev_split, data.test_split)
        }
        options = [
            cli.parse(cli.build_parser(), words_of(line))
            for line in COMMANDS
            if not line.startswith("sbatch")
        ]
        packed = {str(o.out) for o in options if getattr(o, "corpus", None) == corpus}
        verified = {o.folder for o in options if o.run is data_commands._verify}
        assert packed == folders
        assert folders <= verified
        assert {o.fps for o in options if getattr(o, "corpus", None) == corpus} == {data.fps}


def evaluate(text: str) -> float:
    def value(node: ast.expr) -> float:
        if isinstance(node, ast.BinOp):
            return _OPERATORS[type(node.op)](value(node.left), value(node.right))
        assert isinstance(node, ast.Constant)
        return float(node.value)

    return value(ast.parse(text.strip(), mode="eval").body)


@pytest.mark.parametrize("line", SUMS)
def test_every_line_of_arithmetic_is_right_to_its_last_digit(line: str) -> None:
    expression, printed = re.fullmatch(r".+?:  (.+) = ([\d.]+)", line).groups()
    digits = len(printed.partition(".")[2])
    assert abs(evaluate(expression) - float(printed)) <= 0.5000001 * 10**-digits


def test_the_arithmetic_uses_the_counts_of_the_corpora() -> None:
    page = (ROOT / "shards" / "phoenix14t.md").read_text(encoding="utf-8").replace(",", "")
    for frames in ("827354", "55775", "64627"):
        assert f"| {frames} |" in page
    text = "\n".join(SUMS)
    assert str(phoenix14t.ROWS["train"]) in text
    assert f"+ {how2sign.ROWS['val']} + {how2sign.ROWS['test']}" in text
    assert f" {csl_daily.ROWS['train'] - 1} *" in text  # one row of train has no annotation


def test_the_epochs_of_the_arithmetic_are_those_of_the_stages() -> None:
    for stage in ("contrastive", "alignment", "finetune"):
        file = str(ROOT / "configs" / "experiment" / "phoenix14t.yaml")
        epochs = load_run(file, stage).stage.epochs
        lines = [line for line in SUMS if f", {stage}" in line]
        assert len(lines) == 3
        assert all(f":  {epochs} * " in line for line in lines)


def test_the_language_model_costs_in_the_stages_whose_loss_needs_it() -> None:
    (line,) = (line for line in SUMS if line.startswith("ms a clip, the LLM"))
    milliseconds = line.rpartition(" = ")[2]
    for stage in STAGES:
        has_language = "language" in loss_weights(stage, LossConfig())
        for line in (line for line in SUMS if f", {stage}" in line):
            assert (f"{milliseconds}e-3" in line) == has_language, line
