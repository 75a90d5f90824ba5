"""Files of arrays in which poses are published: ``.npz``, ``.npy``, and pickles of arrays.

All are anybody's files. Headers are read before there is memory for what they promise. A pickle is
a program: its opcodes are looked at before it runs, those that build plain data and arrays of
numbers are let through, and what it calls an array of numpy is a stand-in of this module, which
takes the bytes and checks them. No code of a pickle's choice is looked up.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar
from zipfile import ZipFile

import numpy as np
from numpy.lib.format import read_array_header_1_0, read_array_header_2_0, read_magic
from numpy.typing import NDArray

from signfuse_dist.corpora.csl_daily import PLAIN_OPCODES
from signfuse_dist.data.joints import (
    PLAINLY_PACKED,
    UNREADABLE,
    PoseError,
    npz_array,
    npz_header,
)
from signfuse_dist.files import special_kind
from signfuse_dist.system_errors import machine_error, machine_fault

_MOST_BYTES = 2 << 30
_MOST_ARRAYS = 100
_NUMBERS = "fiub"  # kinds of numpy's types: floats, integers, and whether


def read_arrays(path: Path) -> dict[str, Any]:
    """Return what a file holds by name: arrays, numbers, lists of them; "" for a lone array.

    Raises :class:`PoseError` for a file that cannot be read, holds more than that, or unpacks to
    more than two gigabytes.
    """
    kind = special_kind(path)
    if kind:
        raise PoseError(f"bad poses: {path.name} is {kind} and no file; it is not opened")
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise PoseError(f"bad poses: {path.name} is larger than {_MOST_BYTES} bytes")
        match path.suffix.lower():
            case ".npz":
                return dict(_of_npz(path))
            case ".npy":
                return {"": _of_npy(path)}
            case ".pkl" | ".pickle":
                return _of_pickle(path)
    except PoseError:
        raise
    except OSError as error:
        if machine_fault(error):
            raise machine_error(error, path) from error
        raise PoseError(f"bad poses: {path.name} cannot be read ({error.strerror})") from error
    except (*UNREADABLE, MemoryError, AttributeError, RecursionError) as error:
        words = str(error).split("\n")[0][:120]
        raise PoseError(
            f"bad poses: {path.name} cannot be read ({type(error).__name__} {words})"
        ) from error
    raise PoseError(f"bad poses: {path.name} is neither .npz nor .npy nor .pkl")


def _of_npz(path: Path) -> dict[str, NDArray[Any]]:
    with ZipFile(path) as file:
        names = [name for name in file.namelist() if name.endswith(".npy")]
        if len(names) > _MOST_ARRAYS:
            raise PoseError(f"bad poses: {path.name} holds more than {_MOST_ARRAYS} arrays")
        total = 0
        for name in names:
            header = npz_header(file, name)
            size = math.prod(header.shape) * header.dtype.itemsize
            total += size
            if header.packing not in PLAINLY_PACKED or header.size != size:
                raise PoseError(
                    f"bad poses: {path.name}, {name} unpacks to {header.size} bytes and not to the "
                    f"{size} of its shape"
                )
            _refuse_type(path, header.dtype, total)
        return {name.removesuffix(".npy"): npz_array(file, name) for name in names}


def _of_npy(path: Path) -> NDArray[Any]:
    with path.open("rb") as file:
        read = {(1, 0): read_array_header_1_0, (2, 0): read_array_header_2_0}[read_magic(file)]
        shape, _, dtype = read(file)
        size = math.prod(shape) * dtype.itemsize
        _refuse_type(path, dtype, size)
        if path.stat().st_size - file.tell() != size:
            raise PoseError(f"bad poses: {path.name} does not hold the {size} bytes of its shape")
    return np.asarray(np.load(path, allow_pickle=False))


def _refuse_type(path: Path, dtype: np.dtype[Any], size: int) -> None:
    if dtype.kind not in _NUMBERS or dtype.hasobject:
        raise PoseError(f"bad poses: {path.name} holds {dtype}, and no numbers")
    if size > _MOST_BYTES:
        raise PoseError(f"bad poses: {path.name} unpacks to more than {_MOST_BYTES} bytes")


# Pickles of arrays ------------------------------------------------------------------------------


class _Type:
    """Stands for numpy's dtype: a plain number by its letter, and which end its bytes begin at."""

    def __init__(self, code: object = None, *_: object) -> None:
        if not isinstance(code, str) or len(code) > 4:
            raise ValueError("a type of numpy that is no plain number")
        self.code, self.order = code, "<"

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise ValueError("a type of numpy that is no plain number")
        if any(part is not None for part in state[2:5]):
            raise ValueError("a type of numpy of several parts")
        self.order = state[1]

    def real(self) -> np.dtype[Any]:
        dtype = np.dtype(self.code)
        if dtype.kind not in _NUMBERS:
            raise ValueError(f"an array of {dtype}, and no numbers")
        return dtype.newbyteorder(">" if self.order == ">" else "<")


class _Array:
    """Stands for an array of numpy until its bytes are there."""

    def __init__(self, *_: object) -> None:
        self.value: NDArray[Any] = np.zeros(0)

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise ValueError("an array of numpy in another form")
        _, shape, kind, in_columns, content = state
        if not isinstance(kind, _Type) or not isinstance(content, bytes):
            raise ValueError("an array of numpy in another form")
        self.value = _filled(kind.real(), shape, content, bool(in_columns))


def _filled(dtype: np.dtype[Any], shape: object, content: bytes, in_columns: bool) -> NDArray[Any]:
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("an array of numpy without a shape")
    if len(shape) > 8 or math.prod(shape) * dtype.itemsize != len(content):
        raise ValueError("an array of numpy whose bytes are not those of its shape")
    flat = np.frombuffer(content, dtype)
    return flat.reshape(shape, order="F" if in_columns else "C")


def _scalar(kind: object, content: object) -> _Array:
    if not isinstance(kind, _Type) or not isinstance(content, bytes):
        raise ValueError("a number of numpy in another form")
    made = _Array()
    made.value = _filled(kind.real(), (), content, in_columns=False)
    return made


def _from_buffer(content: object, kind: object, shape: object, order: object) -> _Array:
    if not isinstance(kind, _Type) or not isinstance(content, (bytes, bytearray)):
        raise ValueError("an array of numpy in another form")
    made = _Array()
    made.value = _filled(kind.real(), shape, bytes(content), order == "F")
    return made


def _latin(text: object, encoding: object) -> bytes:
    """Protocol 2 writes bytes so: a text, and the call that encodes it."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError("bytes in another encoding")
    return text.encode("latin-1")


_STAND_INS: Mapping[tuple[str, str], Any] = {
    **{
        (f"numpy.{core}.{module}", name): stand_in
        for core in ("core", "_core")
        for module, name, stand_in in (
            ("multiarray", "_reconstruct", _Array),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _from_buffer),
        )
    },
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _latin,
}
_OPCODES = PLAIN_OPCODES | {"GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "BYTEARRAY8"}
_MOST_OPCODES, _MOST_VALUES, _DEEPEST = 1_000_000, 1_000_000, 8


_InPython: Any = vars(pickle)["_Unpickler"]


# The unpickler that is written in Python: keys of a dict are seen before they are hashed, and a
# nest of tuples, which is hashed by recursion without a limit, is refused.
class _ArrayUnpickler(_InPython):  # type: ignore[misc]
    dispatch: ClassVar[dict[int, Any]] = dict(_InPython.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise ValueError(f"it holds more than plain data and arrays ({module}.{name})")
        return _STAND_INS[module, name]

    def persistent_load(self, pid: object) -> Any:
        raise ValueError("it holds more than plain data and arrays (a persistent id)")

    def _check_keys(self, items: list[Any]) -> None:
        if not all(type(key) in (str, int) for key in items[::2]):
            raise ValueError("a key of a dict that is neither text nor a number")

    def load_setitem(self) -> None:
        self._check_keys(self.stack[-2:])
        super().load_setitem()

    def load_setitems(self) -> None:
        self._check_keys(self.stack)
        super().load_setitems()

    def load_dict(self) -> None:
        self._check_keys(self.stack)
        super().load_dict()

    def load_build(self) -> None:
        if type(self.stack[-2]) not in (_Array, _Type):  # else it would set attributes of functions
            raise ValueError("a state for what has none")
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.DICT[0]] = load_dict


def _of_pickle(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    for number, (opcode, _, _) in enumerate(pickletools.genops(content)):
        if opcode.name not in _OPCODES or number > _MOST_OPCODES:
            raise ValueError(f"it holds more than plain data and arrays (opcode {opcode.name})")
    try:
        budget = iter(range(_MOST_VALUES))
        loaded = _plain(_ArrayUnpickler(io.BytesIO(content)).load(), 0, budget)
    except pickle.UnpicklingError as error:
        raise ValueError(str(error)) from error
    return loaded if isinstance(loaded, dict) else {"": loaded}


def _plain(value: Any, depth: int, budget: Iterator[int]) -> Any:
    """Return what a pickle held with arrays in the place of their stand-ins.

    A list may stand in many places of the others, so values are counted while they are unfolded.
    """
    if depth > _DEEPEST or next(budget, None) is None:
        raise ValueError(f"more than {_MOST_VALUES} values, or lists more than {_DEEPEST} deep")
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, (list, tuple)):
        return [_plain(one, depth + 1, budget) for one in value]
    if isinstance(value, dict):
        return {str(key): _plain(one, depth + 1, budget) for key, one in value.items()}
    if isinstance(value, (_Type, type)) or callable(value):
        raise ValueError("it holds more than plain data and arrays")
    return value
