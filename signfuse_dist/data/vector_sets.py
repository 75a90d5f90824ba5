"""Feature sets: one vector a frame beside the clips of a packed split, ``DIR/features/NAME``.

Stored as pose sets are: a tar for each tar of clips with an index beside it, and a manifest when
all are whole, made by the same workers, locks and checks; ``source.json`` says what the vectors
are. They are computed from the packed pictures by a vision model, or taken from files that others
publish, an array a clip. Training on them decodes no picture and runs no network of pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from signfuse_dist.corpora import ClipRow
from signfuse_dist.data.finished import PackError, ShardTask, refuse_other
from signfuse_dist.data.joints import UNREADABLE
from signfuse_dist.data.manifest import (
    Manifest,
    Packing,
    SampleEntry,
    ShardError,
    ShardIndex,
    feature_path,
)
from signfuse_dist.data.manifest_files import load_index, load_manifest, read_index
from signfuse_dist.data.pack import make_set, writing, writing_alone
from signfuse_dist.data.pack_summary import PackSummary
from signfuse_dist.data.pack_workers import ClipError, Division
from signfuse_dist.data.shard import EncodedVectors, read_clip, read_record
from signfuse_dist.errors import MachineError, UserError, first_line, printable, raise_together
from signfuse_dist.files import write_bytes
from signfuse_dist.progress import Progress
from signfuse_dist.system_errors import refuse_machine
from signfuse_dist.vector_source import SOURCE_NAME, Dtype, VectorSource

_AHEAD = 3  # clips that are decoded while the model computes
_NAMED = 10  # clips in an error
_SLACK = 1  # vectors that a clip of another rate may have more or fewer than its seconds say
_MAX_BYTES = 1 << 32  # of an array: above it a header is a lie


class Vectorise(Protocol):
    """A vision model that is ready: what it is, and what it makes of pictures."""

    @property
    def source(self) -> VectorSource: ...

    def __call__(self, frames: NDArray[np.uint8], /) -> NDArray[np.floating[Any]]:
        """Return ``[n, dim]`` for uint8 RGB ``[n, size, size, 3]``."""


@dataclass(frozen=True)
class PublishedVectors:
    """Where others' vectors are, and how they lie in time.

    Attributes:
        folder: with a file for each clip.
        name: what they are called; the set's own.
        file: the file of a clip, ``{id}`` being its id; None: ``{id}.npy``, else ``{id}.npz``.
        rate: vectors a second, where it is not a vector for each frame.
        window: seconds that each of those vectors is of; None: 1 / rate.
        dtype: as which they are stored.
    """

    folder: Path
    name: str
    file: str | None = None
    rate: float | None = None
    window: float | None = None
    dtype: Dtype = "float32"

    def __post_init__(self) -> None:
        wrong = []
        if not self.folder.is_dir():
            wrong.append(f"--from {self.folder}: no such folder")
        if self.file is not None and "{id}" not in self.file:
            wrong.append(f"--file {self.file!r}: must hold {{id}}, which stands for a clip's id")
        for option, value in (("rate", self.rate), ("window", self.window)):
            if value is not None and not (np.isfinite(value) and value > 0):
                wrong.append(f"--{option} {value}: must be above 0")
        if self.window is not None and self.rate is None:
            wrong.append("--window without --rate: a vector for each frame has no window")
        raise_together(wrong, "published vectors")

    def path(self, clip_id: str) -> Path:
        """Return the file of a clip; raise UserError where there is none inside the folder."""
        patterns = ("{id}.npy", "{id}.npz") if self.file is None else (self.file,)
        names = [pattern.replace("{id}", clip_id) for pattern in patterns]
        for name in names:
            path = self.folder / name
            try:
                whole, there = path.resolve(), path.is_file()
            except (OSError, ValueError) as error:  # too long for the disk, or no name
                refuse_machine(error, path)
                raise UserError(f"no file can be called {name!r} ({first_line(error)})") from error
            if not whole.is_relative_to(self.folder.resolve()):
                raise UserError(f"{name} leads out of the folder")
            if there:
                return path
        raise UserError(f"no file {' or '.join(names)}")

    def places(self, count: int, num_frames: int, fps: float) -> list[int] | None:
        """Return which of ``count`` vectors stands for each frame; None: each its own.

        Raises UserError where the count is not that of the frames, or of their seconds.
        """
        if self.rate is None:
            if count != num_frames:
                raise UserError(f"{count} vectors for {num_frames} frames")
            return None
        window = self.window or 1 / self.rate
        expected = max(1, int(np.floor((num_frames / fps - window) * self.rate + 1e-6)) + 1)
        if abs(count - expected) > _SLACK:
            raise UserError(
                f"{count} vectors, and {num_frames} frames at {fps:g} a second are {expected} at "
                f"--rate {self.rate:g} with a window of {window:g} s"
            )
        middles = (np.arange(num_frames) + 0.5) / fps
        nearest = np.rint((middles - window / 2) * self.rate).astype(int)
        return list(np.clip(nearest, 0, count - 1).tolist())


def read_array(path: Path) -> NDArray[np.floating[Any]]:
    """Read the one array ``[vectors, dim]`` of a ``.npy`` or ``.npz``; nothing is unpickled.

    Raises UserError for what is no such array of finite numbers.
    """
    try:
        with path.open("rb") as file:
            found = np.load(file, allow_pickle=False)
            if isinstance(found, np.lib.npyio.NpzFile):
                with found:
                    names = found.files
                    if len(names) != 1:
                        raise UserError(f"{path.name}: {len(names)} arrays {names[:5]}, not one")
                    _refuse_large(path, found.zip.infolist()[0].file_size)
                    found = found[names[0]]
    except OSError as error:
        refuse_machine(error, path)
        raise UserError(f"{path.name}: cannot be read ({error.strerror or error})") from error
    except UserError:
        raise
    except (*UNREADABLE, MemoryError) as error:
        raise UserError(f"{path.name}: no array of numbers ({first_line(error)})") from error
    if not isinstance(found, np.ndarray):
        raise UserError(f"{path.name}: no array of numbers, but a file of another kind inside it")
    if found.ndim != 2 or found.dtype.kind != "f":
        what = f"{found.dtype} {list(found.shape)}"
        raise UserError(f"{path.name}: {what}, not floating-point numbers [vectors, dim]")
    if not len(found) or not found.shape[1]:
        raise UserError(f"{path.name}: is empty, {list(found.shape)}")
    odd = np.flatnonzero(~np.isfinite(found).all(axis=1))
    if len(odd):
        raise UserError(
            f"{path.name}: {len(odd)} of {len(found)} vectors are not finite, the first is "
            f"{int(odd[0])}"
        )
    return np.asarray(found)


def _refuse_large(path: Path, size: int) -> None:
    if size > _MAX_BYTES:
        raise UserError(f"{path.name}: its array is said to have {size} bytes")


def compute_vectors(
    shards: Path,
    name: str,
    vectorise: Vectorise,
    *,
    task_id: int = 0,
    num_tasks: int = 1,
) -> PackSummary:
    """Write the feature set ``name`` of the clips in ``shards``, computed from their pictures.

    Restarted, it keeps the shards that are whole; tasks share shards as those of
    :func:`~signfuse_dist.data.pack.pack` do. A clip without pictures has no vectors. Raises
    :class:`PackError` when the name has another set, and for a clip that cannot be read;
    ShardError when ``shards`` is no whole split.
    """
    manifest = _manifest_of_clips(shards)
    packing = manifest.packing.of("features", vectorise.source.extractor, vectorise.source.digest)
    encoder = _Computing(packing, shards, vectorise)
    division = Division(0, task_id, num_tasks)
    try:
        return _make(shards, name, manifest, encoder, vectorise.source, division)
    finally:
        encoder.close()


def import_vectors(shards: Path, name: str, published: PublishedVectors) -> PackSummary:
    """Write the feature set ``name`` of the clips in ``shards`` from published files.

    Every file is read before anything is written. Raises :class:`PackError` naming and counting
    the clips whose file is missing, is no array of finite numbers, has another width than the
    others', or another number of vectors than the clip's frames (or seconds) ask for.
    """
    manifest = _manifest_of_clips(shards)
    dim = _refuse_unfit(shards, manifest, published)
    source = VectorSource(
        dim=dim,
        dtype=published.dtype,
        published=published.name,
        rate=published.rate,
        window=published.window,
    )
    packing = manifest.packing.of("features", source.extractor, source.digest)
    encoder = _Importing(packing, shards, published)
    return _make(shards, name, manifest, encoder, source, Division(0))


def _manifest_of_clips(shards: Path) -> Manifest:
    manifest = load_manifest(shards)
    if manifest.packing.contents != "clips":
        raise PackError(
            f"{shards}: holds {manifest.packing.contents} alone; name the folder with the clips"
        )
    return manifest


def _make(
    shards: Path,
    name: str,
    manifest: Manifest,
    encoder: _Computing | _Importing,
    source: VectorSource,
    division: Division,
) -> PackSummary:
    out = shards / feature_path(name)
    tasks = [
        ShardTask(entry.name, tuple(_rows(entry.name, load_index(shards, entry))))
        for entry in manifest.shards
    ]
    title = f"{manifest.packing.split}, features {name} ({source})"

    def summarise(indexes: Sequence[ShardIndex], complete: bool) -> PackSummary:
        return PackSummary.of_set(title, manifest.num_samples, indexes, complete, len(tasks))

    with writing_alone(out, encoder.packing, division, len(tasks)):
        refuse_other(out, encoder.packing)
        with writing(out):
            write_bytes(out / SOURCE_NAME, source.to_json().encode())
        return make_set(tasks, out, encoder, division, summarise)


def _rows(shard: str, index: ShardIndex) -> list[ClipRow]:
    """Return the packed clips of a shard as rows, whose source is the shard."""
    return [
        ClipRow(
            row=number,
            id=sample.id,
            video=None,
            source=shard,
            text="",
            start=None,
            end=None,
            signer=None,
            language=None,
            split=index.packing.split,
            joints=None,
        )
        for number, sample in enumerate(index.samples)
    ]


@dataclass
class _Computing:
    """Encodes the vectors of clips by a model, whose next clips are decoded meanwhile."""

    packing: Packing
    shards: Path
    vectorise: Vectorise
    pose_seconds: float = 0.0
    _samples: dict[str, dict[str, SampleEntry]] = field(default_factory=dict)
    _ahead: dict[tuple[str, str], Future[NDArray[np.uint8]]] = field(default_factory=dict)
    _readers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(_AHEAD))

    def encode(self, row: ClipRow) -> EncodedVectors:
        """Return a clip's vectors; raise ClipError where it cannot be read or computed."""
        if row.source not in self._samples:
            self._samples = {row.source: _samples_of(self.shards, row.source)}
        following = islice(self._samples[row.source], row.row, row.row + _AHEAD)
        for clip_id in following:
            place = (row.source, clip_id)
            if place not in self._ahead:
                sample = self._samples[row.source][clip_id]
                self._ahead[place] = self._readers.submit(self._frames, row.source, sample)
        source, clip = self.vectorise.source, f"clip {row.id!r}"
        try:
            frames = self._ahead.pop((row.source, row.id)).result()
        except MachineError:
            raise
        except UserError as error:
            what = error.what if isinstance(error, ShardError) else str(error)
            raise ClipError(f"{clip}: {what}") from error
        vectors = np.empty((0, source.dim), source.dtype)
        if len(frames):
            computed = self.vectorise(frames)
            with np.errstate(over="ignore"):
                vectors = computed.astype(source.dtype)
        if not np.isfinite(vectors).all():
            raise ClipError(
                f"{clip}: vectors that are not finite as {source.dtype}"
                + ("; --dtype float32 has the room" if source.dtype == "float16" else "")
            )
        return _encoded(row, self.packing, self._samples[row.source][row.id], vectors)

    def close(self) -> None:
        """End the threads that decode."""
        self._readers.shutdown(cancel_futures=True)

    def _frames(self, shard: str, sample: SampleEntry) -> NDArray[np.uint8]:
        size = self.packing.settings.frame_size
        return read_clip(self.shards, shard, sample.members, frame_size=size).frames


@dataclass
class _Importing:
    """Encodes the vectors of clips from published files."""

    packing: Packing
    shards: Path
    published: PublishedVectors
    pose_seconds: float = 0.0
    _samples: dict[str, dict[str, SampleEntry]] = field(default_factory=dict)

    def encode(self, row: ClipRow) -> EncodedVectors:
        """Return a clip's vectors; raise ClipError where its file has changed since."""
        if row.source not in self._samples:
            self._samples = {row.source: _samples_of(self.shards, row.source)}
        sample = self._samples[row.source][row.id]
        try:
            vectors = _fitted(self.shards, row.source, sample, self.published)
        except MachineError:
            raise
        except UserError as error:
            raise ClipError(f"clip {row.id!r}: {error}") from error
        return _encoded(row, self.packing, sample, vectors)


def _samples_of(shards: Path, shard: str) -> dict[str, SampleEntry]:
    return {sample.id: sample for sample in read_index(shards, shard).samples}


def _encoded(
    row: ClipRow, packing: Packing, sample: SampleEntry, vectors: NDArray[np.floating[Any]]
) -> EncodedVectors:
    record = {
        "id": row.id,
        "num_frames": sample.num_frames,
        "joint_layout": packing.joint_layout,
        "extractor": packing.extractor,
        "extractor_version": packing.extractor_version,
        "failed_frames": 0,
        "flags": [] if len(vectors) else ["no_vectors"],
    }
    return EncodedVectors(record, vectors)


def _refuse_unfit(shards: Path, manifest: Manifest, published: PublishedVectors) -> int:
    """Return the width of the vectors; raise PackError with every clip whose file does not fit."""
    wrong: list[str] = []
    widths: dict[int, list[str]] = {}
    with Progress(f"reading {published.name}", manifest.num_samples, "clip") as progress:
        for entry in manifest.shards:
            for sample in load_index(shards, entry).samples:
                try:
                    vectors = _fitted(shards, entry.name, sample, published)
                    widths.setdefault(vectors.shape[1], []).append(sample.id)
                except MachineError:
                    raise
                except UserError as error:
                    wrong.append(f"{sample.id}: {error}")
                progress.advance()
    usual = max(widths, key=lambda dim: len(widths[dim]), default=0)
    for dim, ids in widths.items():
        if dim != usual:
            wrong += [f"{i}: vectors of {dim} numbers, the others have {usual}" for i in ids]
    if wrong:
        more = len(wrong) - _NAMED
        rest = [f"and {more} more"] if more > 0 else []
        advice = "" if published.rate else " (--rate says how many there are a second)"
        raise PackError(
            f"{published.folder}: {len(wrong)} of {manifest.num_samples} clips have no vectors "
            f"that fit{advice}; nothing was written\n"
            + "\n".join(f"  - {printable(line)}" for line in [*wrong[:_NAMED], *rest])
        )
    return usual


def _fitted(
    shards: Path, shard: str, sample: SampleEntry, published: PublishedVectors
) -> NDArray[np.floating[Any]]:
    """Return a clip's published vectors, one for each of its frames; raise UserError."""
    vectors = read_array(published.path(sample.id))
    fps = 1.0 if published.rate is None else _fps_of(shards, shard, sample)
    places = published.places(len(vectors), sample.num_frames, fps)
    with np.errstate(over="ignore"):
        stored = (vectors if places is None else vectors[places]).astype(published.dtype)
    if not np.isfinite(stored).all():
        raise UserError(f"numbers beyond what {published.dtype} holds")
    return stored


def _fps_of(shards: Path, shard: str, sample: SampleEntry) -> float:
    record: Mapping[str, Any] = read_record(shards, shard, sample.members)
    fps = record.get("fps")
    if not isinstance(fps, (int, float)) or not fps > 0:
        raise UserError(f"its record has no frames a second, {fps!r}")
    return float(fps)
