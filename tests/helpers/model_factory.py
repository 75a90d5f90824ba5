"""Small models, language models and batches for the tests; nothing is downloaded."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from signfuse_dist.batch import SignBatch
from signfuse_dist.config import LossConfig, ModelConfig, StageName
from signfuse_dist.objective import StageObjective, prepare, set_mode
from signfuse_dist.skeleton import NUM_JOINTS

VOCABULARY = 23
FRAME_SIZE = 32
PROMPT = "translate the sign"
WORDS = ("<s>", "</s>", "translate", "the", "sign", "i", "see", "a", "cat", "dog", "and", "<unk>")


def small_config(**changes: Any) -> ModelConfig:
    """Return a model of every part of the paper's, narrow."""
    values: dict[str, Any] = {
        "llm": "made-in-the-test",
        "llm_dtype": "float32",
        "lora_targets": ("q_proj", "v_proj"),
        "attention": "sdpa",
        "visual_backbone": "resnet10",
        "visual_width": 4,
        "visual_norm": "group",
        "visual_weights": None,
        "norm": "layer",
        "dim": 16,
        "skeletal_channels": (4, 6, 8, 16),
        "fusion_layers": 2,
        "num_heads": 2,
        "pooled_length": 7,
        "num_sign_tokens": 3,
        "lora_rank": 2,
        "lora_alpha": 4,
        **changes,
    }
    return ModelConfig(**values)


def scramble(module: nn.Module, seed: int = 0) -> nn.Module:
    """Move every parameter and running statistic off its start, so that none is 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.2 * noise.to(parameter.dtype))
        for name, buffer in module.named_buffers():
            drawn = torch.rand(buffer.shape, generator=generator, dtype=torch.float64)
            if name.endswith("running_mean"):
                buffer.copy_(drawn - 0.5)
            elif name.endswith("running_var"):
                buffer.copy_(drawn + 0.5)
    return module


@dataclass(frozen=True)
class Example:
    """One clip as the tests draw it; ``counted`` False makes its weight zero.

    ``has_visual`` and ``has_skeletal`` False leave a stream of it out of the batch.
    """

    name: str
    frames: Tensor
    pose: Tensor
    joint_mask: Tensor
    tokens: Tensor
    counted: bool = True
    has_visual: bool = True
    has_skeletal: bool = True


def draw_clips(lengths: Sequence[int], seed: int = 0) -> list[Example]:
    """Draw clips of the given numbers of frames, with joints missing and texts of 1 to 5 tokens."""
    generator = torch.Generator().manual_seed(seed)
    clips = []
    for i, length in enumerate(lengths):
        shape = (length, 3, FRAME_SIZE, FRAME_SIZE)
        mask = torch.rand(length, NUM_JOINTS, generator=generator) < 0.8
        pose = torch.rand(length, NUM_JOINTS, 2, generator=generator) * mask[..., None]
        frames = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        tokens = torch.randint(2, VOCABULARY, (1 + (2 * i) % 5,), generator=generator)
        clips.append(Example(f"clip {i}", frames, pose, mask, tokens))
    return clips


def join(clips: Sequence[Example]) -> SignBatch:
    """Collate clips; beyond a clip's end, and in joints that it lacks, stands rubbish."""
    longest = max(len(clip.pose) for clip in clips)
    most = max(len(clip.tokens) for clip in clips)
    pose = torch.full((len(clips), longest, NUM_JOINTS, 2), 7.0, dtype=clips[0].pose.dtype)
    mask = torch.ones(len(clips), longest, NUM_JOINTS, dtype=torch.bool)
    tokens = torch.full((len(clips), most), VOCABULARY - 1)
    for i, clip in enumerate(clips):
        if clip.has_skeletal:
            pose[i, : len(clip.pose)], mask[i, : len(clip.pose)] = clip.pose, clip.joint_mask
        tokens[i, : len(clip.tokens)] = clip.tokens
    return SignBatch(
        ids=tuple(clip.name if clip.counted else "" for clip in clips),
        frames=torch.cat([clip.frames[: None if clip.has_visual else 0] for clip in clips]),
        pose=pose,
        joint_mask=mask,
        frame_lengths=torch.tensor([len(clip.pose) for clip in clips]),
        weight=torch.tensor([float(clip.counted) for clip in clips]),
        tokens=tokens,
        text_lengths=torch.tensor([len(clip.tokens) for clip in clips]),
        draws=torch.tensor([zlib.crc32(clip.name.encode()) for clip in clips]),
        has_visual=_none_if_all([clip.has_visual for clip in clips]),
        has_skeletal=_none_if_all([clip.has_skeletal for clip in clips]),
    )


def _none_if_all(has: list[bool]) -> Tensor | None:
    return None if all(has) else torch.tensor(has)


def tiny_llama(dim: int = 12, seed: int = 0) -> Any:
    """Return a random Llama of two layers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=dim,
        intermediate_size=2 * dim,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def tiny_gpt2(dim: int = 12, seed: int = 0, num_layers: int = 2) -> Any:
    """Return a random GPT-2 of two layers: unlike Llama's, its arithmetic is float64 throughout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=dim,
        n_layer=num_layers,
        n_head=2,
        n_positions=64,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=1,
        initializer_range=0.3,
    )
    return GPT2LMHeadModel(config).eval()


def tiny_qwen(dim: int = 12, seed: int = 0) -> Any:
    """Return a random Qwen2 of two layers: its queries, keys and values have biases."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=dim,
        intermediate_size=2 * dim,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=1,
        initializer_range=0.3,
    )
    return Qwen2ForCausalLM(config).eval()


def tiny_t5(dim: int = 12, seed: int = 0, **changes: Any) -> Any:
    """Return a random T5 of two layers each side, as Flan-T5 is: gated, its output not tied."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(seed)
    config = T5Config(**{**_t5_values(dim), **changes})
    return T5ForConditionalGeneration(config).eval()


def write_t5(llm: Path, folder: Path) -> str:
    """Write a random T5, with dropout, for the tokenizer of the LLM in ``llm``; return where."""
    from transformers import AutoTokenizer

    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(llm / name, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tiny_t5(
        dim=16,
        vocab_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    ).save_pretrained(folder)
    return str(folder)


def tiny_mt5(dim: int = 12, seed: int = 0) -> Any:
    """Return a random mT5 of two layers each side."""
    from transformers import MT5Config, MT5ForConditionalGeneration

    torch.manual_seed(seed)
    return MT5ForConditionalGeneration(MT5Config(**_t5_values(dim))).eval()


def _t5_values(dim: int) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "d_model": dim,
        "d_kv": 5,
        "d_ff": 2 * dim,
        "num_layers": 2,
        "num_heads": 2,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "initializer_factor": 1.5,
        "dropout_rate": 0.1,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }


def tiny_t5_tokenizer() -> Any:
    """Return a word tokenizer that ends every text with ``</s>``, as T5's does."""
    return _word_tokenizer("$A </s>", ("</s>", 1))


def tiny_tokenizer() -> Any:
    """Return a word tokenizer that begins every text with ``<s>``, as LLaMA's does."""
    return _word_tokenizer("<s> $A", ("<s>", 0))


def _word_tokenizer(template: str, special: tuple[str, int]) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[special]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def small_model(seed: int = 0, **changes: Any) -> Any:
    """Return a scrambled SignFuse around a tiny Llama, in evaluation mode."""
    from signfuse_dist.model.llm import LanguageModel
    from signfuse_dist.model.signfuse import SignFuse

    torch.manual_seed(seed)
    llm = LanguageModel(tiny_llama(seed=seed), [0, 2, 3, 4])
    model = SignFuse(small_config(**changes), llm)
    for name, part in model.named_children():
        if name != "language_model":
            scramble(part, seed)
    return model.eval()


def step_of(stage: StageName, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the gradients of one step of a small model, under autocast to ``dtype``."""
    model = small_model()
    model.to(device)
    prepare(model, stage, LossConfig())
    set_mode(model, stage)
    objective, batch = (
        StageObjective(stage, LossConfig()),
        join(draw_clips([5, 3, 8, 1])).to(device),
    )
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        sums = objective(model, batch)
    torch.stack([objective.weights[name] * value for name, value in sums.items()]).sum().backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
