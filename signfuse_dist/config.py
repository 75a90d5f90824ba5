"""What a run is: typed sections. Reading them from YAML is ``config_load``'s.

Every number of the paper's Table 1 is a default here and nowhere else; a field without a default
belongs to a file of ``configs/``. Importing this module imports no torch.
"""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

StageName = Literal["contrastive", "alignment", "finetune"]
STAGES: tuple[StageName, ...] = ("contrastive", "alignment", "finetune")
ScaleName = Literal["frame", "segment", "sequence"]
SCALES: tuple[ScaleName, ...] = ("frame", "segment", "sequence")
# Accelerate's, see engine/trackers.py.
TrackerName = Literal[
    "aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"
]
# `auto` chooses among the others, see model/attention_choice.py.
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
