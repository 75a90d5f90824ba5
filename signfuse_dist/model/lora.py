"""LoRA on the attention layers of any LLM, found in the model (section 3.6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peft import LoraConfig, TaskType, get_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from signfuse_dist.config import ModelConfig
from signfuse_dist.errors import UserError


def add_lora(model: PreTrainedModel, config: ModelConfig) -> Any:
    """Return ``model`` with trainable LoRA matrices of rank r and scale alpha / r.

    On the layers of ``config.lora_targets``, or where it is None on every projection of the
    attention blocks. Raises UserError for a target that matches no layer.
    """
    targets = config.lora_targets
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        target_modules=find_projections(model) if targets is None else list(targets),
        task_type=(
            TaskType.SEQ_2_SEQ_LM if model.config.is_encoder_decoder else TaskType.CAUSAL_LM
        ),
    )
    if targets is not None:
        _refuse_unmatched(model, targets)
    try:
        return get_peft_model(model, lora)
    except ValueError as e:
        raise UserError(f"model.lora_targets {list(targets or ())}: {e}") from e


def find_projections(model: nn.Module) -> list[str]:
    """Return the full names of the linear layers inside the attention blocks of an LLM.

    Full names, not endings: GPT-2 calls a layer of its feed-forward part as one of its attention.
    Raises UserError when there are none.
    """
    found = [
        f"{block}.{name}"
        for block, module in attention_blocks(model).items()
        for name, layer in module.named_modules()
        if isinstance(layer, (nn.Linear, Conv1D))
    ]
    if not found:
        raise UserError(
            f"no attention layers were found in {type(model).__name__}: name the layers that get "
            "LoRA, as in model.lora_targets=[q_proj, v_proj]"
        )
    return found


def attention_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Return the innermost modules that say whether they are causal.

    transformers' attention functions read that attribute of the block that calls them, so every
    architecture that offers a choice of kernels has it.
    """
    blocks = {n: m for n, m in model.named_modules() if hasattr(m, "is_causal")}
    return {
        name: block
        for name, block in blocks.items()
        if not any(hasattr(part, "is_causal") for part in block.modules() if part is not block)
    }


def _refuse_unmatched(model: nn.Module, targets: Sequence[str]) -> None:
    names = [name for name, _ in model.named_modules()]
    unmatched = [t for t in targets if not any(n == t or n.endswith(f".{t}") for n in names)]
    if unmatched:
        there = sorted({name.rpartition(".")[2] for name in find_projections(model)})
        raise UserError(
            f"model.lora_targets: {type(model).__name__} has no layers called "
            f"{', '.join(unmatched)}; its attention has {', '.join(there)} (null takes them all)"
        )
