"""Memory of a GPU and room on the disk for a run, estimated by arithmetic.

Of a process's memory these are exact: weights, gradients and Adam's moments, and ZeRO-2's buckets.
Activations are estimated. Those of the ResNet are most of them, and were compared with
measurements (docs/benchmarks.md); the LLM's are those of a layer of a transformer without stored
attention weights, 34 bytes a token and channel in bfloat16 (Korthikanti et al., 2022, Eq. 2).
"""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from signfuse_dist.config import SCALES, LossConfig, ModelConfig, RunConfig, StageName
from signfuse_dist.errors import UserError
from signfuse_dist.preflight.finding import Finding, error, ok, warning
from signfuse_dist.preflight.llm_files import LLMFiles
from signfuse_dist.skeleton import NUM_JOINTS, PARTITIONS
from signfuse_dist.stages import trained_parts

# Cross-attentions of each fusion.
_DIRECTIONS = {
    "cmfa": 2,
    "no_gate": 2,
    "visual_from_skeletal": 1,
    "skeletal_from_visual": 1,
    "concat": 0,
    "sum": 0,
}
_DEPTHS = {"resnet10": (1, 1, 1, 1), "resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}


class _Conv(NamedTuple):
    """A convolution without bias and its norm; ``side`` is that of its output in pixels."""

    inputs: int
    outputs: int
    kernel: int
    side: int

    @property
    def parameters(self) -> int:
        return self.inputs * self.outputs * self.kernel**2 + 2 * self.outputs

    @property
    def activations(self) -> int:
        return self.outputs * self.side**2


def _half(side: int) -> int:
    return (side + 1) // 2


def _blocks(config: ModelConfig, frame_size: int) -> Iterator[list[_Conv]]:
    """Yield the convolutions of the stem and of each residual block."""
    if config.visual_backbone not in _DEPTHS:
        raise UserError(
            f"model.visual_backbone={config.visual_backbone}: its memory is not known; add its "
            "layers to signfuse_dist/preflight/memory.py"
        )
    width, bottleneck = config.visual_width, config.visual_backbone == "resnet50"
    side = _half(frame_size)
    yield [_Conv(3, width, 7, side)]
    side, planes = _half(side), width
    for layer, depth in enumerate(_DEPTHS[config.visual_backbone]):
        inner = width * 2**layer
        outer = inner * (4 if bottleneck else 1)
        for place in range(depth):
            before, side = side, _half(side) if layer and not place else side
            if bottleneck:
                block = [
                    _Conv(planes, inner, 1, before),
                    _Conv(inner, inner, 3, side),
                    _Conv(inner, outer, 1, side),
                ]
            else:
                block = [_Conv(planes, inner, 3, side), _Conv(inner, outer, 3, side)]
            if before != side or planes != outer:
                block.append(_Conv(planes, outer, 1, side))
            yield block
            planes = outer


def frame_values(config: ModelConfig, frame_size: int) -> int:
    """Return how many numbers of one frame the ResNet holds for its backward pass.

    Of each convolution its output, and the norm's. By blocks (``model.visual_checkpoint``): each
    block's input, and all of the largest block with half as much again for its gradients.
    """
    blocks = [sum(2 * c.activations for c in block) for block in _blocks(config, frame_size)]
    if not config.visual_checkpoint:
        return sum(blocks)
    inputs = [block[0].inputs * _side_before(block) ** 2 for block in _blocks(config, frame_size)]
    return sum(inputs) + 3 * max(blocks) // 2


def _side_before(block: list[_Conv]) -> int:
    """Return the side of a block's input: a last 1x1 shortcut tells whether it halves."""
    first = block[0]
    halves = first.kernel == 7 or (first.kernel == 3 and len(block) == 3)
    return first.side * 2 if halves else first.side


def parameters(config: ModelConfig, llm_dim: int) -> dict[str, int]:
    """Return the parameters of each component, without the LLM and LoRA."""
    dim = config.dim
    counts = {
        "visual": _visual(config),
        "skeletal": _skeletal(config),
        "fusion": fusion_parameters(config),
        "temporal": _temporal(config),
        "adapter": dim * llm_dim + llm_dim + llm_dim**2 + llm_dim + 2 * llm_dim,
    }
    absent = {"both": "", "visual": "skeletal", "skeletal": "visual"}[config.streams]
    return {name: count for name, count in counts.items() if name != absent}


def count_trained(
    config: ModelConfig, loss: LossConfig, stage: StageName, llm_dim: int, lora: int
) -> int:
    """Return how many parameters of a stage train; ``lora`` are those of LoRA."""
    counts = parameters(config, llm_dim) | {"lora": lora}
    # Of CMFA "attended" features reach the first layer's attention alone, named below it.
    return sum(
        counts.get(part, _attention(config.dim) if "." in part else 0)
        for part in trained_parts(stage, loss)
    )


def _visual(config: ModelConfig) -> int:
    blocks = list(_blocks(config, 64))
    resnet = sum(conv.parameters for block in blocks for conv in block)
    outputs = max(conv.outputs for conv in blocks[-1])
    return resnet + outputs * config.dim * config.visual_kernel + 2 * config.dim


def _skeletal(config: ModelConfig) -> int:
    count, before = 2 * 2 * NUM_JOINTS, 2
    for width, stride in zip(config.skeletal_channels, config.skeletal_strides, strict=True):
        count += len(PARTITIONS) * before * width + 2 * width
        count += width * width * config.skeletal_kernel + 2 * width
        if before != width or stride != 1:
            count += before * width + width
        before = width
    return count


def _attention(dim: int) -> int:
    return 4 * dim**2 + dim


def knows(config: ModelConfig) -> bool:
    """Return whether the fusion is one of section 5.4, whose parameters are known by arithmetic."""
    return config.fusion in _DIRECTIONS


def fusion_parameters(config: ModelConfig) -> int:
    """Return the parameters of the fusion.

    One that is not known here is built without memory in a process of its own, which imports torch
    and takes seconds; raises UserError when it cannot be built.
    """
    if not knows(config):
        return _built_parameters(json.dumps(asdict(config)))
    dim, inner = config.dim, config.ffn_multiplier * config.dim
    mixing = _DIRECTIONS[config.fusion] * _attention(dim)
    if config.fusion in ("cmfa", "concat"):
        mixing += 2 * dim * dim + dim
    layer = mixing + 4 * dim + dim * inner + inner + inner * dim + dim
    return config.fusion_layers * layer


@functools.cache
def _built_parameters(config: str) -> int:
    done = subprocess.run(
        [sys.executable, "-m", "signfuse_dist.preflight.parameters"],
        input=config,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return int(done.stdout.split()[-1])
    last = done.stderr.strip().rpartition("\n")[2] or f"status {done.returncode}"
    raise UserError(f"model.fusion={json.loads(config)['fusion']} cannot be built: {last}")


def _temporal(config: ModelConfig) -> int:
    dim, count = config.dim, 0
    if not config.scales:
        return 0
    for name in config.scales:
        count += dim * config.scale_kernels[SCALES.index(name)] + dim + dim * dim + dim
    count += len(config.scales) * dim * dim + dim
    return count + 3 * dim * dim + dim * dim + dim + 2 * dim


_LAYER_BYTES = 34.0  # of a token and channel, in bfloat16
_TEXT_TOKENS = 64  # of a long sentence; with the prompt, which has about 16
_PROMPT_TOKENS = 16
_CUDA = 1.5e9  # context, libraries, the allocator's gaps
_TIGHT = 0.85  # of a GPU's memory: above it an estimate is no promise


@dataclass(frozen=True)
class Need:
    """Bytes on one GPU, by what they are for."""

    llm: float
    weights: float
    optimizer: float
    resnet: float
    language: float

    @property
    def total(self) -> float:
        return self.llm + self.weights + self.optimizer + self.resnet + self.language + _CUDA

    def __str__(self) -> str:
        parts = {
            "LLM": self.llm,
            "weights and gradients": self.weights,
            "optimizer": self.optimizer,
            "activations of the encoders": self.resnet,
            "of the LLM": self.language,
            "CUDA": _CUDA,
        }
        return ", ".join(f"{name} {value / 1e9:.1f}" for name, value in parts.items() if value)


def estimate(
    run: RunConfig, llm: LLMFiles | None, frames: int, world_size: int, bucket: int | None
) -> Need:
    """Return the bytes that a process of a stage needs on its GPU.

    Args:
        run: the stage.
        llm: its LLM, None in the contrastive stage.
        frames: of the fullest micro batch.
        world_size: processes that share gradients and moments.
        bucket: numbers in a bucket of ZeRO-2, None for plain DDP, 0 where it is not known.
    """
    llm_dim = llm.llm_dim if llm else 0
    lora = llm.lora_parameters(run.model) if llm and run.stage.name == "finetune" else 0
    every = sum(parameters(run.model, llm_dim).values()) + lora
    trained = count_trained(run.model, run.loss, run.stage.name, llm_dim, lora)
    shared = 4 + 8 + 4  # gradients, moments, and ZeRO's copy of the weights, in float32
    buckets = trained * 4 + trained * 12 if bucket is None else 2 * 4 * bucket
    sharded = 0 if bucket is None else shared * trained / world_size
    return Need(
        llm=llm.bytes_loaded(run.model) if llm else 0.0,
        weights=4.0 * every,
        optimizer=buckets + sharded,
        resnet=_encoders(run, frames),
        language=_language(run, llm) if llm else 0.0,
    )


def _encoders(run: RunConfig, frames: int) -> float:
    """Return the activations of the fullest micro batch; a frozen ResNet holds none of them."""
    each = 2.2 if run.train.precision == "bf16" else 4.0
    pictures = 0.0
    if run.model.streams != "skeletal":
        pictures = frames * 3.0 * run.data.frame_size**2
        if run.stage.name != "alignment":
            at_once = min(frames, run.model.visual_chunk or frames)
            pictures += at_once * each * frame_values(run.model, run.data.frame_size)
    joints = 6.0 * frames * NUM_JOINTS * sum(run.model.skeletal_channels) * each
    return pictures + (joints if run.model.streams != "visual" else 0.0)


def _language(run: RunConfig, llm: LLMFiles) -> float:
    tokens = run.train.micro_batch_size * (
        run.model.num_sign_tokens + _PROMPT_TOKENS + _TEXT_TOKENS
    )
    each = _LAYER_BYTES * (2 if run.model.llm_dtype == "float32" else 1)
    vocabulary = int(llm.config.get("vocab_size") or 0)
    # Logits, and their softmax and its gradient in float32.
    return tokens * (each * llm.llm_dim * llm.num_layers + 12.0 * vocabulary)


def judge_gpu(stage: str, need: Need, frames: int, gigabytes: float | None) -> Finding:
    """Compare a stage's need with a GPU's memory in GB, where that is known."""
    what = f"memory of a GPU in stage {stage}"
    said = f"about {need.total / 1e9:.1f} GB ({need}; {frames} frames at most)"
    if gigabytes is None:
        return ok(what, f"{said}; no GPU here to compare with, --gpu-memory GB names one")
    said += f" of {gigabytes:.0f} GB"
    fix = (
        "A smaller train.micro_batch_size, model.visual_chunk=64, model.visual_checkpoint=true, "
        "a smaller data.max_frames or model.llm_quantization=8bit"
    )
    if need.total > gigabytes * 1e9:
        return error(what, said, fix)
    if need.total > gigabytes * 1e9 * _TIGHT:
        return warning(what, said, f"It is an estimate. {fix}")
    return ok(what, said)


def judge_disk(runs: Sequence[RunConfig], llms: Sequence[LLMFiles | None]) -> Finding:
    """Compare the room for checkpoints and models of all stages with what is free."""
    needed = 0.0
    for run, llm in zip(runs, llms, strict=True):
        llm_dim = llm.llm_dim if llm else 0
        lora = llm.lora_parameters(run.model) if llm and run.stage.name == "finetune" else 0
        trained = count_trained(run.model, run.loss, run.stage.name, llm_dim, lora)
        every = sum(parameters(run.model, llm_dim).values()) + lora
        # One more while it is written, one more for the best; then the stage's model.
        needed += (run.train.keep_checkpoints + 2) * 12.0 * trained + 4.0 * every
    place = Path(runs[0].train.output).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    what = f"disk at {place}"
    said = f"{free / 1e9:.1f} GB free, checkpoints and models take {needed / 1e9:.1f}"
    if needed > free:
        return error(what, said, "Make room, train.output=FOLDER, or train.keep_checkpoints=1")
    return ok(what, said)
