"""What a run is: its typed sections, and what is true of each key.

The string below a field says what it means, the field's metadata where it may change
(:data:`Property`); ``docs/configuration.md`` lists both. Sections by their names are
:mod:`signfuse_dist.sections`', reading them from files is :mod:`signfuse_dist.experiment`'s.
Imports no torch.
"""

from __future__ import annotations

import dataclasses
import re
from contextlib import suppress
from dataclasses import MISSING
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass, rebuild_dataclass

from signfuse_dist.errors import suggest
from signfuse_dist.origin import Origin

StageName = Literal["contrastive", "alignment", "finetune"]
STAGES: tuple[StageName, ...] = ("contrastive", "alignment", "finetune")
PartName = Literal["visual", "skeletal", "fusion", "temporal", "adapter", "llm"]
ScaleName = Literal["frame", "segment", "sequence"]
SCALES: tuple[ScaleName, ...] = ("frame", "segment", "sequence")
# Accelerate's, see engine/tracker_packages.py.
TrackerName = Literal[
    "aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"
]
# Of a model that a run starts from, see model/parts.py.
StartPart = Literal[
    "visual", "skeletal", "fusion", "temporal", "adapter", "statistics", "lora", "merged_lora"
]
# `auto` chooses among the others, see model/attention.py.
AttentionName = Literal["auto", "flash_attention_2", "varlen", "sdpa", "eager"]

# See model/positions.py.
PositionsName = Literal["none", "sinusoidal", "rotary", "distance"]

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


RESNETS = ("resnet10", "resnet18", "resnet50")
_SETS = re.compile(r"features:[A-Za-z0-9][A-Za-z0-9._-]*(\+[A-Za-z0-9][A-Za-z0-9._-]*)*")


def _backbone(value: str) -> str:
    """Refuse what is neither a ResNet, a model of the hub nor feature sets by their names."""
    on_hub = value.startswith("hf:") and value[3:].strip()
    if value in RESNETS or on_hub or _SETS.fullmatch(value):
        return value
    raise ValueError(
        f"is not one of {', '.join(RESNETS)}, hf:NAME (a vision model of transformers) or "
        f"features:NAME[+NAME] (sets of `signfuse features`){suggest(value, RESNETS)}"
    )


_NUMBER = BeforeValidator(_number)
_STRICT = ConfigDict(strict=True, extra="forbid")
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False), _NUMBER]
BelowOne = Annotated[float, Field(ge=0.0, lt=1.0, allow_inf_nan=False), _NUMBER]


def key(default: Any, *properties: Property) -> Any:
    """Return a field with a default (``MISSING``: none) and properties."""
    return dataclasses.field(default=default, metadata={"properties": properties})


Crop = Literal["none", "signer", "box"]
"""What is stored of a picture: all of it, letterboxed; a square around the signer's joints; or one
around the box that the corpus brings."""


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
    fps: Annotated[float, Field(ge=0.001, allow_inf_nan=False), _NUMBER] | None
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
    crop: Crop = "none"
    """What is stored of each picture, as packed: `none` (all of it), `signer` or `box`; new clips
    are cut in the same way."""
    poses: str | None = None
    """Name of a pose set (`signfuse pose`) whose joints replace those packed with the frames; null:
    those of the shards."""
    shard_cache: str = key("shards/.cache", "resume")
    """Folder for copies of clips that were read from an address; shards in a folder need none."""
    shard_cache_gb: NonNegative = key(20.0, "resume")
    """Most that the copies take, in GB, whatever the number of processes that share them; what was
    used longest ago goes first."""
    stage_to: str | None = key(None, "resume")
    """Folder on each node's own disk, such as `$SLURM_TMPDIR`, into which shards are copied before
    training or evaluation reads them; null: they are read where they are."""
    licence: str | None = key(None, "resume")
    """Under which terms the corpus may be used, in words; a saved model and its card state it."""
    blend: tuple[BlendedCorpus, ...] = ()
    """Corpora that are trained on together, each by the name of a file of `configs/data`, as in
    `[{corpus: how2sign, weight: 3}, {corpus: csl_daily, weight: 1}]`; []: the one above alone."""
    blend_temperature: Annotated[float, Field(gt=0.0, allow_inf_nan=False), _NUMBER] | None = None
    """How the clips of a blended corpus count beside its weight: draws go by weight x clips^(1 /
    temperature), so 1 is by clips and 5 flattens them; null: by weight alone."""

    def place(self, split: str) -> str:
        """The folder or address of one packed split."""
        return f"{self.shards.rstrip('/')}/{split}"


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class BlendedCorpus:
    """One corpus of ``data.blend``."""

    corpus: str
    """Name of a file of `configs/data`; logs and scores call the corpus so."""
    weight: Annotated[float, Field(gt=0.0, allow_inf_nan=False), _NUMBER] = 1.0
    """How much of each step is drawn from it, beside the weights of the others."""
    max_clips: Positive | None = None
    """Most clips of it that are used, the same for every seed; null: all."""
    prompt: str | None = None
    """Instruction to the LLM for its clips; null: `model.prompt`."""
    data: DataConfig
    """The keys of that file; those that are given here replace its."""


rebuild_dataclass(cast("Any", DataConfig), force=True)


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
    """Type of the LLM's weights where they do not train."""
    llm_training: Literal["lora", "full", "frozen"] = key("lora", "stage", "unread by contrastive")
    """What of the LLM trains in stage `finetune`: `lora` matrices beside frozen weights, the `full`
    LLM in float32, which the model then holds, or nothing (`frozen`)."""
    lora_targets: tuple[str, ...] | Literal["all"] | None = key(
        MISSING, "stage", "unread by contrastive"
    )
    """Layers of the LLM that get LoRA, by name; `all`: every linear layer but the output layer;
    null: every projection of its attention blocks. Both are found in the model."""
    attention: AttentionName = key(MISSING, "load")
    """Attention backend of CMFA, HTA and the LLM; `auto` is `sdpa` over at most 128 steps (256
    frames) and in the LLM, else the first that is available. `varlen` of torch 2.15 takes cuDNN
    before flash on Hopper."""
    llm_quantization: Literal["none", "8bit", "4bit"] = key("none", "load", "unread by contrastive")
    """Quantization of the frozen LLM's weights (`8bit`, `4bit` NF4); needs bitsandbytes."""
    llm_licence: str | None = key(None, "resume", "load", "unread by contrastive")
    """Licence of the LLM, in words; a saved model and its card state it."""
    visual_backbone: Annotated[str, AfterValidator(_backbone)] = key("resnet50", "encoders")
    """What encodes each frame: `resnet10`, `resnet18` or `resnet50` (section 3.2, Table 1:
    ResNet-50); `hf:NAME`, a vision model of transformers, of the hub or a folder (networks of
    torchvision too: docs/training.md); or `features:NAME` or `features:NAME+NAME`, sets of vectors
    that `signfuse features` has put beside the shards, so that no picture is read."""
    visual_revision: str | None = key(None, "load")
    """Of `hf:NAME`: commit, tag or branch of the model hub; null: the newest when training starts,
    or a folder."""
    visual_training: Literal["full", "frozen"] | None = key(None, "encoders")
    """Whether what encodes each frame trains where the visual stream does (`full`), or stays as it
    is (`frozen`); null: a ResNet trains, a model of the hub does not."""
    visual_width: Positive = 64
    """Channels of the ResNet's first layer; 64 gives d_v = 2048 for ResNet-50."""
    visual_norm: Literal["frozen", "sync", "local", "group"] = key("frozen", "stage", "encoders")
    """Policy of the ResNet's norms: batch statistics `frozen`, of all processes (`sync`), of each
    process (`local`), or `group` norm."""
    visual_weights: str | None = key("imagenet", "stage")
    """What the ResNet starts from when no stage comes before: `imagenet`, a file, or null for
    nothing."""
    visual_chunk: Positive | Literal["auto"] | None = key("auto", "resume", "load", "memory only")
    """Frames that go through the ResNet at once, each chunk computed again in the backward pass;
    `auto`: all where they fit the GPU by the arithmetic of `check`, chunks where not; null: all. A
    number not with a `visual_norm` of `sync` or `local`."""
    visual_checkpoint: bool = key(False, "resume", "load", "memory only")
    """Whether each residual block is computed again in the backward pass. Not with a `visual_norm`
    of `sync` or `local`."""
    visual_channels_last: bool | Literal["auto"] = key("auto", "resume", "load", "memory only")
    """Whether feature maps lie in memory with the channels last, as decoded frames do; `auto`: on a
    GPU. `true` needs a `visual_width` of 8 or more."""
    visual_compile: bool = key(False, "load", "memory only")
    """Whether the ResNet is compiled by torch.compile. For GPUs: on one CPU, code that torch 2.15
    had compiled gave wrong gradients (docs/log.md)."""
    dim: Positive = 512
    """Width d of both streams, CMFA and HTA (Table 1: 512)."""
    visual_kernel: Positive = key(3, "encoders")
    """Kernel of the temporal convolution of Eq. 3, in frames; odd."""
    visual_stride: Positive = key(2, "encoders")
    """Stride of the temporal convolution of Eq. 3: T' = ceil(T / stride)."""
    skeletal_channels: tuple[int, ...] = (64, 128, 256, 512)
    """Output channels of each ST-GCN layer, after the channels of a joint; the last is `dim`."""
    skeletal_kernel: Positive = key(9, "encoders")
    """Temporal kernel of each ST-GCN layer, in frames; odd (Table 1: 9)."""
    skeletal_strides: tuple[int, ...] = key((1, 1, 2, 1), "encoders")
    """Temporal stride of each ST-GCN layer; their product is `visual_stride`, so that the streams
    align."""
    joints: tuple[str, ...] | None = key(None, "encoders")
    """Joints that the ST-GCN sees, by their names or the groups `left_hand`, `right_hand`, `body`
    and `face`; those left out are skipped along the bones. null: all 75."""
    joint_pooling: Literal["mean", "groups"] = key("mean", "encoders")
    """How joints become one vector a step: their `mean` (Eq. 5), or the means of both hands, body
    and face side by side, then a linear layer (`groups`)."""
    joint_frame: Literal["image", "body"] = key("image", "encoders")
    """Where a joint's coordinates are measured: in the `image`, or in the frame of the `body`, from
    between the shoulders in units of their distance, with hands relative to their wrists too."""
    joint_velocity: bool = key(False, "encoders")
    """Whether a joint's change since the frame before is told as well, two channels more."""
    joint_presence: bool = key(False, "encoders")
    """Whether a channel says which joints are there: a lost one is at 0, as another may really
    be."""
    joint_spread: Literal["each", "shared"] = key("each", "encoders")
    """By which deviation the ST-GCN's first norm divides a joint's coordinates: that of `each`, or
    one of all (`shared`), so that what hardly moves stays small; `norm: layer` has one a step."""
    joint_statistics: Literal["all", "present"] = key("all", "encoders")
    """What the ST-GCN's norms and its mean over the joints count: `all` joints, lost ones as 0, or
    those that are `present`."""
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
    positions: PositionsName = "none"
    """What attention of CMFA and HTA knows of time: `none`, as the paper has it; `sinusoidal` or
    `rotary` positions; or `distance`, which takes slope x |steps apart| from each head's scores,
    and computes by `sdpa` or `eager`."""
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
    dropout: BelowOne = key(0.0, "stage")
    """Share of the values that dropout zeroes while training, in CMFA, HTA, the SLA and the ST-GCN;
    0: none."""
    adapter_gain: Literal["embeddings", "one"] = "embeddings"
    """Where the gain of the SLA's norm starts: at the RMS of the LLM's `embeddings`, or at
    `one`."""
    lora_rank: Positive = key(16, "stage", "unread by contrastive")
    """Rank of the LoRA matrices (Table 1: 16)."""
    lora_alpha: Positive = key(32, "stage", "unread by contrastive")
    """Scale alpha of LoRA (Table 1: 32)."""
    lora_dropout: BelowOne = key(0.0, "stage", "unread by contrastive")
    """Share of the inputs of the LoRA matrices that dropout zeroes while training; 0: none."""
    prompt: str = key(
        "Translate the following sign language video into a spoken language sentence:",
        "stage",
        "unread by contrastive",
    )
    """Instruction to the LLM between sign tokens and text (section 3.6). `{language}` stands for
    the English name of `data.language`, `{own_language}` for its name in that language."""
    start_token: Literal["after", "before"] = key("after", "stage", "unread by contrastive")
    """Where the token stands with which the LLM's tokenizer begins a text (`<s>`): `after` the sign
    tokens, before the prompt, or `before` all."""
    leading_space: bool = key(False, "stage", "unread by contrastive")
    """Whether the first word of a text is cut into tokens as a word inside a text is, for
    tokenizers that tell the two apart (GPT-2, Qwen, LLaMA-3); others do so anyway."""

    @property
    def sees_pictures(self) -> bool:
        """Whether frames go through a network here."""
        return self.streams != "skeletal" and not self.feature_sets

    @property
    def has_resnet(self) -> bool:
        """Whether frames go through a ResNet."""
        return self.sees_pictures and self.vision_model is None

    @property
    def vision_model(self) -> str | None:
        """The vision model of transformers that encodes frames; None for anything else."""
        kind, _, name = self.visual_backbone.partition(":")
        return name if kind == "hf" and self.streams != "skeletal" else None

    @property
    def trains_backbone(self) -> bool:
        """Whether the network of pictures trains where the visual stream does."""
        if self.visual_training is not None:
            return self.visual_training == "full"
        return self.vision_model is None

    @property
    def feature_sets(self) -> tuple[str, ...]:
        """Names of the feature sets that stand in the place of pictures; empty for pictures."""
        kind, _, names = self.visual_backbone.partition(":")
        return tuple(names.split("+")) if kind == "features" and self.streams != "skeletal" else ()


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class LossConfig:
    """Eq. 21-23 and the choices that the paper leaves open."""

    temperature: Annotated[float, Field(ge=1e-06, allow_inf_nan=False), _NUMBER] = 0.07
    """Temperature tau of Eq. 21; it is not learned."""
    contrastive_weight: NonNegative = key(0.1, "unread by contrastive", "not in a name")
    """lambda_1, weight of Eq. 21 in the last stage (Eq. 23); 0: Eq. 21 is not computed there."""
    alignment_weight: NonNegative = key(0.05, "unread by contrastive")
    """lambda_2, weight of Eq. 22 in the last stage (Eq. 23)."""
    contrastive_features: Literal["unimodal", "streams", "attended"] = "unimodal"
    """What Eq. 21 compares: CMFA run on each stream alone (`unimodal`), the `streams` before it, or
    the `attended` sides O_{v->s} and O_{s->v}."""
    negatives: Literal["all", "corpus"] = "all"
    """Among which clips of a step Eq. 21 takes the negatives of a clip: `all`, or those of its
    `corpus` alone, so that a corpus is not told by its looks; for `data.blend`."""
    alignment_pooling: Literal["mean", "resample"] = key("mean", "unread by contrastive")
    """How Eq. 22 compares tensors of different lengths: both averaged (`mean`), or the text
    averaged into N_s slots (`resample`)."""
    label_smoothing: BelowOne = key(0.0, "unread by contrastive")
    """Share of each target token's probability that is spread over the whole vocabulary in L_LM
    while training, 0.1 in most translation systems; 0: none. Development scores have none."""


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
    rates: dict[PartName, NonNegative] | None = None
    """Factors of the learning rate by part, such as `{visual: 0.1, llm: 0.5}`; a part that is not
    named has 1, and one that the stage does not train is refused. null: all alike."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TrainConfig:
    """How a stage is trained; batch 32 is global (Table 2), over all devices."""

    micro_batch_size: Positive = key(MISSING, "resume")
    """Clips that one process holds at once; the rest of the global batch is accumulated."""
    precision: Literal["fp32", "bf16"]
    """`bf16` computes under autocast, with trained weights and optimizer in fp32; `fp32` computes
    all in fp32."""
    tf32: bool = False
    """Whether products and convolutions of float32 numbers may round their inputs to 10 bits
    (TF32), on GPUs that can; on the CPU nothing changes."""
    deterministic: bool = key(False, "resume")
    """Whether kernels that give other bits from run to run are refused, for slower ones; on the CPU
    a run gives the same bits either way."""
    gradient_clipping: NonNegative
    """Largest norm of the gradient; 0: no clipping."""
    stages: tuple[StageName, ...] = key(STAGES, "not in a name")
    """Which stages there are, in order; each starts from the one before it in this list (section
    5.4)."""
    start: str | None = None
    """What the first of `stages` starts from: a run folder, a model's folder, or a name of the
    model hub (`OWNER/NAME` or `OWNER/NAME@REVISION`); null: from `model.visual_weights` alone."""
    start_parts: tuple[StartPart, ...] | None = None
    """Which parts of the start are taken: components, norm `statistics`, `lora` to go on training
    it or `merged_lora` to keep it as it is; null: all, refused by name where one does not fit."""
    global_batch_size: Positive = 32
    """Clips of an optimizer step over all processes (Table 2: 32)."""
    gradient_caching: bool = True
    """Whether Eq. 21 compares the clips of the whole step when they are not held at once, for
    another run of the encoders."""
    arrangement: Literal["auto", "drawn", "length"] = "auto"
    """Which clips of a step are held at once: those that come first, as `drawn`, or those about as
    long as each other, so that processes wait less and pad less (`length`); `auto`: `length` where
    no norm takes statistics over a micro batch and no Eq. 21 compares one alone, else `drawn`."""
    bucket: Count = 0
    """Steps whose clips are sorted by length into these steps, in an order drawn anew each epoch,
    for where a step is one micro batch; 64 is enough. 0: none, a step has clips of any length."""
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
    hang_seconds: Annotated[float, Field(ge=1.0, allow_inf_nan=False), _NUMBER] | None = key(
        120.0, "resume"
    )
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
    failed_checkpoints: Positive = key(3, "resume")
    """How many checkpoints in a row may fail to be written; then the job ends and names the steps
    that are lost."""
    dev_epochs: Count = key(1, "resume")
    """Epochs between two scores of the development split, which is also scored at the end; 0:
    never."""
    select: Literal["last", "best"] = key("last", "resume")
    """Whose weights become the stage's model: those of the `last` step, or of the checkpoint with
    the `best` development score."""
    select_by: Literal["loss", "bleu", "chrf"] = "loss"
    """What the development score is: the `loss`, or BLEU-4 or chrF of the split, decoded with one
    beam. The contrastive stage has no translations and goes by its loss."""
    patience: Positive | None = key(None, "resume")
    """Development scores in a row that may be no better than the best before the stage ends; null:
    it always has all its epochs."""
    weight_average: Annotated[float, Field(gt=0.0, lt=1.0, allow_inf_nan=False), _NUMBER] | None = (
        None
    )
    """Decay of a running mean of the weights (EMA), such as 0.999, which is scored and becomes the
    stage's model in their place; null: none."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class AugmentConfig:
    """How far training clips are changed at random, at most; 0 is not at all (the paper)."""

    crop: BelowOne = 0.0
    """Largest shift of the picture each way, as a share of its side, its edge drawn on; 0: none."""
    scale: NonNegative = 0.0
    """Largest change of the picture's size: 0.1 draws factors from 1 / 1.1 to 1.1; 0: none."""
    colour: BelowOne = 0.0
    """Largest change of brightness, contrast and saturation: 0.2 draws each from 0.8 to 1.2; 0:
    none."""
    speed: NonNegative = 0.0
    """Largest change of the playback speed: 0.25 draws factors from 1 / 1.25 to 1.25; 0: none."""
    drop_stream: BelowOne = 0.0
    """Share of the clips with both streams that lose one of them, the other standing on both sides
    as in a model of one stream; Eq. 21 leaves them out. 0: none."""
    mask_spans: BelowOne = 0.0
    """Largest share of a clip's steps that is hidden, one span in either stream's features; 0:
    none."""
    joint_noise: NonNegative = 0.0
    """Standard deviation by which each joint is moved in each frame, as a share of the picture's
    side; 0: none."""


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
    recipe: str = "paper"
    """Which recipe was taken (:mod:`signfuse_dist.recipe`). A name: what it sets stands in the
    sections, and identifies the run."""
    origin: Origin | None = None
    """Of a run that `train.start` started: from what. The trainer finds it; nobody types it."""

    @property
    def folder(self) -> Path:
        """The run folder of this stage, ``output/experiment/stage``."""
        return Path(self.train.output) / self.name / self.stage.name

    def shards(self, split: str) -> str:
        """The folder or address of one packed split."""
        return self.data.place(split)

    @property
    def corpora(self) -> tuple[BlendedCorpus, ...]:
        """What is trained on: the corpora of the blend, else the one corpus.

        Where clips are kept is the machine's, so all of them follow the one section's.
        """
        here = {name: getattr(self.data, name) for name in names_with(DataConfig, "resume")}
        del here["licence"]
        parts = self.data.blend or (BlendedCorpus(corpus=self.data.corpus, data=self.data),)
        return tuple(
            dataclasses.replace(part, data=dataclasses.replace(part.data, **here)) for part in parts
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers, tuples as lists, as written to ``config.yaml``."""
        values = cast("dict[str, Any]", _plain(dataclasses.asdict(self)))
        for name, default in (("recipe", "paper"), ("origin", None)):
            if values[name] == default:
                del values[name]
        return values

    def flat(self) -> dict[str, Any]:
        """Return every value in plain containers by ``section.key``, and ``name``.

        Of an origin that is its fingerprint, ``origin.fingerprint``.
        """
        sections = self.to_dict()
        values = {"name": sections.pop("name")}
        sections.pop("recipe", None)
        if sections.pop("origin", None) is not None and self.origin is not None:
            values["origin.fingerprint"] = self.origin.fingerprint
        for section, keys in sections.items():
            values |= {f"{section}.{name}": value for name, value in keys.items()}
        return values


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def names_with(cls: type, *properties: Property) -> tuple[str, ...]:
    """Return the keys of a section's class that have one of these properties, by name alone."""
    return tuple(
        item.name
        for item in dataclasses.fields(cls)
        if set(properties) & set(item.metadata.get("properties", ()))
    )
