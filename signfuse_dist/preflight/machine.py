"""The launch file: processes, DeepSpeed template, port, and settings that train something else."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from signfuse_dist.config import RunConfig
from signfuse_dist.engine.ds_config import resolve
from signfuse_dist.errors import UserError
from signfuse_dist.files import locate
from signfuse_dist.plan import Plan
from signfuse_dist.preflight.finding import Finding, error, ok, warning

_VARLEN_SINCE = Version("2.10")  # torch.nn.attention.varlen
_PACKAGE = "signfuse_dist"


def check_machine(run: RunConfig) -> list[Finding]:
    """Look at versions, and at what the run's choices need of this machine."""
    return [_versions(), *_attention(run), *_quantization(run)]


def gpu_gigabytes() -> float | None:
    """Return the memory of this machine's smallest GPU in GB, None where there is none."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return min(float(line) for line in done.stdout.split("\n") if line) * 1024**2 / 1e9
    except (OSError, subprocess.SubprocessError, ValueError):
        return None  # a tool without a driver, or no GPU that it may see


def _versions() -> Finding:
    """Compare what is installed with the ranges that the package asks for."""
    odd = []
    for line in importlib.metadata.requires(_PACKAGE) or ():
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            found = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            odd.append(f"{wanted.name} is not installed")
            continue
        if not wanted.specifier.contains(found, prereleases=True):
            odd.append(f"{wanted.name} is {found}, not {wanted.specifier}")
    if odd:
        return error(
            "packages", "; ".join(odd), "make install, or install what constraints.txt has"
        )
    torch, speed = (importlib.metadata.version(name) for name in ("torch", "deepspeed"))
    return ok("packages", f"Python {platform.python_version()}, torch {torch}, deepspeed {speed}")


def _attention(run: RunConfig) -> list[Finding]:
    asked, what = run.model.attention, f"model.attention={run.model.attention}"
    if asked in ("auto", "sdpa", "eager"):
        return [ok(what, "there on every machine")]
    found = []
    if run.train.precision != "bf16":
        said = "needs train.precision=bf16"
        found.append(error(what, said, "Write it, or model.attention=auto"))
    head = run.model.dim // run.model.num_heads
    if head % 8 or head > 256:
        said = f"takes heads of 8, 16, ... 256 channels, not {head}"
        found.append(error(what, said, "Change model.num_heads, or model.attention=auto"))
    if asked == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        fix = "pip install flash-attn on the machine that trains, or model.attention=auto"
        found.append(error(what, "the package flash-attn is not installed here", fix))
    if asked == "varlen" and Version(importlib.metadata.version("torch")) < _VARLEN_SINCE:
        found.append(error(what, "torch is too old", "model.attention=auto"))
    return found or [warning(what, "needs an Ampere GPU or newer", "See that the job gets one")]


def _quantization(run: RunConfig) -> list[Finding]:
    asked = run.model.llm_quantization
    if asked == "none":
        return []
    what = f"model.llm_quantization={asked}"
    if importlib.util.find_spec("bitsandbytes") is None:
        return [error(what, "bitsandbytes is not installed", "pip install bitsandbytes")]
    return [ok(what, "bitsandbytes is there")]


_PORT = 29500  # accelerate's and torchrun's own


def read(path: Path) -> dict[str, Any]:
    """Return a launch file's settings; raise UserError where it is none."""
    try:
        values = yaml.safe_load(locate(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise UserError(f"--launch {path}: cannot be read ({e}); see launch/") from e
    if not isinstance(values, dict):
        raise UserError(f"--launch {path}: holds no settings; see launch/")
    return values


def bucket(settings: dict[str, Any]) -> int | None:
    """Return the numbers in a bucket of ZeRO-2; None for plain DDP, 0 where it is not known."""
    if settings.get("distributed_type") != "DEEPSPEED":
        return None
    try:
        template = locate(Path(str(settings["deepspeed_config"]["deepspeed_config_file"])))
        values = json.loads(template.read_text(encoding="utf-8"))
        return int(float(values["zero_optimization"]["reduce_bucket_size"]))
    except (OSError, ValueError, KeyError, TypeError):
        return 0  # what is wrong with the template is named by check_launch


def check_launch(
    path: Path, settings: dict[str, Any], run: RunConfig, plan: Plan | None, world_size: int
) -> list[Finding]:
    """Compare a launch file with what is to be run; without a plan, not its template."""
    what = f"launch file {path}"
    found = [_processes(what, settings, world_size)]
    if settings.get("use_cpu"):
        said = "use_cpu is true: Accelerate would train without DeepSpeed, or with one process"
        found.append(error(what, said, "Set use_cpu: false, also where there is no GPU"))
    if settings.get("mixed_precision", "no") != "no":
        said = f"mixed_precision is {settings['mixed_precision']}"
        found.append(error(what, said, "Take the line out: train.precision decides"))
    if settings.get("distributed_type") == "DEEPSPEED":
        found += _deepspeed(what, settings, run, plan)
    return [*found, _port(settings)]


def _processes(what: str, settings: dict[str, Any], world_size: int) -> Finding:
    said = settings.get("num_processes")
    if said == world_size:
        return ok(what, f"{world_size} processes")
    return warning(
        what,
        f"num_processes is {said}, --world-size {world_size}",
        f"Launch with --num-processes {world_size} (the scripts of slurm/ do)",
    )


def _deepspeed(
    what: str, settings: dict[str, Any], run: RunConfig, plan: Plan | None
) -> list[Finding]:
    section = settings.get("deepspeed_config")
    section = section if isinstance(section, dict) else {}
    found = []
    launcher = section.get("deepspeed_multinode_launcher")
    if int(settings.get("num_machines") or 1) > 1 and launcher != "standard":
        said = f"deepspeed_multinode_launcher is {launcher or 'pdsh (the default)'}"
        found.append(error(what, said, "Write standard: pdsh does not run under Slurm"))
    template = section.get("deepspeed_config_file")
    if template is None:
        fix = "deepspeed_config: {deepspeed_config_file: ds_configs/zero2.json}"
        return [*found, error(what, "names no DeepSpeed template", fix)]
    if plan is None:
        return found
    try:
        resolved = resolve(Path(str(template)), plan, run.train)
    except UserError as e:
        return [*found, error(what, str(e), "See ds_configs/zero2.json")]
    zero = resolved["zero_optimization"]
    if zero.get("compute_grad_norm") is False:
        said = f"{template}: compute_grad_norm is false"
        fix = "Take it out: a step that is not finite is known by the norm"
        return [*found, error(what, said, fix)]
    return [*found, ok(what, f"{template}, ZeRO stage {zero['stage']}")]


def _port(settings: dict[str, Any]) -> Finding:
    port = int(settings.get("main_process_port") or _PORT)
    what = f"port {port}"
    if int(settings.get("num_machines") or 1) > 1:
        return ok(what, "of the first node, which may be another machine: not tried")
    with socket.socket() as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind(("", port))
        except OSError as e:
            fix = f"Another job trains here? Give accelerate --main_process_port {port + 1}"
            return error(what, f"cannot be taken ({e.strerror})", fix)
    return ok(what, "free")
