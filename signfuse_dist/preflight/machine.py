"""Packages, attention backend, quantization and GPU of this machine, without importing them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
import subprocess

from packaging.requirements import Requirement
from packaging.version import Version

from signfuse_dist.config import RunConfig
from signfuse_dist.preflight.finding import Finding, error, ok, warning

_VARLEN_SINCE = Version("2.10")  # torch.nn.attention.varlen
_PACKAGE = "signfuse_dist"


def examine(run: RunConfig) -> list[Finding]:
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
