"""Safetensors files without torch: what is in one, whether its numbers are finite, its errors."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from signfuse_dist.errors import DamagedError
from signfuse_dist.system_errors import unreadable

# What numpy has of the floating types; trained weights and moments are F32.
_FLOATS = ("F16", "F32", "F64")


class TensorInfo(NamedTuple):
    """What the header of a file says of a tensor."""

    dtype: str
    """As safetensors writes it, such as F32."""
    shape: tuple[int, ...]


class TensorSpan(NamedTuple):
    """What the header of a file says of a tensor, and where its bytes are in the file."""

    dtype: str
    """As safetensors writes it, such as F32."""
    shape: tuple[int, ...]
    start: int
    stop: int


def read_spans(path: Path) -> tuple[dict[str, TensorSpan], dict[str, str]]:
    """Return where the tensors of a file are, by name, and its metadata.

    safetensors gives tensors, and no places to map or to sample them at. Raises OSError,
    ValueError, KeyError or TypeError for what is no such file.
    """
    with path.open("rb") as file:
        length, size = int.from_bytes(file.read(8), "little"), os.fstat(file.fileno()).st_size
        if length > size:
            raise ValueError(f"{path.name}: a header of {length} bytes in a file of {size}")
        header: dict[str, Any] = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise TypeError(f"{path.name}: its header is no object")
    said = header.pop("__metadata__", {})
    spans: dict[str, TensorSpan] = {}
    for name, entry in header.items():
        start, stop = (8 + length + int(offset) for offset in entry["data_offsets"])
        if not 0 < start <= stop <= size:
            raise ValueError(f"{path.name}: {name!r} is not inside the file")
        spans[name] = TensorSpan(entry["dtype"], tuple(entry["shape"]), start, stop)
    return spans, said


def read_infos(path: Path) -> dict[str, TensorInfo]:
    """Return the tensors of a file by name, from its header; raise :class:`DamagedError`."""
    with _opened(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {n: TensorInfo(s.get_dtype(), tuple(s.get_shape())) for n, s in slices.items()}


def read_floats(path: Path) -> Iterator[tuple[str, NDArray[np.floating[Any]]]]:
    """Yield the floating tensors of a file, one in memory at a time; bfloat16 is left out.

    Raises :class:`DamagedError` naming the first that holds what is not finite.
    """
    infos = read_infos(path)
    with _opened(path) as file:
        for name in (name for name, info in infos.items() if info.dtype in _FLOATS):
            tensor = file.get_tensor(name)
            odd = int(tensor.size - np.isfinite(tensor).sum())
            if odd:
                raise DamagedError(f"{path} is damaged: {odd} numbers of {name} are not finite")
            yield name, tensor


def refuse_not_finite(path: Path) -> None:
    """Raise :class:`DamagedError` when a number of a file is not finite."""
    for _ in read_floats(path):
        pass


def as_os_error(error: SafetensorError, path: Path | None = None) -> OSError:
    """Return what safetensors makes of a disk's refusal as the operating system's error."""
    number = re.search(r"\(os error (\d+)\)", str(error))
    if number is None:
        return OSError(f"{path}: {error}" if path else str(error))
    named = (str(path),) if path else ()
    return OSError(int(number[1]), os.strerror(int(number[1])), *named)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, "numpy") as file:
            yield file
    except SafetensorError as e:
        raise DamagedError(f"{path} is damaged: it is no whole safetensors file ({e})") from e
    except OSError as e:
        raise unreadable(e, path, DamagedError) from e
