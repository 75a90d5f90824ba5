"""A GPU that is not there: CUDA tensors without memory, which know device, type and shape alone.

torch's fake tensors run the model's own code, forward and backward, and refuse what a GPU would
refuse: operands on two devices, types that do not fit, and everything that depends on a value, for
which a host would wait (``.item()``, ``nonzero``, masks as indices). :class:`Held` counts the bytes
of what is alive. What kernels take inside themselves is not seen, nor the allocator's gaps.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple, cast
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
)

from signfuse_dist.answer import answer
from signfuse_dist.batch import SignBatch
from signfuse_dist.cli import add_options, from_options, parse
from signfuse_dist.cli.training import add_run
from signfuse_dist.config import ModelConfig
from signfuse_dist.errors import UserError
from signfuse_dist.experiment import load_stages
from signfuse_dist.model.building import build_skeletal, build_visual
from signfuse_dist.model.dropout import drawn
from signfuse_dist.model.llm import LanguageModel
from signfuse_dist.model.signfuse import SignFuse
from signfuse_dist.preflight.frame_memory import Held
from signfuse_dist.skeleton import NUM_JOINTS
from signfuse_dist.synthetic.llm_shapes import ShapeName, llm_shape

CUDA = torch.device("cuda", 0)
_META = torch.device("meta")
_WHERE = torch.ops.prim.device.default
_WITHOUT_GRADIENT = (torch.ops.aten.detach.default,)


class FakeCuda(FakeTensorMode):
    """Fake tensors whose backward pass runs without a driver.

    Autograd asks CUDA for the streams of what it differentiates on CUDA, and there is none. So
    autograd is told that its tensors are on the meta device, and what it then makes there is made
    on CUDA. All others are told CUDA: Python, and autocast, which goes by it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._differentiates = False
        self._autocast = False
        self._leaves: list[Any] = []  # keeps where the gradients of leaves arrive
        self._results: list[Any] = []  # those of the last operation, not yet in the graph

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation on shapes."""
        if func is _WHERE:
            return self.told(args[0])
        kwargs = _on_cuda(kwargs)
        _refuse_waiting(func, args, kwargs)
        self._results = []
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if torch.is_grad_enabled() and func not in _WITHOUT_GRADIENT:
            given = tree_leaves((args, kwargs))
            if any(isinstance(x, Tensor) and x.requires_grad for x in given):
                self._results = tree_leaves(out)
        return out

    def told(self, tensor: FakeTensor) -> torch.device:
        """Return the device of a tensor for C++ that asks."""
        if self.in_kernel_invocation:
            return _META
        if tensor.fake_device.type != "cuda":
            return tensor.fake_device
        if not self._autocast or (self._differentiates and not torch.is_grad_enabled()):
            return _META
        # Autocast asks while it keeps itself from being called again. So does autograd inside such
        # a call, once for each result as that enters the graph.
        place = next((i for i, x in enumerate(self._results) if x is tensor), None)
        if place is not None:
            del self._results[place]
        asks = torch._C._dispatch_tls_is_dispatch_key_excluded(torch._C.DispatchKey.AutocastCUDA)
        return CUDA if asks and place is None else _META

    def move(self, module: nn.Module) -> None:
        """Do as ``module.to("cuda")``: registered parameters and buffers move, and nothing else."""
        moved: dict[int, Tensor] = {}
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None:
                    if id(parameter) not in moved:
                        like = nn.Parameter(_like(parameter), parameter.requires_grad)
                        moved[id(parameter)] = like
                        if parameter.requires_grad:
                            self.leaf(like)
                    part._parameters[name] = moved[id(parameter)]
            for name, buffer in part._buffers.items():
                if buffer is not None:
                    part._buffers[name] = _like(buffer)

    def leaf(self, tensor: Tensor) -> Tensor:
        """Return the tensor as a leaf that requires a gradient, entered into the graph.

        Autograd would ask of it inside the first operation, in which autocast asks too.
        """
        self._autocast = False
        with torch.enable_grad():
            self._leaves.append(tensor.requires_grad_().view_as(tensor).grad_fn)
        self.notice_autocast()
        return tensor

    def notice_autocast(self) -> None:
        """Look whether autocast is on; it seems off while it runs an operation."""
        self._autocast = torch.is_autocast_enabled("cuda")

    def backward(self, total: Tensor) -> None:
        """Run the backward pass from a sum of losses."""
        with self.differentiating():
            torch.autograd.backward(total)

    @contextmanager
    def differentiating(self) -> Iterator[None]:
        """Let backward passes run inside the block."""
        self._differentiates = True
        try:
            yield
        finally:
            self._differentiates = False


def _on_cuda(kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    found = dict(kwargs or {})
    if found.get("device") is not None and torch.device(found["device"]).type == "meta":
        found["device"] = CUDA
    return found


@contextmanager
def fake_cuda() -> Iterator[FakeCuda]:
    """Let tensors inside the block be fake, and CUDA an Ampere GPU, for all that Python asks."""
    outside, mode = FakeTensor.__torch_dispatch__, FakeCuda()

    def dispatch(cls: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _WHERE:
            return mode.told(args[0])
        return outside(func, types, args, _on_cuda(kwargs))

    enter, leave = torch.autocast.__enter__, torch.autocast.__exit__

    def entered(block: torch.autocast) -> Any:
        out = enter(block)
        mode.notice_autocast()
        return out

    def left(block: torch.autocast, *error: Any) -> Any:
        out = leave(block, *error)
        mode.notice_autocast()
        return out

    with ExitStack() as stack:
        for owner, name, value in (
            (FakeTensor, "__torch_dispatch__", classmethod(dispatch)),
            (torch.autocast, "__enter__", entered),
            (torch.autocast, "__exit__", left),
            (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
            (torch.cuda, "is_bf16_supported", lambda *_: True),
            (torch.cuda, "get_device_capability", lambda *_: (8, 0)),
            (torch.nn.functional, "scaled_dot_product_attention", _as_on_a_gpu),
        ):
            stack.enter_context(mock.patch.object(owner, name, value))
        yield stack.enter_context(mode)


class HostWaitsError(RuntimeError):
    """An operation for which the host would wait for the GPU; the traceback says where."""


def _refuse_waiting(func: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
    """Raise for a copy between GPU and host that is not asked to run beside the host.

    What looks into values, fake tensors refuse by themselves.
    """
    ends: tuple[Any, ...] = ()
    if func is torch.ops.aten._to_copy.default:
        beside = kwargs.get("non_blocking", False)
        ends = args[0].device, kwargs.get("device") or args[0].device
    elif func is torch.ops.aten.copy_.default:
        beside = kwargs.get("non_blocking", len(args) > 2 and args[2])
        ends = args[1].device, args[0].device
    if len({torch.device(end).type for end in ends}) > 1 and not beside:
        source, target = ends
        raise HostWaitsError(f"a copy from {source} to {target} makes the host wait")


def _as_on_a_gpu(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Do as ``scaled_dot_product_attention`` on an Ampere GPU: flash, or with a mask the efficient.

    torch chooses the kernel by asking CUDA for its properties. Types as autocast makes them.
    """
    if torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if enable_gqa:
        times = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(times, dim=1) for x in (key, value))
    half = query.dtype in (torch.float16, torch.bfloat16)
    if attn_mask is None and half:
        return torch.ops.aten._scaled_dot_product_flash_attention(
            query, key, value, dropout_p, is_causal, scale=scale
        )[0]
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            zero = torch.zeros_like(attn_mask, dtype=query.dtype)
            attn_mask = zero.masked_fill(~attn_mask, -torch.inf)
        shape = (*query.shape[:-1], key.shape[2])
        attn_mask = attn_mask.to(query.dtype).expand(shape)
    grad = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    return torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, grad, dropout_p, is_causal, scale=scale
    )[0]


def batch_on_cuda(batch: SignBatch) -> SignBatch:
    """Return a batch, made on the host, as it is on the GPU."""
    tensors = {n: _like(v) for n, v in vars(batch).items() if isinstance(v, Tensor)}
    return replace(batch, **tensors)


def _like(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=CUDA)


LLMS: tuple[ShapeName, ...] = ("llama2_7b", "flan_t5_xl")
PROMPT_TOKENS = 16
Loss = Callable[[SignBatch], Tensor]


class Peak(NamedTuple):
    """Bytes of a forward and backward pass.

    Without weights, their gradients and the batch. ``kept`` are those that the backward pass finds,
    ``most`` is the most at once.
    """

    kept: int
    most: int


def visual_part(config: ModelConfig) -> tuple[nn.Module, Loss]:
    """Return Eq. 2-3 and its pass."""
    stream = build_visual(config)

    def loss(batch: SignBatch) -> Tensor:
        lengths = batch.frame_lengths
        steps = (lengths + config.visual_stride - 1) // config.visual_stride
        out = stream(batch.frames, lengths, steps, batch.weight, batch.pose.shape[1])
        return cast(Tensor, out.sum())

    return stream, loss


def skeletal_part(config: ModelConfig) -> tuple[nn.Module, Loss]:
    """Return Eq. 4-5 and its pass."""
    stream = build_skeletal(config)

    def loss(batch: SignBatch) -> Tensor:
        out = stream(batch.pose, batch.joint_mask, batch.frame_lengths, batch.weight)
        return cast(Tensor, out.sum())

    return stream, loss


def fusion_part(config: ModelConfig, llm_dim: int) -> tuple[nn.Module, Loss]:
    """Return CMFA, HTA and SLA as the last stage runs them: CMFA on either stream and on both.

    The batch brings the streams' features.
    """
    model = SignFuse(config, (llm_dim, 1.0))
    model.visual, model.skeletal = nn.Identity(), nn.Identity()  # type: ignore[assignment]

    def loss(batch: SignBatch) -> Tensor:
        with drawn(model, batch.draws):
            streams = model.encode(batch)
            visual, skeletal = model.summarise(streams, "unimodal")
            signs, _ = model.embed_signs(streams)
        return visual.float().sum() + skeletal.float().sum() + signs.float().sum()

    return model, loss


def llm_part(config: ModelConfig, shape: PreTrainedConfig) -> tuple[nn.Module, Loss]:
    """Return a frozen LLM in bfloat16 with LoRA or one that trains whole, and its pass (Eq. 20)."""
    auto = AutoModelForSeq2SeqLM if shape.is_encoder_decoder else AutoModelForCausalLM
    whole = config.llm_training == "full"
    llm = auto.from_config(shape, dtype=torch.float32 if whole else torch.bfloat16)
    language = LanguageModel(llm, list(range(PROMPT_TOKENS)))
    if whole:
        language.train_whole()
    else:
        language.add_lora(config)

    def loss(batch: SignBatch) -> Tensor:
        assert batch.tokens is not None
        assert batch.text_lengths is not None
        # LoRA is in the first layer, so gradients reach all but the sign tokens themselves.
        count = len(batch.tokens), config.num_sign_tokens, language.llm_dim
        signs = torch.empty(count, device=CUDA)
        nll = language.negative_log_likelihood(signs, batch.tokens, batch.text_lengths)
        return nll.sum()

    return language, loss


def measure(
    build: Callable[[], tuple[nn.Module, Loss]], batch: SignBatch, bf16: bool = True
) -> Peak:
    """Return what a part takes in a forward and backward pass of a batch made on the host."""
    with torch.device("meta"):
        module, loss = build()
    with fake_cuda() as mode:
        mode.move(module.train())
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.empty_like(parameter)
        given = batch_on_cuda(batch)
        for features in (given.visual, given.skeletal):
            if features is not None:
                mode.leaf(features).grad = torch.empty_like(features)
        with Held("cuda") as held:
            with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
                total = loss(given)
            kept = held.now
            mode.backward(total)
    return Peak(kept, held.peak)


def blank_batch(config: ModelConfig, clips: int, frames: int, tokens: int, size: int) -> SignBatch:
    """Return a batch of equal clips on the host, whose values nobody reads."""
    return SignBatch(
        ids=tuple(map(str, range(clips))),
        frames=torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(clips * frames, 3, size, size),
        pose=torch.zeros(clips, frames, NUM_JOINTS, 2),
        joint_mask=torch.ones(clips, frames, NUM_JOINTS, dtype=torch.bool),
        frame_lengths=torch.full((clips,), frames),
        weight=torch.ones(clips),
        tokens=torch.zeros(clips, tokens, dtype=torch.long),
        text_lengths=torch.full((clips,), tokens),
        draws=torch.arange(clips),
    )


def with_blank_features(config: ModelConfig, batch: SignBatch, bf16: bool = True) -> SignBatch:
    """Return the batch with features in the place of frames and joints."""
    steps = -(-batch.pose.shape[1] // config.visual_stride)
    dtype = torch.bfloat16 if bf16 else torch.float32
    shape = (len(batch.ids), steps, config.dim)
    return batch.with_features(torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype))


@dataclass(frozen=True)
class PartsBench:
    """What is counted."""

    experiment: str
    overrides: Sequence[str]
    clips: int = field(default=8, metadata={"help": "in the batch (default: %(default)s)"})
    frames: int = field(default=128, metadata={"help": "of each clip (default: %(default)s)"})
    tokens: int = field(default=64, metadata={"help": "of each text (default: %(default)s)"})
    chunk: int = field(
        default=64, metadata={"help": "frames of a chunk of the ResNet (default: %(default)s)"}
    )


def run(bench: PartsBench) -> str:
    """Return a table: each part, what it keeps for its backward pass, and its most at once."""
    numbers = bench.clips, bench.frames, bench.tokens, bench.chunk
    if min(numbers) < 1:
        raise UserError(f"benchmarks/fake_cuda.py: {min(numbers)} is not at least 1")
    stage = load_stages(bench.experiment, bench.overrides)[-1]
    config, bf16 = stage.model, stage.train.precision == "bf16"
    batch = blank_batch(config, bench.clips, bench.frames, bench.tokens, stage.data.frame_size)
    name = config.visual_backbone
    chunked = replace(config, visual_chunk=bench.chunk)
    blocks = replace(config, visual_checkpoint=True)
    rows: list[tuple[str, Callable[[], tuple[nn.Module, Loss]], SignBatch]] = [
        (f"{name}, whole", lambda: visual_part(config), batch),
        (f"{name}, chunks of {bench.chunk}", lambda: visual_part(chunked), batch),
        (f"{name}, by blocks", lambda: visual_part(blocks), batch),
        ("ST-GCN", lambda: skeletal_part(config), batch),
        (
            "CMFA three times, HTA, SLA",
            lambda: fusion_part(config, 4096),
            with_blank_features(config, batch, bf16),
        ),
    ]
    for name in LLMS:
        rows.append((f"{name} with LoRA", partial(llm_part, config, llm_shape(name)), batch))
    lines = [f"{'part':32}{'kept, MB':>12}{'most, MB':>12}"]
    for part, build, given in rows:
        peak = measure(build, given, bf16)
        lines.append(f"{part:32}{peak.kept / 1e6:12.0f}{peak.most / 1e6:12.0f}")
    head = (
        f"by fake tensors: {bench.clips} clips of {bench.frames} frames of "
        f"{stage.data.frame_size} pixels, {bench.tokens} tokens, {stage.train.precision}, torch "
        f"{torch.__version__}"
    )
    return "\n".join([head, *lines])


def main(arguments: Sequence[str] | None = None) -> int:
    """Count what the command line asks for, print the figures, return the exit status."""
    command = argparse.ArgumentParser(
        prog="python benchmarks/fake_cuda.py",
        description="Count the memory that each part of the model takes on a GPU, forward and "
        "backward, by fake CUDA tensors: beside its weights, their gradients and the batch. Needs "
        "no GPU and no memory.",
        epilog="Example: python benchmarks/fake_cuda.py phoenix14t --clips 8 --frames 128. "
        "Figures: docs/benchmarks.md.",
    )
    add_run(command)
    add_options(command, PartsBench)
    command.set_defaults(run=_parts)
    options = parse(command, arguments)
    return answer(lambda: options.run(options))


def _parts(options: argparse.Namespace) -> int:
    run_of = {"experiment": options.experiment, "overrides": options.overrides}
    print(run(from_options(PartsBench, options, **run_of)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
