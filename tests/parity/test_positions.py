"""Positions of CMFA and HTA: each kind by plain equations, on every backend that can compute it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.model_factory import draw_clips, join, scramble, small_config, small_model
from signfuse_dist.batch import length_mask
from signfuse_dist.config import LossConfig
from signfuse_dist.errors import UserError
from signfuse_dist.model import attention as attention_module
from signfuse_dist.model.attention import Attention, choose_backend, recorded_weights, set_backend
from signfuse_dist.model.attention import set_positions as set_kind
from signfuse_dist.model.cmfa import CrossAttention, CrossModalFusion
from signfuse_dist.model.flops import StepFlops
from signfuse_dist.model.hta import TemporalAggregation
from signfuse_dist.model.positions import near_diagonal, pooled_times, slopes
from signfuse_dist.objective import StageObjective, prepare

DIM, HEADS, POOLED = 12, 3, 5
HEAD = DIM // HEADS
KINDS = ("none", "sinusoidal", "rotary", "distance")
each_kind = pytest.mark.parametrize("kind", KINDS)
each_backend = pytest.mark.parametrize("backend", ["sdpa", "eager"])


def _sine(time: float, dim: int) -> Tensor:
    angles = [time / 10000 ** (2 * i / dim) for i in range(dim // 2)]
    return torch.tensor([*map(math.sin, angles), *map(math.cos, angles)], dtype=torch.float64)


def _turned(x: Tensor, time: float) -> Tensor:
    """One head's query or key as complex numbers, turned."""
    plane = torch.complex(x[: HEAD // 2], x[HEAD // 2 :])
    of_pair = [time / 10000 ** (2 * i / HEAD) for i in range(HEAD // 2)]
    angles = torch.tensor(of_pair, dtype=torch.float64)
    turned = plane * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((turned.real, turned.imag))


def _by_equations(
    kind: str, queries: Tensor, keys: Tensor, times: list[float], projections: tuple[Tensor, ...]
) -> Tensor:
    """One clip's attention, a head, query and key at a time, ``[steps, dim]``."""
    rows = []
    for i, t in enumerate(times):
        heads = []
        for h in range(HEADS):
            part, scores = slice(h * HEAD, (h + 1) * HEAD), []
            for j, s in enumerate(times):
                q, k = queries[i], keys[j]
                if kind == "sinusoidal":
                    q, k = q + _sine(t, DIM), k + _sine(s, DIM)
                q, k = (projections[0] @ q)[part], (projections[1] @ k)[part]
                if kind == "rotary":
                    q, k = _turned(q, t), _turned(k, s)
                score = q @ k / math.sqrt(HEAD)
                if kind == "distance":
                    score = score - 2.0 ** (1 - h) * abs(t - s)
                scores.append(score)
            weights = torch.stack(scores).softmax(dim=0)
            heads.append(weights @ (keys @ projections[2].T)[:, part])
        rows.append(torch.cat(heads))
    return torch.stack(rows)


def _same_gradients(found: Tensor, expected: Tensor, by: list[Tensor]) -> None:
    probe = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad((found * probe).sum(), by, retain_graph=True),
        torch.autograd.grad((expected * probe).sum(), by, retain_graph=True),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@each_kind
@each_backend
def test_cross_attention_shares_the_clips_time(kind: Any, backend: Any) -> None:
    torch.manual_seed(0)
    module = scramble(CrossAttention(DIM, HEADS).double())
    set_backend(module, backend)
    set_kind(module, kind)
    lengths = [4, 1, 6]
    queries, keys = (torch.randn(3, 6, DIM, dtype=torch.float64).requires_grad_() for _ in "ab")
    mask = length_mask(torch.tensor(lengths), 6)
    found = module(queries, keys, mask)
    matrices = tuple(getattr(module, n).weight for n in ("query", "key", "value"))
    for clip, length in enumerate(lengths):
        times = [float(i) for i in range(length)]
        one = _by_equations(kind, queries[clip, :length], keys[clip, :length], times, matrices)
        expected = module.output(one)
        torch.testing.assert_close(found[clip, :length], expected, rtol=1e-10, atol=1e-10)
        _same_gradients(found[clip, :length], expected, [queries, keys, *matrices])


@each_kind
@each_backend
def test_htas_attention_has_the_times_of_what_it_pools(kind: Any, backend: Any) -> None:
    torch.manual_seed(0)
    module: Any = scramble(TemporalAggregation(DIM, (1, 3), (1, 2), POOLED, HEADS).double())
    set_backend(module, backend)
    set_kind(module, kind)
    lengths, x = torch.tensor([7, 2]), torch.randn(2, 7, DIM, dtype=torch.float64)
    found = module(x, lengths)
    x = x * length_mask(lengths, 7)[:, :, None]
    combined = module.combine(module.multi_scale(x, lengths))
    matrices = module.query_key_value.weight.chunk(3)
    for clip, length in enumerate(lengths.tolist()):
        times = [(i + 0.5) * length / POOLED - 0.5 for i in range(POOLED)]
        rows = combined[clip]
        attended = _by_equations(kind, rows, rows, times, matrices)
        expected = module.norm(rows + module.output(attended))
        torch.testing.assert_close(found[clip], expected, rtol=1e-10, atol=1e-10)
        _same_gradients(found[clip], expected, list(module.parameters()))


def test_pooled_positions_stand_in_the_middle_of_what_they_average() -> None:
    times = pooled_times(torch.tensor([4, 8, 2]), 4)
    assert times.tolist() == [[0, 1, 2, 3], [0.5, 2.5, 4.5, 6.5], [-0.25, 0.25, 0.75, 1.25]]


def test_slopes_halve_from_head_to_head() -> None:
    assert slopes(4, torch.device("cpu")).tolist() == [2, 1, 0.5, 0.25]


@each_kind
@torch.no_grad()
def test_a_clip_is_the_same_alone_and_beside_longer_ones(kind: str) -> None:
    model, clips = small_model(positions=kind), draw_clips((3, 1, 9, 5))
    signs, gate = model.embed_signs(model.encode(join(clips)))
    for i, clip in enumerate(clips):
        alone, own = model.embed_signs(model.encode(join([clip])))
        torch.testing.assert_close(signs[i], alone[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gate[i, : own.shape[1]], own[0], rtol=1e-5, atol=1e-5)


@each_kind
@torch.no_grad()
def test_only_without_positions_is_cmfa_of_permuted_steps_the_permuted_cmfa(kind: Any) -> None:
    fusion = scramble(CrossModalFusion(DIM, 2, HEADS, 24, "cmfa", 1.0).double())
    set_kind(fusion, kind)
    visual, skeletal = torch.randn(2, 1, 6, DIM, dtype=torch.float64)
    mask, order = torch.ones(1, 6, dtype=torch.bool), [4, 1, 5, 0, 3, 2]
    found = fusion(visual[:, order], skeletal[:, order], mask)[0]
    same = torch.allclose(found, fusion(visual, skeletal, mask)[0][:, order], atol=1e-9)
    assert same == (kind == "none")


@each_kind
def test_a_model_trains_alike_on_both_backends_and_with_what_it_is_told_once(kind: str) -> None:
    """The bias is kept for all layers inside a pass; a listener makes another every time."""
    found: list[dict[str, Tensor]] = []
    for backend in ("sdpa", "eager", "recorded"):
        model = small_model(attention="sdpa" if backend == "recorded" else backend, positions=kind)
        prepare(model, "finetune", LossConfig())
        objective = StageObjective("finetune", LossConfig())
        with recorded_weights(model.fusion if backend == "recorded" else nn.Identity()):
            sums = objective(model, join(draw_clips([5, 3, 8, 1])))
        torch.stack(list(sums.values())).sum().backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        for name, value in other.items():
            torch.testing.assert_close(value, found[0][name], rtol=1e-3, atol=2e-5, msg=name)


def test_a_kernel_without_a_bias_is_refused_and_auto_takes_one_with(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a machine where every kernel is there."""
    monkeypatch.setattr(attention_module, "_why_no_flash_kernel", lambda *_: None)
    monkeypatch.setattr(attention_module, "_why_no_package", lambda *_: None)
    attention_module._choose.cache_clear()
    given = torch.device("cpu"), torch.bfloat16, 64, 500
    assert choose_backend("auto", *given) == "flash_attention_2"
    with caplog.at_level("INFO"):
        assert choose_backend("auto", *given, biased=True) == "sdpa"
    assert "auto chose sdpa, which model.positions=distance needs" in caplog.text
    x = torch.randn(1, 3, DIM, dtype=torch.bfloat16)
    for backend in ("flash_attention_2", "varlen"):
        module = Attention(HEADS)
        module.backend, module.positions = backend, "distance"  # type: ignore[assignment]
        with pytest.raises(UserError, match=rf"attention={backend}.*positions=distance.*sdpa"):
            module(x, x, x)
    attention_module._choose.cache_clear()


@pytest.mark.parametrize("kind", KINDS[1:])
def test_positions_cost_no_products(kind: str) -> None:
    counted = []
    for positions in ("none", kind):
        model = small_model(positions=positions)
        prepare(model, "alignment", LossConfig())
        counted.append(StepFlops(model, None, language=False)(join(draw_clips([5, 3]))))
    assert counted[0] == counted[1]


def test_positions_have_no_weights_and_are_the_models_own() -> None:
    model = small_model(positions="distance")
    assert model.state_dict().keys() == small_model().state_dict().keys()
    found = {m.positions for m in model.modules() if isinstance(m, Attention)}
    assert found == {"distance"}
    assert model.config.model == small_config(positions="distance")


def test_the_share_of_attention_near_the_diagonal() -> None:
    even = torch.full((2, 4, 4), 0.25)
    assert near_diagonal(even) == (10 / 16, 10 / 16)  # 2 + 3 + 3 + 2 of 16 places
    assert near_diagonal(torch.eye(4)[None])[0] == 1.0
    assert near_diagonal(torch.eye(4).flip(0)[None])[0] == 0.5
    assert near_diagonal(even, steps=0) == (0.25, 0.25)
