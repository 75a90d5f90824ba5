"""Two processes compute the losses, gradients and statistics of one, in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from signfuse_dist.model.losses import contrastive, contrastive_in_parts, replay
from signfuse_dist.model.norm import BatchNorm, ImageBatchNorm

WORLD = 2
WEIGHT = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 1.0])  # one place of weight zero, on rank 0
LENGTHS = torch.tensor([4, 1, 6, 2, 6, 3])
STEPS = 6


def _draw() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"visual": (6, 5), "skeletal": (6, 5), "x": (6, 3, STEPS), "probe": (6, 3, STEPS)}
    drawn = {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in shapes.items()}
    return {**drawn, "weight": WEIGHT, "lengths": LENGTHS}


def _info_nce(part: dict[str, Tensor]) -> dict[str, Tensor]:
    visual, skeletal = part["visual"].requires_grad_(), part["skeletal"].requires_grad_()
    terms = contrastive(visual, skeletal, part["weight"], 0.07)
    gradients = torch.autograd.grad(terms.sum(), (visual, skeletal))
    return {"terms": terms.detach(), "visual": gradients[0], "skeletal": gradients[1]}


def _info_nce_in_parts(part: dict[str, Tensor]) -> dict[str, Tensor]:
    """Held one and two clips at a time: compared without a graph, then given their gradient."""
    sizes = [1, len(part["weight"]) - 1]
    sides = [part[name].clone().split(sizes) for name in ("visual", "skeletal")]
    parts = list(zip(*sides, strict=True))
    compared = contrastive_in_parts(parts, part["weight"].split(sizes), 0.07)
    gradients = []
    for pair, own in zip(parts, compared, strict=True):
        leaves = [x.detach().requires_grad_() for x in pair]
        gradients.append(torch.autograd.grad(2 * replay((leaves[0], leaves[1]), own), leaves))
    visual, skeletal = (torch.cat(side) / 2 for side in zip(*gradients, strict=True))
    return {"sum": sum(own.value for own in compared), "visual": visual, "skeletal": skeletal}


def _batch_norm(part: dict[str, Tensor], weight: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(0)
    norm = BatchNorm(3, "sync").double()
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    x = part["x"].requires_grad_()
    mask = torch.arange(STEPS)[None] < part["lengths"][:, None]
    out = norm(x, mask & (weight > 0)[:, None])
    loss = (out.square() * part["probe"] * mask[:, None] * weight[:, None, None]).sum()
    gradients = torch.autograd.grad(loss, (x, norm.weight, norm.bias))
    return {
        "out": out.detach(),
        "x": gradients[0],
        "weight": gradients[1],
        "bias": gradients[2],
        "running_mean": norm.running_mean,
        "running_var": norm.running_var,
    }


def _image_norm(part: dict[str, Tensor], counted: Tensor) -> dict[str, Tensor]:
    """As the ResNet meets it: frames that do not count are left out, on one process all of them."""
    torch.manual_seed(0)
    norm = ImageBatchNorm(3, "sync").double()
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    x = part["x"].unflatten(2, (2, 3))[counted > 0].requires_grad_()
    loss = (norm(x).square() * part["probe"].unflatten(2, (2, 3))[counted > 0]).sum()
    gradients = torch.autograd.grad(loss, (x, norm.weight, norm.bias))
    return {
        "x": gradients[0],
        "weight": gradients[1],
        "bias": gradients[2],
        "running_mean": norm.running_mean,
        "running_var": norm.running_var,
    }


def _results(part: dict[str, Tensor], empty: Tensor) -> dict[str, dict[str, Tensor]]:
    return {
        "info_nce": _info_nce(part),
        "in_parts": _info_nce_in_parts(part),
        "batch_norm": _batch_norm(part, part["weight"]),
        "batch_norm_empty_rank": _batch_norm(part, empty),
        "image_norm_empty_rank": _image_norm(part, empty),
    }


def _empty_first_half() -> Tensor:
    return torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0])


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD
    )
    part = {name: value.chunk(WORLD)[rank].clone() for name, value in _draw().items()}
    torch.save(_results(part, _empty_first_half().chunk(WORLD)[rank]), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    mp.spawn(_process, args=(str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


@pytest.fixture(scope="module")
def single() -> dict[str, dict[str, Tensor]]:
    return _results(_draw(), _empty_first_half())


@pytest.mark.parametrize("name", ["terms", "visual", "skeletal"])
def test_info_nce_of_local_rows_is_that_of_one_process(
    ranks: list[Any], single: Any, name: str
) -> None:
    """Gradients too, without any factor: local rows of the sum of all processes' terms."""
    found = torch.cat([rank["info_nce"][name] for rank in ranks])
    torch.testing.assert_close(found, single["info_nce"][name], rtol=1e-9, atol=1e-9)
    alone = _info_nce({k: v[:3].clone() for k, v in _draw().items()})[name]
    assert not torch.allclose(found[:3], alone)  # the other process's columns do count


def test_info_nce_in_parts_is_that_of_one_process_at_once(ranks: list[Any], single: Any) -> None:
    """The same values and gradients, in parts on one process and in parts on two."""
    expected = single["info_nce"]
    for found in ([single["in_parts"]], [rank["in_parts"] for rank in ranks]):
        total = sum(part["sum"] for part in found)
        torch.testing.assert_close(total, expected["terms"].sum(), rtol=1e-9, atol=1e-9)
        for name in ("visual", "skeletal"):
            gradient = torch.cat([part[name] for part in found])
            torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-9)


def test_info_nce_in_parts_compares_in_float32_and_answers_in_the_summaries_type() -> None:
    drawn = {name: value.bfloat16() for name, value in _draw().items() if value.ndim == 2}
    pair, weight = (drawn["visual"], drawn["skeletal"]), WEIGHT
    (compared,) = contrastive_in_parts([pair], [weight], 0.07)
    whole = contrastive(pair[0].float(), pair[1].float(), weight, 0.07).sum()
    assert compared.value.dtype == torch.float32
    torch.testing.assert_close(compared.value, whole, rtol=1e-6, atol=0.0)
    assert [g.dtype for g in compared.gradients] == [torch.float32] * 2
    leaves = [x.requires_grad_() for x in pair]
    for gradient, known in zip(
        torch.autograd.grad(replay((leaves[0], leaves[1]), compared), leaves),
        compared.gradients,
        strict=True,
    ):
        assert torch.equal(gradient, known.bfloat16())


@pytest.mark.parametrize("case", ["batch_norm", "batch_norm_empty_rank", "image_norm_empty_rank"])
def test_batch_norm_of_two_processes_is_that_of_one(
    ranks: list[Any], single: Any, case: str
) -> None:
    expected = single[case]
    for name in expected.keys() & {"out", "x"}:
        found = torch.cat([rank[case][name] for rank in ranks])
        torch.testing.assert_close(found, expected[name], rtol=1e-9, atol=1e-9)
    for name in ("weight", "bias"):
        found = ranks[0][case][name] + ranks[1][case][name]
        torch.testing.assert_close(found, expected[name], rtol=1e-9, atol=1e-9)
    for name in ("running_mean", "running_var"):
        for rank in ranks:
            torch.testing.assert_close(rank[case][name], expected[name], rtol=1e-9, atol=1e-9)
