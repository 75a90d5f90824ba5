"""Which LLM a model was trained with: a name, a revision and a fingerprint in place of a copy.

A saved model does not hold the frozen LLM, so the same words must not lead to another one later.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from signfuse_dist.config import ModelConfig
from signfuse_dist.errors import UserError, first_line
from signfuse_dist.tensor_files import read_spans

# A tensor of more bytes than these blocks is read at so many places, evenly spread.
_BLOCK, _NUM_BLOCKS = 4096, 16
# Written anew by whoever saves the same LLM again, and no part of the function it computes.
_VOLATILE = ("transformers_version", "_name_or_path", "dtype", "torch_dtype")
_SAFETENSORS, _PICKLED = "model.safetensors", "pytorch_model.bin"


@dataclass(frozen=True)
class LLMReference:
    """The LLM as it was when it was loaded; ``commit`` is None for a folder."""

    commit: str | None
    fingerprint: str


def refer(name: str, revision: str | None) -> LLMReference:
    """Return the reference of an LLM that was just loaded from a folder or the hub's cache."""
    folder = find_folder(name, revision)
    if folder is None:
        raise UserError(f"model.llm {name!r}: not a folder, and not in the hub's cache")
    return LLMReference(None if Path(name).is_dir() else folder.name, fingerprint(folder))


def find_folder(name: str, revision: str | None) -> Path | None:
    """Return the folder of an LLM, in the hub's cache where ``name`` is none; None without."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def fingerprint(folder: Path) -> str:
    """Return a SHA-256 that tells LLMs apart, from a fraction of their bytes.

    It covers the configuration, the name, dtype and shape of every tensor, and of each tensor all
    bytes up to 64 KiB, else 16 blocks of 4 KiB evenly spread, the first and last among them: 20 MB
    for 7B parameters. Another LLM, a fine-tuned or requantised one, has another fingerprint; a few
    bytes changed elsewhere in a large tensor do not show. How tensors are spread over safetensors
    files does not count. Of pickled weights (.bin), which are not opened, each file is one tensor.

    Raises :class:`UserError` when the folder holds no weights that transformers would load.
    """
    digest = hashlib.sha256()
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kept = {key: value for key, value in config.items() if key not in _VOLATILE}
        digest.update(json.dumps(kept, sort_keys=True).encode())
        for label, file, start, stop in sorted(_tensors(folder)):
            digest.update(label.encode() + b"\0")
            with (folder / file).open("rb") as opened:
                for place, size in _blocks(start, stop):
                    digest.update(os.pread(opened.fileno(), size, place))
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{folder}: not a readable LLM of transformers ({e!r})") from e
    return digest.hexdigest()


def _tensors(folder: Path) -> Iterator[tuple[str, str, int, int]]:
    """Yield what each tensor is, its file and its bytes there."""
    for file in _weight_files(folder):
        if file.endswith(".safetensors"):
            yield from _safetensors(folder, file)
        else:
            yield file, file, 0, (folder / file).stat().st_size


def _safetensors(folder: Path, file: str) -> Iterator[tuple[str, str, int, int]]:
    for name, span in read_spans(folder / file)[0].items():
        yield json.dumps([name, span.dtype, span.shape]), file, span.start, span.stop


def _weight_files(folder: Path) -> list[str]:
    """Return the files of weights in the order in which transformers looks for them."""
    for whole in (_SAFETENSORS, _PICKLED):
        if (folder / whole).is_file():
            return [whole]
        index = folder / f"{whole}.index.json"
        if index.is_file():
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            if any(Path(name).name != name for name in names):
                raise UserError(f"{index}: names files outside its folder")
            return sorted(names)
    raise UserError(f"{folder}: holds neither {_SAFETENSORS} nor {_PICKLED}")


def _blocks(start: int, stop: int) -> Iterator[tuple[int, int]]:
    size = stop - start
    if size <= _BLOCK * _NUM_BLOCKS:
        yield start, size
        return
    for i in range(_NUM_BLOCKS):
        yield start + (size - _BLOCK) * i // (_NUM_BLOCKS - 1), _BLOCK


def not_found(config: ModelConfig, error: Exception) -> UserError:
    """Return the error for an LLM or a tokenizer that cannot be loaded."""
    return UserError(
        f"model.llm {config.llm!r} cannot be loaded: {first_line(error)}. It is a folder or a name "
        f"of the model hub; on a node without network, download it first (hf download "
        f"{config.llm}) or point model.llm at a folder"
    )
