"""Launch files, what they make Accelerate start, and what a process is told of it."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from safetensors import SafetensorError

from helpers.model_factory import step_of
from helpers.repository import ROOT
from signfuse_dist import nvidia
from signfuse_dist.cli import main
from signfuse_dist.config import STAGES, StageConfig, StageName, TrainConfig
from signfuse_dist.engine import processes
from signfuse_dist.engine.ds_config import resolve
from signfuse_dist.engine.loop import make_optimizer
from signfuse_dist.errors import MachineError, UserError
from signfuse_dist.jobs import local
from signfuse_dist.plan import make_plan

SHIPPED = sorted((ROOT / "launch").glob("*.yaml"))
each_file = pytest.mark.parametrize("file", SHIPPED, ids=lambda path: path.stem)
KINDS = {
    "cluster_zero2": ("DEEPSPEED", 8),
    "cpu_zero2": ("DEEPSPEED", 2),
    "gpu": ("MULTI_GPU", 1),
    "node_ddp": ("MULTI_GPU", 4),
    "node_zero2": ("DEEPSPEED", 4),
}
VARIABLES = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_DEEPSPEED_CONFIG_FILE", "ACCELERATE_USE_CPU")


def parsed(file: Path, *words: str) -> Any:
    """What `accelerate launch` makes of a launch file and words of the command line."""
    parser = launch_command_parser()
    args = parser.parse_args(["--config_file", str(file), *words, "-m", "signfuse_dist.train"])
    return _validate_launch_command(args)[0]


def test_the_launch_files_are_those_of_the_documents() -> None:
    assert [path.stem for path in SHIPPED] == sorted(KINDS)


@each_file
def test_a_launch_file_starts_what_its_name_says(file: Path) -> None:
    kind, processes = KINDS[file.stem]
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert (values["distributed_type"], values["num_processes"]) == (kind, processes)
    args = parsed(file)
    assert (args.use_deepspeed, args.multi_gpu) == (kind == "DEEPSPEED", kind == "MULTI_GPU")
    assert not args.use_cpu, "Accelerate would start one process, or leave DeepSpeed out"
    assert not args.cpu
    assert args.mixed_precision == "no", "precision is the experiment's"


@each_file
def test_every_launch_file_starts_as_many_processes_as_the_command_line_says(file: Path) -> None:
    args = parsed(file, "--num_processes", "3")
    assert args.num_processes == 3
    assert args.use_deepspeed or args.multi_gpu, "Accelerate's simple launcher starts one"


@each_file
def test_the_template_of_a_launch_file_is_there_and_complete(file: Path) -> None:
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert ("deepspeed_config" in values) == file.stem.endswith("zero2")
    if "deepspeed_config" not in values:
        return
    template = values["deepspeed_config"]["deepspeed_config_file"]
    assert parsed(file).deepspeed_config_file == template
    train = TrainConfig(micro_batch_size=1, precision="bf16", gradient_clipping=1.0)
    stage = StageConfig(name="finetune", epochs=1, learning_rate=1e-3, warmup_epochs=0)
    plan = make_plan(100, stage, train, values["num_processes"])
    resolved = resolve(ROOT / template, plan, train)
    assert resolved["zero_optimization"]["stage"] == 2
    assert resolved["train_batch_size"] == 32


def test_several_machines_are_started_by_torchrun_not_by_ssh() -> None:
    words = ("--num_machines", "2", "--machine_rank", "1", "--main_process_ip", "127.0.0.1")
    args = parsed(ROOT / "launch" / "cluster_zero2.yaml", *words)
    assert args.deepspeed_multinode_launcher == "standard"
    assert (args.num_machines, args.machine_rank) == (2, 1)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment in which nothing has been launched."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch's choice of kernels, put back afterwards."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    yield
    processes.set_kernels(_train())
    torch.backends.cudnn.allow_tf32 = True  # torch's own default


def _train(**changes: Any) -> TrainConfig:
    return TrainConfig(micro_batch_size=1, precision="fp32", gradient_clipping=1.0, **changes)


@pytest.mark.parametrize("tf32", [False, True])
def test_float32_is_float32_unless_tf32_is_asked_for(kernels: None, tf32: bool) -> None:
    processes.set_kernels(_train(tf32=tf32))
    assert torch.backends.cuda.matmul.allow_tf32 is tf32
    assert torch.backends.cudnn.allow_tf32 is tf32


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_deterministic_kernels_on_this_device(
    kernels: None, stage: StageName
) -> None:
    processes.set_kernels(_train(deterministic=True))
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    first, second = (step_of(stage, torch.device("cpu"), torch.float32) for _ in range(2))
    assert first.keys() == second.keys()
    assert first
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_one_kernel_for_all_parameters_takes_the_same_steps() -> None:
    weights = []
    for fused in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.LayerNorm(5))
        optimizer = make_optimizer(model, 1e-2, 0.1, fused)
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.randn(3, 7)).square().sum().backward()
            optimizer.step()
        weights.append([p.detach() for p in model.parameters()])
    torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("word", ["true", "True"])
def test_a_process_finds_its_template_in_two_variables(
    environment: pytest.MonkeyPatch, word: str
) -> None:
    assert processes.launched_template() is None
    environment.setenv("ACCELERATE_USE_DEEPSPEED", word)
    environment.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", "ds_configs/zero2.json")
    assert processes.launched_template() == Path("ds_configs/zero2.json")


def test_one_of_the_two_variables_alone_is_refused(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(UserError, match="DeepSpeed is asked for without a template"):
        processes.launched_template()
    environment.delenv("ACCELERATE_USE_DEEPSPEED")
    environment.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", "ds_configs/zero2.json")
    with pytest.raises(UserError, match="without ACCELERATE_USE_DEEPSPEED=true"):
        processes.launched_template()


def test_forcing_the_cpu_is_refused_before_anything_starts(
    environment: pytest.MonkeyPatch,
) -> None:
    environment.setenv("ACCELERATE_USE_CPU", "True")  # as `accelerate launch --cpu` sets it
    train = TrainConfig(micro_batch_size=1, precision="fp32", gradient_clipping=1.0)
    stage = StageConfig(name="finetune", epochs=1, learning_rate=1e-3, warmup_epochs=0)
    with pytest.raises(UserError, match="ACCELERATE_USE_CPU is set"):
        processes.start(make_plan(100, stage, train, 1), train)


@pytest.mark.parametrize(
    ("gpus", "machine", "name"),
    [
        (0, "with no GPU", "cpu_zero2.yaml"),
        (1, "with one GPU", "gpu.yaml"),
        (4, "with several", "node_zero2.yaml"),
    ],
)
@pytest.mark.parametrize("command", ["train", "ablate"])
def test_the_launch_file_that_is_used_without_asking_fits_the_machine_and_is_in_the_help(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    gpus: int,
    machine: str,
    name: str,
) -> None:
    monkeypatch.setattr(nvidia, "count_gpus", lambda _: gpus)
    monkeypatch.chdir(ROOT)
    processes = gpus if gpus > 1 else None
    assert local.find_launch(None, None) == (Path("launch") / name, processes)
    assert local.find_launch(None, 2) == (Path("launch") / name, 2)
    assert local.find_launch(Path("launch/gpu.yaml"), None) == (Path("launch/gpu.yaml"), None)
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert f"{name} {machine}" in " ".join(capsys.readouterr().out.split())


def test_the_documents_list_every_launch_file() -> None:
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `launch/(\w+)\.yaml` \|", text, re.MULTILINE)
    assert sorted(listed) == sorted(KINDS)
    assert os.path.isdir(ROOT / "launch")


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (UserError("no such thing"), UserError, "no such thing"),
        (MachineError("the disk is full"), MachineError, "the disk is full"),
        (OSError(errno.ENOSPC, "No space left"), MachineError, "Make room there, then run the"),
        (
            SafetensorError("I/O error: Read-only file system (os error 30)"),
            MachineError,
            "Have it mounted for writing, then run the same",
        ),
    ],
)
def test_what_the_main_process_meets_is_raised_with_its_kind(
    error: Exception, kind: type, said: str
) -> None:
    """By all: it is the shared result that raises, also where there is one process."""

    def fail() -> None:
        raise error

    with pytest.raises(kind, match=said) as raised:
        processes.do_on_main(Accelerator(cpu=True), fail)
    assert type(raised.value) is kind
    assert processes.do_on_main(Accelerator(cpu=True), lambda: 3) == 3
