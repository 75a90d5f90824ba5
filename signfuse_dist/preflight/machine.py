"""What a job needs of the machine: packages, kernels, a launch file that means the run, a port.

A launch file is compared with the run because Accelerate obeys settings in it that train something
else (`use_cpu`, `mixed_precision`), or that do not run under Slurm, and says nothing.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from packaging.requirements import Requirement
from packaging.version import Version
from pydantic import Field
from pydantic.dataclasses import dataclass as pydantic_dataclass

from signfuse_dist import nvidia
from signfuse_dist.config import RunConfig
from signfuse_dist.engine.ds_config import resolve
from signfuse_dist.engine.tracker_packages import missing_packages
from signfuse_dist.errors import UserError
from signfuse_dist.files import locate, parse_yaml, read_json, read_text
from signfuse_dist.plan import Plan
from signfuse_dist.preflight.finding import Finding, StartedBy, error, ok, warning
from signfuse_dist.records import Flag, NonBlank, Whole, read_record

_VARLEN_SINCE = Version("2.10")  # torch.nn.attention.varlen
_PACKAGE = "signfuse_dist"
_PORT = 29500  # accelerate's and torchrun's own


def check_machine(run: RunConfig, is_here: bool) -> list[Finding]:
    """Look at versions, and at what the run's choices need of the machine.

    ``is_here``: whether the job runs on this one.
    """
    return [
        _check_versions(),
        *([_check_device()] if is_here else []),
        *_check_attention(run),
        *_check_quantization(run),
        *_check_trackers(run, is_here),
    ]


def _check_device() -> Finding:
    """Say where a job on this machine computes; with a GPU, whether torch can use it."""
    what, signs = "device", nvidia.signs_of_gpus(os.environ)
    if not signs:
        return ok(what, "no GPU here, or hidden: on this machine a run computes on the CPU")
    cuda, driver = nvidia.torch_cuda(), nvidia.driver_version()
    needed = nvidia.first_driver(cuda) if cuda else None
    old = driver is None or (needed is not None and nvidia.is_older(driver, needed))
    if cuda is None or old or not nvidia.torch_sees_gpu():
        return error(what, f"{', '.join(signs)}, and torch cannot use a GPU", nvidia.why_unusable())
    return ok(what, f"{', '.join(signs)}; torch for CUDA {cuda}, driver {driver}")


def _check_versions() -> Finding:
    """Compare what is installed with the ranges that the package asks for."""
    faults = []
    for line in importlib.metadata.requires(_PACKAGE) or ():
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            faults.append(f"{requirement.name} is not installed")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            faults.append(f"{requirement.name} is {version}, not {requirement.specifier}")
    if faults:
        fix = "make install, or install what constraints.txt has"
        return error("packages", "; ".join(faults), fix)
    torch, deepspeed = (importlib.metadata.version(name) for name in ("torch", "deepspeed"))
    versions = f"Python {platform.python_version()}, torch {torch}, deepspeed {deepspeed}"
    return ok("packages", versions)


def _check_attention(run: RunConfig) -> list[Finding]:
    backend, what = run.model.attention, f"model.attention={run.model.attention}"
    if backend in ("auto", "sdpa", "eager"):
        biased = backend == "auto" and run.model.positions == "distance"
        how = "sdpa in CMFA and HTA, as model.positions=distance needs; " if biased else ""
        return [ok(what, f"{how}there on every machine")]
    findings = []
    if run.train.precision != "bf16":
        value = "needs train.precision=bf16"
        findings.append(error(what, value, "Write it, or model.attention=auto"))
    head_dim = run.model.dim // run.model.num_heads
    if head_dim % 8 or head_dim > 256:
        value = f"takes heads of 8, 16, ... 256 channels, not {head_dim}"
        findings.append(error(what, value, "Change model.num_heads, or model.attention=auto"))
    if backend == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        fix = "pip install flash-attn on the machine that trains, or model.attention=auto"
        findings.append(error(what, "the package flash-attn is not installed here", fix))
    if backend == "varlen" and Version(importlib.metadata.version("torch")) < _VARLEN_SINCE:
        findings.append(error(what, "torch is too old", "model.attention=auto"))
    return findings or [warning(what, "needs an Ampere GPU or newer", "See that the job gets one")]


def _check_quantization(run: RunConfig) -> list[Finding]:
    if run.model.llm_quantization == "none":
        return []
    what = f"model.llm_quantization={run.model.llm_quantization}"
    if importlib.util.find_spec("bitsandbytes") is None:
        return [error(what, "bitsandbytes is not installed", "pip install bitsandbytes")]
    return [ok(what, "bitsandbytes is there")]


def _check_trackers(run: RunConfig, is_here: bool) -> list[Finding]:
    """Look for the packages of the run's trackers, and whether W&B would ask who one is."""
    names, what = run.train.trackers, f"train.trackers={list(run.train.trackers)}"
    missing = missing_packages(names)
    if missing:
        return [error(what, "; ".join(missing), "Or take them out of train.trackers")]
    if "wandb" in names and is_here and not _knows_wandb():
        value = "nobody is logged in to Weights & Biases here, and a job cannot be asked"
        fix = "wandb login, or WANDB_API_KEY=..., or WANDB_MODE=offline"
        return [warning(what, value, fix)]
    return [ok(what, "installed")] if names else []


def _knows_wandb() -> bool:
    """Return whether W&B finds a key where `wandb login` puts it, or needs none."""
    if os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
        return True
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return "wandb" in netrc.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


@pydantic_dataclass
class _LaunchFile:
    """What is asked of a launch file's settings; Accelerate knows many more."""

    num_processes: Annotated[Whole, Field(ge=1)] | None = None
    num_machines: Annotated[Whole, Field(ge=1)] | None = None
    machine_rank: Annotated[Whole, Field(ge=0)] | None = None
    main_process_port: Annotated[Whole, Field(ge=0, le=65535)] | None = None
    main_process_ip: NonBlank | None = None
    distributed_type: NonBlank | None = None
    mixed_precision: Literal["no", "fp16", "bf16", "fp8"] | None = None
    use_cpu: Flag | None = None
    deepspeed_config: dict[str, Any] | None = None


def read_launch(path: Path) -> dict[str, Any]:
    """Return a launch file's settings; raise UserError where it is none, or a value is no value."""
    name = f"--launch {path}"
    values = parse_yaml(read_text(locate(path), name), name)
    if not isinstance(values, dict):
        raise UserError(f"{name}: holds no settings; see launch/")
    read_record(_LaunchFile, values, f"{name}: not a launch file of Accelerate; see launch/")
    return values


def bucket(settings: dict[str, Any]) -> int | None:
    """Return the numbers in a bucket of ZeRO-2; None for plain DDP, 0 where it is not known."""
    if settings.get("distributed_type") != "DEEPSPEED":
        return None
    try:
        template = locate(Path(str(settings["deepspeed_config"]["deepspeed_config_file"])))
        return int(float(read_json(template)["zero_optimization"]["reduce_bucket_size"]))
    except (ValueError, KeyError, TypeError, OverflowError):
        return 0  # what is wrong with the template is named by check_launch


def check_launch(
    path: Path,
    settings: dict[str, Any],
    run: RunConfig,
    plan: Plan | None,
    world_size: int,
    started_by: StartedBy,
) -> list[Finding]:
    """Compare a launch file with what is to be run; without a plan, not its template."""
    what = f"launch file {path}"
    findings = [_check_processes(what, settings, world_size, started_by)]
    if settings.get("use_cpu"):
        value = "use_cpu is true: Accelerate would train without DeepSpeed, or with one process"
        findings.append(error(what, value, "Set use_cpu: false, also where there is no GPU"))
    if settings.get("mixed_precision", "no") != "no":
        value = f"mixed_precision is {settings['mixed_precision']}"
        findings.append(error(what, value, "Take the line out: train.precision decides"))
    kind = settings.get("distributed_type")
    if kind == "DEEPSPEED":
        findings += _check_deepspeed(what, settings, run, plan)
    elif kind != "MULTI_GPU" and world_size > 1:
        value = f"distributed_type is {kind}: Accelerate would start one process of {world_size}"
        findings.append(error(what, value, "Write MULTI_GPU, which is right for CPUs too"))
    return [*findings, _check_port(settings, started_by)]


def _check_processes(
    what: str, settings: dict[str, Any], world_size: int, started_by: StartedBy
) -> Finding:
    num_processes = settings.get("num_processes")
    # `signfuse train` and the scripts of slurm/ say the number themselves.
    if num_processes == world_size or started_by != "accelerate":
        return ok(what, f"{world_size} processes")
    return warning(
        what,
        f"num_processes is {num_processes}, --world-size {world_size}",
        f"Give accelerate launch --num_processes {world_size}, or signfuse train --num-processes "
        f"{world_size}",
    )


def check_gpus(settings: Mapping[str, Any], world_size: int) -> list[Finding]:
    """Compare the processes of a run on this machine alone with the GPUs that it has."""
    gpus, what = nvidia.count_gpus(os.environ), "GPUs of this machine"
    if not gpus or settings.get("num_machines", 1) != 1:
        return []
    if world_size > gpus:
        value = f"{gpus} for {world_size} processes, and NCCL refuses two on one"
        return [error(what, value, f"Start one a GPU, {gpus} in all")]
    if world_size < gpus:
        value = f"{gpus} for {world_size} processes: {gpus - world_size} would compute nothing"
        return [warning(what, value, f"Start one a GPU, {gpus} in all, or hide the others")]
    return [ok(what, f"{gpus}, one a process")]


def _check_deepspeed(
    what: str, settings: dict[str, Any], run: RunConfig, plan: Plan | None
) -> list[Finding]:
    section = settings.get("deepspeed_config")
    section = section if isinstance(section, dict) else {}
    findings = []
    launcher = section.get("deepspeed_multinode_launcher")
    if int(settings.get("num_machines") or 1) > 1 and launcher != "standard":
        value = f"deepspeed_multinode_launcher is {launcher or 'pdsh (the default)'}"
        findings.append(error(what, value, "Write standard: pdsh does not run under Slurm"))
    template = section.get("deepspeed_config_file")
    if template is None:
        fix = "deepspeed_config: {deepspeed_config_file: ds_configs/zero2.json}"
        return [*findings, error(what, "names no DeepSpeed template", fix)]
    if plan is None:
        return findings
    try:
        resolved = resolve(Path(str(template)), plan, run.train)
    except UserError as e:
        return [*findings, error(what, str(e), "See ds_configs/zero2.json")]
    zero = resolved["zero_optimization"]
    if zero.get("compute_grad_norm") is False:
        value = f"{template}: compute_grad_norm is false"
        fix = "Take it out: a step that is not finite is known by the norm"
        return [*findings, error(what, value, fix)]
    return [*findings, ok(what, f"{template}, ZeRO stage {zero['stage']}")]


def _check_port(settings: dict[str, Any], started_by: StartedBy) -> Finding:
    if started_by == "sbatch":
        return ok("port", "MASTER_PORT of the first node: not tried here")
    said = settings.get("main_process_port")
    port = _PORT if said is None else int(said)
    what = f"port {port}"
    if int(settings.get("num_machines") or 1) > 1:
        if port == 0:
            fix = "Give main_process_port a number"
            return error(what, "is any that is free, which other nodes cannot know", fix)
        return ok(what, "of the first node, which may be another machine: not tried")
    if port == 0:
        return ok(what, "any that is free")
    with socket.socket() as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind(("", port))
        except OSError as e:
            fix = {
                "train": f"give --launch a file with main_process_port: {port + 1}",
                "accelerate": f"give accelerate launch --main_process_port {port + 1}",
            }[started_by]
            value = f"cannot be taken ({e.strerror})"
            return error(what, value, f"Another job trains here? Then {fix}")
    return ok(what, "free")
