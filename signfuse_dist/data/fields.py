"""JSON objects that nobody vouches for, read field by field.

Every field is asked for by name and kind; what is missing or of another kind is refused by name.
This module imports no torch.
"""

from __future__ import annotations

from typing import Any, NoReturn

from signfuse_dist.errors import UserError


class ShardError(UserError):
    """A packed split is damaged; the message names the file, the clip and what is wrong."""

    remedy = (
        "run `signfuse verify` on the folder to see all that is wrong, and `signfuse pack` again "
        "to repair it"
    )

    def __init__(self, shard: str, key: str, what: str) -> None:
        self.shard, self.key, self.what = shard, key, what
        where = f"{shard}, clip {key}" if key else shard
        super().__init__(f"{where}: {what}; {self.remedy}")

    def __reduce__(self) -> tuple[type[ShardError], tuple[str, str, str]]:
        return type(self), (self.shard, self.key, self.what)


class VersionError(ShardError):
    """A file is whole, and of a version of the format that this program does not read."""

    remedy = "pack the split again, into another folder or after removing this one"


class Fields:
    """A JSON object from a file, read field by field."""

    def __init__(self, value: object, file: str) -> None:
        self._file = file
        if not isinstance(value, dict):
            self.refuse("holds something else than an object")
        self._value: dict[str, Any] = value

    def refuse(self, what: str) -> NoReturn:
        raise ShardError(self._file, "", what)

    def _get(self, name: str, *kinds: type) -> Any:
        value = self._value.get(name)
        if isinstance(value, bool) or not isinstance(value, kinds):
            self.refuse(f"field {name!r} is missing or of the wrong kind")
        return value

    def text(self, name: str) -> str:
        return self._unicode(name, self._get(name, str))

    def _unicode(self, name: str, value: object) -> str:
        """Return a text that can be written again; JSON can spell halves of a character."""
        if not isinstance(value, str):
            self.refuse(f"field {name!r} is of the wrong kind")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            self.refuse(f"field {name!r} is no Unicode text")
        return value

    def optional_text(self, name: str) -> str | None:
        return None if self._value.get(name) is None else self.text(name)

    def count(self, name: str) -> int:
        value = int(self._get(name, int))
        if value < 0:
            self.refuse(f"field {name!r} is negative")
        return value

    def optional_number(self, name: str) -> float | None:
        if self._value.get(name) is None:
            return None
        try:
            return float(self._get(name, int, float))
        except OverflowError:
            self.refuse(f"field {name!r} is beyond all numbers")

    def texts(self, name: str) -> tuple[str, ...]:
        return tuple(self._unicode(name, value) for value in self._get(name, list))

    def span(self, name: str, size: int) -> tuple[int, int]:
        value = self._get(name, list)
        if len(value) != 2 or any(type(n) is not int or n < 0 for n in value):
            self.refuse(f"member {name!r} needs an offset and a size")
        if value[0] + value[1] > size:
            self.refuse(f"member {name!r} reaches beyond the end of the tar")
        return value[0], value[1]

    def inside(self, name: str) -> Fields:
        return Fields(self._get(name, dict), self._file)

    def items(self, name: str) -> list[Fields]:
        return [Fields(value, self._file) for value in self._get(name, list)]
