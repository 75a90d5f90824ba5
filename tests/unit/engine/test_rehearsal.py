"""The fullest batch is run before the first step, and nothing is different afterwards."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from helpers.model_factory import draw_clips, join, small_model
from signfuse_dist.config import STAGES, LossConfig, RunConfig, StageConfig, StageName, TrainConfig
from signfuse_dist.engine.rehearsal import rehearse
from signfuse_dist.errors import UserError
from signfuse_dist.experiment import load_stages
from signfuse_dist.objective import StageObjective, prepare, set_mode
from signfuse_dist.plan import MicroBatches, make_plan
from signfuse_dist.preflight import memory

CPU = torch.device("cpu")
STAGE = StageConfig(name="contrastive", epochs=3, learning_rate=1e-3, warmup_epochs=0)


def prepared(stage: StageName) -> Any:
    """A model whose norms take the statistics of the batch, and move with them."""
    model = small_model(norm="sync", visual_norm="sync")
    prepare(model, stage, LossConfig())
    set_mode(model, stage)
    return model


def everything(model: Any) -> dict[str, Tensor]:
    found = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: tensor.detach().clone() for name, tensor in found.items()}


@pytest.mark.parametrize("stage", STAGES)
def test_weights_gradients_statistics_and_random_states_are_what_they_were(
    stage: StageName,
) -> None:
    model, objective = prepared(stage), StageObjective(stage, LossConfig())
    torch.manual_seed(3)
    before, random, seen = everything(model), torch.get_rng_state(), list[torch.Size]()
    model.fusion.register_forward_hook(lambda m, given, out: seen.append(given[0].shape))
    rehearse(model, objective, join(draw_clips([5, 3])), CPU, bf16=False)
    assert seen
    assert all(torch.equal(before[n], tensor) for n, tensor in everything(model).items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_a_step_after_it_has_the_bits_of_one_without_it() -> None:
    found = []
    for rehearsed in (False, True):
        model, objective = prepared("finetune"), StageObjective("finetune", LossConfig())
        if rehearsed:
            rehearse(model, objective, join(draw_clips([9, 9], seed=1)), CPU, bf16=False)
        torch.manual_seed(0)
        sums = objective(model, join(draw_clips([5, 3])))
        torch.stack(list(sums.values())).sum().backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found.append({**gradients, **dict(model.named_buffers())})
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_a_batch_that_does_not_fit_leaves_the_statistics_alone() -> None:
    model = prepared("contrastive")
    before = everything(model)

    class Full(StageObjective):
        def __call__(self, *given: Any) -> dict[str, Tensor]:
            super().__call__(*given)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    with pytest.raises(torch.OutOfMemoryError):
        rehearse(model, Full("contrastive", LossConfig()), join(draw_clips([5, 3])), CPU, False)
    assert all(torch.equal(before[n], tensor) for n, tensor in everything(model).items())


def order(start_step: int, rank: int = 0) -> MicroBatches:
    """Micro batches of two clips on each of two processes, two of them a step; 10 clips."""
    train = TrainConfig(
        micro_batch_size=2, global_batch_size=8, precision="fp32", gradient_clipping=1.0
    )
    lengths = np.array([3, 50, 7, 1, 9, 40, 2, 8, 5, 6])

    def frames_of(epoch: int, clips: NDArray[np.int64]) -> NDArray[np.int64]:
        return lengths[clips]

    return MicroBatches(make_plan(10, STAGE, train, 2), 0, frames_of, rank, start_step)


@pytest.mark.parametrize("start_step", range(6))
def test_the_fullest_micro_batch_is_the_same_on_every_process_and_ahead(start_step: int) -> None:
    both = [order(start_step, rank) for rank in (0, 1)]

    def frames(item: int) -> int:
        clips = [c for one in both for c in one[item].clips if c >= 0]
        return int(both[0].frames_of(0, np.array(clips, dtype=np.int64)).sum())

    item = both[0].fullest(8)
    assert item == both[1].fullest(8)
    assert frames(item) == max(frames(i) for i in range(len(both[0])))


def run(*words: str) -> RunConfig:
    return load_stages("phoenix14t", list(words))[-1]


def test_memory_that_is_too_small_is_an_error_that_says_what_helps() -> None:
    with pytest.raises(UserError) as error, memory.told_with_advice(run(), 4):
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79 GiB"
        )
    said = str(error.value)
    assert error.value.status == 2
    assert said.startswith(
        "stage finetune: the GPU's memory is too small (CUDA out of memory. Tried to allocate "
        "20.00 MiB). What takes less: model.visual_chunk=64 (now all frames at once); "
        "model.visual_checkpoint=true (now false); train.micro_batch_size=4 (now 8; "
    )
    assert "model.llm_quantization=8bit (now none)" in said


def test_another_error_of_torch_is_left_as_it_is() -> None:
    with pytest.raises(RuntimeError, match="a shape") as error, memory.told_with_advice(run(), 1):
        raise RuntimeError("a shape")
    assert not isinstance(error.value, UserError)


def test_advice_names_only_what_takes_less() -> None:
    least = run(
        "model.visual_chunk=16",
        "model.visual_checkpoint=true",
        "train.micro_batch_size=1",
        "model.llm_quantization=8bit",
    )
    assert memory.advise(least, 4) == "a data.max_frames below 256, in a run of its own"
    chunked = replace(least, model=replace(least.model, visual_chunk=512))
    assert "model.visual_chunk=64 (now 512)" in memory.advise(chunked, 4)
