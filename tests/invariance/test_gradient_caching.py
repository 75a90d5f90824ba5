"""Eq. 21 over the global batch, whatever is held at once and on however many processes.

The engine's own step, under plain DDP over gloo, in float64, against one batch in one process.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.model_factory import draw_clips, join, scramble, small_config, tiny_gpt2
from signfuse_dist.batch import SignBatch
from signfuse_dist.config import LossConfig, StageConfig, StageName, TrainConfig
from signfuse_dist.model.llm import LanguageModel
from signfuse_dist.model.losses import contrastive
from signfuse_dist.model.signfuse import SignFuse
from signfuse_dist.objective import StageObjective, prepare, set_mode
from signfuse_dist.plan import make_plan

CLIPS = 4  # of which the third has weight zero
WORLDS = (1, 2)


@dataclass(frozen=True)
class Case:
    """A step of one stage: its global batch in ``accumulation`` parts on every process."""

    stage: StageName
    accumulation: int
    norm: str = "layer"
    caching: bool = True
    dropout: bool = False
    one_stream: bool = False
    """Whether the second clip has no pictures and the fourth no joints."""
    by_clip: bool = False
    """Whether the model drops values of each clip, and LoRA of its inputs."""

    @property
    def key(self) -> str:
        return "-".join(str(value) for value in vars(self).values())


CASES = [
    *(Case(s, n) for s in ("contrastive", "alignment", "finetune") for n in (1, 2)),
    Case("finetune", 4),
    Case("finetune", 4, one_stream=True),
    Case("contrastive", 2, one_stream=True),
    Case("finetune", 2, by_clip=True),
    Case("contrastive", 2, norm="sync"),
    Case("contrastive", 2, norm="sync", caching=False),
    Case("finetune", 2, dropout=True),
]


def _model(case: Case) -> Any:
    torch.manual_seed(0)
    rate = 0.3 if case.by_clip else 0.0
    config = small_config(
        lora_targets=("c_attn",),
        norm=case.norm,
        visual_norm="frozen",
        dropout=rate,
        lora_dropout=rate,
    )
    llm = None if case.stage == "contrastive" else LanguageModel(tiny_gpt2(), [0, 2, 3, 4])
    model = SignFuse(config, llm)
    for name, part in model.named_children():
        if name != "language_model":
            scramble(part)
    prepare(model, case.stage, LossConfig())
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # starts at zero, which hides A's gradient
            nn.init.normal_(parameter, std=0.1)
    set_mode(model, case.stage)
    if case.dropout:
        model.fusion.register_forward_hook(
            lambda part, arguments, output: (F.dropout(output[0], 0.3), output[1])
        )
    return model.double()


def _batches(case: Case, parts: int) -> list[SignBatch]:
    """The clips of the step in equal parts, in order."""
    clips = [replace(clip, pose=clip.pose.double()) for clip in draw_clips((5, 3, 2, 6))]
    clips[2] = replace(clips[2], counted=case.one_stream)
    if case.one_stream:
        clips[1] = replace(clips[1], has_visual=False)
        clips[3] = replace(clips[3], has_skeletal=False)
    size = CLIPS // parts
    return [join(clips[i : i + size]) for i in range(0, CLIPS, size)]


class Gradients(torch.optim.SGD):
    """Keeps the gradients that it is given, and changes nothing."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Keep them."""
        self.found = [p.grad.clone() for group in self.param_groups for p in group["params"]]


class Listening(StageObjective):
    """Keeps the summaries of every run of the model."""

    def listen(self, model: nn.Module) -> list[Any]:
        heard: list[Any] = []
        model.register_forward_hook(lambda part, inputs, output: heard.append(output.summaries))
        return heard


def _take_a_step(case: Case, rank: int, world: int) -> dict[str, Any]:
    """Return what the engine's step gives: gradients and buffers by name, losses, summaries."""
    from accelerate.state import AcceleratorState, GradientState

    from signfuse_dist.engine import processes
    from signfuse_dist.engine.loop import Step
    from signfuse_dist.engine.metrics import Interval
    from signfuse_dist.engine.objective import NOTHING
    from signfuse_dist.engine.timing import Timeline

    AcceleratorState._reset_state(reset_partial_state=world == 1)
    GradientState._reset_state()
    train = TrainConfig(
        micro_batch_size=CLIPS // case.accumulation // world,
        global_batch_size=CLIPS,
        precision="fp32",
        gradient_clipping=0.0,
        gradient_caching=case.caching,
    )
    stage = StageConfig(name=case.stage, epochs=1, learning_rate=1e-3, warmup_epochs=0)
    plan = make_plan(CLIPS, stage, train, world)
    accelerator, resolved = processes.start(plan, train)
    assert resolved is None
    model, objective = _model(case), Listening(case.stage, LossConfig())
    heard = objective.listen(model)
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = Gradients([{"params": trained, "rate_factor": 1.0}], lr=1.0)
    prepared, wrapped = accelerator.prepare(model, optimizer)
    assert isinstance(prepared, nn.parallel.DistributedDataParallel) == (world > 1)
    window = _batches(case, case.accumulation * world)[rank::world]
    interval = Interval(
        tuple(objective.weights), accelerator.device, NOTHING, Timeline(accelerator.device, {})
    )
    step = Step(
        accelerator=accelerator,
        model=prepared,
        optimizer=wrapped,
        objective=objective,
        plan=plan,
        stage=stage,
        train=train,
    )
    step.take(3, window, objective.counts(_batches(case, 1)[0]), interval)
    return {
        "gradients": dict(zip(names, optimizer.found, strict=True)),
        "buffers": {name: value.clone() for name, value in model.named_buffers()},
        "losses": interval.sums,
        "summaries": [torch.stack(pair).detach() for pair in heard if pair is not None],
        "norm": torch.as_tensor(interval.gradient_norm),
    }


def _cases(world: int) -> list[Case]:
    return [case for case in CASES if case.accumulation * world <= CLIPS]


def _process(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE="2",
        LOCAL_WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        OMP_NUM_THREADS="1",
    )
    found = {case.key: _take_a_step(case, rank, 2) for case in _cases(2)}
    torch.save(found, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Any]]:
    """What every process of each number of processes has found."""
    folder: Path = tmp_path_factory.mktemp("steps")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = int(s.getsockname()[1])
    mp.spawn(_process, args=(port, str(folder)), nprocs=2)
    two = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]
    return {1: [{case.key: _take_a_step(case, 0, 1) for case in _cases(1)}], 2: two}


def _totals(case: Case, batches: Sequence[SignBatch]) -> tuple[dict[str, Tensor], Any]:
    """Return losses and gradients, with the graphs of all ``batches`` held at the same time."""
    model, objective = _model(case), StageObjective(case.stage, LossConfig())
    counts = objective.counts(_batches(case, 1)[0])
    if len(batches) == 1:
        sums = objective(model, batches[0])
    else:
        pairs = [objective.summarise(model, batch) for batch in batches]
        sides = [torch.cat(side) for side in zip(*pairs, strict=True)]
        weight = torch.cat([batch.pair_weight for batch in batches])
        sums = {"contrastive": contrastive(*sides, weight, LossConfig().temperature).sum()}  # type: ignore[misc]
    total = torch.stack([objective.weights[n] * sums[n] / counts[n] for n in sums]).sum()
    names, trained = zip(
        *((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True
    )
    gradients = torch.autograd.grad(total, trained)
    losses = torch.stack([sums[n].detach() / counts[n] for n in objective.weights])
    return dict(zip(names, gradients, strict=True)), losses


WAYS = [(world, case) for world in WORLDS for case in _cases(world)]
ids = [f"{world}-{case.key}" for world, case in WAYS]


def _close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    assert found.keys() == expected.keys()
    size = max(float(g.abs().max()) for g in expected.values())
    return all(float((found[n] - expected[n]).abs().max()) <= 1e-9 * size for n in expected)


@pytest.mark.parametrize(
    ("world", "case"),
    [w for w in WAYS if w[1] in CASES[:10]],
    ids=[i for i, w in zip(ids, WAYS, strict=True) if w[1] in CASES[:10]],
)
def test_gradients_and_losses_are_those_of_one_batch_in_one_process(
    steps: dict[int, list[Any]], world: int, case: Case
) -> None:
    expected, losses = _totals(case, _batches(case, 1))
    for rank in steps[world]:
        assert _close(rank[case.key]["gradients"], expected)
        norm = torch.stack([g.norm() for g in expected.values()]).norm()
        torch.testing.assert_close(rank[case.key]["norm"], norm, rtol=1e-9, atol=0.0)
    found = torch.stack([rank[case.key]["losses"] for rank in steps[world]]).sum(dim=0)
    torch.testing.assert_close(found, losses, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("world", WORLDS)
def test_with_statistics_of_each_part_gradients_are_those_of_all_parts_held_at_once(
    steps: dict[int, list[Any]], world: int
) -> None:
    case = Case("contrastive", 2, norm="sync")
    expected, _ = _totals(case, _batches(case, 2))
    for rank in steps[world]:
        assert _close(rank[case.key]["gradients"], expected)
    assert not _close(steps[1][0][case.key]["gradients"], _totals(case, _batches(case, 1))[0])


@pytest.mark.parametrize("world", WORLDS)
def test_without_caching_fewer_pairs_meet_and_the_gradient_is_another(
    steps: dict[int, list[Any]], world: int
) -> None:
    case = Case("contrastive", 2, norm="sync")
    plain = replace(case, caching=False)
    for rank in steps[world]:
        assert not _close(rank[plain.key]["gradients"], rank[case.key]["gradients"])


@pytest.mark.parametrize("world", WORLDS)
def test_running_statistics_count_each_part_once(steps: dict[int, list[Any]], world: int) -> None:
    case = Case("contrastive", 2, norm="sync")
    for rank in steps[world]:
        ours = rank[case.key]["buffers"]
        once = rank[replace(case, caching=False).key]["buffers"]
        assert ours.keys() == once.keys()
        assert all(torch.equal(ours[name], once[name]) for name in ours)
        start = dict(_model(case).named_buffers())
        assert any(not torch.equal(ours[name], start[name]) for name in ours)


@pytest.mark.parametrize("world", WORLDS)
def test_the_second_run_of_a_part_draws_what_the_first_drew(
    steps: dict[int, list[Any]], world: int
) -> None:
    for rank in steps[world]:
        heard = rank[Case("finetune", 2, dropout=True).key]["summaries"]
        assert len(heard) == 4  # two parts, twice
        assert torch.equal(heard[0], heard[2])
        assert torch.equal(heard[1], heard[3])
        still = rank[Case("finetune", 2).key]["summaries"]
        assert not torch.allclose(heard[0], still[0])  # something was drawn


@pytest.mark.parametrize("world", WORLDS)
def test_the_encoders_run_once_where_nothing_has_to_be_cached(
    steps: dict[int, list[Any]], world: int
) -> None:
    for rank in steps[world]:
        assert len(rank[Case("finetune", 1).key]["summaries"]) == 1
        assert len(rank[Case("contrastive", 2, "sync", caching=False).key]["summaries"]) == 2
        assert rank[Case("alignment", 2).key]["summaries"] == []
