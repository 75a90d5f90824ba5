"""What a run is: its typed sections, what contradicts, and how they are read and overridden.

An experiment file names one file of ``configs/data`` and one of ``configs/model`` (``use:``); the
stage brings one of ``configs/stage``. Those files do not overlap. Only the experiment's own
sections and ``section.key=value`` overrides on the command line replace a value.

The string below a field says what it means, the field's metadata where it may change
(:data:`Property`); ``docs/configuration.md`` lists both. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from signfuse_dist.errors import UserError, raise_together, refuse_unknown, suggest
from signfuse_dist.files import locate, package_files, yaml_files
from signfuse_dist.records import explain

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

Property = Literal[
    "resume",  # may differ where a run goes on; every other key identifies the run
    "load",  # may differ where a saved model is loaded, and between stages
    "stage",  # of the model: may differ from the stage before
    "memory only",  # changes how something is computed and not what, beyond rounding
    "encoders",  # decides what the frozen encoders compute: cached features depend on it
    "unread by contrastive",  # the contrastive stage has no LLM and minimises Eq. 21 alone
    "not in a name",  # no part of the name of an ablation's folder
]


def _number(value: Any) -> Any:
    """Return a float for what YAML reads as text (1e-4) or as an int; else the value, refused."""
    if isinstance(value, (int, str)) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            return float(value)
    return value


_NUMBER = BeforeValidator(_number)
_STRICT = ConfigDict(strict=True, extra="forbid")
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[float, Field(ge=0.0), _NUMBER]


def key(default: Any, *properties: Property) -> Any:
    """Return a field with a default (``MISSING``: none) and properties."""
    return dataclasses.field(default=default, metadata={"properties": properties})


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class DataConfig:
    """The corpus (``configs/data``)."""

    corpus: str
    """Name of the corpus, as `signfuse pack` takes it; the report shows published results of that
    name beside ours."""
    shards: str
    """Folder or address (`s3://...`) that holds one folder of shards for each split."""
    train_split: str
    """Name of the split that is trained on."""
    dev_split: str
    """Name of the split by which a run is selected and ablations are compared."""
    test_split: str
    """Name of the split that is scored at the end; nothing is selected on it."""
    fps: Annotated[float, Field(ge=0.001), _NUMBER] | None
    """Frames a second as packed; null: the rate of each source video, packed without `--fps`."""
    frame_size: Annotated[int, Field(ge=16)]
    """Side of the stored square in pixels, as packed."""
    max_frames: Positive
    """Longest clip the model sees, in frames; a longer one is sampled down to this, evenly, the
    same every time."""
    language: str
    """Language of the texts, as a code such as `de`; METEOR and the model card go by it."""
    bleu_tokenizer: Literal["13a", "zh", "char"]
    """Tokenizer of BLEU: `13a`, `zh` or `char`."""
    metric_preset: str
    """Scoring protocol (docs/evaluation.md lists them), such as `sacrebleu`."""
    poses: str | None = None
    """Name of a pose set (`signfuse pose`) whose joints replace those packed with the frames; null:
    those of the shards."""
    shard_cache: str = key("shards/.cache", "resume")
    """Folder for copies of clips that were read from an address; shards in a folder need none."""
    shard_cache_gb: NonNegative = key(20.0, "resume")
    """Most that the copies take, in GB, whatever the number of processes that share them; what was
    used longest ago goes first."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ModelConfig:
    """The model (``configs/model`` says which LLM; the defaults are the paper's Table 1)."""

    llm: str = key(MISSING, "load", "unread by contrastive")
    """The language model: a folder, or a name of the model hub."""
    llm_revision: str | None = key(None, "load", "unread by contrastive")
    """Commit, tag or branch of the model hub; null: the newest when training starts, or a
    folder."""
    llm_dtype: Literal["float32", "bfloat16", "float16"] = key(
        MISSING, "load", "unread by contrastive"
    )
    """Type of the frozen LLM's weights."""
    lora_targets: tuple[str, ...] | None = key(MISSING, "stage", "unread by contrastive")
    """Layers of the LLM that get LoRA; null: every projection of its attention blocks, found in the
    model."""
    attention: AttentionName = key(MISSING, "load")
    """Attention backend of CMFA, HTA and the LLM; `auto` takes the first that is available."""
    llm_quantization: Literal["none", "8bit", "4bit"] = key("none", "load", "unread by contrastive")
    """Quantization of the frozen LLM's weights (`8bit`, `4bit` NF4); needs bitsandbytes."""
    visual_backbone: Literal["resnet10", "resnet18", "resnet50"] = key("resnet50", "encoders")
    """The ResNet that encodes each frame (section 3.2, Table 1: ResNet-50)."""
    visual_width: Positive = 64
    """Channels of the ResNet's first layer; 64 gives d_v = 2048 for ResNet-50."""
    visual_norm: Literal["frozen", "sync", "local", "group"] = key("frozen", "stage", "encoders")
    """Policy of the ResNet's norms: batch statistics `frozen`, of all processes (`sync`), of each
    process (`local`), or `group` norm."""
    visual_weights: str | None = key("imagenet", "stage")
    """What the ResNet starts from when no stage comes before: `imagenet`, a file, or null for
    nothing."""
    visual_chunk: Positive | None = key(None, "resume", "load", "memory only")
    """Frames that go through the ResNet at once, each chunk computed again in the backward pass;
    null: all. Not with a `visual_norm` of `sync` or `local`."""
    visual_checkpoint: bool = key(False, "resume", "load", "memory only")
    """Whether each residual block is computed again in the backward pass. Not with a `visual_norm`
    of `sync` or `local`."""
    visual_channels_last: bool = key(False, "load", "memory only")
    """Whether feature maps lie in memory with the channels last; needs a `visual_width` of 8 or
    more."""
    visual_compile: bool = key(False, "load", "memory only")
    """Whether the ResNet is compiled by torch.compile; needs a C++ compiler on a CPU."""
    dim: Positive = 512
    """Width d of both streams, CMFA and HTA (Table 1: 512)."""
    visual_kernel: Positive = key(3, "encoders")
    """Kernel of the temporal convolution of Eq. 3, in frames; odd."""
    visual_stride: Positive = key(2, "encoders")
    """Stride of the temporal convolution of Eq. 3: T' = ceil(T / stride)."""
    skeletal_channels: tuple[int, ...] = (64, 128, 256, 512)
    """Output channels of each ST-GCN layer, after the two input coordinates; the last is `dim`."""
    skeletal_kernel: Positive = key(9, "encoders")
    """Temporal kernel of each ST-GCN layer, in frames; odd (Table 1: 9)."""
    skeletal_strides: tuple[int, ...] = key((1, 1, 2, 1), "encoders")
    """Temporal stride of each ST-GCN layer; their product is `visual_stride`, so that the streams
    align."""
    norm: Literal["frozen", "sync", "local", "layer"] = key("sync", "stage", "encoders")
    """Policy of the norms along time, in Eq. 3 and the ST-GCN: batch statistics of all processes
    (`sync`), of each (`local`), stored (`frozen`), or `layer`, which depends on no other clip."""
    streams: Literal["both", "visual", "skeletal"] = key("both", "encoders")
    """Which streams there are (section 5.4); one alone stands on both sides of CMFA and has no
    pairs for Eq. 21."""
    fusion: Literal[
        "cmfa", "concat", "sum", "visual_from_skeletal", "skeletal_from_visual", "no_gate"
    ] = "cmfa"
    """What is inside the norm of Eq. 11: CMFA (Eq. 6-10) or a fusion that section 5.4 compares with
    it."""
    fusion_layers: Count = 3
    """Layers of CMFA (Table 1: 3); with 0, the mean of the streams."""
    fusion_gain: NonNegative = 0.1
    """Where the gain of the layer norm of Eq. 11 starts."""
    num_heads: Positive = 8
    """Heads of the attention in CMFA and HTA; divides `dim`."""
    ffn_multiplier: Positive = 4
    """Width of the feed-forward network of Eq. 12, in multiples of `dim`."""
    scales: tuple[ScaleName, ...] = SCALES
    """Which of HTA's time scales there are, in the order `frame`, `segment`, `sequence`; []: no
    HTA, the features are only pooled to `pooled_length`."""
    scale_kernels: tuple[int, ...] = (1, 5, 11)
    """Kernel of each of the three time scales, in steps; odd (Eq. 13-15)."""
    scale_strides: tuple[int, ...] = (1, 2, 4)
    """Stride of each of the three time scales, in steps."""
    pooled_length: Positive = 64
    """Length T'' to which every time scale is pooled, in steps (Eq. 16)."""
    num_sign_tokens: Positive = 32
    """Number N_s of sign tokens that the SLA gives to the LLM (Eq. 18)."""
    adapter_gain: Literal["embeddings", "one"] = "embeddings"
    """Where the gain of the SLA's norm starts: at the RMS of the LLM's `embeddings`, or at
    `one`."""
    lora_rank: Positive = key(16, "stage", "unread by contrastive")
    """Rank of the LoRA matrices (Table 1: 16)."""
    lora_alpha: Positive = key(32, "stage", "unread by contrastive")
    """Scale alpha of LoRA (Table 1: 32)."""
    prompt: str = key(
        "Translate the following sign language video into a spoken language sentence:",
        "stage",
        "unread by contrastive",
    )
    """Instruction to the LLM between sign tokens and text (section 3.6)."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class LossConfig:
    """Eq. 21-23 and the choices that the paper leaves open."""

    temperature: Annotated[float, Field(ge=1e-06), _NUMBER] = 0.07
    """Temperature tau of Eq. 21; it is not learned."""
    contrastive_weight: NonNegative = key(0.1, "unread by contrastive", "not in a name")
    """lambda_1, weight of Eq. 21 in the last stage (Eq. 23); 0: Eq. 21 is not computed there."""
    alignment_weight: NonNegative = key(0.05, "unread by contrastive")
    """lambda_2, weight of Eq. 22 in the last stage (Eq. 23)."""
    contrastive_features: Literal["unimodal", "streams", "attended"] = "unimodal"
    """What Eq. 21 compares: CMFA run on each stream alone (`unimodal`), the `streams` before it, or
    the `attended` sides O_{v->s} and O_{s->v}."""
    alignment_pooling: Literal["mean", "resample"] = key("mean", "unread by contrastive")
    """How Eq. 22 compares tensors of different lengths: both averaged (`mean`), or the text
    averaged into N_s slots (`resample`)."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class StageConfig:
    """One column of Table 2 (``configs/stage``)."""

    name: StageName
    """The stage; set by the choice of the stage, not by a file."""
    epochs: Positive
    """Epochs of the stage (Table 2)."""
    learning_rate: NonNegative
    """Highest learning rate of the stage: after the warmup, before the cosine (Table 2)."""
    warmup_epochs: Count
    """Epochs in which the rate rises linearly; fewer than `epochs` (Table 2)."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TrainConfig:
    """How a stage is trained; batch 32 is global (Table 2), over all devices."""

    micro_batch_size: Positive = key(MISSING, "resume")
    """Clips that one process holds at once; the rest of the global batch is accumulated."""
    precision: Literal["fp32", "bf16"]
    """`bf16` computes under autocast, with trained weights and optimizer in fp32; `fp32` computes
    all in fp32."""
    gradient_clipping: NonNegative
    """Largest norm of the gradient; 0: no clipping."""
    stages: tuple[StageName, ...] = key(STAGES, "not in a name")
    """Which stages there are, in order; each starts from the one before it in this list (section
    5.4)."""
    global_batch_size: Positive = 32
    """Clips of an optimizer step over all processes (Table 2: 32)."""
    gradient_caching: bool = True
    """Whether Eq. 21 compares the clips of the whole step when they are not held at once, for
    another run of the encoders."""
    weight_decay: NonNegative = 0.01
    """Weight decay of AdamW, not on biases and norm gains (section 4.2)."""
    seed: Count = key(0, "not in a name")
    """Seed of the weights, the order of the clips, dropout and augmentation."""
    output: str = key("runs", "resume")
    """Folder of the runs: a run folder is `OUTPUT/EXPERIMENT/STAGE`."""
    num_workers: Count | None = key(None, "resume")
    """Threads that read clips ahead for each training process; null: the cores it may use, less
    one."""
    max_broken_share: NonNegative = key(0.001, "resume")
    """Share of an epoch's clips that may be unreadable; above it the run stops."""
    non_finite: Literal["stop", "skip"] = key("stop", "resume")
    """What a loss or gradient that is not finite does: `stop` the run, or `skip` the step."""
    hang_seconds: Annotated[float, Field(ge=1.0), _NUMBER] | None = key(120.0, "resume")
    """Seconds without a sign of a process after which the job ends and names it; null: never."""
    log_steps: Positive = key(10, "resume")
    """Optimizer steps between two log lines."""
    features: Literal["computed", "cached"] = "computed"
    """Features of the frozen encoders in stage `alignment`: `computed` from frames at every step,
    or `cached` once."""
    trackers: tuple[TrackerName, ...] = key((), "resume")
    """Trackers that get the figures of `metrics.jsonl` as well."""
    checkpoint_steps: Positive = key(200, "resume")
    """Optimizer steps between two checkpoints."""
    keep_checkpoints: Positive = key(2, "resume")
    """How many of the newest checkpoints are kept; the one with the best development score is kept
    beside them."""
    dev_epochs: Count = key(1, "resume")
    """Epochs between two scores of the development split, which is also scored at the end; 0:
    never."""
    select: Literal["last", "best"] = key("last", "resume")
    """Whose weights become the stage's model: those of the `last` step, or of the checkpoint with
    the `best` development score."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class AugmentConfig:
    """How far training clips are changed at random, at most; 0 is not at all (the paper)."""

    crop: NonNegative = 0.0
    """Largest shift of the picture, as a share of its side, each way; 0: none."""
    scale: NonNegative = 0.0
    """Largest change of the picture's size: 0.1 draws factors from 1 / 1.1 to 1.1; 0: none."""
    colour: NonNegative = 0.0
    """Largest change of brightness, contrast and saturation: 0.2 draws each from 0.8 to 1.2; 0:
    none."""
    speed: NonNegative = 0.0
    """Largest change of the playback speed: 0.25 draws factors from 1 / 1.25 to 1.25; 0: none."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class EvaluationConfig:
    """Deterministic decoding: beam search, nothing sampled."""

    batch_size: Positive = key(8, "resume")
    """Clips that are decoded together."""
    num_beams: Positive = key(4, "resume")
    """Beams of the search; nothing is sampled."""
    length_penalty: Annotated[float, Field(allow_inf_nan=False), _NUMBER] = key(1.0, "resume")
    """Power of the length by which a beam's log-probability is divided; above 1 favours longer
    sentences."""
    max_new_tokens: Positive = key(128, "resume")
    """Longest translation, in tokens of the LLM."""
    num_samples: Count = key(8, "resume")
    """Samples that the report shows with pictures."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
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

    def flat(self) -> dict[str, Any]:
        """Return every value in plain containers by ``section.key``, and ``name``."""
        sections = self.to_dict()
        values = {"name": sections.pop("name")}
        for section, keys in sections.items():
            values |= {f"{section}.{name}": value for name, value in keys.items()}
        return values


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


SECTIONS: dict[str, type] = {
    f.name: typing.get_type_hints(RunConfig)[f.name]
    for f in dataclasses.fields(RunConfig)
    if f.name != "name"
}
_CHOICES = ("data", "model", "stage")


def keys_with(*properties: Property) -> tuple[str, ...]:
    """Return each ``section.key`` that has one of these properties."""
    return tuple(
        f"{section}.{item.name}"
        for section, cls in SECTIONS.items()
        for item in dataclasses.fields(cls)
        if set(properties) & set(item.metadata.get("properties", ()))
    )


def names_with(section: str, *properties: Property) -> tuple[str, ...]:
    """Return the keys of a section that have one of these properties, without its name."""
    keys = [key.partition(".") for key in keys_with(*properties)]
    return tuple(name for of, _, name in keys if of == section)


T = TypeVar("T")


def build(section: str, cls: type[T], values: Mapping[Any, Any], errors: list[str]) -> T | None:
    """Build one section from YAML or JSON, or record every error of it and return None."""
    lists_as_tuples = {str(k): tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    try:
        return cls(**lists_as_tuples)
    except ValidationError as e:
        named = explain(cls, e, lambda place: ".".join([section, *map(str, place[:1])]))
        errors += [f"{e}; it has no default" if e.endswith(": missing") else e for e in named]
        return None


def load_run(experiment: str, stage: str | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read one stage of an experiment.

    ``experiment`` is a YAML file or the name of one in ``configs/experiment``; ``stage`` a name of
    :data:`STAGES`, or None when ``stage=NAME`` is among the ``overrides``. Raises
    :class:`UserError` with every error of every file and override together.
    """
    path = find_experiment(experiment)
    sections, errors = _read_sections(path, stage, overrides)
    run = None if errors else RunConfig(name=path.stem, **sections)
    if run is not None:
        errors = contradictions(run)
    raise_together(errors, f"{path}: the configuration has errors")
    assert run is not None
    return run


def load_stages(experiment: str, overrides: Sequence[str] = ()) -> list[RunConfig]:
    """Read the stages of ``train.stages`` in order, or the one that is named in ``overrides``.

    Raises :class:`UserError` with every error of every stage.
    """
    named = [o.partition("=")[2] for o in overrides if o.startswith("stage=")]
    others = [o for o in overrides if not o.startswith("stage=")]
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


def load_resolved(path: Path) -> RunConfig:
    """Read the ``config.yaml`` of a run folder; raise :class:`UserError` when it does not fit."""
    raw = _read_mapping(path)
    errors: list[str] = []
    name = raw.pop("name", None)
    refuse_unknown(raw, SECTIONS, f"{path}: section", errors)
    sections: dict[str, Any] = {}
    for section, cls in SECTIONS.items():
        values = raw.get(section, {})
        if isinstance(values, dict):
            sections[section] = build(section, cls, values, errors)
        else:
            errors.append(f"{section}: expected a mapping, got {values!r}")
    if not isinstance(name, str):
        errors.append("name: missing")
    raise_together(errors, f"{path}: not the configuration of a run")
    return RunConfig(name=str(name), **sections)


def override(run: RunConfig, overrides: Sequence[str], section: str) -> RunConfig:
    """Return the run with ``section.key=value`` overrides of one section applied.

    Raises :class:`UserError` with every override that is wrong or of another section.
    """
    values: dict[str, dict[str, Any]] = {section: dataclasses.asdict(getattr(run, section))}
    others = [o for o in overrides if not o.startswith(f"{section}.")]
    errors = [f"{other!r}: only {section}.key=value can be changed here" for other in others]
    _merge_overrides(values, [o for o in overrides if o not in others], errors)
    changed: dict[str, Any] = {section: build(section, SECTIONS[section], values[section], errors)}
    raise_together(errors, f"{run.name}: the overrides have errors")
    return dataclasses.replace(run, **changed)


def find_experiment(experiment: str) -> Path:
    """Return the experiment's file; a bare name means ``configs/experiment/NAME.yaml``.

    It is looked for in the working folder, then among the package's own (:func:`.files.locate`).
    """
    path = Path(experiment)
    if path.suffix not in (".yaml", ".yml"):
        path = Path("configs") / "experiment" / f"{experiment}.yaml"
    path = locate(path)
    if path.is_file():
        return path
    known = [p.stem for p in yaml_files(path.parent)]
    near = suggest(path.stem, known)
    raise UserError(
        f"no experiment {experiment!r}: {path} does not exist{near}. "
        f"There are: {', '.join(known) or 'none'}"
    )


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
    _merge_overrides(values, overrides, errors)
    return {name: build(name, SECTIONS[name], values[name], errors) for name in read}, errors


def _take_choices(
    raw: dict[str, Any], path: Path, stage: str | None, overrides: Sequence[str], errors: list[str]
) -> dict[str, str]:
    """Return which file each of data, model and stage comes from."""
    use = raw.pop("use", {})
    if not isinstance(use, dict):
        errors.append(f"{path}: use: expected data: NAME and model: NAME, got {use!r}")
        use = {}
    chosen = {k: str(v) for k, v in use.items()}
    refuse_unknown(chosen, ("data", "model"), f"{path}: use", errors)
    for text in overrides:
        choice, _, value = text.partition("=")
        if choice in _CHOICES:
            chosen[choice] = value
    if stage is not None:
        chosen["stage"] = stage
    for choice in _CHOICES:
        if choice not in chosen:
            errors.append(f"{choice}: not chosen; write {choice}=NAME (a file of configs/{choice})")
    return chosen


def _file_values(
    path: Path, chosen: Mapping[str, str], errors: list[str]
) -> dict[str, dict[str, Any]]:
    """Return the values of each section; one whose file does not exist is left out."""
    values: dict[str, dict[str, Any]] = {n: {} for n in SECTIONS if n not in _CHOICES}
    for key in _CHOICES:
        name = chosen.get(key)
        if name is None:
            continue
        file = _find_choice(path, key, name)
        if not file.is_file():
            folders = (path.parent.parent / key, Path("configs") / key)
            near = suggest(name, {p.stem for folder in folders for p in yaml_files(folder)})
            errors.append(f"{key}={name}: {file} does not exist{near}")
            continue
        values[key] = _read_mapping(file)
    if "stage" in values and chosen["stage"] in STAGES:
        values["stage"]["name"] = chosen["stage"]
    return values


def _find_choice(experiment: Path, key: str, name: str) -> Path:
    """Return the file ``name`` of ``configs/KEY``: the experiment's own, or as any other is found.

    The experiment's own lie beside it; those of the package's experiments come last.
    """
    if name.endswith((".yaml", ".yml")):
        return locate(Path(name))
    configs = experiment.parent.parent
    beside, elsewhere = (at / key / f"{name}.yaml" for at in (configs, Path("configs")))
    if beside.is_file() and configs != package_files() / "configs":
        return beside
    elsewhere = locate(elsewhere)
    return elsewhere if elsewhere.is_file() else beside


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


def _merge_overrides(
    values: dict[str, dict[str, Any]], overrides: Iterable[str], errors: list[str]
) -> None:
    for override in overrides:
        left, equals, text = override.partition("=")
        section, dot, name = left.partition(".")
        if not equals or (not dot and left not in _CHOICES):
            errors.append(
                f"{override!r}: expected section.key=value (or data=, model=, stage=NAME)"
            )
        elif dot and section not in SECTIONS:
            errors.append(f"{override!r}: no section {section!r}{suggest(section, SECTIONS)}")
        elif dot:
            try:
                values.setdefault(section, {})[name] = yaml.safe_load(text)
            except yaml.YAMLError as e:
                errors.append(f"{override!r}: not a YAML value ({e.__class__.__name__})")


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from e
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: not YAML: {e}") from e
    if raw is None:
        return {}
    if not isinstance(raw, dict) or not all(isinstance(name, str) for name in raw):
        raise UserError(f"{path}: expected a mapping of names to values")
    return raw


# torch 2.15 on CPU corrupts the heap in the backward pass of a 1x1 convolution of stride 2 over 4
# channels in this layout; 8 and more are sound.
_CHANNELS_LAST_WIDTH = 8


def contradictions(run: RunConfig) -> list[str]:
    """Return what no single field can say: values that exclude each other, by their keys."""
    return [
        *_of_lengths(run.model),
        *_of_scales(run.model),
        *_of_stages(run.train, run.stage),
        *_of_pairs(run),
        *_of_memory(run.model),
        *_of_features(run),
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
            f"stage.warmup_epochs {stage.warmup_epochs} is not below stage.epochs {stage.epochs}"
        )
    if not train.stages or not _in_order(train.stages, STAGES):
        errors.append(
            f"train.stages {list(train.stages)}: at least one, each at most once, in the order "
            f"{list(STAGES)}"
        )
    elif stage.name not in train.stages:
        errors.append(f"stage {stage.name} is not among train.stages {list(train.stages)}")
    if train.select == "best" and not train.dev_epochs:
        errors.append(
            "train.select=best needs a development score: write train.dev_epochs=1 or more"
        )
    return errors


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
    if model.visual_norm in ("sync", "local"):
        for name in ("visual_chunk", "visual_checkpoint"):
            if getattr(model, name):
                errors.append(
                    f"model.{name}={getattr(model, name)} computes frames again in the backward "
                    f"pass, which is exact only when they do not depend on the batch: write "
                    f"model.visual_norm=frozen or group, not {model.visual_norm}"
                )
    if model.visual_channels_last and model.visual_width < _CHANNELS_LAST_WIDTH:
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
