"""The files of an LLM as they lie in a folder or in the model hub's cache, read without torch."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from signfuse_dist.config import ModelConfig, RunConfig
from signfuse_dist.errors import MachineError
from signfuse_dist.files import read_json
from signfuse_dist.preflight.finding import Finding, error, ok
from signfuse_dist.preflight.network import hub_file, missing_file
from signfuse_dist.stages import needs_language_model
from signfuse_dist.tensor_files import read_infos

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
# Of each weight when loaded; 4 bits carry the scales of their blocks.
_QUANTIZED = {"8bit": 1.0, "4bit": 0.56}


_TABLES = ("embed", "wpe", "wte", "shared", "position", "relative_attention_bias")


def _endings(targets: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f".{target}" for target in targets)


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

    def _linear_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each linear layer but the output layer, by the layer's name."""
        vocabulary = self.config.get("vocab_size")
        return {
            name.removesuffix(".weight"): tuple(info.shape)
            for path in _weights(self.folder)
            if path.suffix == ".safetensors"
            for name, info in read_infos(path).items()
            if name.endswith(".weight") and len(info.shape) == 2
            if vocabulary not in info.shape and not any(part in name for part in _TABLES)
        }

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
        """Return the parameters of LoRA on ``model.lora_targets``.

        On the attention blocks (null) exact for queries, keys, values and output, with grouped keys
        or without; an encoder-decoder has three such blocks for each pair of layers. Named layers,
        and `all`, are counted by the shapes in the headers of safetensors files; of pickled
        weights, which are not opened, the attention blocks are counted in their place.
        """
        targets = model.lora_targets
        if targets is not None and (shapes := self._linear_shapes()):
            names = [n for n in shapes if targets == "all" or f".{n}".endswith(_endings(targets))]
            return model.lora_rank * sum(sum(shapes[name]) for name in names)
        dim = self.llm_dim
        heads = int(self.config.get("num_attention_heads") or self.config.get("num_heads") or 1)
        head = int(self.config.get("head_dim") or self.config.get("d_kv") or dim // heads)
        keys = int(self.config.get("num_key_value_heads") or heads)
        block = 2 * (dim + heads * head) + 2 * (dim + keys * head)
        blocks = self.num_layers * (3 if self.config.get("is_encoder_decoder") else 1)
        return model.lora_rank * block * blocks


def find_llm_files(model: ModelConfig) -> LLMFiles | None:
    """Return the LLM that is there, or None; a broken ``config.json`` raises ValueError."""
    path = Path(model.llm) / "config.json"
    if not Path(model.llm).is_dir():
        cached = _in_cache(model)
        if cached is None:
            return None
        path = cached
    if not path.exists():
        return None
    config = read_json(path)
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds no object")
    return LLMFiles(path.parent, config)


def find_usable(run: RunConfig) -> LLMFiles | None:
    """Return the LLM of a stage that needs one; None where it is not there or is no LLM."""
    if not needs_language_model(run.stage.name):
        return None
    try:
        files = find_llm_files(run.model)
        return files if files and files.llm_dim and files.num_layers else None
    except (ValueError, KeyError):
        return None  # named by check_llm


def check_llm(model: ModelConfig, is_here: bool) -> list[Finding]:
    """Say whether the LLM can be loaded: configuration, weights, tokenizer.

    What is not there is a warning where the job, which runs on this machine if ``is_here``, would
    download it.
    """
    what = f"LLM {model.llm}" + (f" at {model.llm_revision}" if model.llm_revision else "")
    revision = f" --revision {model.llm_revision}" if model.llm_revision else ""
    fetch = f"hf download {shlex.quote(model.llm)}{revision}, or model.llm=FOLDER"
    on_hub = not Path(model.llm).is_absolute() and model.llm.count("/") == 1
    if not on_hub:
        fetch = "give model.llm a folder of a model, or its name on the hub"
    on_hub = on_hub and not Path(model.llm).is_dir()
    address = hub_file(model.llm, model.llm_revision, "config.json") if on_hub else None
    try:
        files = find_llm_files(model)
        if files is None:
            value = "neither a folder nor in the cache of the model hub"
            return [missing_file(what, value, fetch, address, is_here)]
        missing = list(_missing_files(files.folder))
        if missing:
            value = f"{files.folder} lacks {', '.join(missing[:5])}"
            return [missing_file(what, value, fetch, address, is_here)]
        size = f"{files.num_weights / 1e6:,.0f} M weights, d_LLM {files.llm_dim}"
        return [ok(what, f"{files.folder}, {size}")]
    except MachineError:
        raise
    except (ValueError, KeyError) as e:
        return [error(what, f"its configuration cannot be read ({e})", fetch)]


def _in_cache(model: ModelConfig) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(model.llm, "config.json", revision=model.llm_revision)
    except HFValidationError:
        return None
    return Path(cached) if isinstance(cached, str) else None


def _missing_files(folder: Path) -> Iterator[str]:
    """Yield what is missing: a download that was stopped leaves a folder with some files."""
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        yield "a tokenizer"
    if not _weights(folder):
        yield "weights"
    for index in folder.glob("*.index.json"):
        listed = read_json(index)
        names = listed.get("weight_map", {}) if isinstance(listed, dict) else None
        if not isinstance(names, dict):
            raise ValueError(f"{index} maps no weights to files")
        yield from sorted({str(n) for n in names.values() if not (folder / str(n)).is_file()})


def _weights(folder: Path) -> list[Path]:
    """Return the files of one kind of weights: a folder may hold both kinds of the same."""
    for pattern in _WEIGHTS:
        paths = sorted(folder.glob(pattern))
        if paths:
            return paths
    return []
