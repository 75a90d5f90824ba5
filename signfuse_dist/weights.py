"""Reading weights, and loading them by name: all, or an error that says what differs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from signfuse_dist.errors import DamagedError, UserError, first_line
from signfuse_dist.system_errors import unreadable
from signfuse_dist.tensor_files import as_os_error

_UNREADABLE = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    KeyError,
    UnpicklingError,
    SafetensorError,
)


class Shaped(Protocol):
    """A tensor, or what the header of a file says of one."""

    @property
    def shape(self) -> Any:
        """Sizes of the dimensions."""


def save_tensors(
    tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file; raise OSError when the disk refuses."""
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as e:  # its name for what the disk says
        raise as_os_error(e, path) from e


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; raise :class:`UserError` where it is none or cannot be read."""
    try:
        return load_file(path)
    except SafetensorError as e:
        raise DamagedError(f"{path} is damaged: it is no whole safetensors file ({e})") from e
    except OSError as e:
        raise unreadable(e, path, DamagedError) from e


def read_weights(path: Path, setting: str) -> dict[str, Tensor]:
    """Read anybody's weights, safetensors or what torch saves; no pickle runs code.

    Raises UserError naming ``setting`` for what cannot be read, or holds something else.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as e:
        raise UserError(f"{setting}: cannot be read: {_reason(e)}") from e
    return _mapping(state, setting)


def read_published(chosen: Any, setting: str) -> dict[str, Tensor]:
    """Return weights that torchvision publishes, from torch's cache, else from their address.

    ``chosen`` is one of torchvision's. Raises UserError naming ``setting`` as :func:`read_weights`.
    """
    try:
        state = chosen.get_state_dict(check_hash=True, weights_only=True)
    except _UNREADABLE as e:
        cached = Path(torch.hub.get_dir(), "checkpoints", chosen.url.rpartition("/")[2])
        if cached.exists():
            raise UserError(
                f"{setting}: {cached} cannot be read: {_reason(e)}. Remove it, and it is "
                "downloaded again"
            ) from e
        raise UserError(f"{setting}: {chosen.url} cannot be downloaded: {_reason(e)}") from e
    return _mapping(state, setting)


def _reason(error: Exception) -> str:
    """Return why a file cannot be read; torch advises to let a pickle run its code."""
    if isinstance(error, UnpicklingError):
        return "it holds something else than tensors"
    return first_line(error)


def _mapping(state: object, setting: str) -> dict[str, Tensor]:
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise UserError(f"{setting}: holds no mapping of names to tensors")
    return state


def load_exactly(
    found: dict[str, Tensor],
    expected: dict[str, Tensor],
    model: nn.Module,
    path: Path,
    may_miss: tuple[str, ...] = (),
) -> None:
    """Load ``found`` when it has the names and shapes of ``expected``, else raise UserError.

    Also where a number is not finite: nothing that is computed from it would be.
    """
    refuse_difference(found, expected, path, may_miss)
    refuse_not_finite(found, path)
    model.load_state_dict(found, strict=False)


def refuse_not_finite(found: Mapping[str, Tensor], path: Path) -> None:
    """Raise :class:`DamagedError` naming tensors with numbers that are not finite."""
    odd = [name for name, tensor in found.items() if not bool(tensor.isfinite().all())]
    if odd:
        raise DamagedError(
            f"{path} is damaged: {len(odd)} tensors hold numbers that are not finite {odd[:3]}"
        )


def refuse_difference(
    found: Mapping[str, Shaped],
    expected: Mapping[str, Shaped],
    path: Path | str,
    may_miss: tuple[str, ...] = (),
) -> None:
    """Raise UserError when names or shapes differ; names that begin with ``may_miss`` may miss."""
    missing = [n for n in expected.keys() - found if not n.startswith(may_miss or ("\0",))]
    unknown = sorted(found.keys() - expected)
    other = [n for n in found if n in expected and found[n].shape != expected[n].shape]
    if missing or unknown or other:
        raise UserError(
            f"{path} is of another model configuration: {len(missing)} tensors missing "
            f"{sorted(missing)[:3]}, {len(unknown)} unknown {unknown[:3]}, "
            f"{len(other)} of another shape {other[:3]}"
        )
