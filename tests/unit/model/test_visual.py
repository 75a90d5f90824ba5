"""Ways to run the ResNet: one result and its exact gradients, and less that is held."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.model_factory import FRAME_SIZE, draw_clips, join, scramble, small_model
from signfuse_dist.config import LossConfig
from signfuse_dist.model.norm import StepNorm
from signfuse_dist.model.visual import WHOLE, FrameBudget, ResNet, VisualStream
from signfuse_dist.objective import StageObjective, prepare, set_mode

LENGTHS = (5, 1, 3)
BUDGETS = {
    "one frame at a time": FrameBudget(1, False, False),
    "chunks that do not divide": FrameBudget(4, False, False),
    "one chunk": FrameBudget(9, False, False),
    "a chunk longer than all": FrameBudget(50, False, False),
    "blocks": FrameBudget(None, True, False),
    "blocks of chunks": FrameBudget(4, True, False),
}


def stream(budget: FrameBudget, norm: str = "frozen") -> VisualStream:
    torch.manual_seed(0)
    backbone = ResNet("resnet18", 8, norm)
    built = VisualStream(backbone, 6, 3, 2, StepNorm(6), budget)
    return scramble(built.double()).train()  # type: ignore[return-value]


def run(built: VisualStream, lengths: tuple[int, ...] = LENGTHS) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (sum(lengths), 3, FRAME_SIZE, FRAME_SIZE)
    frames = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    steps = torch.tensor([-(-n // 2) for n in lengths])
    return built(frames, torch.tensor(lengths), steps, torch.ones(len(lengths)), max(lengths))


def gradients(built: VisualStream) -> tuple[Tensor, list[Tensor]]:
    out = run(built)
    probe = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return out, list(torch.autograd.grad((out * probe).sum(), list(built.parameters())))


def furthest(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference of a tensor, relative to the size of that tensor."""
    return max(
        float((a - b).detach().abs().max() / b.detach().abs().max())
        for a, b in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("norm", ["frozen", "group"])
@pytest.mark.parametrize("budget", BUDGETS.values(), ids=BUDGETS)
def test_gradients_are_those_of_the_whole_in_float64(budget: FrameBudget, norm: str) -> None:
    out, found = gradients(stream(budget, norm))
    whole, expected = gradients(stream(WHOLE, norm))
    assert furthest([out], [whole]) <= 1e-12
    assert furthest(found, expected) <= 1e-12
    assert all(float(e.abs().max()) > 0 for e in expected)


def test_statistics_of_the_batch_would_make_chunks_another_function() -> None:
    """Why the configuration refuses them together."""
    out, _ = gradients(stream(FrameBudget(4, False, False), "local"))
    whole, _ = gradients(stream(WHOLE, "local"))
    assert furthest([out], [whole]) > 1e-2


def test_a_stage_learns_the_same_in_chunks() -> None:
    found = []
    for changes in ({}, {"visual_chunk": 2}, {"visual_checkpoint": True}):
        model = small_model(visual_norm="frozen", **changes).double()
        prepare(model, "contrastive", LossConfig())
        set_mode(model, "contrastive")
        batch = join(draw_clips(LENGTHS))
        batch = type(batch)(**{**vars(batch), "pose": batch.pose.double()})
        (total,) = StageObjective("contrastive", LossConfig())(model, batch).values()
        trained = [p for p in model.parameters() if p.requires_grad]
        found.append([total, *torch.autograd.grad(total, trained)])
    for other in found[1:]:
        assert furthest(other, found[0]) <= 1e-11


@pytest.mark.parametrize(
    ("chunk", "expected"), [(None, [9]), (4, [4, 4, 1]), (9, [9]), (50, [9]), (3, [3, 3, 3])]
)
@torch.no_grad()
def test_only_real_frames_reach_the_resnet_in_chunks(
    chunk: int | None, expected: list[int]
) -> None:
    model = small_model(visual_chunk=chunk)
    seen: list[int] = []
    model.visual.backbone.register_forward_hook(lambda module, inputs, out: seen.append(len(out)))
    model.encode(join(draw_clips(LENGTHS)))
    assert seen == expected


def held(budget: FrameBudget, num_frames: int) -> int:
    """Bytes that the forward pass keeps for the backward pass, parameters left out."""
    built = stream(budget)
    own = {p.untyped_storage().data_ptr() for p in [*built.parameters(), *built.buffers()]}
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = run(built, (num_frames,))
    assert out.requires_grad
    return sum(storages.values())


def test_what_is_held_for_the_backward_pass_shrinks_to_frames_and_features() -> None:
    whole, blocks, chunks = (
        held(b, 40) for b in (WHOLE, BUDGETS["blocks"], BUDGETS["chunks that do not divide"])
    )
    assert whole > 2 * blocks
    assert blocks > 5 * chunks
    a_frame = (chunks - held(BUDGETS["chunks that do not divide"], 20)) / 20
    bytes_of = {"frame": 3 * FRAME_SIZE * FRAME_SIZE, "features": 64 * 8}
    assert a_frame <= 4 * sum(bytes_of.values())
    assert (whole - held(WHOLE, 20)) / 20 > 20 * a_frame


def test_a_frozen_resnet_runs_in_chunks_without_a_graph() -> None:
    model: Any = small_model(visual_chunk=2, visual_checkpoint=True)
    prepare(model, "alignment", LossConfig())
    set_mode(model, "alignment")
    streams = model.encode(join(draw_clips(LENGTHS)))
    assert not streams.visual.requires_grad
    with torch.no_grad():
        expected = small_model().encode(join(draw_clips(LENGTHS))).visual
    torch.testing.assert_close(streams.visual, expected)


def test_channels_last_is_a_layout_and_no_other_result() -> None:
    seen: list[bool] = []
    built = stream(FrameBudget(None, False, True))
    built.backbone.layer2[0].register_forward_hook(
        lambda module, inputs, out: seen.append(
            out.is_contiguous(memory_format=torch.channels_last)
        )
    )
    out, found = gradients(built)
    whole, expected = gradients(stream(WHOLE))
    assert seen == [True]
    assert furthest([out], [whole]) <= 1e-12
    assert furthest(found, expected) <= 1e-12


@pytest.mark.long
def test_compiled_the_resnet_has_the_same_result_and_names(monkeypatch) -> None:
    """What is traced and differentiated is compared; the code of torch's compiler is torch's."""
    whole = nn.Module.compile
    monkeypatch.setattr(
        nn.Module, "compile", lambda self, **options: whole(self, backend="aot_eager", **options)
    )
    plain, compiled = (
        small_model(visual_norm="frozen"),
        small_model(visual_norm="frozen", visual_compile=True),
    )
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    for lengths in (LENGTHS, (4, 2)):
        batch = join(draw_clips(lengths))
        found, expected = compiled.encode(batch).visual, plain.encode(batch).visual
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        for a, b in zip(
            torch.autograd.grad(found.sum(), list(compiled.visual.parameters())),
            torch.autograd.grad(expected.sum(), list(plain.visual.parameters())),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max() + 1e-3))
    assert isinstance(compiled.visual.backbone, nn.Module)
