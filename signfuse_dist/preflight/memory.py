"""Memory of a GPU and room on the disk for a run, estimated by arithmetic.

Of a process's memory these are exact: weights, gradients and Adam's moments, and ZeRO-2's buckets.
Activations are estimated, within 10 % of what fake tensors find (docs/benchmarks.md): their figures
are those of torch's and transformers' own code. With them ``model.visual_chunk: auto`` is decided
(:func:`resolve_chunk`).
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

from signfuse_dist.config import SCALES, LossConfig, ModelConfig, RunConfig, StageName
from signfuse_dist.data.blended import find_vector_dim
from signfuse_dist.errors import UserError, on_one_line
from signfuse_dist.plan import divisors_that_fit
from signfuse_dist.preflight.aside import ask_aside
from signfuse_dist.preflight.finding import Finding, error, ok, warning
from signfuse_dist.preflight.llm_files import LLMFiles
from signfuse_dist.preflight.vision_files import frame_memory, usable_vision_files, vision_bytes
from signfuse_dist.skeleton import JOINT_GROUPS, PARTITIONS, choose_joints
from signfuse_dist.stages import needs_language_model, trained_parts, trains_llm

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


class FrameBytes(NamedTuple):
    """Bytes of the ResNet for one frame: those kept for its backward pass, and the most at once."""

    kept: float
    most: float


def frame_bytes(config: ModelConfig, frame_size: int, bf16: bool) -> FrameBytes:
    """Return what one frame takes in the ResNet, whole or by blocks (``model.visual_checkpoint``).

    Kept are of each convolution its output and the norm's, of pooling its result and the places,
    int64, and the picture in float32 and as it is computed on. A block's backward pass adds about
    one of its outputs. By blocks: each block's input, and in the backward pass one block whole.
    """
    each = 2.0 if bf16 else 4.0
    blocks = list(_blocks(config, frame_size))
    stem = blocks[0][0]
    picture = 3 * frame_size**2 * (4.0 + (each if bf16 else 0.0))
    pooled = stem.outputs * _half(stem.side) ** 2
    # What is added to a shortcut is not kept: a block's last norm when it has a convolution there.
    usual = 3 if config.visual_backbone == "resnet50" else 2
    inside = [
        sum(2 * c.activations for c in block) * each
        - (block[-1].activations * each if len(block) > usual else 0.0)
        for block in blocks
    ]
    inside[0] += picture + pooled * 8.0
    inputs = [3 * frame_size**2 * 4.0, pooled * each]
    inputs += [block[2 if len(block) > 2 else 1].activations * each for block in blocks[1:-1]]
    ends = [max(c.activations for c in block[-2:]) * each for block in blocks]
    if not config.visual_checkpoint:
        kept = sum(inside) + pooled * each
        return FrameBytes(kept, kept + ends[-1])
    held, most = 0.0, 0.0
    for given, own, end in zip(inputs, inside, ends, strict=True):
        held += given
        most = max(most, held + own + end)
    return FrameBytes(held, most)


def parameters(config: ModelConfig, llm_dim: int, vector_dim: int = 0) -> dict[str, int]:
    """Return the parameters of each component, without the LLM and LoRA.

    ``vector_dim`` is the numbers of a frame in the feature sets that the model sees.
    """
    dim = config.dim
    counts = {
        "visual": _visual(config, vector_dim),
        "skeletal": _skeletal(config),
        "fusion": fusion_parameters(config),
        "temporal": _temporal(config),
        "adapter": dim * llm_dim + llm_dim + llm_dim**2 + llm_dim + 2 * llm_dim,
    }
    absent = {"both": "", "visual": "skeletal", "skeletal": "visual"}[config.streams]
    return {name: count for name, count in counts.items() if name != absent}


def count_trained(
    config: ModelConfig,
    loss: LossConfig,
    stage: StageName,
    llm_dim: int,
    of_llm: int,
    vector_dim: int = 0,
) -> int:
    """Return how many parameters of a stage train; ``of_llm`` are those that the LLM trains."""
    counts = parameters(config, llm_dim, vector_dim) | {"llm": of_llm}
    if "visual" in counts and not config.trains_backbone:
        counts["visual"] -= _backbone(config)
    # Of CMFA "attended" features reach the first layer's attention alone, named below it.
    return sum(
        counts.get(part, _attention(config.dim) if "." in part else 0)
        for part in trained_parts(stage, loss, config)
    )


def _visual(config: ModelConfig, vector_dim: int) -> int:
    if config.feature_sets:
        return vector_dim * config.dim * config.visual_kernel + 2 * config.dim
    if config.vision_model is not None:
        files = usable_vision_files(config)
        own = 0 if files is None else files.num_weights
        dim = 0 if files is None or files.dim is None else files.dim  # not known before it is made
        return own + dim * config.dim * config.visual_kernel + 2 * config.dim
    blocks = list(_blocks(config, 64))
    resnet = sum(conv.parameters for block in blocks for conv in block)
    outputs = max(conv.outputs for conv in blocks[-1])
    return resnet + outputs * config.dim * config.visual_kernel + 2 * config.dim


def _backbone(config: ModelConfig) -> int:
    """Return the parameters of the network of pictures by itself."""
    if config.feature_sets:
        return 0
    if config.vision_model is not None:
        files = usable_vision_files(config)
        return 0 if files is None else files.num_weights
    return sum(conv.parameters for block in _blocks(config, 64) for conv in block)


def _skeletal(config: ModelConfig) -> int:
    body, more = config.joint_frame == "body", config.joint_velocity
    coordinates = 2 + 2 * body + 2 * more
    joints = choose_joints(config.joints)
    count, before = 2 * coordinates * len(joints), coordinates + config.joint_presence
    for width, stride in zip(config.skeletal_channels, config.skeletal_strides, strict=True):
        count += len(PARTITIONS) * before * width + 2 * width
        count += width * width * config.skeletal_kernel + 2 * width
        if before != width or stride != 1:
            count += before * width + width
        before = width
    if config.joint_pooling == "groups":
        count += sum(not set(joints).isdisjoint(g) for g in JOINT_GROUPS.values()) * before**2
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
    try:
        return int(ask_aside("parameters", json.loads(config)))
    except UserError as e:  # or a machine's error, which stays one
        what = f"model.fusion={json.loads(config)['fusion']}"
        raise type(e)(f"{what} cannot be built: {on_one_line(e)}") from e


def _temporal(config: ModelConfig) -> int:
    dim, count = config.dim, 0
    if not config.scales:
        return 0
    for name in config.scales:
        count += dim * config.scale_kernels[SCALES.index(name)] + dim + dim * dim + dim
    count += len(config.scales) * dim * dim + dim
    return count + 3 * dim * dim + dim * dim + dim + 2 * dim


_TEXT_TOKENS = 64  # of a long sentence; with the prompt, which has about 16
_PROMPT_TOKENS = 16
_CUDA = 1.5e9  # context, libraries, the allocator's gaps
_MODEST = 64
_CHUNKS = (512, 256, 128, 64, 32, 16)  # that `auto` tries
_TIGHT = 0.85  # of a GPU's memory: above it an estimate is no promise


@dataclass(frozen=True)
class Need:
    """Bytes on one GPU, by what they are for.

    Of activations ``kept`` are those of encoders and fusion while the LLM is run, ``language`` the
    LLM's, ``again`` what the ResNet takes on top in the backward pass, after the LLM's.
    """

    llm: float
    weights: float
    optimizer: float
    kept: float
    again: float
    language: float

    @property
    def total(self) -> float:
        return self.llm + self.weights + self.optimizer + self.activations + _CUDA

    @property
    def activations(self) -> float:
        """The backward pass has left the LLM when it computes a part of the ResNet again."""
        return self.kept + max(self.again, self.language)

    def __str__(self) -> str:
        parts = {
            "LLM": self.llm,
            "weights and gradients": self.weights,
            "optimizer": self.optimizer,
            "activations": self.activations,
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
    of_llm = _trained_of_llm(run, llm)
    dim = find_vector_dim(run) or 0
    every = sum(parameters(run.model, llm_dim, dim).values()) + of_llm
    trained = count_trained(run.model, run.loss, run.stage.name, llm_dim, of_llm, dim)
    whole = trains_llm(run.stage.name, run.model)
    average = 0.0 if run.train.weight_average is None else 4.0 * trained
    shared = 4 + 8 + 4  # gradients, moments, and ZeRO's copy of the weights, in float32
    buckets = trained * 4 + trained * 12 if bucket is None else 2 * 4 * bucket
    sharded = 0 if bucket is None else shared * trained / world_size
    kept, again = _visual_bytes(run, frames) if run.model.streams != "skeletal" else (0.0, 0.0)
    if run.model.streams != "visual":
        kept += _skeletal_bytes(run, frames)
    return Need(
        llm=llm.bytes_loaded(run.model) if llm and not whole else 0.0,
        weights=4.0 * every + average,
        optimizer=buckets + sharded,
        kept=kept + _fusion_bytes(run, frames, llm_dim),
        again=again,
        language=_language(run, llm) if llm else 0.0,
    )


def _trained_of_llm(run: RunConfig, llm: LLMFiles | None) -> int:
    """Return how many numbers the LLM trains in a stage: LoRA's, or all of its own."""
    if llm is None or run.stage.name != "finetune" or run.model.llm_training == "frozen":
        return 0
    if trains_llm(run.stage.name, run.model):
        return int(llm.num_weights)
    return llm.lora_parameters(run.model)


def _visual_bytes(run: RunConfig, frames: int) -> tuple[float, float]:
    """Return the bytes of the visual stream for the backward pass, and those computed again in it.

    Whole and by blocks the second are what comes on top. A frozen ResNet keeps nothing.
    """
    model, size = run.model, run.data.frame_size
    bf16 = run.train.precision == "bf16"
    if model.feature_sets:  # as they come and as they are computed on
        return frames * (find_vector_dim(run) or 0) * (6.0 if bf16 else 4.0), 0.0
    pictures = frames * 3.0 * size**2
    if model.vision_model is not None:
        return vision_bytes(run, frames, pictures)
    each = frame_bytes(model, size, bf16)
    casts = 2.0 * _visual(model, 0) if bf16 else 0.0
    chunk = frames if model.visual_chunk in (None, "auto") else min(frames, int(model.visual_chunk))
    if run.stage.name == "alignment":  # a few feature maps at once, and none is kept
        widest = max(c.activations for block in _blocks(model, size) for c in block)
        return pictures, casts + chunk * (4 * widest * (2.0 if bf16 else 4.0) + 12.0 * size**2)
    if chunk == frames:
        return pictures + casts + frames * each.kept, frames * (each.most - each.kept)
    return pictures + casts, casts + chunk * each.most


def _skeletal_bytes(run: RunConfig, frames: int) -> float:
    """Return the bytes of the ST-GCN: of each layer what is before its stride and behind it."""
    if run.stage.name == "alignment":
        return 0.0
    length, places = float(frames), 0.0
    strides = run.model.skeletal_strides
    for width, stride in zip(run.model.skeletal_channels, strides, strict=True):
        places += width * length
        length /= stride
        places += width * length
    joints = len(choose_joints(run.model.joints))
    return places * joints * (13.8 if run.train.precision == "bf16" else 19.8)


def _fusion_bytes(run: RunConfig, frames: int, llm_dim: int) -> float:
    """Return the bytes of CMFA as often as the stage runs it, of HTA and of the SLA."""
    model, bf16 = run.model, run.train.precision == "bf16"
    translates = run.stage.name != "contrastive"
    contrasts = run.stage.name == "contrastive" or (
        run.stage.name == "finetune" and run.loss.contrastive_weight > 0
    )
    passes = layouts = int(translates)
    if contrasts and model.streams == "both" and run.loss.contrastive_features == "unimodal":
        passes += 2
        layouts += 1
    counts = parameters(model, llm_dim)
    parts = ("fusion", "temporal", "adapter") if translates else ("fusion",)
    weights = sum(counts[part] for part in parts)
    largest = max(model.ffn_multiplier * model.dim**2, llm_dim**2 if translates else 0)
    attention = _DIRECTIONS.get(model.fusion, 2)
    each = 36.0 + 17.0 * attention if bf16 else 53.0 + 30.0 * attention
    if model.positions == "sinusoidal":  # the sums that are projected
        each += attention * (1.5 if bf16 else 8.0)
    if model.dropout:  # results, and which values were kept
        each += 2.2
    steps = frames / model.visual_stride
    pooled = run.train.micro_batch_size * model.pooled_length if translates else 0
    return (
        (2.0 * weights if bf16 else 0.0)
        + 4.0 * largest
        + steps * model.dim * model.fusion_layers * passes * each
        + pooled * model.dim * (20.0 if bf16 else 100.0)
        + _bias_bytes(run, frames, layouts)
    )


def _bias_bytes(run: RunConfig, frames: int, layouts: int) -> float:
    """Return the bytes of what `distance` adds to scores, kept once for all layers of a layout."""
    if run.model.positions != "distance":
        return 0.0
    longest = min(frames, run.data.max_frames) / run.model.visual_stride
    places = layouts * longest**2 + run.model.pooled_length**2
    each = 2.0 if run.train.precision == "bf16" else 4.0
    return run.train.micro_batch_size * run.model.num_heads * places * each


def _language(run: RunConfig, llm: LLMFiles) -> float:
    """Return the bytes of the LLM's passes: of its layers, and logits with softmax and gradient.

    A layer of a decoder keeps of each token 24 bytes a channel (norms in float32, their results,
    queries, keys, values and what comes of them) and 6 a channel of a gated feed-forward network.
    T5's keeps 28 in the encoder, 42 and 8 of each encoder's token in the decoder, and 20 a channel
    of its feed-forward network, whose GELU is computed in float32. Without such a network in its
    configuration: 34 (Korthikanti et al., 2022, Eq. 2).
    """
    whole = trains_llm(run.stage.name, run.model)
    clips = run.train.micro_batch_size
    prefix, text = clips * (run.model.num_sign_tokens + _PROMPT_TOKENS), clips * _TEXT_TOKENS
    config, dim, layers = llm.config, llm.llm_dim, llm.num_layers
    bf16 = run.train.precision == "bf16"
    double = 2.0 if (not bf16 if whole else run.model.llm_dtype == "float32") else 1.0
    if config.get("is_encoder_decoder"):
        inner = int(config.get("d_ff") or config.get("encoder_ffn_dim") or 4 * dim)
        decoders = int(config.get("num_decoder_layers") or config.get("decoder_layers") or layers)
        layered = prefix * layers * (28.0 * dim + 20.0 * inner)
        layered += decoders * (text * (42.0 * dim + 20.0 * inner) + prefix * 8.0 * dim)
    elif config.get("intermediate_size"):
        inner = int(config["intermediate_size"])
        layered = (prefix + text) * layers * (24.0 * dim + 6.0 * inner)
    else:
        layered = (prefix + text) * layers * 34.0 * dim
    vocabulary = int(config.get("vocab_size") or 0)
    casts = 2.0 * llm.num_weights if whole and bf16 else 0.0
    if whole:  # linear layers keep their inputs, norms what they multiply, for their own gradients
        wide = int(config.get("intermediate_size") or config.get("d_ff") or 4 * dim)
        layered += (prefix + text) * layers * (12.0 * dim + 2.0 * wide)
    return double * layered + text * 12.0 * vocabulary + casts


def resolve_chunk(
    run: RunConfig,
    llm: LLMFiles | None,
    frames: int,
    world_size: int,
    bucket: int | None,
    gigabytes: float | None,
) -> RunConfig:
    """Return the run with a number or null in the place of ``model.visual_chunk: auto``.

    Null, all frames at once, where they fit into 0.85 of a GPU's ``gigabytes`` by
    :func:`estimate`, which has the other arguments, or there is no GPU; otherwise the largest chunk
    that fits, and the smallest where none does. Where the LLM that a stage needs is not there yet,
    its bytes are not known, and a modest chunk is taken: every chunk costs the same second forward
    pass. So it is with a vision model whose memory is not known. A run that says what it wants is
    returned as it is.
    """
    if run.model.visual_chunk != "auto":
        return run
    whole = _with_chunk(run, None)
    can = run.model.sees_pictures and run.model.visual_norm not in ("sync", "local")
    if gigabytes is None or not can:
        return whole
    if (llm is None and needs_language_model(run.stage.name)) or why_unknown(run):
        return _with_chunk(run, _MODEST)
    for candidate in (whole, *(_with_chunk(run, n) for n in _CHUNKS if n < frames)):
        need = estimate(candidate, llm, frames, world_size, bucket)
        if need.total <= gigabytes * 1e9 * _TIGHT:
            return candidate
    return _with_chunk(run, _CHUNKS[-1])


def why_unknown(run: RunConfig) -> str | None:
    """Return why nobody knows what a frame takes in a run's vision model, None where that is."""
    each = frame_memory(run) if run.model.vision_model is not None else None
    return each if isinstance(each, str) else None


def _with_chunk(run: RunConfig, chunk: int | None) -> RunConfig:
    return replace(run, model=replace(run.model, visual_chunk=chunk))


def advise(run: RunConfig, world_size: int) -> str:
    """Return what takes less memory than a run whose chunk is resolved: keys, and their values now.

    All but the last may change where a stage goes on.
    """
    model, train, trains = run.model, run.train, run.stage.name != "alignment"
    keys = []
    chunk = None if model.visual_chunk == "auto" else model.visual_chunk
    if model.sees_pictures and model.visual_norm not in ("sync", "local"):
        if chunk is None or chunk > _CHUNKS[-1]:
            less = _MODEST if chunk is None or chunk > _MODEST else max(_CHUNKS[-1], chunk // 2)
            now = "all frames at once" if chunk is None else chunk
            keys.append(f"model.visual_chunk={less} (now {now})")
        if trains and not model.visual_checkpoint and model.vision_model is None:
            keys.append("model.visual_checkpoint=true (now false)")
    fits = divisors_that_fit(train.global_batch_size, world_size)
    if smaller := [size for size in fits if size < train.micro_batch_size]:
        now = train.micro_batch_size
        keys.append(f"train.micro_batch_size={smaller[-1]} (now {now}; the rest is accumulated)")
    whole = trains_llm(run.stage.name, model)
    if whole:
        keys.append("model.llm_training=lora (now full), in a run of its own")
    if needs_language_model(run.stage.name) and model.llm_quantization == "none" and not whole:
        keys.append("model.llm_quantization=8bit (now none)")
    keys.append(f"a data.max_frames below {run.data.max_frames}, in a run of its own")
    return "; ".join(keys)


@contextmanager
def told_with_advice(run: RunConfig, world_size: int) -> Iterator[None]:
    """Let a GPU's memory that is too small, inside the block, be an error that says what helps.

    Raises UserError in the place of torch's error; the others of a job end by the launcher.
    """
    try:
        yield
    except RuntimeError as e:
        if type(e).__name__ != "OutOfMemoryError":  # torch's; this module imports no torch
            raise
        said = str(e).partition(". GPU")[0].partition("\n")[0]
        raise UserError(
            f"stage {run.stage.name}: the GPU's memory is too small ({said}). What takes less: "
            f"{advise(run, world_size)}. The same command with one of these goes on from the last "
            "checkpoint"
        ) from e


def say_chunk(asked: ModelConfig, resolved: ModelConfig, why: str | None = None) -> str:
    """Return in words how many frames go through the ResNet at once, and what was asked for.

    ``why`` is :func:`why_unknown`, where it decided.
    """
    chunk, word = resolved.visual_chunk, asked.visual_chunk
    how = "all frames at once" if chunk is None else f"{chunk} frames at once"
    what = "ResNet" if asked.vision_model is None else "vision model"
    unknown = f"; what a frame takes is not known: {why}" if why else ""
    return f"{what}: {how} (model.visual_chunk: {'null' if word is None else word}{unknown})"


def judge_gpu(
    run: RunConfig, need: Need, frames: int, gigabytes: float | None, how: str, world_size: int
) -> Finding:
    """Compare a stage's need with a GPU's memory in GB, where that is known.

    ``run`` has its chunk resolved, ``how`` says in words what it is.
    """
    what = f"memory of a GPU in stage {run.stage.name}"
    said = f"about {need.total / 1e9:.1f} GB ({need}; {frames} frames at most){how and f', {how}'}"
    if why := why_unknown(run):
        said += f", and what {run.model.vision_model} takes, which is not known ({why})"
        if gigabytes is None or need.total <= gigabytes * 1e9:
            return warning(what, said, "Where it is too much, model.visual_chunk=16 bounds it")
    if gigabytes is None:
        return ok(what, f"{said}; no GPU here to compare with, --gpu-memory GB names one")
    said += f" of {gigabytes:.0f} GB"
    fix = f"What takes less: {advise(run, world_size)}"
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
        of_llm = _trained_of_llm(run, llm)
        dim = find_vector_dim(run) or 0
        trained = count_trained(run.model, run.loss, run.stage.name, llm_dim, of_llm, dim)
        every = sum(parameters(run.model, llm_dim, dim).values()) + of_llm
        each = 12.0 if run.train.weight_average is None else 16.0
        # One more while it is written, one more for the best; then the stage's model.
        needed += (run.train.keep_checkpoints + 2) * each * trained + 4.0 * every
    place = Path(runs[0].train.output).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    what = f"disk at {place}"
    said = f"{free / 1e9:.1f} GB free, checkpoints and models take {needed / 1e9:.1f}"
    if needed > free:
        return error(what, said, "Make room, train.output=FOLDER, or train.keep_checkpoints=1")
    return ok(what, said)
