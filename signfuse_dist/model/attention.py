"""Attention of CMFA and HTA: one function, four backends with one meaning, one setting."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from signfuse_dist.batch import TokenLayout
from signfuse_dist.config import AttentionName, ModelConfig, PositionsName
from signfuse_dist.errors import UserError
from signfuse_dist.model.positions import distance_bias, rotated, sinusoidal, step_times

Backend = Literal["flash_attention_2", "varlen", "sdpa", "eager"]
# In the order of `auto`: what computes no padding first, what keeps every weight last.
BACKENDS: tuple[Backend, ...] = get_args(Backend)
# A kernel takes query, key and value as [tokens, heads, head_dim], the offsets of the clips in
# queries and in keys, int32 [batch + 1], and how many tokens of each a clip has at most. It
# returns [tokens of the queries, heads, head_dim].
Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int, int], Tensor]
# A mask, bool [batch, steps], and what returns where its tokens are without looking at it.
Told = tuple[Tensor, Callable[[], TokenLayout]]
_SHORT = 128  # steps up to which `auto` is sdpa
_HALF = (torch.float16, torch.bfloat16)
_LOG = logging.getLogger(__name__)


class Attention(nn.Module):
    """:func:`attend` as a part of a model, without parameters: it holds the settings.

    Attributes:
        backend: ``model.attention``, see :func:`set_backend`.
        positions: ``model.positions``, see :func:`set_positions`.
    """

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.backend: AttentionName = "auto"
        self.positions: PositionsName = "none"
        self.listener: Callable[[Tensor], None] | None = None
        self.told: Told | None = None
        self.biases: dict[torch.dtype, Tensor] = {}  # of what was told, by their type

    def placed(self, x: Tensor, times: Tensor | None = None) -> Tensor:
        """Return what queries and keys are projected from, with `sinusoidal` positions in it.

        ``x`` is ``[batch, steps, dim]``, ``times`` as in :meth:`forward`.
        """
        if self.positions != "sinusoidal":
            return x
        times = step_times(x.shape[1], x.device) if times is None else times
        at = sinusoidal(times.to(torch.promote_types(x.dtype, torch.float32)), x.shape[2])
        return x + at.to(x.dtype)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        times: Tensor | None = None,
    ) -> Tensor:
        """Arguments and result as of :func:`attend`, with the positions that are set.

        ``times``, float ``[batch or 1, steps]``, are those of queries and keys alike, in steps;
        None: 0, 1, 2, ...
        """
        heads, bias = self.num_heads, None
        if times is None and self.positions in ("rotary", "distance"):
            times = step_times(query.shape[1], query.device)
        if self.positions == "rotary":
            assert times is not None
            query, key = rotated(query, times, heads), rotated(key, times, heads)
        elif self.positions == "distance":
            assert times is not None
            bias, key_mask = self._bias(query, times, key_mask), None
        if self.listener is not None:
            out, weights = attend_eagerly(query, key, value, heads, key_mask, query_mask, bias)
            self.listener(weights.detach())
            return out
        known = None
        if self.told is not None and key_mask is query_mask is self.told[0]:
            known = self.told[1]
        return attend(query, key, value, heads, key_mask, query_mask, self.backend, known, bias)

    def _bias(self, query: Tensor, times: Tensor, key_mask: Tensor | None) -> Tensor:
        """Return what is added to the scores, -inf where a key is padding.

        Inside :func:`laid_out` it is made once for all layers, which keep it until the backward
        pass.
        """
        told = self.told is not None and key_mask is self.told[0]
        if told and query.dtype in self.biases:
            return self.biases[query.dtype]
        exact = times.to(torch.promote_types(query.dtype, torch.float32))
        bias = distance_bias(exact, self.num_heads).to(query.dtype)
        if key_mask is not None:
            bias = bias.masked_fill(~key_mask[:, None, None, :], -torch.inf)
        if told:
            self.biases[query.dtype] = bias
        return bias


def set_backend(model: nn.Module, backend: AttentionName) -> None:
    """Let every :class:`Attention` of ``model`` use ``backend``."""
    for module in model.modules():
        if isinstance(module, Attention):
            module.backend = backend


def set_positions(model: nn.Module, positions: PositionsName) -> None:
    """Let every :class:`Attention` of ``model`` know ``positions`` of its steps."""
    for module in model.modules():
        if isinstance(module, Attention):
            module.positions = positions


@contextmanager
def laid_out(model: nn.Module, told: Told) -> Iterator[None]:
    """Tell attention inside the block where the tokens are that a mask, this very tensor, means.

    A variable-length kernel then asks nothing of the device, for which the host would wait at every
    call of attention.
    """
    modules = [module for module in model.modules() if isinstance(module, Attention)]
    biases: dict[int, dict[torch.dtype, Tensor]] = {}
    for module in modules:
        module.told, module.biases = told, biases.setdefault(module.num_heads, {})
    try:
        yield
    finally:
        for module in modules:
            module.told, module.biases = None, {}


@contextmanager
def recorded_weights(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Compute attention eagerly inside the block, and keep each module's last weights by name.

    Yields a dictionary that fills as the model runs: ``[batch, heads, queries, keys]`` each.
    """
    weights: dict[str, Tensor] = {}
    listened_to = {n: m for n, m in model.named_modules() if isinstance(m, Attention)}
    for name, module in listened_to.items():
        module.listener = partial(weights.__setitem__, name)
    try:
        yield weights
    finally:
        for module in listened_to.values():
            module.listener = None


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    key_mask: Tensor | None,
    query_mask: Tensor | None = None,
    backend: AttentionName = "auto",
    layout: Callable[[], TokenLayout] | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Return softmax(Q K^T / sqrt(d_k)) V of Eq. 8-9 for ``num_heads`` heads, d_k = dim / heads.

    Args:
        query: ``[batch, queries, dim]``.
        key: ``[batch, keys, dim]``.
        value: ``[batch, keys, dim]``.
        num_heads: h; divides ``dim``.
        key_mask: bool ``[batch, keys]``, True = real and one real step a clip at
            least; None = every key is real.
        query_mask: bool ``[batch, queries]``; None = every query is real.
        backend: which kernel computes it; they differ by rounding only.
        layout: returns where the tokens are, the same for queries and keys, where that is known
            without looking at the masks.
        bias: added to the scores, of the type of the queries, ``[batch or 1, heads, queries,
            keys]``; -inf takes a key away, and each query keeps one at least. None = none.

    Returns:
        ``[batch, queries, dim]``, heads side by side, zero where a query is not real.

    Raises UserError when the backend is not there, or takes no bias and there is one.
    """
    head_dim, biased = query.shape[-1] // num_heads, bias is not None
    chosen = choose_backend(backend, query.device, query.dtype, head_dim, key.shape[1], biased)
    if chosen == "eager":
        return attend_eagerly(query, key, value, num_heads, key_mask, query_mask, bias)[0]
    if chosen == "sdpa":
        return _attend_by_sdpa(query, key, value, num_heads, key_mask, query_mask, bias)
    kernel = kernel_of(chosen)
    return attend_packed(query, key, value, num_heads, key_mask, query_mask, kernel, layout)


def attend_eagerly(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    key_mask: Tensor | None,
    query_mask: Tensor | None = None,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Do as :func:`attend`, in plain steps, and return the weights as well, for plots.

    The weights are ``[batch, heads, queries, keys]``: each query's sum to 1 over the real keys,
    and are 0 at all others. The softmax is taken in float32 at least.
    """
    head_dim = query.shape[-1] // num_heads
    scores = _split(query, num_heads) @ _split(key, num_heads).transpose(2, 3) / head_dim**0.5
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if bias is not None:
        scores = scores + bias
    if key_mask is not None:
        scores = scores.masked_fill(~key_mask[:, None, None, :], -torch.inf)
    weights = scores.softmax(dim=-1).to(value.dtype)
    return _join(weights @ _split(value, num_heads), query_mask), weights


def attend_packed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    key_mask: Tensor | None,
    query_mask: Tensor | None,
    kernel: Kernel,
    layout: Callable[[], TokenLayout] | None = None,
) -> Tensor:
    """Pack, run ``kernel``, and put its result back; arguments and result as of ``attend``."""
    if layout is not None:
        keys = layout()
    else:
        keys = find_tokens(key_mask, (key.shape[0], key.shape[1]), key.device)
    queries = keys
    if query_mask is not key_mask or query.shape[1] != key.shape[1]:
        queries = find_tokens(query_mask, (query.shape[0], query.shape[1]), query.device)
    out = kernel(
        queries.pack(query).unflatten(-1, (num_heads, -1)),
        keys.pack(key).unflatten(-1, (num_heads, -1)),
        keys.pack(value).unflatten(-1, (num_heads, -1)),
        queries.offsets,
        keys.offsets,
        query.shape[1],
        key.shape[1],
    )
    return queries.unpack(out.flatten(1))


def choose_for(
    config: ModelConfig, precision: str, device: torch.device, max_frames: int
) -> Backend:
    """Return the backend of CMFA and HTA for the longest clip of a run.

    ``precision`` is ``train.precision``, ``max_frames`` is ``data.max_frames``.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    head_dim, steps = config.dim // config.num_heads, -(-max_frames // config.visual_stride)
    biased = config.positions == "distance"
    return choose_backend(config.attention, device, dtype, head_dim, steps, biased)


def choose_backend(
    asked: AttentionName,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    steps: int | None = None,
    biased: bool = False,
) -> Backend:
    """Return the backend that ``asked`` means here.

    `auto` is `sdpa` for at most 128 steps: packing costs some kernels, padding is cheap there, and
    nobody has measured on a GPU which is faster. Beyond, it is the first of BACKENDS that is there.
    With a bias it is `sdpa`: the variable-length kernels take none.

    Args:
        asked: ``model.attention``.
        device: where queries, keys and values are.
        dtype: of queries, keys and values: float32, or bfloat16 under ``train.precision: bf16``.
        head_dim: channels a head.
        steps: that a query attends over; None = more than 128.
        biased: whether something is added to the scores, as by ``model.positions: distance``.

    Raises UserError with the reason, and with what there is, when ``asked`` is not there.
    """
    short = steps is not None and steps <= _SHORT
    return _choose(asked, device, dtype, head_dim, short, biased)


def why_not(
    backend: Backend,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    biased: bool = False,
) -> str | None:
    """Return why a backend cannot be used, or None when it can."""
    if backend in ("sdpa", "eager"):
        return None
    if biased:
        return "its kernel adds nothing to the scores, which model.positions=distance needs"
    return _why_no_flash_kernel(device, dtype, head_dim) or _why_no_package(backend)


def find_tokens(mask: Tensor | None, shape: tuple[int, int], device: torch.device) -> TokenLayout:
    """Return where the tokens are that ``mask``, bool ``[batch, steps]``, calls real.

    With a mask the host waits for the device once: it must know how many tokens there are.
    :func:`~signfuse_dist.batch.lay_out` waits for nothing.
    """
    batch, steps = shape
    if mask is None:
        every = torch.arange(0, batch * steps + 1, steps, dtype=torch.int32, device=device)
        return TokenLayout(shape, None, every)
    ends = mask.sum(dim=1).cumsum(0).to(torch.int32)
    return TokenLayout(
        shape, mask.flatten().nonzero().squeeze(1), torch.cat((ends.new_zeros(1), ends))
    )


def kernel_of(backend: Backend) -> Kernel:
    """Return the kernel of a variable-length backend."""
    return _flash_attention_2 if backend == "flash_attention_2" else _varlen


# Asked at every call of attention; the answer stays, and `auto` logs it once.
@functools.cache
def _choose(
    asked: AttentionName,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    short: bool,
    biased: bool,
) -> Backend:
    reason = None if asked == "auto" else why_not(asked, device, dtype, head_dim, biased)
    if asked != "auto" and reason is None:
        return asked
    there = [b for b in BACKENDS if why_not(b, device, dtype, head_dim, biased) is None]
    chosen: Backend = "sdpa" if short else there[0]
    if asked == "auto":
        why = ", which model.positions=distance needs" if biased else ""
        _LOG.info("attention on %s in %s: auto chose %s%s", device, dtype, chosen, why)
        return chosen
    raise UserError(
        f"model.attention={asked}: {reason}. Here there are: {', '.join(there)}; "
        f"auto chooses {chosen}"
    )


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


def _attend_by_sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    key_mask: Tensor | None,
    query_mask: Tensor | None,
    bias: Tensor | None = None,
) -> Tensor:
    mask = None if key_mask is None else key_mask[:, None, None, :]
    if bias is not None:  # it takes one tensor for both
        mask = bias if mask is None else bias.masked_fill(~mask, -torch.inf)
    out = F.scaled_dot_product_attention(
        _split(query, num_heads), _split(key, num_heads), _split(value, num_heads), attn_mask=mask
    )
    return _join(out, query_mask)


def _split(x: Tensor, num_heads: int) -> Tensor:
    heads: Tensor = x.unflatten(-1, (num_heads, -1)).transpose(1, 2)
    return heads


def _join(heads: Tensor, query_mask: Tensor | None) -> Tensor:
    out = heads.transpose(1, 2).flatten(2)
    return out if query_mask is None else out.masked_fill(~query_mask[:, :, None], 0)


def _flash_attention_2(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_offsets: Tensor,
    key_offsets: Tensor,
    most_queries: int,
    most_keys: int,
) -> Tensor:
    from flash_attn import flash_attn_varlen_func

    # Deterministic: a resumed run repeats the undisturbed one bit for bit.
    out: Tensor = flash_attn_varlen_func(
        query, key, value, query_offsets, key_offsets, most_queries, most_keys, deterministic=True
    )
    return out


def _varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_offsets: Tensor,
    key_offsets: Tensor,
    most_queries: int,
    most_keys: int,
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    out = varlen_attn(query, key, value, query_offsets, key_offsets, most_queries, most_keys)
    assert isinstance(out, Tensor)
    return out
