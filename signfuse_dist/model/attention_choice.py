"""Which attention backends this machine, dtype and head width have, and the choice of one."""

from __future__ import annotations

import functools
import logging
from typing import Literal, get_args

import torch

from signfuse_dist.config import AttentionName, ModelConfig
from signfuse_dist.errors import UserError

Backend = Literal["flash_attention_2", "varlen", "sdpa", "eager"]
# In the order of `auto`: what computes no padding first, what keeps every weight last.
BACKENDS: tuple[Backend, ...] = get_args(Backend)
_HALF = (torch.float16, torch.bfloat16)
_LOG = logging.getLogger(__name__)


def choose_for(config: ModelConfig, precision: str, device: torch.device) -> Backend:
    """Return the backend of CMFA and HTA in a run of ``train.precision`` ``precision``."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return choose_backend(config.attention, device, dtype, config.dim // config.num_heads)


def choose_backend(
    asked: AttentionName, device: torch.device, dtype: torch.dtype, head_dim: int
) -> Backend:
    """Return the backend that ``asked`` means here; `auto` is the first of BACKENDS that is there.

    Args:
        asked: ``model.attention``.
        device: where queries, keys and values are.
        dtype: of queries, keys and values: float32, or bfloat16 under ``train.precision: bf16``.
        head_dim: channels a head.

    Raises UserError with the reason, and with what there is, when ``asked`` is not there.
    """
    return _choose(asked, device, dtype, head_dim)


# Asked at every call of attention; the answer stays, and `auto` logs it once.
@functools.cache
def _choose(
    asked: AttentionName, device: torch.device, dtype: torch.dtype, head_dim: int
) -> Backend:
    reason = None if asked == "auto" else why_not(asked, device, dtype, head_dim)
    if asked != "auto" and reason is None:
        return asked
    there = [b for b in BACKENDS if why_not(b, device, dtype, head_dim) is None]
    if asked == "auto":
        _LOG.info("attention on %s in %s: auto chose %s", device, dtype, there[0])
        return there[0]
    raise UserError(
        f"model.attention={asked}: {reason}. Here there are: {', '.join(there)}; "
        f"auto chooses {there[0]}"
    )


def why_not(
    backend: Backend, device: torch.device, dtype: torch.dtype, head_dim: int
) -> str | None:
    """Return why a backend cannot be used, or None when it can."""
    if backend in ("sdpa", "eager"):
        return None
    return _why_no_flash_kernel(device, dtype, head_dim) or _why_no_package(backend)


def _why_no_flash_kernel(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Both variable-length backends are kernels of FlashAttention-2, with its limits."""
    if device.type != "cuda":
        return f"it needs a CUDA GPU, and this is {device.type}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"it needs an Ampere GPU or newer, and this is {torch.cuda.get_device_name(device)}"
    if dtype not in _HALF:
        return (
            f"it takes float16 and bfloat16, not {str(dtype).removeprefix('torch.')} "
            "(see train.precision, and model.llm_dtype for the LLM)"
        )
    if head_dim % 8 or head_dim > 256:
        return (
            f"it takes heads of 8, 16, ... 256 channels, not {head_dim} "
            "(model.dim / model.num_heads, or the LLM's)"
        )
    return None


def _why_no_package(backend: Backend) -> str | None:
    """Import it: a package that is there and compiled for another torch is not there."""
    try:
        if backend == "flash_attention_2":
            import flash_attn  # noqa: F401
        else:
            import torch.nn.attention.varlen  # noqa: F401
    except ImportError as e:
        name = "flash-attn (pip install flash-attn)" if backend == "flash_attention_2" else "torch"
        return f"the package {name} does not offer it: {e}"
    return None
