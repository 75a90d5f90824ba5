"""A split's indexes as columns: what every process needs of each clip, mapped and not parsed.

The indexes stay what a split is. ``columns.safetensors`` beside them is made from them when a split
is packed or verified. Its header says which shards it is of, and has a checksum of the arrays and
the checksums of what training sees. Where the file is missing, the indexes are read; at an address
they always are.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from signfuse_dist.data.manifest import Manifest, ShardIndex
from signfuse_dist.data.manifest_files import load_index, read_manifest
from signfuse_dist.data.storage import Folder, is_local
from signfuse_dist.errors import DamagedError, UserError
from signfuse_dist.files import write_bytes
from signfuse_dist.records import read_record
from signfuse_dist.tensor_files import TensorSpan, read_spans

COLUMNS_NAME = "columns.safetensors"
_DIGESTED = ("text", "pictures_sha256", "joints_sha256")  # of each clip in an index
_ARRAYS = ("id_text", "id_ends", "lengths", "shards", "members", "text_digests")
_DTYPES = {"U8": "u1", "I32": "<i4", "I64": "<i8"}
_CHUNK = 1 << 20
# All in one entry of the header: safetensors writes several in any order.
_SAID = "columns"


@dataclass(frozen=True)
class SplitContent:
    """What training sees of a split, as checksums: packed again to the bit, it has the same.

    They are over what the indexes say, so that no tar is read. Those of pictures and joints are
    None where an index of an earlier version does not have them of every clip; there the tars'
    checksums, ``shards`` and ``pose_set``, have to do.
    """

    clips: str
    """Ids and lengths, in their order."""
    texts: str
    pictures: str | None
    joints: str | None
    """Of the pose set in use, else of the clips' own."""
    shards: str
    """The tars of the clips: they also hold what training does not see."""
    pose_set: str | None
    """The tars of the pose set in use; None without one."""


class Ids(Sequence[str]):
    """Names as one text in UTF-8: a million are 20 MB where as many strings would be 80."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, text: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        self.text, self.ends = text, ends

    @classmethod
    def of(cls, names: Iterable[str]) -> Ids:
        """Return names that are given one by one."""
        encoded = [name.encode("utf-8", "surrogatepass") for name in names]
        ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        place = range(len(self))[place]  # counts from the end, and refuses what is beyond
        start = int(self.ends[place - 1]) if place else 0
        return self.text[start : int(self.ends[place])].tobytes().decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        """Yield them in order, each cut out of the whole text."""
        whole, start = self.text.tobytes(), 0
        for end in self.ends.tolist():
            yield whole[start:end].decode("utf-8", "surrogatepass")
            start = end

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Ids)
            and np.array_equal(self.ends, other.ends)
            and np.array_equal(self.text, other.text)
        )


@dataclass(frozen=True)
class Columns:
    """What the indexes say of each clip but its text: one row a clip, in the shards' order."""

    ids: Ids
    lengths: NDArray[np.int32]
    """Frames as stored, ``[clips]``."""
    shards: NDArray[np.int32]
    """Place of the clip's shard in the manifest, ``[clips]``."""
    members: NDArray[np.int64]
    """Offset and size of each member in the tar, in bytes, ``[clips, members, 2]``."""
    text_digests: NDArray[np.int64]
    """:func:`text_digest` of each clip's text, ``[clips]``.

    With the id and the frames it tells whether a record in a tar is the one that is indexed.
    """
    content: SplitContent
    """That of these shards by themselves."""


def text_digest(text: object) -> int:
    """Return 64 bits of BLAKE2b that tell texts apart."""
    digest = hashlib.blake2b(str(text).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def open_columns(folder: Folder, manifest: Manifest) -> Columns:
    """Map the columns of a split, or make them from its indexes where there are none.

    A warning says why columns that are there are not taken. Raises
    :class:`~signfuse_dist.data.manifest.ShardError` for an index that is damaged.
    """
    path = folder / COLUMNS_NAME
    if is_local(path) and path.is_file():
        try:
            return _map(Path(str(path)), manifest)
        except DamagedError as error:
            warnings.warn(
                f"{error}; the indexes are read instead, which takes longer: `signfuse verify` "
                "makes the columns again",
                stacklevel=2,
            )
    return gather(manifest, (load_index(folder, shard) for shard in manifest.shards))


def write_columns(folder: Path, manifest: Manifest, indexes: Iterable[ShardIndex]) -> None:
    """Write the columns of a split from its indexes; earlier ones are replaced."""
    columns = gather(manifest, indexes)
    arrays: dict[str, NDArray[Any]] = {
        "id_text": columns.ids.text,
        "id_ends": columns.ids.ends,
        "lengths": columns.lengths,
        "shards": columns.shards,
        "members": columns.members,
        "text_digests": columns.text_digests,
    }
    sha256 = hashlib.sha256()
    for name in _ARRAYS:
        sha256.update(arrays[name].tobytes())
    said = {
        "shards": _lines_of(manifest),
        "sha256": sha256.hexdigest(),
        "content": asdict(columns.content),
    }
    write_bytes(folder / COLUMNS_NAME, save(arrays, {_SAID: json.dumps(said)}))


def renew_columns(folder: Folder) -> bool:
    """Make the columns of a whole split where they are not; return whether they could be written.

    Raises :class:`~signfuse_dist.data.manifest.ShardError` for an index that is damaged.
    """
    if not is_local(folder):
        return False
    local, manifest = Path(str(folder)), read_manifest(folder)
    try:
        _map(local / COLUMNS_NAME, manifest)
    except UserError:
        try:
            write_columns(local, manifest, (load_index(folder, e) for e in manifest.shards))
        except OSError:  # a folder of somebody else's, or a full disk
            return False
    return True


def gather(manifest: Manifest, indexes: Iterable[ShardIndex]) -> Columns:
    """Read one index after the other into columns that have their size from the manifest."""
    count, num_members = manifest.num_samples, len(manifest.packing.members)
    lengths, shards = np.zeros(count, np.int32), np.zeros(count, np.int32)
    members = np.zeros((count, num_members, 2), np.int64)
    text_digests = np.zeros(count, np.int64)
    names: list[str] = []
    digests = {name: hashlib.sha256() for name in _DIGESTED}
    lacking: set[str] = set()
    for number, index in enumerate(indexes):
        rows = slice(len(names), len(names) + len(index.samples))
        names += [sample.id for sample in index.samples]
        lengths[rows], shards[rows] = index.num_frames, number
        members[rows] = index.spans
        text_digests[rows] = [text_digest(sample.text) for sample in index.samples]
        for name, digest in digests.items():
            values = [getattr(sample, name) for sample in index.samples]
            lacking |= {name} if None in values else set()
            # As JSON no value runs into the next; a line a clip does not show the shards.
            digest.update("".join(f"{json.dumps(value)}\n" for value in values).encode())
    of_all = {name: digests[name].hexdigest() for name in digests if name not in lacking}
    content = SplitContent(
        clips=_sha256("\n".join(names), lengths.astype("<i8").tobytes()),
        texts=digests["text"].hexdigest(),
        pictures=of_all.get("pictures_sha256"),
        joints=of_all.get("joints_sha256"),
        shards=_sha256("\n".join(shard.sha256 for shard in manifest.shards)),
        pose_set=None,
    )
    return Columns(Ids.of(names), lengths, shards, members, text_digests, content)


def _map(path: Path, manifest: Manifest) -> Columns:
    """Map columns whose checksum is right; raise DamagedError for others, and of other shards."""
    try:
        spans, metadata = read_spans(path)
        said = json.loads(metadata[_SAID])
        if said["shards"] != _lines_of(manifest):
            raise DamagedError(f"{path}: made of other shards")
        if _checksum(path, [spans[name] for name in _ARRAYS]) != said["sha256"]:
            raise DamagedError(f"{path} is damaged: its checksum differs")
        content = read_record(SplitContent, said["content"], str(path))
        arrays = {name: _mapped(path, spans[name]) for name in _ARRAYS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{path}: cannot be read ({error!r})") from error
    ids = Ids(arrays["id_text"], arrays["id_ends"])
    rest = {name: arrays[name] for name in _ARRAYS[2:]}
    if {len(array) for array in [ids, *rest.values()]} != {manifest.num_samples}:
        raise DamagedError(f"{path}: not of the {manifest.num_samples} clips of the manifest")
    return Columns(ids=ids, content=content, **rest)


def _checksum(path: Path, spans: Sequence[TensorSpan]) -> str:
    """Return the SHA-256 of arrays, read and not mapped: it leaves nothing in the process."""
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        for span in spans:
            file.seek(span.start)
            left = span.stop - span.start
            while left:
                chunk = file.read(min(left, _CHUNK))
                if not chunk:
                    raise ValueError("it ends early")
                sha256.update(chunk)
                left -= len(chunk)
    return sha256.hexdigest()


def _mapped(path: Path, span: TensorSpan) -> NDArray[Any]:
    array = np.memmap(path, _DTYPES[span.dtype], "r", span.start, span.shape)
    if array.nbytes != span.stop - span.start:
        raise ValueError(f"{span.shape} of {span.dtype} in {span.stop - span.start} bytes")
    return array


def _lines_of(manifest: Manifest) -> str:
    """Return a checksum of the lines that the manifest has for its shards, with their checksums."""
    return _sha256(json.dumps([asdict(entry) for entry in manifest.shards]))


def _sha256(text: str, more: bytes = b"") -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass") + b"\0" + more).hexdigest()
