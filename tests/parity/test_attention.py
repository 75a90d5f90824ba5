"""Attention: every backend is Eq. 8-9 by loops, forward and backward, padded or packed."""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.attention_reference import attend_by_loops, loop_kernel
from helpers.model_factory import draw_clips, join, small_config, small_model
from signfuse_dist.batch import length_mask
from signfuse_dist.config import LossConfig
from signfuse_dist.model import attention
from signfuse_dist.model.attention import (
    Attention,
    attend,
    attend_eagerly,
    attend_packed,
    find_tokens,
    kernel_of,
    recorded_weights,
    set_backend,
)
from signfuse_dist.model.signfuse import SignFuse
from signfuse_dist.objective import StageObjective, prepare

DIM, HEADS = 12, 3
# Lengths of the keys and of the queries; None = no mask, every step is real.
CASES = {
    "odd": ([7, 1, 4], [7, 1, 4]),
    "cross": ([5, 2, 3], [1, 3, 2]),
    "one step": ([1], [1]),
    "every key real": (None, [2, 6, 1]),
    "every query real": ([3, 8, 1], None),
    "all real": (None, None),
}
each_case = pytest.mark.parametrize("case", CASES)


def _packed(*inputs: Any) -> Tensor:
    return attend_packed(*inputs, loop_kernel)


def _sdpa(*inputs: Any) -> Tensor:
    return attend(*inputs, "sdpa")


def _eager(*inputs: Any) -> Tensor:
    return attend(*inputs, "eager")


each_backend = pytest.mark.parametrize("backend", [_sdpa, _eager, _packed])


def _draw(case: str, dtype: torch.dtype = torch.float64) -> tuple[Any, ...]:
    """Queries, keys, values, both masks, and the lengths that the loops take."""
    keys, queries = CASES[case]
    clips = len(keys or queries or [0, 0])
    longest_key, longest_query = max(keys or [6]), max(queries or [5])
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(clips, n, DIM, dtype=torch.float64, generator=generator)
        .to(dtype)
        .requires_grad_()
        for n in (longest_query, longest_key, longest_key)
    )
    key_mask = None if keys is None else length_mask(torch.tensor(keys), longest_key)
    query_mask = None if queries is None else length_mask(torch.tensor(queries), longest_query)
    lengths = (keys or [longest_key] * clips, queries or [longest_query] * clips)
    return query, key, value, key_mask, query_mask, *lengths


@each_case
@each_backend
def test_output_and_gradients_are_those_of_the_loops(
    backend: Callable[..., Tensor], case: str
) -> None:
    query, key, value, key_mask, query_mask, *lengths = _draw(case)
    found = backend(query, key, value, HEADS, key_mask, query_mask)
    expected = attend_by_loops(query, key, value, HEADS, *lengths)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    probe = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad((found * probe).sum(), [query, key, value]),
        torch.autograd.grad((expected * probe).sum(), [query, key, value]),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_lower_precision_the_backends_differ_by_rounding(
    backend: Callable[..., Tensor], dtype: torch.dtype
) -> None:
    query, key, value, key_mask, query_mask, *lengths = _draw("odd", dtype)
    found = backend(query, key, value, HEADS, key_mask, query_mask)
    expected = attend_by_loops(*(x.double() for x in (query, key, value)), HEADS, *lengths)
    assert found.dtype == dtype
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


@each_backend
def test_padding_is_never_read_and_gets_no_gradient(backend: Callable[..., Tensor]) -> None:
    query, key, value, mask, _, *_ = _draw("odd")
    clean = backend(query, key, value, HEADS, mask, mask)
    dirty = [(x.detach() + 1e6 * ~mask[:, :, None]).requires_grad_() for x in (query, key, value)]
    found = backend(*dirty, HEADS, mask, mask)
    torch.testing.assert_close(found, clean, rtol=1e-12, atol=1e-12)
    assert not found[~mask].any()
    for gradient in torch.autograd.grad(found.sum(), dirty):
        assert not gradient[~mask].any()
    alone = backend(query[2:, :4], key[2:, :4], value[2:, :4], HEADS, None, None)
    torch.testing.assert_close(found[2:, :4], alone, rtol=1e-12, atol=1e-12)


@each_case
def test_only_real_tokens_reach_a_variable_length_kernel(case: str) -> None:
    query, key, value, key_mask, query_mask, keys, queries = _draw(case)
    seen: list[Any] = []

    def kernel(*inputs: Any) -> Tensor:
        seen.append(inputs)
        return loop_kernel(*inputs)

    attend_packed(query, key, value, HEADS, key_mask, query_mask, kernel)
    ((q, k, v, query_offsets, key_offsets, most_queries, most_keys),) = seen
    assert q.shape == (sum(queries), HEADS, DIM // HEADS)
    assert k.shape == v.shape == (sum(keys), HEADS, DIM // HEADS)
    for offsets, lengths in ((query_offsets, queries), (key_offsets, keys)):
        assert offsets.dtype == torch.int32
        assert offsets.tolist() == [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    assert (most_queries, most_keys) == (query.shape[1], key.shape[1])


def test_packing_comes_back_where_it_was() -> None:
    lengths, steps = torch.tensor([3, 1, 5]), 5
    mask = length_mask(lengths, steps)
    x = torch.arange(3 * steps * 2).view(3, steps, 2).float()
    packing = find_tokens(mask, (3, steps), x.device)
    assert torch.equal(packing.pack(x), torch.cat([x[i, :n] for i, n in enumerate([3, 1, 5])]))
    assert torch.equal(packing.unpack(packing.pack(x)), x * mask[:, :, None])
    every = find_tokens(None, (3, steps), x.device)
    assert torch.equal(every.unpack(every.pack(x)), x)
    assert every.offsets.tolist() == [0, 5, 10, 15]


def test_masks_with_holes_mean_the_same_to_every_backend() -> None:
    query, key, value, *_ = _draw("all real")
    key_mask = torch.tensor([[True, False, True, True, False, True], [False] * 5 + [True]])
    query_mask = torch.tensor([[False, True, True, False, True], [True] * 5])
    results = [
        backend(query, key, value, HEADS, key_mask, query_mask)
        for backend in (_sdpa, _eager, _packed)
    ]
    torch.testing.assert_close(results[1], results[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(results[2], results[0], rtol=1e-12, atol=1e-12)


@each_case
def test_eager_returns_the_weights_that_make_its_output(case: str) -> None:
    query, key, value, key_mask, query_mask, *_ = _draw(case)
    out, weights = attend_eagerly(query, key, value, HEADS, key_mask, query_mask)
    assert weights.shape == (len(query), HEADS, query.shape[1], key.shape[1])
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones_like(weights[..., 0]))
    if key_mask is not None:
        assert not weights.transpose(1, 3)[~key_mask].any()
    heads = weights @ value.unflatten(2, (HEADS, -1)).transpose(1, 2)
    joined = heads.transpose(1, 2).flatten(2)
    real = slice(None) if query_mask is None else query_mask
    torch.testing.assert_close(joined[real], out[real], rtol=1e-12, atol=1e-12)


def _trained(backend: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses and gradients of the last stage with one backend in CMFA and HTA."""
    model = small_model(attention=backend)
    prepare(model, "finetune", LossConfig())
    sums = StageObjective("finetune", LossConfig())(model, join(draw_clips([5, 3, 8, 1])))
    torch.stack(list(sums.values())).sum().backward()
    return sums, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("backend", ["eager", "varlen"])
def test_a_whole_model_has_the_losses_and_gradients_of_sdpa(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = _trained("sdpa")
    calls: list[int] = []
    if backend == "varlen":  # all of its path but the CUDA kernel
        monkeypatch.setattr(attention, "choose_backend", lambda asked, *_: asked)
        monkeypatch.setattr(attention, "kernel_of", lambda _: _counting(calls))
    found = _trained(backend)
    # Two CMFA layers of two directions, each run for two streams and for the fusion, and HTA.
    assert len(calls) == (2 * 2 * 3 + 1 if backend == "varlen" else 0)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            torch.testing.assert_close(value, theirs[name], rtol=1e-3, atol=2e-5, msg=name)


def _counting(calls: list[int]) -> Callable[..., Tensor]:
    def kernel(*inputs: Any) -> Tensor:
        calls.append(1)
        return loop_kernel(*inputs)

    return kernel


def test_one_setting_drives_cmfa_and_hta() -> None:
    model = SignFuse(small_config(attention="eager"), None)
    found = {n: m.backend for n, m in model.named_modules() if isinstance(m, Attention)}
    assert set(found.values()) == {"eager"}
    assert len(found) == 2 * 2 + 1
    assert "temporal.attention" in found
    set_backend(model, "sdpa")
    assert {m.backend for m in model.modules() if isinstance(m, Attention)} == {"sdpa"}


def test_attention_adds_nothing_to_what_is_stored() -> None:
    assert not any("attention" in name for name in SignFuse(small_config(), None).state_dict())


@torch.no_grad()
def test_weights_are_recorded_by_name_and_change_no_result() -> None:
    model, batch = small_model(), join(draw_clips([5, 3]))
    before = model.embed_signs(model.encode(batch))[0]
    with recorded_weights(model) as weights:
        found = model.embed_signs(model.encode(batch))[0]
    torch.testing.assert_close(found, before, rtol=1e-5, atol=1e-6)
    assert len(weights) == 5
    assert weights["temporal.attention"].shape == (2, 2, 7, 7)
    across = weights["fusion.layers.0.visual_from_skeletal.attention"]
    assert across.shape == (2, 2, 3, 3)  # 5 frames are 3 steps, 3 frames are 2
    assert not across[1, :, :, 2:].any()
    kept = dict(weights)
    model.embed_signs(model.encode(batch))
    assert all(weights[name] is kept[name] for name in kept)  # recording has ended


def test_recording_ends_when_the_model_fails() -> None:
    model = small_model()
    with pytest.raises(RuntimeError, match="in the middle"), recorded_weights(model):
        raise RuntimeError("in the middle")
    assert all(m.listener is None for m in model.modules() if isinstance(m, Attention))


def test_the_kernel_of_torch_is_called_as_its_signature_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torch.nn.attention import varlen

    signature = inspect.signature(varlen.varlen_attn)

    def stand_in(*given: Any, **named: Any) -> Tensor:
        bound = signature.bind(*given, **named).arguments
        assert bound.keys() == {"query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"}
        return loop_kernel(*bound.values())

    monkeypatch.setattr(varlen, "varlen_attn", stand_in)
    _compare_kernel("varlen")


def test_the_kernel_of_flash_attn_is_called_as_its_documentation_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def flash_attn_varlen_func(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        deterministic: bool = False,
    ) -> Tensor:
        assert dropout_p == 0
        assert softmax_scale is None
        assert not causal
        assert deterministic  # a resumed run repeats an undisturbed one
        return loop_kernel(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)

    package = types.ModuleType("flash_attn")
    package.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    _compare_kernel("flash_attention_2")


def _compare_kernel(backend: attention.Backend) -> None:
    query, key, value, key_mask, query_mask, *_ = _draw("cross")
    inputs = (query, key, value, HEADS, key_mask, query_mask)
    found = attend_packed(*inputs, kernel_of(backend))
    torch.testing.assert_close(found, _sdpa(*inputs), rtol=1e-12, atol=1e-12)
