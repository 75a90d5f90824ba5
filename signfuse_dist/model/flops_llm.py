"""Floating-point operations of the LLM for [E_sign; e_prompt; text], any architecture of Eq. 20."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from transformers.pytorch_utils import Conv1D

from signfuse_dist.model.llm import LanguageModel
from signfuse_dist.model.lora import attention_blocks

_CROSSING = ("EncDecAttention", "encoder_attn", "crossattention")
_KEYS_AND_VALUES = ("k", "v", "k_proj", "v_proj", "key", "value")


class LanguageModelFlops:
    """Cost of the LLM's forward and backward pass, from its linear layers and their places.

    A layer of the encoder runs over sign tokens and prompt, a layer of the decoder over the text, a
    causal LM over all of them; keys and values of cross-attention run over the encoder's positions,
    the output layer over the text alone. All of them pass a gradient on to the sign tokens.
    Attention counts every pair of positions, as FlopCounterMode and common MFU figures do.
    """

    def __init__(self, language: LanguageModel) -> None:
        self._causal = not language.is_encoder_decoder
        self._prompt = len(language.prompt)
        head = language.model.get_output_embeddings()
        self._head = _numel(head)
        self._per_position = {"encoder": [0.0, 0.0], "decoder": [0.0, 0.0]}
        for name, layer in _linears(language.model):
            if layer is not head:
                side = self._side(name)
                trains = layer.weight.requires_grad
                self._per_position[side][0] += 2 * _numel(layer)
                self._per_position[side][1] += 2 * _numel(layer) * (1 + int(trains))
        self._blocks = self._attention(language.model)
        self._width = _attention_width(language.model.config)

    def __call__(self, num_sign_tokens: int, tokens: NDArray[np.int64]) -> tuple[float, float]:
        """Return operations of the forward and backward pass for texts of so many tokens each."""
        prefix = num_sign_tokens + self._prompt
        text = float(tokens.sum())
        encoder = float(prefix * len(tokens))
        decoder = encoder + text if self._causal else text
        forward = backward = 0.0
        for side, positions in (("encoder", encoder), ("decoder", decoder)):
            forward += self._per_position[side][0] * positions
            backward += self._per_position[side][1] * positions
        head = 2 * self._head * (text + len(tokens) if self._causal else text)
        pairs = self._pairs(prefix, tokens)
        attention = 4 * self._width * pairs
        return forward + head + attention, backward + head + 2 * attention

    def _side(self, name: str) -> str:
        if self._causal:
            return "decoder"
        if any(part in name for part in _CROSSING) and _inside(name, _KEYS_AND_VALUES):
            return "encoder"
        return "encoder" if _inside(name, ("encoder",)) else "decoder"

    def _attention(self, model: nn.Module) -> dict[str, int]:
        """Count the attention blocks of the encoder, of the decoder, and those between them."""
        counts = {"encoder": 0, "decoder": 0, "between": 0}
        for name in attention_blocks(model):
            if any(part in name for part in _CROSSING):
                counts["between"] += 1
            else:
                counts["decoder" if self._causal else self._side(name)] += 1
        return counts

    def _pairs(self, prefix: int, tokens: NDArray[np.int64]) -> float:
        """Return the pairs of a query and a key over all attention blocks and clips."""
        own = tokens + prefix if self._causal else tokens
        return float(
            self._blocks["decoder"] * (own * own).sum()
            + self._blocks["encoder"] * prefix * prefix * len(tokens)
            + self._blocks["between"] * (prefix * tokens).sum()
        )


def _inside(name: str, parts: tuple[str, ...]) -> bool:
    return any(part in parts for part in name.split("."))


def _linears(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield every linear layer once by its full name, quantized ones and LoRA's among them."""
    for name, layer in model.named_modules():
        if isinstance(layer, (nn.Linear, Conv1D)):
            yield name, layer


def _numel(layer: Any) -> float:
    """Return inputs times outputs; the packed weight of a quantized layer would be smaller."""
    if isinstance(layer, Conv1D):
        return float(layer.weight.numel())
    return float(layer.in_features * layer.out_features)


def _attention_width(config: Any) -> int:
    """Return heads times channels of a head, under the names that configurations have for it."""
    heads = int(getattr(config, "num_attention_heads", None) or config.num_heads)
    each = getattr(config, "d_kv", None) or getattr(config, "head_dim", None)
    return heads * int(each) if each else int(config.hidden_size)
