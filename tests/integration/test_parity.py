"""The same weights however many processes there are, and however they were started.

The last stage trains everything from nothing: LoRA on a frozen LLM, and Eq. 21 over the global
batch. Norms are of one step, so that a micro batch does not depend on what else is held.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from helpers.bare_loop import train_bare
from helpers.project import Project, environment, free_port
from helpers.repository import ROOT
from signfuse_dist.experiment import load_run
from signfuse_dist.model import saved
from signfuse_dist.model.signfuse import SignFuse

BATCH = 4
STAGE = ("stage=finetune", "train.stages=[finetune]", "model.norm=layer")
# As in the paper, narrow: its batch norms keep their statistics.
RESNET_50 = ("model.visual_backbone=resnet50", "model.visual_norm=frozen")
TRAINER = ("tests/helpers/counted_train.py",)
ZERO2 = {
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_DEEPSPEED_CONFIG_FILE": "ds_configs/zero2.json",
}
OFFLOAD = {**ZERO2, "ACCELERATE_DEEPSPEED_CONFIG_FILE": "ds_configs/zero2_offload.json"}
# The rate is Table 2's: 5 steps move a weight by up to 1e-4.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Trained:
    """What a run has left: its weights, its plan, and what each process's optimizer held."""

    weights: dict[str, Tensor]
    plan: dict[str, Any]
    optimizers: list[dict[str, Any]]


def accelerate(launch: str, processes: int, *words: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        f"launch/{launch}.yaml",
        "--num_processes",
        str(processes),
        *words,
        *TRAINER,
    ]


def run_together(commands: Sequence[list[str]], variables: dict[str, str]) -> None:
    """Run all at the same time; every one must end well."""
    started = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment() | variables,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for command in commands
    ]
    try:
        printed = [process.communicate(timeout=400)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    for process, text in zip(started, printed, strict=True):
        assert process.returncode == 0, text


def trained(
    project: Project,
    folder: Path,
    launchers: Sequence[list[str]],
    *words: str,
    variables: dict[str, str] | None = None,
) -> Trained:
    """Train with one or several launchers, all given the same words."""
    rest = [str(folder), project.experiment, f"train.output={folder}", *STAGE, *words]
    run_together([[*launcher, *rest] for launcher in launchers], variables or {})
    run = folder / "small" / "finetune"
    found = load_file(run / "model" / "model.safetensors")
    found |= load_file(run / "model" / "adapter" / "adapter_model.safetensors")
    counts = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return Trained(found, json.loads((run / "plan.json").read_text()), counts)


def trained_bare(project: Project, *words: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights before and after, without the engine."""
    run = load_run(project.experiment, None, [*STAGE, *words])
    torch.manual_seed(run.train.seed)
    model, tokenizer = saved.build(run.model, language=True)
    before = {name: value.clone() for name, value in saved.own_state(model).items()}
    return before, train_bare(run, model, tokenizer)[0]


@pytest.fixture(scope="module")
def bare(project: Project) -> dict[str, Tensor]:
    return trained_bare(project)[1]


def furthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[n].double() - other[n].double()).abs().max()) for n in one)


def held(run: Trained) -> list[float]:
    """What each process held of Adam's two moments, as a share of them."""
    return [count["held"] / (2 * count["trained"]) for count in run.optimizers]


def test_plain_ddp_on_two_processes_with_accumulation_is_a_bare_loop(
    project: Project, bare: dict[str, Tensor], tmp_path: Path
) -> None:
    launcher = accelerate("node_ddp", 2, "--main_process_port", str(free_port()))
    run = trained(project, tmp_path, [launcher], "train.micro_batch_size=1")
    assert furthest(run.weights, bare) <= TOLERANCE
    assert run.plan["accumulation"] == 2
    assert run.plan["num_pairs"] == BATCH
    assert [count["kind"] for count in run.optimizers] == ["DistributedType.MULTI_CPU"] * 2
    assert held(run) == [1.0, 1.0]


@pytest.mark.long
def test_zero2_by_two_launchers_with_accumulation_is_a_bare_loop(
    project: Project, bare: dict[str, Tensor], tmp_path: Path
) -> None:
    """As on two machines: each launcher starts its own process and is told where the first is."""
    meeting = ("--main_process_ip", "127.0.0.1", "--main_process_port", str(free_port()))
    launchers = [
        accelerate("cluster_zero2", 2, "--num_machines", "2", "--machine_rank", rank, *meeting)
        for rank in ("0", "1")
    ]
    run = trained(project, tmp_path, launchers, "train.micro_batch_size=1")
    assert furthest(run.weights, bare) <= TOLERANCE
    assert [count["kind"] for count in run.optimizers] == ["DistributedType.DEEPSPEED"] * 2
    assert held(run) == pytest.approx([0.5, 0.5], abs=1e-3)  # padded to a few numbers


@pytest.mark.long
@pytest.mark.parametrize("variables", [ZERO2, OFFLOAD, {}], ids=["zero2", "offload", "ddp"])
def test_torchrun_starts_the_same(
    project: Project, bare: dict[str, Tensor], tmp_path: Path, variables: dict[str, str]
) -> None:
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--master_port",
        str(free_port()),
        *TRAINER,
    ]
    run = trained(project, tmp_path, [launcher], variables=variables)
    assert furthest(run.weights, bare) <= TOLERANCE
    kind = "DEEPSPEED" if variables else "MULTI_CPU"
    assert [count["kind"] for count in run.optimizers] == [f"DistributedType.{kind}"] * 2


@pytest.fixture(scope="module")
def bare_resnet_50(project: Project) -> dict[str, Tensor]:
    before, after = trained_bare(project, *RESNET_50)
    moved = max(float((after[name] - before[name]).abs().max()) for name in before)
    assert moved > 50 * TOLERANCE
    return after


@pytest.mark.long
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("kind", ["zero2", "ddp"])
def test_weights_do_not_depend_on_processes_accumulation_or_zero2(
    project: Project,
    bare_resnet_50: dict[str, Tensor],
    tmp_path: Path,
    kind: str,
    processes: int,
    accumulation: int,
) -> None:
    """ResNet-50, LoRA on a frozen LLM, 5 steps."""
    plain = "gpu" if processes == 1 else "node_ddp"
    launch = "cpu_zero2" if kind == "zero2" else plain
    launcher = accelerate(launch, processes, "--main_process_port", str(free_port()))
    micro = BATCH // processes // accumulation
    words = (f"train.micro_batch_size={micro}", *RESNET_50)
    run = trained(project, tmp_path, [launcher], *words)
    assert run.plan["accumulation"] == accumulation
    assert furthest(run.weights, bare_resnet_50) <= TOLERANCE
    share = 0.5 if (kind, processes) == ("zero2", 2) else 1.0
    assert held(run) == pytest.approx([share] * processes, abs=1e-3)


@pytest.mark.long
def test_in_bfloat16_zero2_sums_gradients_as_plain_ddp_does(
    project: Project, tmp_path: Path
) -> None:
    """One step of two processes: what is compared is Adam's first moment, a tenth of the gradient.

    DeepSpeed left to itself reduces in bfloat16, which is 1e-3 off.
    """
    moments = {}
    for launch in ("cpu_zero2", "node_ddp"):
        launcher = accelerate(launch, 2, "--main_process_port", str(free_port()))
        words = ("train.precision=bf16", "train.checkpoint_steps=1", "train.keep_checkpoints=9")
        (tmp_path / launch).mkdir()
        trained(project, tmp_path / launch, [launcher], *words)
        step = tmp_path / launch / "small" / "finetune" / "checkpoints" / "step_00000001"
        moments[launch] = load_file(step / "optimizer.safetensors")
    for name, expected in moments["node_ddp"].items():
        apart = (moments["cpu_zero2"][name] - expected).norm()
        assert float(apart) <= 1e-5 * float(expected.norm()), name


@pytest.mark.long
def test_rates_by_part_and_an_average_of_the_weights_are_the_same_under_zero2(
    project: Project, tmp_path: Path
) -> None:
    """The model is the average, the last checkpoint has both, and a rate of 0 moves nothing."""
    words = (
        "stage.rates={visual: 0, llm: 3}",
        "train.weight_average=0.5",
        "train.keep_checkpoints=1",
    )
    before, _ = trained_bare(project)
    runs = {}
    for launch, processes in (("cpu_zero2", 2), ("node_ddp", 2), ("gpu", 1)):
        launcher = accelerate(launch, processes, "--main_process_port", str(free_port()))
        (tmp_path / launch).mkdir()
        micro = f"train.micro_batch_size={BATCH // processes}"
        runs[launch] = trained(project, tmp_path / launch, [launcher], micro, *words).weights
    for launch in ("cpu_zero2", "node_ddp"):
        assert furthest(runs[launch], runs["gpu"]) <= TOLERANCE
        (step,) = (tmp_path / launch / "small" / "finetune" / "checkpoints").glob("step_*")
        average, last = (load_file(step / f"{n}.safetensors") for n in ("average", "weights"))
        for name, value in runs[launch].items():
            if name in average:
                assert torch.equal(value, average[name]), name
        assert furthest(average, last) > 2 * TOLERANCE
    for name, value in before.items():
        if name.startswith("visual.") and not name.endswith(("running_mean", "running_var")):
            assert torch.equal(runs["cpu_zero2"][name], value), name
        elif name.startswith("skeletal.") and name.endswith("weight"):
            assert not torch.equal(runs["cpu_zero2"][name], value), name


@pytest.mark.long
def test_an_llm_that_trains_whole_is_the_same_under_zero2_and_lies_in_the_model(
    project: Project, tmp_path: Path
) -> None:
    """No LoRA; two processes of ZeRO-2 hold half of the moments each; the model translates."""
    found: dict[str, dict[str, Tensor]] = {}
    for launch, processes in (("cpu_zero2", 2), ("gpu", 1)):
        launcher = accelerate(launch, processes, "--main_process_port", str(free_port()))
        folder = tmp_path / launch
        folder.mkdir()
        words = (f"train.micro_batch_size={BATCH // processes}", "model.llm_training=full")
        rest = [str(folder), project.experiment, f"train.output={folder}", *STAGE, *words]
        run_together([[*launcher, *rest]], {})
        model = folder / "small" / "finetune" / "model"
        assert not (model / "adapter").exists()
        found[launch] = load_file(model / "model.safetensors")
        found[launch] |= {
            f"llm.{name}": value
            for name, value in load_file(model / "llm" / "model.safetensors").items()
        }
        counts = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
        shares = [count["held"] / (2 * count["trained"]) for count in counts]
        assert shares == pytest.approx([1 / processes] * processes, abs=1e-3)
    assert furthest(found["cpu_zero2"], found["gpu"]) <= TOLERANCE
    (llm,) = {load_run(project.experiment, None, [*STAGE]).model.llm}
    before = load_file(Path(llm) / "model.safetensors")
    moved = {
        n: float((found["gpu"][f"llm.{n}"] - v.float()).abs().max()) for n, v in before.items()
    }
    assert min(moved.values()) > 0
    loaded = SignFuse.from_pretrained(tmp_path / "cpu_zero2" / "small" / "finetune" / "model")
    assert loaded.language_model is not None
    assert loaded.language_model.is_trained
