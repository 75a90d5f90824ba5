"""Weights are loaded by name, all of them, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from signfuse_dist.errors import UserError
from signfuse_dist.weights import load_exactly

PATH = Path("somewhere/weights.safetensors")


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def ones(of: nn.Module) -> dict[str, Tensor]:
    return {name: torch.ones_like(tensor) for name, tensor in of.state_dict().items()}


def test_every_tensor_is_loaded_buffers_too() -> None:
    into = model()
    load_exactly(ones(into), into.state_dict(), into, PATH)
    assert all((tensor == 1).all() for tensor in into.state_dict().values())


def test_part_of_a_model_can_be_loaded_and_the_rest_stays() -> None:
    into = model()
    before = into[0].weight.clone()
    found = {"0.bias": torch.ones(3)}
    load_exactly(found, {"0.bias": into[0].bias}, into, PATH)
    assert (into[0].bias == 1).all()
    assert torch.equal(into[0].weight, before)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"0.weight": None}, r"1 tensors missing \['0.weight'\]"),
        ({"2.weight": torch.ones(3)}, r"1 unknown \['2.weight'\]"),
        ({"0.bias": torch.ones(4)}, r"1 of another shape \['0.bias'\]"),
    ],
)
def test_a_difference_is_named_and_nothing_is_loaded(
    change: dict[str, Tensor | None], said: str
) -> None:
    into = model()
    before = {name: tensor.clone() for name, tensor in into.state_dict().items()}
    found = {n: t for n, t in {**ones(into), **change}.items() if t is not None}
    with pytest.raises(UserError, match=said) as refused:
        load_exactly(found, into.state_dict(), into, PATH)
    assert str(PATH) in str(refused.value)
    assert all(torch.equal(before[n], t) for n, t in into.state_dict().items())


def test_only_what_may_be_missing_may_be_missing() -> None:
    into = model()
    found = {n: t for n, t in ones(into).items() if not n.startswith("1.")}
    load_exactly(found, into.state_dict(), into, PATH, may_miss=("1.",))
    del found["0.bias"]
    with pytest.raises(UserError, match=r"1 tensors missing \['0.bias'\]"):
        load_exactly(found, into.state_dict(), into, PATH, may_miss=("1.",))
