"""Reading a run: files combined by disjoint union, overridden by the experiment and by words.

An experiment file names one file of ``configs/data`` and one of ``configs/model`` (``use:``); the
stage brings one of ``configs/stage``. Those files do not overlap. Only the experiment's own
sections and ``section.key=value`` words on the command line override. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from signfuse_dist.errors import UserError, raise_together

StageName = Literal["contrastive", "alignment", "finetune"]
STAGES: tuple[StageName, ...] = ("contrastive", "alignment", "finetune")
ScaleName = Literal["frame", "segment", "sequence"]
SCALES: tuple[ScaleName, ...] = ("frame", "segment", "sequence")
# Accelerate's, see engine/trackers.py.
TrackerName = Literal[
    "aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"
]
# `auto` chooses among the others, see model/attention.py.
AttentionName = Literal["auto", "flash_attention_2", "varlen", "sdpa", "eager"]


def _at_least(minimum: float, default: Any = dataclasses.MISSING) -> Any:
    return field(default=default, metadata={"min": minimum})


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The corpus (``configs/data``). ``fps`` null means the rate of the source videos."""

    corpus: str
    shards: str
    train_split: str
    dev_split: str
    test_split: str
    fps: float | None = _at_least(1e-3)
    frame_size: int = _at_least(16)
    max_frames: int = _at_least(1)
    language: str
    bleu_tokenizer: Literal["13a", "zh", "char"]
    metric_preset: str
    # Joints of a pose set of this name (`signfuse pose`) in place of those packed with the frames.
    poses: str | None = None
    # Copies of clips of shards at an address (s3://...); shards in a folder need none.
    shard_cache: str = "shards/.cache"
    shard_cache_gb: float = _at_least(0.0, 20.0)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The model (``configs/model`` says which LLM; the defaults are the paper's Table 1)."""

    llm: str
    # A commit, tag or branch of the model hub; null means the newest, or a folder.
    llm_revision: str | None = None
    llm_dtype: Literal["float32", "bfloat16", "float16"]
    # null means every projection of the LLM's attention blocks, found in the model.
    lora_targets: tuple[str, ...] | None
    attention: AttentionName
    # Of the frozen LLM's weights; needs bitsandbytes.
    llm_quantization: Literal["none", "8bit", "4bit"] = "none"
    # ResNet-50, pre-trained on ImageNet: sections 3.2 and 4.1, Table 1.
    visual_backbone: Literal["resnet10", "resnet18", "resnet50"] = "resnet50"
    visual_width: int = _at_least(1, 64)
    # Batch norm with statistics that are `frozen`, of all processes (`sync`) or of each (`local`).
    visual_norm: Literal["frozen", "sync", "local", "group"] = "frozen"
    visual_weights: str | None = "imagenet"
    # Memory of the ResNet: frames at once (null: all); whether to recompute block by block.
    visual_chunk: int | None = _at_least(1, None)
    visual_checkpoint: bool = False
    visual_channels_last: bool = False
    visual_compile: bool = False
    # d = 512 and the temporal convolution of Eq. 3.
    dim: int = _at_least(1, 512)
    visual_kernel: int = _at_least(1, 3)
    visual_stride: int = _at_least(1, 2)
    # ST-GCN, Table 1: channels after the two input coordinates, kernel 9, stride 2 at layer 3.
    skeletal_channels: tuple[int, ...] = (64, 128, 256, 512)
    skeletal_kernel: int = _at_least(1, 9)
    skeletal_strides: tuple[int, ...] = (1, 1, 2, 1)
    # Norms of Eq. 3 and of the ST-GCN; `layer` depends on no other clip and no other step.
    norm: Literal["frozen", "sync", "local", "layer"] = "sync"
    # Which streams there are (section 5.4); one alone stands on both sides of CMFA.
    streams: Literal["both", "visual", "skeletal"] = "both"
    # CMFA, Table 1 and Eq. 6-12, and what takes the place of Eq. 6-10 (section 5.4).
    fusion: Literal[
        "cmfa", "concat", "sum", "visual_from_skeletal", "skeletal_from_visual", "no_gate"
    ] = "cmfa"
    fusion_layers: int = _at_least(0, 3)
    # What the gain of the layer norm of Eq. 11 starts at.
    fusion_gain: float = _at_least(0.0, 0.1)
    num_heads: int = _at_least(1, 8)
    ffn_multiplier: int = _at_least(1, 4)
    # HTA, Table 1 and Eq. 13-17; `scales` says which of the three there are ([]: no HTA).
    scales: tuple[ScaleName, ...] = SCALES
    scale_kernels: tuple[int, ...] = (1, 5, 11)
    scale_strides: tuple[int, ...] = (1, 2, 4)
    pooled_length: int = _at_least(1, 64)
    # SLA and LLM, Table 1, Eq. 18-20 and section 3.6.
    num_sign_tokens: int = _at_least(1, 32)
    # What the gain of the SLA's norm starts at: the RMS of the LLM's embeddings, or 1.
    adapter_gain: Literal["embeddings", "one"] = "embeddings"
    lora_rank: int = _at_least(1, 16)
    lora_alpha: int = _at_least(1, 32)
    prompt: str = "Translate the following sign language video into a spoken language sentence:"


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Eq. 21-23 and the choices that the paper leaves open."""

    temperature: float = _at_least(1e-6, 0.07)
    contrastive_weight: float = _at_least(0.0, 0.1)
    alignment_weight: float = _at_least(0.0, 0.05)
    contrastive_features: Literal["unimodal", "streams", "attended"] = "unimodal"
    alignment_pooling: Literal["mean", "resample"] = "mean"


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One column of Table 2 (``configs/stage``)."""

    name: StageName
    epochs: int = _at_least(1)
    learning_rate: float = _at_least(0.0)
    warmup_epochs: int = _at_least(0)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a stage is trained; batch 32 is global (Table 2), over all devices."""

    micro_batch_size: int = _at_least(1)
    precision: Literal["fp32", "bf16"]
    gradient_clipping: float = _at_least(0.0)
    # Which stages there are; each starts from the one before it here (section 5.4).
    stages: tuple[StageName, ...] = STAGES
    global_batch_size: int = _at_least(1, 32)
    # Eq. 21 over the global batch, whatever is held at once, for another run of the encoders.
    gradient_caching: bool = True
    weight_decay: float = _at_least(0.0, 0.01)
    seed: int = _at_least(0, 0)
    output: str = "runs"
    num_workers: int | None = _at_least(0, None)
    """Loader processes of each training process; None: the cores it is given, less one."""
    max_broken_share: float = _at_least(0.0, 0.001)
    """Share of an epoch's clips that may be unreadable; above it the run stops."""
    non_finite: Literal["stop", "skip"] = "stop"
    """What a loss or gradient that is not finite does: stop the run, or leave the step out."""
    hang_seconds: float | None = _at_least(1.0, 120.0)
    """After so long without a sign of a process the job ends and names it; null: never."""
    log_steps: int = _at_least(1, 10)
    features: Literal["computed", "cached"] = "computed"
    """Of the frozen encoders, in the alignment stage: from frames at every step, or once."""
    trackers: tuple[TrackerName, ...] = ()
    """What gets the figures beside metrics.jsonl."""
    checkpoint_steps: int = _at_least(1, 200)
    keep_checkpoints: int = _at_least(1, 2)
    """The newest; the best by the development score is kept beside them."""
    dev_epochs: int = _at_least(0, 1)
    """Score the development split after every so many epochs and at the end; 0: never."""
    select: Literal["last", "best"] = "last"
    """Whose weights become the stage's model: the end's, or the best development score's."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How far training clips are changed at random, at most; 0 is not at all (the paper)."""

    crop: float = _at_least(0.0, 0.0)
    """Shift of the picture, as a share of its side."""
    scale: float = _at_least(0.0, 0.0)
    """0.1 draws sizes from 1 / 1.1 to 1.1."""
    colour: float = _at_least(0.0, 0.0)
    """0.2 draws brightness, contrast and saturation each from 0.8 to 1.2."""
    speed: float = _at_least(0.0, 0.0)
    """0.25 draws playback speeds from 1 / 1.25 to 1.25."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Deterministic decoding: beam search, nothing sampled."""

    batch_size: int = _at_least(1, 8)
    num_beams: int = _at_least(1, 4)
    length_penalty: float = 1.0
    max_new_tokens: int = _at_least(1, 128)
    num_samples: int = _at_least(0, 8)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One stage of one experiment, complete: what ``config.yaml`` of a run folder holds."""

    name: str
    data: DataConfig
    model: ModelConfig
    loss: LossConfig
    stage: StageConfig
    train: TrainConfig
    evaluation: EvaluationConfig
    augment: AugmentConfig = AugmentConfig()

    @property
    def folder(self) -> Path:
        """The run folder of this stage, ``output/experiment/stage``."""
        return Path(self.train.output) / self.name / self.stage.name

    def shards(self, split: str) -> str:
        """The folder or address of one packed split."""
        return f"{self.data.shards.rstrip('/')}/{split}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers, tuples as lists, as written to ``config.yaml``."""
        return typing.cast("dict[str, Any]", _plain(dataclasses.asdict(self)))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


# torch 2.15 on CPU corrupts the heap in the backward pass of a 1x1 convolution of stride 2 over 4
# channels in this layout; 8 and more are sound.
_CHANNELS_LAST_WIDTH = 8


def contradictions(sections: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the choices of a run's sections, each with the keys to change."""
    model: ModelConfig = sections["model"]
    loss: LossConfig = sections["loss"]
    return [
        *_of_scales(model),
        *_of_stages(sections["train"], sections["stage"]),
        *_of_selection(sections["train"]),
        *_of_pairs(model, loss, sections["train"]),
        *_of_summaries(model, loss),
        *_of_memory(model),
        *_of_features(sections),
    ]


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
    if not train.stages or not _in_order(train.stages, STAGES):
        return [
            f"train.stages {list(train.stages)}: at least one, each at most once, in the order "
            f"{list(STAGES)}"
        ]
    if stage.name not in train.stages:
        return [f"stage {stage.name} is not among train.stages {list(train.stages)}"]
    return []


def _of_selection(train: TrainConfig) -> list[str]:
    if train.select == "last" or train.dev_epochs:
        return []
    return ["train.select=best needs a development score: write train.dev_epochs=1 or more"]


def _of_pairs(model: ModelConfig, loss: LossConfig, train: TrainConfig) -> list[str]:
    """One stream gives Eq. 21 no pairs."""
    if model.streams == "both":
        return []
    why = f"model.streams={model.streams} leaves the contrastive loss (Eq. 21) without pairs"
    errors = []
    if "contrastive" in train.stages:
        left = [name for name in train.stages if name != "contrastive"]
        errors.append(f"{why}: write train.stages=[{','.join(left) or 'alignment,finetune'}]")
    if loss.contrastive_weight > 0:
        errors.append(f"{why}: write loss.contrastive_weight=0")
    return errors


def _of_summaries(model: ModelConfig, loss: LossConfig) -> list[str]:
    if loss.contrastive_features != "attended" or model.streams != "both":
        return []
    if model.fusion in ("cmfa", "no_gate") and model.fusion_layers > 0:
        return []
    return [
        f"loss.contrastive_features=attended compares O_{{v->s}} with O_{{s->v}} (Eq. 8-9), and "
        f"model.fusion={model.fusion} with model.fusion_layers={model.fusion_layers} has not both"
    ]


def _of_memory(model: ModelConfig) -> list[str]:
    errors = []
    if model.visual_norm in ("sync", "local"):
        for key in ("visual_chunk", "visual_checkpoint"):
            if getattr(model, key):
                errors.append(
                    f"model.{key}={getattr(model, key)} computes frames again in the backward "
                    f"pass, which is exact only when they do not depend on the batch: write "
                    f"model.visual_norm=frozen or group, not {model.visual_norm}"
                )
    if model.visual_channels_last and model.visual_width < _CHANNELS_LAST_WIDTH:
        errors.append(
            f"model.visual_channels_last=true needs model.visual_width of {_CHANNELS_LAST_WIDTH} "
            f"or more, not {model.visual_width}: torch's convolutions are unsound below"
        )
    return errors


def _of_features(sections: Mapping[str, Any]) -> list[str]:
    """Features can be kept only of encoders that do not change, and of frames that do not."""
    if sections["train"].features == "computed":
        return []
    errors = []
    if sections["stage"].name != "alignment":
        errors.append(
            f"train.features=cached is for stage alignment, whose encoders are frozen; in stage "
            f"{sections['stage'].name} they train: write train.features=computed"
        )
    augment = sections.get("augment")
    if augment is not None and any(dataclasses.asdict(augment).values()):
        errors.append(
            "train.features=cached keeps one set of features a clip, and augment.* changes each "
            "clip every epoch: write train.features=computed, or set augment.* to 0"
        )
    return errors


def build(section: str, cls: type, values: dict[str, Any], errors: list[str]) -> Any:
    """Build one section, or record every error of it and return None."""
    hints = typing.get_type_hints(cls)
    found = len(errors)
    refuse_unknown(values, hints, section, errors)
    arguments = {}
    for item in dataclasses.fields(cls):
        label = f"{section}.{item.name}"
        if item.name not in values:
            if item.default is dataclasses.MISSING:
                errors.append(f"{label}: missing; it has no default")
            continue
        try:
            value = _coerce(values[item.name], hints[item.name])
        except ValueError as e:
            errors.append(f"{label}: {e}")
            continue
        minimum = item.metadata.get("min")
        # Written so that not-a-number, which compares with nothing, is refused as well.
        if minimum is not None and value is not None and not value >= minimum:
            errors.append(f"{label}: {value} is not at least {minimum}")
        arguments[item.name] = value
    return cls(**arguments) if len(errors) == found else None


def _coerce(value: Any, hint: Any) -> Any:
    """Return ``value`` as ``hint``; YAML reads 1e-4 as a string, so numbers go by the field."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in options:
            return None
        return _coerce(value, next(o for o in options if o is not type(None)))
    if origin is Literal:
        if value in options:
            return value
        near = suggest(str(value), options)
        raise ValueError(f"{value!r} is not one of {', '.join(map(str, options))}{near}")
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{value!r} is not a list")
        return tuple(_coerce(v, options[0]) for v in value)
    return _coerce_scalar(value, hint)


def _coerce_scalar(value: Any, hint: type) -> Any:
    if isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool):
        return value
    if hint is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass  # said below, with the name of the expected type
    raise ValueError(f"{value!r} is not {'an' if hint is int else 'a'} {hint.__name__}")


def refuse_unknown(
    given: Iterable[str], known: Iterable[str], label: str, errors: list[str]
) -> None:
    """Record every name that is not known, with the nearest one that is."""
    known = list(known)
    for key in given:
        if key not in known:
            errors.append(f"{label}: unknown key {key!r}{suggest(str(key), known)}")


def suggest(name: str, known: Iterable[Any]) -> str:
    """Return "; did you mean ...?" when a known name is near, else nothing."""
    near = difflib.get_close_matches(name, [str(k) for k in known], n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


SECTIONS: dict[str, type] = {
    f.name: typing.get_type_hints(RunConfig)[f.name]
    for f in dataclasses.fields(RunConfig)
    if f.name != "name"
}
_CHOICES = ("data", "model", "stage")


def load_run(experiment: str, stage: str | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read one stage of an experiment.

    ``experiment`` is a YAML file or the name of one in ``configs/experiment``; ``stage`` a name of
    :data:`STAGES`, or None when ``stage=NAME`` is among the ``overrides``. Raises
    :class:`UserError` with every error of every file and word together.
    """
    path = find_experiment(experiment)
    sections, errors = _read_sections(path, stage, overrides)
    if not errors:
        errors += [*_across_fields(sections), *contradictions(sections)]
    raise_together(errors, f"{path}: the configuration has errors")
    return RunConfig(name=path.stem, **sections)


def load_stages(experiment: str, overrides: Sequence[str] = ()) -> list[RunConfig]:
    """Read the stages of ``train.stages`` in order, or the one that is named in ``overrides``.

    Raises :class:`UserError` with every error of every stage.
    """
    named = [word.partition("=")[2] for word in overrides if word.startswith("stage=")]
    others = [word for word in overrides if not word.startswith("stage=")]
    train = _read_sections(find_experiment(experiment), STAGES[-1], others)[0].get("train")
    runs, errors = [], []
    for stage in named or (train and train.stages) or STAGES:
        try:
            runs.append(load_run(experiment, stage, others))
        except UserError as e:
            errors.append(str(e))
    if errors:
        raise UserError("\n".join(dict.fromkeys(errors)))
    return runs


def _read_sections(
    path: Path, stage: str | None, overrides: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """Return each section as far as it could be built, and every error."""
    errors: list[str] = []
    raw = _read_mapping(path)
    chosen = _take_choices(raw, path, stage, overrides, errors)
    values = _file_values(path, chosen, errors)
    read = [name for name in SECTIONS if name in values]
    _merge_experiment(values, raw, path, chosen.get("stage", ""), errors)
    _merge_dotlist(values, overrides, errors)
    return {name: build(name, SECTIONS[name], values[name], errors) for name in read}, errors


def load_resolved(path: Path) -> RunConfig:
    """Read the ``config.yaml`` of a run folder; raise :class:`UserError` when it does not fit."""
    raw = _read_mapping(path)
    errors: list[str] = []
    name = raw.pop("name", None)
    refuse_unknown(raw, SECTIONS, f"{path}: section", errors)
    sections = {}
    for key, cls in SECTIONS.items():
        values = raw.get(key, {})
        if isinstance(values, dict):
            sections[key] = build(key, cls, values, errors)
        else:
            errors.append(f"{key}: expected a mapping, got {values!r}")
    if not isinstance(name, str):
        errors.append("name: missing")
    raise_together(errors, f"{path}: not the configuration of a run")
    return RunConfig(name=str(name), **sections)


def override(run: RunConfig, words: Sequence[str], section: str) -> RunConfig:
    """Return the run with ``section.key=value`` words of one section applied.

    Raises :class:`UserError` with every word that is wrong or of another section.
    """
    values: dict[str, dict[str, Any]] = {section: dataclasses.asdict(getattr(run, section))}
    others = [word for word in words if not word.startswith(f"{section}.")]
    errors = [f"{word!r}: only {section}.key=value can be changed here" for word in others]
    _merge_dotlist(values, [word for word in words if word not in others], errors)
    changed = build(section, SECTIONS[section], values[section], errors)
    raise_together(errors, f"{run.name}: the words on the command line have errors")
    return dataclasses.replace(run, **{section: changed})


def find_experiment(experiment: str) -> Path:
    """Return the experiment's file; a bare name means ``configs/experiment/NAME.yaml``."""
    path = Path(experiment)
    if path.suffix not in (".yaml", ".yml"):
        path = Path("configs") / "experiment" / f"{experiment}.yaml"
    if path.is_file():
        return path
    known = sorted(p.stem for p in path.parent.glob("*.yaml"))
    near = suggest(path.stem, known)
    raise UserError(
        f"no experiment {experiment!r}: {path} does not exist{near}. "
        f"There are: {', '.join(known) or 'none (run from the folder that holds configs/)'}"
    )


def _take_choices(
    raw: dict[str, Any], path: Path, stage: str | None, words: Sequence[str], errors: list[str]
) -> dict[str, str]:
    """Return which file each of data, model and stage comes from."""
    use = raw.pop("use", {})
    if not isinstance(use, dict):
        errors.append(f"{path}: use: expected data: NAME and model: NAME, got {use!r}")
        use = {}
    chosen = {k: str(v) for k, v in use.items()}
    refuse_unknown(chosen, ("data", "model"), f"{path}: use", errors)
    for word in words:
        key, _, value = word.partition("=")
        if key in _CHOICES:
            chosen[key] = value
    if stage is not None:
        chosen["stage"] = stage
    for key in _CHOICES:
        if key not in chosen:
            errors.append(f"{key}: not chosen; write {key}=NAME (a file of configs/{key})")
    return chosen


def _file_values(
    path: Path, chosen: Mapping[str, str], errors: list[str]
) -> dict[str, dict[str, Any]]:
    """Return the values of each section; one whose file was not found is left out."""
    values: dict[str, dict[str, Any]] = {n: {} for n in SECTIONS if n not in _CHOICES}
    for key in _CHOICES:
        name = chosen.get(key)
        if name is None:
            continue
        folder = path.parent.parent / key
        file = Path(name) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
        if not file.is_file():
            near = suggest(name, [p.stem for p in folder.glob("*.yaml")])
            errors.append(f"{key}={name}: {file} does not exist{near}")
            continue
        values[key] = _read_mapping(file)
    if "stage" in values and chosen["stage"] in STAGES:
        values["stage"]["name"] = chosen["stage"]
    return values


def _merge_experiment(
    values: dict[str, dict[str, Any]],
    raw: dict[str, Any],
    path: Path,
    stage: str,
    errors: list[str],
) -> None:
    """Let the experiment's sections override; its ``stage`` section has one part a stage."""
    refuse_unknown(raw, SECTIONS, f"{path}: section", errors)
    for name, section in raw.items():
        if name not in SECTIONS:
            continue
        if name == "stage" and isinstance(section, dict):
            refuse_unknown(section, STAGES, f"{path}: stage", errors)
            section = section.get(stage, {})
        if isinstance(section, dict):
            values.setdefault(name, {}).update(section)
        else:
            errors.append(f"{path}: {name}: expected a mapping, got {section!r}")


def _merge_dotlist(
    values: dict[str, dict[str, Any]], words: Iterable[str], errors: list[str]
) -> None:
    for word in words:
        key, equals, text = word.partition("=")
        section, dot, name = key.partition(".")
        if not equals or (not dot and key not in _CHOICES):
            errors.append(f"{word!r}: expected section.key=value (or data=, model=, stage=NAME)")
        elif dot and section not in SECTIONS:
            errors.append(f"{word!r}: no section {section!r}{suggest(section, SECTIONS)}")
        elif dot:
            try:
                values.setdefault(section, {})[name] = yaml.safe_load(text)
            except yaml.YAMLError as e:
                errors.append(f"{word!r}: not a YAML value ({e.__class__.__name__})")


def _across_fields(sections: Mapping[str, Any]) -> list[str]:
    """Return what no single field can say."""
    model: ModelConfig = sections["model"]
    stage: StageConfig = sections["stage"]
    errors = []
    if model.dim % model.num_heads:
        errors.append(f"model.dim {model.dim} does not divide by model.num_heads {model.num_heads}")
    for key in ("skeletal", "scale"):
        widths = model.skeletal_channels if key == "skeletal" else model.scale_kernels
        strides = model.skeletal_strides if key == "skeletal" else model.scale_strides
        if len(widths) != len(strides) or not widths:
            errors.append(f"model.{key}_strides has {len(strides)} entries for {len(widths)}")
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
    total_stride = 1
    for stride in model.skeletal_strides:
        total_stride *= stride
    if total_stride != model.visual_stride:
        errors.append(
            f"model.skeletal_strides shorten time {total_stride} times, "
            f"model.visual_stride {model.visual_stride} times: the streams would not align"
        )
    if stage.warmup_epochs >= stage.epochs:
        errors.append(
            f"stage.warmup_epochs {stage.warmup_epochs} is not below stage.epochs {stage.epochs}"
        )
    return errors


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from e
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: not YAML: {e}") from e
    if raw is None:
        return {}
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        raise UserError(f"{path}: expected a mapping of names to values")
    return raw
