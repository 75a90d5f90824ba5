"""Whether the LLM takes every text of a split: looked at once, and remembered beside its shards.

A million texts take minutes to read and to cut into tokens, and a restart finds what was found
before. So ``texts-KEY.json`` beside the manifest says what it was. KEY is a checksum of what it
depends on: the tokenizer (:attr:`~signfuse_dist.model.text_tokenizer.TextTokenizer.fingerprint`),
and the ids and texts of the split. Texts that changed, or another tokenizer, have another key; a
file that is damaged or says another key is not believed, and written anew. What is remembered is
the longest text, not whether it fits: the room for it is the run's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from signfuse_dist.data.split import Split
from signfuse_dist.data.storage import is_local
from signfuse_dist.errors import UserError, printable, raise_together
from signfuse_dist.files import parse_json, special_kind, write_text
from signfuse_dist.model.signfuse import SignFuse
from signfuse_dist.model.text_tokenizer import TextTokenizer
from signfuse_dist.records import read_record

_AT_ONCE = 4096  # are cut into tokens
_NAMED = 10  # texts in a message
_LARGEST = 1 << 16  # bytes of a file that is read
_VERSION = 1  # of what is looked for


@dataclass(frozen=True)
class TextsSeen:
    """What the texts of a split are to a tokenizer.

    Attributes:
        key: of the tokenizer and the texts.
        count: of the texts.
        longest: tokens of the longest text, with its end.
        num_unknown: texts with letters that the tokenizer does not know.
        unknown: ids of the first of them.
    """

    key: str
    count: int
    longest: int
    num_unknown: int
    unknown: tuple[str, ...]


def refuse_long_texts(
    model: SignFuse, tokenizer: TextTokenizer | None, split: Split, say: Callable[[str], None]
) -> None:
    """Raise UserError naming texts that the LLM's context has no room for; ``say`` unknown letters.

    Without an LLM there is nothing to compare with.
    """
    if model.language_model is None or tokenizer is None:
        return
    room = model.language_model.room(model.built_from.num_sign_tokens)
    key = _key(tokenizer, split)
    too_long: list[str] = []
    seen = _remembered(split, key)
    if seen is None or (room is not None and seen.longest > room):
        seen, too_long = _look(tokenizer, split, key or "", room)
        if key is not None:
            _remember(split, seen)
    if seen.num_unknown:
        say(
            f"{seen.num_unknown} of {seen.count} texts hold letters that the LLM's tokenizer does "
            f"not know, and are learned without them: {printable(', '.join(seen.unknown))}"
        )
    raise_together(
        too_long[:_NAMED],
        f"{split.folder}: {len(too_long)} texts are too long for the LLM's context; take them out "
        "of the corpus, or another LLM. The first",
    )


def _look(
    tokenizer: TextTokenizer, split: Split, key: str, room: int | None
) -> tuple[TextsSeen, list[str]]:
    """Cut every text into tokens; return what was seen, and the texts that are too long."""
    entries, count, longest = split.entries(), 0, 0
    too_long: list[str] = []
    unknown: list[str] = []
    while some := {entry.id: entry.text for entry in islice(entries, _AT_ONCE)}:
        longer, odd, most = tokenizer.find_unfit(some, room)
        too_long, unknown, count = too_long + longer, unknown + odd, count + len(some)
        longest = max(longest, most)
    return TextsSeen(key, count, longest, len(unknown), tuple(unknown[:_NAMED])), too_long


def _key(tokenizer: TextTokenizer, split: Split) -> str | None:
    """Return what the answer depends on; None where it cannot be told or kept."""
    if tokenizer.fingerprint is None or not is_local(split.folder):
        return None
    said = [_VERSION, tokenizer.fingerprint, split.content.clips, split.content.texts]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _path(split: Split, key: str) -> Path:
    return Path(str(split.folder)) / f"texts-{key[:16]}.json"


def _remembered(split: Split, key: str | None) -> TextsSeen | None:
    """Return what was seen before; None where nothing was, or what is there is not believed."""
    if key is None:
        return None
    path = _path(split, key)
    try:
        if special_kind(path) is not None:  # reading a pipe would wait for ever
            return None
        with path.open("rb") as file:
            text = file.read(_LARGEST).decode("utf-8")
        said = parse_json(text, str(path))
        seen = read_record(TextsSeen, said["seen"], str(path))
        whole = said["sha256"] == _checksum(seen)
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return None
    return seen if whole and seen.key == key else None


def _remember(split: Split, seen: TextsSeen) -> None:
    said = {"sha256": _checksum(seen), "seen": asdict(seen)}
    try:
        write_text(_path(split, seen.key), json.dumps(said))
    except OSError:  # a folder of somebody else's, or a full disk: the texts are looked at again
        return


def _checksum(seen: TextsSeen) -> str:
    return hashlib.sha256(json.dumps(asdict(seen)).encode()).hexdigest()
