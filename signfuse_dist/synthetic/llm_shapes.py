"""Architectures of published LLMs, for random weights: what each costs, without a download.

The sizes are those of each model's own ``config.json``; a change is one of its fields, such as
``num_hidden_layers=2``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from transformers import AutoConfig, PreTrainedConfig

ShapeName = Literal[
    "tiny",
    "smollm2_135m",
    "llama2_7b",
    "llama2_13b",
    "mistral_7b",
    "qwen2_5_7b",
    "flan_t5_xl",
    "mt5_xl",
]
"""Names are those of configs/model, and of a family near them; `tiny` is that of the demos."""


def llm_shape(name: ShapeName, **changes: Any) -> PreTrainedConfig:
    """Return the configuration of an LLM, with some of its fields changed."""
    family, sizes = _SHAPES[name]
    return AutoConfig.for_model(family, **{**sizes, **changes})


def _decoder(
    vocabulary: int, width: int, inner: int, layers: int, heads: int, of_keys: int
) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": of_keys,
    }


_T5_XL: Mapping[str, Any] = {
    "d_model": 2048,
    "d_kv": 64,
    "d_ff": 5120,
    "num_layers": 24,
    "num_heads": 32,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "decoder_start_token_id": 0,
}
_SHAPES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "tiny": ("llama", _decoder(398, 128, 256, 4, 4, 4)),
    "smollm2_135m": (
        "llama",
        {**_decoder(49152, 576, 1536, 30, 9, 3), "tie_word_embeddings": True},
    ),
    "llama2_7b": ("llama", _decoder(32000, 4096, 11008, 32, 32, 32)),
    "llama2_13b": ("llama", _decoder(32000, 5120, 13824, 40, 40, 40)),
    "mistral_7b": ("mistral", {**_decoder(32000, 4096, 14336, 32, 32, 8), "sliding_window": None}),
    "qwen2_5_7b": ("qwen2", _decoder(152064, 3584, 18944, 28, 28, 4)),
    "flan_t5_xl": ("t5", {"vocab_size": 32128, **_T5_XL}),
    "mt5_xl": ("mt5", {"vocab_size": 250112, **_T5_XL}),
}
