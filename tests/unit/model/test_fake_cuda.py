"""The paper's model on CUDA, forward and backward, by tensors that know device, type and shape.

No GPU is needed: an operand that was left on the host, a type that does not fit and an operation
for which the host would wait are errors of torch's fake tensors.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.fake_cuda import CUDA, FakeCuda, batch_on_cuda, fake_cuda
from helpers.fake_steps import build, clips, language_model, llm_config, table1, take_step
from signfuse_dist.batch import SignBatch
from signfuse_dist.config import STAGES, LossConfig, StageName
from signfuse_dist.model import attention, hta, losses, signfuse
from signfuse_dist.model.attention import BACKENDS, Attention
from signfuse_dist.model.signfuse import SignFuse, Streams

LOSS = LossConfig()
DIM = 512
each_stage = pytest.mark.parametrize("stage", STAGES)


def step(
    stage: StageName, llm: str = "llama", loss: LossConfig = LOSS, **changes: Any
) -> tuple[dict[str, Tensor], SignFuse]:
    """Take a step of two clips; return losses and model."""
    model, batch = build(stage, table1(**changes), llm_config(llm), loss), clips([6, 3])
    with fake_cuda() as mode:
        mode.move(model)
        return take_step(mode, model, stage, batch, loss), model


def assert_trained(found: tuple[dict[str, Tensor], torch.nn.Module]) -> None:
    sums, model = found
    for name, value in sums.items():
        assert (value.dtype, value.device) == (torch.float32, CUDA), name
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert (parameter.grad.dtype, parameter.grad.device) == (parameter.dtype, CUDA), name
        else:
            assert parameter.grad is None, name


@each_stage
def test_a_stage_runs_on_cuda_in_bf16_and_the_host_waits_for_nothing(stage: StageName) -> None:
    """Of Table 1's model; its ResNet-50 trains in the first stage, the others have a small one."""
    changes = {} if stage == "contrastive" else {"visual_backbone": "resnet10"}
    assert_trained(step(stage, **changes))


@pytest.mark.long
def test_a_stage_with_an_encoder_decoder_runs_on_cuda() -> None:
    assert_trained(step("finetune", "t5", streams="skeletal", loss=_without_contrastive()))


def _without_contrastive() -> LossConfig:
    return replace(LOSS, contrastive_weight=0.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"visual_backbone": "resnet18", "visual_norm": "group", "norm": "layer"},
        pytest.param(
            {
                "visual_backbone": "resnet10",
                "joint_frame": "body",
                "joint_velocity": True,
                "joint_presence": True,
                "joint_statistics": "present",
            },
            marks=pytest.mark.long,
        ),
        pytest.param({"visual_chunk": 4, "visual_checkpoint": True}, marks=pytest.mark.long),
        {"visual_backbone": "resnet10", "visual_chunk": 4, "visual_checkpoint": True},
        pytest.param(
            {"visual_backbone": "resnet10", "visual_channels_last": False, "norm": "local"},
            marks=pytest.mark.long,
        ),
    ],
    ids=str,
)
def test_each_backbone_norm_and_way_to_run_it_is_at_home_on_cuda(changes: dict[str, Any]) -> None:
    assert_trained(step("contrastive", **changes))


@pytest.mark.parametrize(("asked", "last"), [("auto", True), (False, False)])
def test_pictures_have_their_channels_last_on_a_gpu_unless_asked_otherwise(
    asked: Any, last: bool
) -> None:
    config = table1(visual_backbone="resnet10", visual_channels_last=asked)
    model, batch = build("contrastive", config, None, LOSS), clips([6, 3])
    assert model.visual is not None
    seen: list[bool] = []
    # Of the first convolution's input: without a GPU, torch does not know what cuDNN makes of it.
    model.visual.backbone.conv1.register_forward_pre_hook(
        lambda module, inputs: seen.append(
            inputs[0].is_contiguous(memory_format=torch.channels_last)
        )
    )
    with fake_cuda() as mode:
        mode.move(model)
        take_step(mode, model, "contrastive", batch, LOSS)
    assert seen == [last]


@pytest.mark.long
def test_a_batch_of_clips_with_other_streams_runs_on_cuda() -> None:
    """The first has no pictures, the second no joints: nothing asks the device which."""
    stage: StageName = "contrastive"
    batch = clips([6, 3])
    batch = replace(
        batch,
        frames=batch.frames[:3],
        has_visual=torch.tensor([False, True]),
        has_skeletal=torch.tensor([True, False]),
    )
    model = build(stage, table1(visual_backbone="resnet10"), llm_config("llama"), LOSS)
    with fake_cuda() as mode:
        mode.move(model)
        assert_trained((take_step(mode, model, stage, batch, LOSS), model))


@pytest.mark.long
@pytest.mark.parametrize("positions", ["sinusoidal", "rotary", "distance"])
def test_positions_are_made_on_cuda(positions: str) -> None:
    fuse("sdpa", [6, 3], positions=positions)


def features(mode: FakeCuda, batch: SignBatch) -> Streams:
    """What the encoders would give, a step a frame, on CUDA in bfloat16."""
    lengths = batch.known_lengths
    assert lengths is not None
    made = [
        torch.zeros(len(lengths), max(lengths), DIM, device=CUDA, dtype=torch.bfloat16)
        for _ in range(2)
    ]
    steps = batch_on_cuda(batch).frame_lengths
    return Streams(*(mode.leaf(x) for x in made), steps, sum(lengths))


def fuse(backend: str, lengths: list[int], **changes: Any) -> list[int]:
    """Run CMFA, HTA and SLA on features, forward and backward; return the heads of attention."""
    batch = clips(lengths)
    with torch.device("meta"):
        model = SignFuse(table1(attention=backend, **changes), (4096, 1.0))
    model.train()
    with fake_cuda() as mode:
        mode.move(model)
        model.visual = model.skeletal = torch.nn.Identity()  # type: ignore[assignment]
        with torch.autocast("cuda", torch.bfloat16):
            streams = features(mode, batch)
            signs, _ = model.embed_signs(streams)
            visual, skeletal = model.summarise(streams, "unimodal")
            terms = losses.contrastive(visual, skeletal, torch.ones(len(lengths), device=CUDA), 0.1)
        mode.backward(signs.float().sum() + terms.sum())
        assert_trained(({"contrastive": terms.sum()}, model))
    return [m.num_heads for m in model.modules() if isinstance(m, Attention)]


def _flash_attn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that has torch's kernel under flash-attn's name and arguments."""

    def flash_attn_varlen_func(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        deterministic: bool = False,
    ) -> Any:
        from torch.nn.attention.varlen import varlen_attn

        return varlen_attn(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)

    package = types.ModuleType("flash_attn")
    package.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", package)


@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
def test_each_attention_backend_is_given_what_it_takes_on_cuda(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _flash_attn(monkeypatch)
    attention._choose.cache_clear()
    try:
        assert fuse(backend, [150, 3], fusion_layers=1) == [8] * 3
    finally:
        attention._choose.cache_clear()


@pytest.mark.parametrize(
    "fusion", ["concat", "sum", "visual_from_skeletal", "skeletal_from_visual", "no_gate"]
)
def test_each_fusion_and_fewer_scales_are_at_home_on_cuda(fusion: str) -> None:
    fuse("sdpa", [9, 4], fusion=fusion, fusion_layers=1, scales=("segment",))


@pytest.mark.parametrize("llm", ["llama", "mistral", "qwen2", "gpt2", "t5", "mt5", "bart"])
def test_each_family_of_llms_reads_sign_tokens_on_cuda(llm: str) -> None:
    """Frozen in bfloat16 with LoRA in float32, as the last stage has it."""
    with torch.device("meta"):
        language = language_model(llm_config(llm))
        language.add_lora(table1())
    language.train()
    on_host = clips([6, 3])
    with fake_cuda() as mode:
        mode.move(language)
        batch = batch_on_cuda(on_host)
        shape = (2, 32, language.llm_dim)
        signs = mode.leaf(torch.zeros(shape, device=CUDA))
        assert batch.tokens is not None
        assert batch.text_lengths is not None
        with torch.autocast("cuda", torch.bfloat16):
            nll = language.negative_log_likelihood(signs, batch.tokens, batch.text_lengths)
        mode.backward(nll.sum())
        assert signs.grad is not None
        assert_trained(({"language": nll}, language))


def test_augmentation_runs_on_cuda() -> None:
    warp, colour = torch.zeros(2, 2, 3), torch.zeros(2, 3, 4)
    batch = replace(clips([6, 3]), warp=warp, colour=colour)
    with fake_cuda():
        frames = batch_on_cuda(batch).augmented().frames
    assert (frames.device, frames.dtype, frames.shape) == (CUDA, torch.uint8, (9, 3, 224, 224))


def test_gradient_caching_runs_on_cuda() -> None:
    with fake_cuda() as mode:
        sides = [torch.zeros(2, DIM, device=CUDA, dtype=torch.bfloat16) for _ in range(4)]
        pairs = [(sides[0], sides[1]), (sides[2], sides[3])]
        weights = [torch.ones(2, device=CUDA) for _ in pairs]
        with mode.differentiating():
            parts = losses.contrastive_in_parts(pairs, weights, 0.1)
        replayed = [x.clone().requires_grad_() for x in pairs[0]]
        value = losses.replay((replayed[0], replayed[1]), parts[0])
        mode.backward(value)
        assert all(x.grad is not None and x.grad.dtype == torch.bfloat16 for x in replayed)


# What a GPU would refuse, or the host would wait for, put into a part of the model.
FAULTS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "left on the host": (lambda x: x.cpu(), "makes the host wait"),
    "a constant on the host": (lambda x: x * torch.ones(x.shape[-1]), "device"),
    "float64": (
        lambda x: x * torch.ones(x.shape[-1], dtype=torch.float64, device=CUDA),
        "Double|dtype",
    ),
    "made on the host": (lambda x: x * torch.tensor([2.0], device=x.device), "the host wait"),
    "item()": (lambda x: x * x.sum().item(), "_local_scalar_dense"),
    "tolist()": (lambda x: x * x[0, 0].tolist()[0], "_local_scalar_dense"),
    "if": (lambda x: x if x.sum() > 0 else -x, "_local_scalar_dense"),
    "nonzero": (lambda x: x * len((x > 0).nonzero()), "nonzero"),
    "a mask as an index": (lambda x: x * x[x > 0].mean(), "nonzero"),
    "torch.equal": (lambda x: x if torch.equal(x, x) else -x, "equal"),
    "unique": (lambda x: x * len(torch.unique(x)), "unique"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_gpu_would_refuse_or_the_host_would_wait_for_is_an_error_at_its_place(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, said = FAULTS[fault]
    whole = hta._pool

    def faulty(*inputs: Any) -> Tensor:
        return change(whole(*inputs))

    monkeypatch.setattr(hta, "_pool", faulty)
    with pytest.raises(Exception, match=said) as error:
        fuse("sdpa", [4, 2], fusion="sum", fusion_layers=1)
    assert any(entry.name in ("faulty", "forward") for entry in error.traceback)


def test_a_loss_of_another_type_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = signfuse._mean_over_steps
    monkeypatch.setattr(signfuse, "_mean_over_steps", lambda *x: whole(*x).double())
    with pytest.raises(AssertionError, match="contrastive"):
        fuse("sdpa", [4, 2], fusion="sum", fusion_layers=1)
