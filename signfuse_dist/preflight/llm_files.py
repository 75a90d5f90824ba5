"""The LLM's files, in a folder or in the cache of the model hub, read without torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from signfuse_dist.config import ModelConfig
from signfuse_dist.preflight.finding import Finding, error, ok

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
# Of each weight when loaded; 4 bits carry the scales of their blocks.
_QUANTIZED = {"8bit": 1.0, "4bit": 0.56}


@dataclass(frozen=True)
class LLMFiles:
    """Where an LLM lies, and its ``config.json``."""

    folder: Path
    config: dict[str, Any]

    @property
    def llm_dim(self) -> int:
        """d_LLM under the name that the architecture has for it."""
        return self._number("hidden_size", "d_model", "n_embd")

    @property
    def num_layers(self) -> int:
        return self._number("num_hidden_layers", "num_layers", "n_layer")

    def _number(self, *names: str) -> int:
        for name in names:
            if isinstance(self.config.get(name), int):
                return int(self.config[name])
        raise KeyError(names[0])

    @property
    def num_weights(self) -> float:
        """Weights by the size of the files, as they are stored."""
        size = sum(path.stat().st_size for path in _weights(self.folder))
        stored = str(self.config.get("dtype") or self.config.get("torch_dtype") or "float32")
        return size / _BYTES.get(stored, 2.0)

    def bytes_loaded(self, model: ModelConfig) -> float:
        """Return the bytes of the frozen LLM on each process."""
        each = _QUANTIZED.get(model.llm_quantization, _BYTES[model.llm_dtype])
        return self.num_weights * each

    def lora_parameters(self, model: ModelConfig) -> int:
        """Return the parameters of LoRA on the attention blocks (``model.lora_targets`` null).

        Exact for attention of queries, keys, values and output, with grouped keys or without. An
        encoder-decoder has three such blocks for each pair of layers.
        """
        dim = self.llm_dim
        heads = int(self.config.get("num_attention_heads") or self.config.get("num_heads") or 1)
        head = int(self.config.get("head_dim") or self.config.get("d_kv") or dim // heads)
        keys = int(self.config.get("num_key_value_heads") or heads)
        block = 2 * (dim + heads * head) + 2 * (dim + keys * head)
        blocks = self.num_layers * (3 if self.config.get("is_encoder_decoder") else 1)
        return model.lora_rank * block * blocks


def find(model: ModelConfig) -> LLMFiles | None:
    """Return the LLM that is there, or None; a broken ``config.json`` raises ValueError."""
    path = Path(model.llm) / "config.json"
    if not Path(model.llm).is_dir():
        cached = _in_cache(model)
        if cached is None:
            return None
        path = cached
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        return None
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds no object")
    return LLMFiles(path.parent, config)


def examine(model: ModelConfig) -> list[Finding]:
    """Say whether the LLM can be loaded without network: configuration, weights, tokenizer."""
    what = f"LLM {model.llm}" + (f" at {model.llm_revision}" if model.llm_revision else "")
    revision = f" --revision {model.llm_revision}" if model.llm_revision else ""
    fetch = f"hf download {model.llm}{revision}, or model.llm=FOLDER"
    if Path(model.llm).is_absolute() or model.llm.count("/") != 1:
        fetch = "give model.llm a folder of a model, or its name on the hub"
    try:
        files = find(model)
        if files is None:
            return [error(what, "neither a folder nor in the cache of the model hub", fetch)]
        absent = list(_absent(files.folder))
        if absent:
            return [error(what, f"{files.folder} lacks {', '.join(absent[:5])}", fetch)]
        said = f"{files.folder}, {files.num_weights / 1e6:,.0f} M weights, d_LLM {files.llm_dim}"
        return [ok(what, said)]
    except (ValueError, KeyError) as e:
        return [error(what, f"its configuration cannot be read ({e})", fetch)]


def _in_cache(model: ModelConfig) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model.llm, "config.json", revision=model.llm_revision)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def _absent(folder: Path) -> Iterator[str]:
    """Yield what is missing: a download that was stopped leaves a folder with some files."""
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        yield "a tokenizer"
    if not _weights(folder):
        yield "weights"
    for index in folder.glob("*.index.json"):
        names = json.loads(index.read_text(encoding="utf-8")).get("weight_map", {})
        yield from sorted({str(n) for n in names.values() if not (folder / str(n)).is_file()})


def _weights(folder: Path) -> list[Path]:
    """Return the files of one kind of weights: a folder may hold both kinds of the same."""
    for pattern in _WEIGHTS:
        found = sorted(folder.glob(pattern))
        if found:
            return found
    return []
