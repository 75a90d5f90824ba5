"""The launch file: processes, DeepSpeed template, port, and settings that train something else."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import yaml

from signfuse_dist.config import RunConfig
from signfuse_dist.engine.ds_config import resolve
from signfuse_dist.errors import UserError
from signfuse_dist.plan import Plan
from signfuse_dist.preflight.finding import Finding, error, ok, warning

_PORT = 29500  # accelerate's and torchrun's own


def read(path: Path) -> dict[str, Any]:
    """Return a launch file's settings; raise UserError where it is none."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
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
        text = Path(str(settings["deepspeed_config"]["deepspeed_config_file"])).read_text("utf-8")
        return int(float(json.loads(text)["zero_optimization"]["reduce_bucket_size"]))
    except (OSError, ValueError, KeyError, TypeError):
        return 0  # what is wrong with the template is named by examine


def examine(
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
        what, f"num_processes is {said}, --world-size {world_size}",
        f"Launch with --num-processes {world_size} (the scripts of slurm/ do)",
    )  # fmt: skip


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
