"""What `signfuse bench step` runs: a stage's model around an LLM of random weights, and a batch."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from signfuse_dist import stages
from signfuse_dist.batch import SignBatch
from signfuse_dist.config import RunConfig, StageName
from signfuse_dist.config_load import load_run
from signfuse_dist.model.attention_choice import choose_for
from signfuse_dist.model.llm import LanguageModel
from signfuse_dist.model.signfuse import SignFuse
from signfuse_dist.plan import Plan, make_plan
from signfuse_dist.skeleton import NUM_JOINTS

# Llama architectures by name; `tiny` is for a CPU.
LLM_SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 172,
        "num_hidden_layers": 2, "num_attention_heads": 4,
    },
    "smollm2_135m": {
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
    },
    "llama2_7b": {
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
        "num_hidden_layers": 32, "num_attention_heads": 32,
    },
}  # fmt: skip
_PROMPT_TOKENS = 12  # of the default prompt in LLaMA's tokens
_STEPS = 1000  # of the schedule; the bench takes fewer


@dataclass(frozen=True)
class StepBench:
    """What is measured; see the options of `signfuse bench step`."""

    experiment: str
    overrides: Sequence[str]
    stage: StageName
    llm_shape: str
    clips: int
    frames: int
    tokens: int
    repeats: int
    template: Path | None
    """Of DeepSpeed, for ZeRO-2 on one process; None: plain."""
    cached: bool
    profile: bool


@dataclass(frozen=True)
class Case:
    """A prepared stage with a plan for one process, and one batch on the host."""

    run: RunConfig
    plan: Plan
    objective: stages.StageObjective
    batch: SignBatch


def make_case(bench: StepBench) -> Case:
    """Return the experiment's stage with the bench's batch size; draws the batch."""
    run = load_run(bench.experiment, bench.stage, bench.overrides)
    train = dataclasses.replace(
        run.train, micro_batch_size=bench.clips, global_batch_size=bench.clips
    )
    run = dataclasses.replace(run, train=train)
    plan = make_plan(bench.clips * _STEPS, run.stage, train, 1)
    objective = stages.StageObjective(bench.stage, run.loss)
    return Case(run, plan, objective, draw_batch(bench, run.data.frame_size, objective.language))


def draw_batch(bench: StepBench, frame_size: int, language: bool) -> SignBatch:
    """Return clips of noise, all of one length: padding would cost both loops alike."""
    generator = torch.Generator().manual_seed(0)
    clips, frames = bench.clips, bench.frames
    size = (clips * frames, 3, frame_size, frame_size)
    vocabulary = LLM_SHAPES[bench.llm_shape]["vocab_size"]
    shape = (clips, bench.tokens)
    tokens = torch.randint(3, vocabulary, shape, generator=generator)
    batch = SignBatch(
        ids=tuple(str(i) for i in range(clips)),
        frames=torch.randint(0, 256, size, dtype=torch.uint8, generator=generator),
        pose=torch.rand(clips, frames, NUM_JOINTS, 2, generator=generator),
        joint_mask=torch.ones(clips, frames, NUM_JOINTS, dtype=torch.bool),
        frame_lengths=torch.full((clips,), frames),
        weight=torch.ones(clips),
        tokens=tokens if language else None,
        text_lengths=torch.full((clips,), bench.tokens) if language else None,
    )
    return batch.pin_memory() if torch.cuda.is_available() else batch


def build_model(bench: StepBench, case: Case, device: torch.device) -> SignFuse:
    """Return the stage's model on ``device``, prepared as for training, of random weights."""
    torch.manual_seed(case.run.train.seed)
    config, language = case.run.model, None
    choose_for(config, case.run.train.precision, device)  # or say why not, at once
    if case.objective.language:
        with device:
            llm = _random_llm(bench, config.attention, getattr(torch, config.llm_dtype))
        language = LanguageModel(llm, list(range(3, 3 + _PROMPT_TOKENS)))
    model = SignFuse(config, language).to(device)
    stages.prepare(model, bench.stage, case.run.loss)
    stages.set_mode(model, bench.stage)
    return model.to(device)


def _random_llm(bench: StepBench, attention: str, dtype: torch.dtype) -> Any:
    config = LlamaConfig(**LLM_SHAPES[bench.llm_shape])
    known = attention if attention in ("eager", "flash_attention_2") else "sdpa"
    return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=known).eval()


def copy_of(model: SignFuse) -> SignFuse:
    """Return the same modules with the same weights; what is frozen is shared, not copied.

    Two 7B models would not fit beside each other.
    """
    frozen = {id(p): p for p in model.parameters() if not p.requires_grad}
    copied: SignFuse = copy.deepcopy(model, frozen)
    return copied
