"""Values of a run that contradict each other: what no single key can say. Imports no torch."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import get_args

from signfuse_dist.config import (
    SCALES,
    STAGES,
    DataConfig,
    ModelConfig,
    PartName,
    RunConfig,
    StageConfig,
    TrainConfig,
)
from signfuse_dist.errors import UserError
from signfuse_dist.languages import fill_prompt
from signfuse_dist.skeleton import choose_joints
from signfuse_dist.stages import trained_parts

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# torch 2.15 on CPU corrupts the heap in the backward pass of a 1x1 convolution of stride 2 over 4
# channels in this layout; 8 and more are sound.
_CHANNELS_LAST_WIDTH = 8


def contradictions(run: RunConfig) -> list[str]:
    """Return what no single field can say: values that exclude each other, by their keys."""
    return [
        *_of_lengths(run.model),
        *_of_joints(run.model),
        *_of_lora(run.model),
        *_of_positions(run.model),
        *_of_dropped_streams(run),
        *_of_vectors(run),
        *_of_vision(run.model),
        *_of_scales(run.model),
        *_of_stages(run.train, run.stage),
        *_of_rates(run),
        *_of_prompt(run),
        *_of_pairs(run),
        *_of_memory(run.model),
        *_of_features(run),
        *_of_staging(run.data),
        *_of_blend(run),
    ]


def _of_lengths(model: ModelConfig) -> list[str]:
    """Widths, kernels and strides of layers that follow each other."""
    errors = []
    if model.dim % model.num_heads:
        errors.append(f"model.dim {model.dim} does not divide by model.num_heads {model.num_heads}")
    for kind, widths, strides in (
        ("skeletal", model.skeletal_channels, model.skeletal_strides),
        ("scale", model.scale_kernels, model.scale_strides),
    ):
        if len(widths) != len(strides) or not widths:
            errors.append(f"model.{kind}_strides has {len(strides)} entries for {len(widths)}")
    if model.skeletal_channels and model.skeletal_channels[-1] != model.dim:
        errors.append(
            f"model.skeletal_channels ends with {model.skeletal_channels[-1]}, "
            f"not model.dim {model.dim}"
        )
    kernels = (model.visual_kernel, model.skeletal_kernel, *model.scale_kernels)
    if any(kernel < 1 or kernel % 2 == 0 for kernel in kernels):
        errors.append(
            f"model.visual_kernel, model.skeletal_kernel and model.scale_kernels must be odd, "
            f"so that a step is centred on its frames: {', '.join(map(str, kernels))}"
        )
    if any(n < 1 for n in (*model.skeletal_channels, *model.scale_strides)):
        errors.append("model.skeletal_channels and model.scale_strides must be at least 1")
    total_stride = math.prod(model.skeletal_strides)
    if total_stride != model.visual_stride:
        errors.append(
            f"model.skeletal_strides shorten time {total_stride} times, "
            f"model.visual_stride {model.visual_stride} times: the streams would not align"
        )
    return errors


def _of_joints(model: ModelConfig) -> list[str]:
    try:
        chosen = choose_joints(model.joints)
    except ValueError as error:
        return [f"model.joints: {error}"]
    if not chosen:
        return ["model.joints=[] leaves no joint: write null for all, or model.streams=visual"]
    return []


def _of_lora(model: ModelConfig) -> list[str]:
    if model.llm_training != "lora":
        return []
    if model.lora_targets == ():
        return [
            "model.lora_targets=[] leaves LoRA no layer: write null for every projection of "
            "attention, or model.llm_training=frozen"
        ]
    if isinstance(model.lora_targets, tuple) and "all" in model.lora_targets:
        return [
            f"model.lora_targets={list(model.lora_targets)}: `all` stands alone, without brackets"
        ]
    return []


def _of_positions(model: ModelConfig) -> list[str]:
    """What positions need of widths and of the attention backend."""
    errors = []
    if model.positions == "distance" and model.attention not in ("auto", "sdpa", "eager"):
        errors.append(
            f"model.attention={model.attention}: its kernel adds nothing to the scores, which "
            "model.positions=distance needs: write model.attention=auto, which is sdpa then, sdpa "
            "or eager"
        )
    width = {"sinusoidal": model.dim, "rotary": model.dim // model.num_heads}
    if width.get(model.positions, 0) % 2:
        errors.append(
            f"model.positions={model.positions} takes channels in pairs, and "
            f"{'model.dim is' if model.positions == 'sinusoidal' else 'a head has'} "
            f"{width[model.positions]} (model.dim {model.dim}, model.num_heads {model.num_heads})"
        )
    return errors


def _of_dropped_streams(run: RunConfig) -> list[str]:
    if run.model.streams == "both" or not run.augment.drop_stream:
        return []
    return [
        f"augment.drop_stream={run.augment.drop_stream}: a clip of model.streams="
        f"{run.model.streams} has no other stream: write augment.drop_stream=0"
    ]


def _of_vectors(run: RunConfig) -> list[str]:
    """Feature sets are of the pictures as they are, and no network of pictures is run."""
    model, sets = run.model, f"model.visual_backbone={run.model.visual_backbone}"
    if not model.feature_sets:
        return []
    changed = [name for name in ("crop", "scale", "colour") if getattr(run.augment, name)]
    errors = []
    if changed:
        zero = " ".join(f"augment.{name}=0" for name in changed)
        named = " and ".join(f"augment.{name}" for name in changed)
        errors.append(
            f"{named}: would change pictures (and joints with them), and {sets} reads vectors "
            f"that were computed of the pictures as they are: write {zero}"
        )
    for name in ("visual_checkpoint", "visual_compile"):
        if getattr(model, name):
            errors.append(f"model.{name}=true: {sets} runs no network of pictures; leave it out")
    return errors


def _of_vision(model: ModelConfig) -> list[str]:
    if model.vision_model is None:
        return []
    named, errors = f"model.visual_backbone={model.visual_backbone}", []
    if model.visual_checkpoint:
        errors.append(
            f"model.visual_checkpoint=true is of ResNets, not of {named}: model.visual_chunk takes "
            "less memory of any"
        )
    if model.visual_norm != "frozen":
        errors.append(
            f"model.visual_norm={model.visual_norm} is of ResNets; the norms of {named} are its "
            "own: write model.visual_norm=frozen"
        )
    return errors


def _in_order(chosen: tuple[str, ...], known: tuple[str, ...]) -> bool:
    return list(chosen) == [name for name in known if name in chosen]


def _of_scales(model: ModelConfig) -> list[str]:
    errors = []
    if len(model.scale_kernels) != len(SCALES):
        errors.append(
            f"model.scale_kernels has {len(model.scale_kernels)} entries for the {len(SCALES)} "
            f"scales {', '.join(SCALES)}; model.scales says which of them there are"
        )
    if not _in_order(model.scales, SCALES):
        errors.append(
            f"model.scales {list(model.scales)}: each at most once, in the order {list(SCALES)}"
        )
    return errors


def _of_stages(train: TrainConfig, stage: StageConfig) -> list[str]:
    errors = []
    if stage.warmup_epochs >= stage.epochs:
        errors.append(
            f"stage.warmup_epochs {stage.warmup_epochs} is not below stage.epochs {stage.epochs}: "
            f"give both, such as stage.epochs={stage.epochs} "
            f"stage.warmup_epochs={max(0, stage.epochs - 1) // 2}"
        )
    if not train.stages or not _in_order(train.stages, STAGES):
        errors.append(
            f"train.stages {list(train.stages)}: at least one, each at most once, in the order "
            f"{list(STAGES)}"
        )
    elif stage.name not in train.stages:
        errors.append(f"stage {stage.name} is not among train.stages {list(train.stages)}")
    if train.start_parts is not None and train.start is None:
        errors.append(
            f"train.start_parts {list(train.start_parts)} without train.start: say of what, "
            "train.start=RUN"
        )
    if train.start_parts == () and train.start is not None:
        errors.append(
            f"train.start_parts=[] takes nothing of train.start={train.start}: leave out both, or "
            "name parts"
        )
    if train.start_parts is not None and {"lora", "merged_lora"} <= {*train.start_parts}:
        errors.append(
            "train.start_parts: lora goes on with the start's LoRA matrices, merged_lora keeps "
            "them as they are: give one of them"
        )
    if train.select == "best" and not train.dev_epochs:
        errors.append(
            "train.select=best needs a development score: write train.dev_epochs=1 or more"
        )
    if train.patience is not None and not train.dev_epochs:
        errors.append(
            f"train.patience={train.patience} counts development scores: write train.dev_epochs=1 "
            "or more"
        )
    return errors


def _of_prompt(run: RunConfig) -> list[str]:
    errors = []
    asked = [(run.model.prompt, run.data.language, "")]
    asked += [
        (
            part.prompt or run.model.prompt,
            part.data.language,
            f"corpus {part.corpus} of data.blend: ",
        )
        for part in run.data.blend
    ]
    for prompt, language, whose in asked:
        try:
            fill_prompt(prompt, language)
        except UserError as e:
            errors.append(f"{whose}{e}")
    return errors


def _of_rates(run: RunConfig) -> list[str]:
    """A rate can be given to what trains."""
    named, stage = run.stage.rates or {}, run.stage.name
    trained = {part.partition(".")[0] for part in trained_parts(stage, run.loss, run.model)}
    others = [part for part in named if part not in trained]
    if not others:
        return []
    there = ", ".join(part for part in get_args(PartName) if part in trained)
    return [
        f"stage.rates names {', '.join(others)}, which stage {stage} does not train: it trains "
        f"{there}; stage.{stage}.rates holds in that stage alone"
    ]


def _of_blend(run: RunConfig) -> list[str]:
    """One model sees the clips of all corpora: their squares must be alike, their names not."""
    data, errors = run.data, []
    if not data.blend:
        if data.blend_temperature is not None:
            errors.append("data.blend_temperature without data.blend: there is nothing to share")
        if run.loss.negatives == "corpus":
            errors.append("loss.negatives=corpus without data.blend: there is one corpus")
        return errors
    names = [part.corpus for part in data.blend]
    for name in sorted({name for name in names if names.count(name) > 1}):
        errors.append(f"data.blend: {name} is there twice; give one a data file of its own")
    for part in data.blend:
        what = f"data.blend: {part.corpus}"
        for key in ("frame_size", "crop"):
            theirs, ours = getattr(part.data, key), getattr(data, key)
            if theirs != ours:
                errors.append(f"{what} has data.{key} {theirs}, the model sees {ours}: pack alike")
        if not _LABEL.fullmatch(part.corpus):
            errors.append(f"{what!r}: a name of letters, digits, '.', '_' and '-' alone")
    if run.train.features == "cached":
        errors.append(
            "train.features=cached keeps features of one corpus: with data.blend, write "
            "train.features=computed"
        )
    return errors


def _of_staging(data: DataConfig) -> list[str]:
    if data.stage_to is None or data.stage_to.startswith(("/", "$")):
        return []
    return [
        f"data.stage_to {data.stage_to!r}: name a folder of each node's own disk by its whole "
        "path, such as /scratch, or by a variable of the nodes, such as $SLURM_TMPDIR"
    ]


def _of_pairs(run: RunConfig) -> list[str]:
    """What Eq. 21 compares must be there: two streams, and both sides of an attention."""
    model, loss, errors = run.model, run.loss, []
    if model.streams != "both":
        why = f"model.streams={model.streams} leaves the contrastive loss (Eq. 21) without pairs"
        if "contrastive" in run.train.stages:
            left = [name for name in run.train.stages if name != "contrastive"]
            errors.append(f"{why}: write train.stages=[{','.join(left) or 'alignment,finetune'}]")
        if loss.contrastive_weight > 0:
            errors.append(f"{why}: write loss.contrastive_weight=0")
    elif loss.contrastive_features == "attended" and (
        model.fusion not in ("cmfa", "no_gate") or model.fusion_layers == 0
    ):
        errors.append(
            f"loss.contrastive_features=attended compares O_{{v->s}} with O_{{s->v}} (Eq. 8-9), "
            f"and model.fusion={model.fusion} with model.fusion_layers={model.fusion_layers} has "
            "not both"
        )
    return errors


def _of_memory(model: ModelConfig) -> list[str]:
    errors = []
    if model.llm_training == "full" and model.llm_quantization != "none":
        errors.append(
            f"model.llm_training=full trains the LLM's own weights, which "
            f"model.llm_quantization={model.llm_quantization} has not: write "
            "model.llm_quantization=none, or model.llm_training=lora"
        )
    if model.visual_norm in ("sync", "local"):
        for name in ("visual_chunk", "visual_checkpoint"):
            if getattr(model, name) not in (None, False, "auto"):
                errors.append(
                    f"model.{name}={getattr(model, name)} computes frames again in the backward "
                    f"pass, which is exact only when they do not depend on the batch: write "
                    f"model.visual_norm=frozen or group, not {model.visual_norm}"
                )
    if model.visual_channels_last is True and model.visual_width < _CHANNELS_LAST_WIDTH:
        errors.append(
            f"model.visual_channels_last=true needs model.visual_width of {_CHANNELS_LAST_WIDTH} "
            f"or more, not {model.visual_width}: torch's convolutions are unsound below"
        )
    return errors


def _of_features(run: RunConfig) -> list[str]:
    """Features can be kept only of encoders that do not change, and of frames that do not."""
    if run.train.features == "computed":
        return []
    errors = []
    if run.stage.name != "alignment":
        errors.append(
            f"train.features=cached is for stage alignment, whose encoders are frozen; in stage "
            f"{run.stage.name} they train: write train.features=computed"
        )
    if any(dataclasses.asdict(run.augment).values()):
        errors.append(
            "train.features=cached keeps one set of features a clip, and augment.* changes each "
            "clip every epoch: write train.features=computed, or set augment.* to 0"
        )
    return errors
