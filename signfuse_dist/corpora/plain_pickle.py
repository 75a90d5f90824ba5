"""Reading a pickle as data: plain containers and scalars, and nothing that could run code.

A pickle is a program. Here its opcodes are parsed by the standard library's ``pickletools``, and
only those that build lists, dicts, tuples, text, bytes and numbers are carried out; every other one
is refused by name. No class, no function and no persistent id is ever looked up.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any

_MARK = object()
_MAX_KEY = 1000  # characters: comparing longer keys over and over takes time without end

_VALUES = frozenset(
    {
        "INT",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG",
        "LONG1",
        "LONG4",
        "FLOAT",
        "BINFLOAT",
        "UNICODE",
        "BINUNICODE",
        "BINUNICODE8",
        "SHORT_BINUNICODE",
        "BINBYTES",
        "BINBYTES8",
        "SHORT_BINBYTES",
    }
)
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
    "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple, "MARK": lambda: _MARK,
}  # fmt: skip


class PickleError(ValueError):
    """A pickle that is damaged, or that holds more than plain data."""


def load_plain(content: bytes) -> Any:
    """Return the lists, dicts, tuples, strings, bytes, numbers, bools and None of a pickle.

    Raises :class:`PickleError` for anything else and for damage.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(content):
            machine.do(opcode.name, argument)
    except PickleError:
        raise
    except (ValueError, IndexError) as error:
        raise PickleError(f"it is damaged ({error})") from error
    return machine.result()


class _Machine:
    """Pickle's stack machine, as far as plain data needs it."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def result(self) -> Any:
        if len(self._stack) != 1 or self._stack[0] is _MARK:
            raise PickleError("it is damaged (it does not end with one value)")
        return self._stack[0]

    def do(self, name: str, argument: Any) -> None:
        if name in _VALUES:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name]())
        elif name in _ACTIONS:
            _ACTIONS[name](self, argument)
        else:
            raise PickleError(f"it holds more than plain data (opcode {name})")

    def ignore(self, _: Any) -> None:
        """PROTO, FRAME and STOP change no value; the parser ends at STOP."""

    def text(self, argument: str) -> None:
        """Python 2's strings have no known encoding beyond ASCII."""
        if not argument.isascii():
            raise PickleError("it holds bytes of an unknown encoding")
        self._stack.append(argument)

    def put(self, argument: int | None) -> None:
        self._memo[len(self._memo) if argument is None else argument] = self._top()

    def get(self, argument: int) -> None:
        if argument not in self._memo:
            raise PickleError(f"it is damaged (no value {argument} was kept)")
        self._stack.append(self._memo[argument])

    def pop(self, _: Any) -> None:
        if not self._stack:
            raise PickleError("it is damaged (a value is missing)")
        self._stack.pop()

    def pop_mark(self, _: Any) -> None:
        self._since_mark()

    def duplicate(self, _: Any) -> None:
        self._stack.append(self._top())

    def make_list(self, _: Any) -> None:
        self._stack.append(self._since_mark())

    def make_tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._since_mark()))

    def make_dict(self, _: Any) -> None:
        values = self._since_mark()
        self._stack.append({})
        self._set(values)

    def append(self, _: Any) -> None:
        self._extend(self._last(1))

    def appends(self, _: Any) -> None:
        self._extend(self._since_mark())

    def set_item(self, _: Any) -> None:
        self._set(self._last(2))

    def set_items(self, _: Any) -> None:
        self._set(self._since_mark())

    def tuple_of(self, count: int) -> None:
        self._stack.append(tuple(self._last(count)))

    def _top(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise PickleError("it is damaged (a value is missing)")
        return self._stack[-1]

    def _last(self, count: int) -> list[Any]:
        values = self._stack[-count:]
        if len(values) != count or any(value is _MARK for value in values):
            raise PickleError("it is damaged (a value is missing)")
        del self._stack[-count:]
        return values

    def _since_mark(self) -> list[Any]:
        for place in range(len(self._stack) - 1, -1, -1):
            if self._stack[place] is _MARK:
                values = self._stack[place + 1 :]
                del self._stack[place:]
                return values
        raise PickleError("it is damaged (a mark is missing)")

    def _extend(self, values: list[Any]) -> None:
        target = self._top()
        if type(target) is not list:
            raise PickleError(f"it is damaged (values are appended to {_kind(target)})")
        target.extend(values)

    def _set(self, values: list[Any]) -> None:
        target = self._top()
        if type(target) is not dict or len(values) % 2:
            raise PickleError(f"it is damaged (items are set in {_kind(target)})")
        for key, value in zip(values[::2], values[1::2], strict=True):
            target[_checked(key)] = value


def _checked(key: Any) -> Any:
    """Return a dict's key when it is a short scalar.

    A nest of tuples is hashed by recursion without a limit, and a number of a million digits is
    hashed anew each time: neither is anybody's key.
    """
    short = (
        len(key) <= _MAX_KEY
        if type(key) in (str, bytes)
        else type(key) is not int or key.bit_length() <= 64
    )
    if type(key) not in (str, bytes, int, float, bool, type(None)) or not short:
        raise PickleError(f"it holds more than plain data (a key that is {_kind(key)})")
    return key


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"


_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _Machine.ignore, "FRAME": _Machine.ignore, "STOP": _Machine.ignore,
    "STRING": _Machine.text, "BINSTRING": _Machine.text, "SHORT_BINSTRING": _Machine.text,
    "PUT": _Machine.put, "BINPUT": _Machine.put, "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.put,
    "GET": _Machine.get, "BINGET": _Machine.get, "LONG_BINGET": _Machine.get,
    "POP": _Machine.pop, "POP_MARK": _Machine.pop_mark, "DUP": _Machine.duplicate,
    "LIST": _Machine.make_list, "TUPLE": _Machine.make_tuple, "DICT": _Machine.make_dict,
    "APPEND": _Machine.append, "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item, "SETITEMS": _Machine.set_items,
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
}  # fmt: skip
