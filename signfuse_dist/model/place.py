"""Where a saved model lies: a folder here, or one of the model hub; the names of its files.

Imports no torch: whether there is a model is said before it is loaded.
"""

from __future__ import annotations

from pathlib import Path

from signfuse_dist.errors import UserError
from signfuse_dist.files import STATE
from signfuse_dist.model.usage import USAGE

CONFIG, WEIGHTS, ADAPTER, CARD = "config.json", "model.safetensors", "adapter", "README.md"
LLM = "llm"
"""Folder of the LLM inside a model that it was copied into; ``config.json`` has OWN_LLM there."""
OWN_LLM = f"./{LLM}"
MERGED = "merged"
"""Folder of LoRA matrices that were added to the LLM: it is not the one that is named without."""
_WANTED = [CONFIG, WEIGHTS, f"{ADAPTER}/*", f"{MERGED}/*", f"{LLM}/*", USAGE, STATE, CARD]


def is_model(folder: Path) -> bool:
    """Return whether a folder has the files of a saved model, whatever is in them."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def local(name: str | Path, revision: str | None = None) -> Path:
    """Return the folder of a model, downloaded from the hub when it is no folder here.

    Raises UserError where it is neither.
    """
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(name), revision=revision, allow_patterns=_WANTED))
    except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as e:
        raise UserError(f"{name}: no folder of a saved model, nor one of the model hub") from e
