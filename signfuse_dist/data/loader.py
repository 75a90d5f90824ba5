"""From packed shards to batches: random access by clip, in the order of the plan."""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from signfuse_dist.batch import SignBatch
from signfuse_dist.data.blended import BlendedSplit
from signfuse_dist.data.columns import text_digest
from signfuse_dist.data.manifest import ShardError
from signfuse_dist.data.shard import Clip, ClipPose, read_clip, read_pose, read_vectors
from signfuse_dist.data.split import Split
from signfuse_dist.errors import UserError
from signfuse_dist.plan import PADDING, ClipFrames, Draw, MicroBatch, Times, spread_frames, times_at
from signfuse_dist.skeleton import NUM_JOINTS

Encode = Callable[[str], list[int]]
Each = Callable[..., Iterable[Any]]
"""``map``, or the same of a pool of threads."""
_AHEAD = 2  # batches that are made at once, beyond those that a step takes
_AHEAD_BYTES = 2 << 30  # of batches that wait; those beyond _AHEAD keep below it
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


class MicroBatchSequence(Protocol):
    """What the loader asks of a plan; a list will do."""

    def __len__(self) -> int: ...
    def __getitem__(self, item: int, /) -> MicroBatch: ...


class BatchSource(Protocol):
    """Micro batches that :func:`batches` makes ahead."""

    def __len__(self) -> int: ...
    def load(self, item: int, each: Each, pin_memory: bool) -> SignBatch: ...


class ClipBatches:
    """Item i is the i-th micro batch: clips read, tokenised and collated.

    A clip that cannot be read keeps its place with weight zero and is named in ``faults``.
    """

    def __init__(
        self,
        split: Split | BlendedSplit,
        plan: MicroBatchSequence,
        frames: ClipFrames,
        encode: Encode | None,
        corpus: int | None = None,
    ) -> None:
        """``encode`` turns a text into tokens; None where no language model is trained.

        ``corpus`` is the number of the clips' corpus, of a split of one corpus of a blend.
        """
        self.split, self.plan, self.frames, self.encode = split, plan, frames, encode
        self.corpus = corpus
        self._memory = _FrameMemory()
        self._tokenising = Lock()  # tokenizers of transformers serve one thread at a time

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, item: int) -> SignBatch:
        return self.load(item, map, pin_memory=False)

    def load(self, item: int, each: Each, pin_memory: bool) -> SignBatch:
        """Return micro batch ``item``; ``each`` maps over its clips, which it may do in threads.

        Every clip is decoded straight to its place among the batch's frames.
        """
        places, epoch = self.plan[item]
        clips = np.array(places)
        real = clips != PADDING
        lengths = np.ones(len(clips), dtype=np.int64)
        lengths[real] = self.frames.counts(times_at(epoch, real), clips[real])
        drawn = self.frames.draw(epoch, np.where(real, clips, 0))
        keys = self.frames.keys(epoch, np.where(real, clips, 0))
        shown, tracked, spans = self._streams(epoch, clips)
        counts = lengths if shown is None else lengths * shown
        vectors = None
        if self.split.vectors:
            # Small beside pictures: new memory is no matter. No picture is decoded.
            vectors = torch.zeros(int(counts.sum()), self.split.vector_dim)
            frames = self._memory.take(0, 0, self.split.frame_size, pin_memory)
        else:
            most = len(clips) * self.frames.max_frames
            frames = self._memory.take(int(counts.sum()), most, self.split.frame_size, pin_memory)
        seen = frames if vectors is None else vectors
        parts = np.split(seen.numpy(), np.cumsum(counts)[:-1])
        read = list(each(self._read_or_name, places, parts, lengths.tolist()))
        faults = [what for what in read if isinstance(what, str)]
        whole = [None if isinstance(what, str) else what for what in read]
        with self._tokenising:
            batch = collate(
                whole,
                frames,
                lengths,
                self.encode,
                faults,
                drawn,
                shown,
                tracked,
                keys=keys,
                joint_noise=self.frames.augment.joint_noise,
                spans=spans,
            )
        if vectors is not None:
            batch = replace(batch, frame_vectors=vectors, warp=None, colour=None)
        if self.corpus is not None:
            batch = replace(batch, corpus=torch.full((len(clips),), self.corpus))
        elif isinstance(self.split, BlendedSplit):
            batch = replace(
                batch,
                ids=tuple(
                    "" if clip is None else self.split.name_of(place)
                    for clip, place in zip(whole, places, strict=True)
                ),
                corpus=torch.from_numpy(self.split.corpora_of(np.where(real, clips, 0))),
            )
        return batch.pin_memory() if pin_memory else batch

    def _streams(
        self, times: Times, clips: NDArray[np.int64]
    ) -> tuple[NDArray[np.bool_] | None, NDArray[np.bool_] | None, NDArray[np.float32] | None]:
        """Return which clips have pictures and joints (None: all), and the spans that are hidden.

        Of a clip that has both, one may be lost this time: its pictures are not decoded then.
        """
        shown = pictures_of(self.split, clips)
        tracked = joints_of(self.split, clips)
        hidden = self.frames.hidden(times, np.where(clips == PADDING, 0, clips))
        if hidden is None:
            return shown, tracked, None
        if hidden.pictures.any() or hidden.joints.any():
            every = np.ones(len(clips), dtype=np.bool_)
            seen, found = (every if has is None else has for has in (shown, tracked))
            both = seen & found
            shown, tracked = seen & ~(hidden.pictures & both), found & ~(hidden.joints & both)
        return shown, tracked, hidden.spans

    def _read_or_name(self, place: int, into: NDArray[Any], length: int) -> Clip | str | None:
        """Read a clip; return None for a place of weight zero, or what is wrong with the clip."""
        if place == PADDING:
            into.fill(0)
            return None
        try:
            return self._read_clip(place, into, length)
        except UserError as error:
            into.fill(0)
            return f"{self.split.name_of(place)}: {error}"

    def _read_clip(self, place: int, into: NDArray[Any], length: int) -> Clip:
        """Read ``length`` frames of a clip, its pictures or vectors into ``into``, which of joints
        alone is empty; raise ShardError when it is damaged.
        """
        split, place = self.split.locate(place)
        shard = split.shard_of(place)
        indices = spread_frames(int(split.lengths[place]), length)
        members = split.members_of(place)
        if split.vectors:
            if len(into):
                _read_vectors(split, place, indices, into)
            into = np.empty((0, split.frame_size, split.frame_size, 3), np.uint8)
        clip = read_clip(split.folder, shard, members, indices, cache=split.cache, into=into)
        record = clip.record
        in_tar = (record["id"], record["num_frames"], text_digest(record.get("text")))
        if in_tar != (split.ids[place], split.lengths[place], split.columns.text_digests[place]):
            raise ShardError(shard, split.ids[place], "the record does not agree with the index")
        if split.poses is not None:
            joints = _read_joints(split.poses, place, indices)
            clip = Clip(record, clip.frames, joints.pose, joints.mask)
        if not np.isfinite(clip.pose).all():
            raise ShardError(shard, split.ids[place], "joints that are not finite")
        return clip


def _read_joints(poses: Split, place: int, indices: list[int]) -> ClipPose:
    shard = poses.shard_of(place)
    joints = read_pose(poses.folder, shard, poses.members_of(place), indices, poses.cache)
    if joints.record["id"] != poses.ids[place]:
        raise ShardError(shard, poses.ids[place], "the record does not agree with the index")
    return joints


def _read_vectors(split: Split, place: int, indices: list[int], into: NDArray[np.float32]) -> None:
    """Read the vectors of a clip from each feature set in use, one set beside the other."""
    start = 0
    for of in split.vectors:
        own, source = of.split, of.source
        shard, members = own.shard_of(place), own.members_of(place)
        record, vectors = read_vectors(
            own.folder, shard, members, source.dim, source.dtype, indices, own.cache
        )
        if record["id"] != own.ids[place] or record["num_frames"] != own.lengths[place]:
            raise ShardError(shard, own.ids[place], "the record does not agree with the index")
        if not np.isfinite(vectors).all():
            raise ShardError(shard, own.ids[place], "vectors that are not finite")
        into[:, start : start + source.dim] = vectors
        start += source.dim


def joints_of(split: Split | BlendedSplit, clips: NDArray[np.int64]) -> NDArray[np.bool_] | None:
    """Return for which clips of a batch somebody has looked for joints, None where for all."""
    tracked = split.tracked(np.where(clips == PADDING, 0, clips))
    return None if tracked.all() else tracked


def pictures_of(split: Split | BlendedSplit, clips: NDArray[np.int64]) -> NDArray[np.bool_] | None:
    """Return which clips of a batch have pictures, None where all have.

    A place of weight zero is like the first clip of the split: one of pictures costs a picture.
    """
    shown = split.has_pictures[np.where(clips == PADDING, 0, clips)]
    return None if shown.all() else shown


def collate(
    clips: Sequence[Clip | None],
    frames: Tensor,
    lengths: NDArray[np.int64],
    encode: Encode | None,
    faults: Sequence[str] = (),
    drawn: Draw | None = None,
    shown: NDArray[np.bool_] | None = None,
    tracked: NDArray[np.bool_] | None = None,
    *,
    keys: NDArray[np.int64] | None = None,
    joint_noise: float = 0.0,
    spans: NDArray[np.float32] | None = None,
) -> SignBatch:
    """Put clips into one batch; None is a place of weight zero, without joints and text.

    ``frames`` uint8 ``[sum(lengths), height, width, 3]`` are those of all clips that are ``shown``
    (None: of all), one clip after the other. ``drawn`` moves the joints, and goes with the batch
    for the frames. Where nobody has looked for joints, or they are hidden this time, clips are not
    ``tracked`` (None: all are). ``keys`` are what is drawn from inside a clip: by dropout, and for
    ``joint_noise``, the deviation by which each joint is moved. ``spans`` go with the batch.
    """
    longest = int(lengths.max())
    pose = np.zeros((len(clips), longest, NUM_JOINTS, 2), dtype=np.float32)
    mask = np.zeros((len(clips), longest, NUM_JOINTS), dtype=bool)
    for i, clip in enumerate(clips):
        if clip is not None:
            moved = clip.pose if drawn is None else drawn.moved(clip.pose, i)
            if joint_noise and keys is not None:
                noise = np.random.default_rng(keys[i]).standard_normal(moved.shape, np.float32)
                moved = moved + np.float32(joint_noise) * noise
            pose[i, : len(moved)] = np.where(clip.mask[..., None], moved, 0)
            mask[i, : len(moved)] = clip.mask
    texts = ["" if clip is None else clip.record["text"] for clip in clips]
    tokens, text_lengths = tokens_of(texts, encode) if encode else (None, None)
    return SignBatch(
        ids=tuple("" if clip is None else clip.record["id"] for clip in clips),
        frames=frames.permute(0, 3, 1, 2),
        pose=torch.from_numpy(pose),
        joint_mask=torch.from_numpy(mask),
        frame_lengths=torch.from_numpy(lengths),
        weight=torch.tensor([0.0 if clip is None else 1.0 for clip in clips]),
        tokens=tokens,
        text_lengths=text_lengths,
        faults=tuple(faults),
        warp=None if drawn is None else torch.from_numpy(drawn.warps()),
        colour=None if drawn is None else torch.from_numpy(drawn.colours()),
        has_visual=None if shown is None else torch.from_numpy(shown),
        has_skeletal=None if tracked is None else torch.from_numpy(tracked),
        spans=None if spans is None else torch.from_numpy(spans),
        draws=None if keys is None else torch.from_numpy(keys),
    )


def batches(
    dataset: BatchSource,
    num_workers: int,
    pin_memory: bool,
    items: Iterable[int] | None = None,
    window: int = 1,
) -> Iterator[SignBatch]:
    """Yield the batches in order, read ahead by ``num_workers`` threads (0: none, when asked for).

    ``items`` says which, None all. Each is taken from it only when its reading begins, so it may
    be a generator that several processes share. ``window`` batches are taken at once: an optimizer
    step needs what all of its micro batches hold before the first of them is computed, to divide
    by. So many wait while a step computes, and two more, as far as 2 GiB hold them.

    Threads, not processes: JPEGs are decoded without Python's lock, straight into the memory that
    goes to the device. A process would have to copy every frame out again. ``pin_memory`` makes it
    page-locked memory of torch's, which is used again for later batches.
    """
    items = range(len(dataset)) if items is None else items
    if not num_workers:
        yield from (dataset.load(i, map, pin_memory) for i in items)
        return
    readers = ThreadPoolExecutor(num_workers, "read")
    ahead = ThreadPoolExecutor(_AHEAD, "collate")
    try:
        waiting: deque[Future[SignBatch]] = deque()
        depth, largest = _AHEAD, 0
        rest = iter(items)
        while True:
            for item in islice(rest, max(0, depth - len(waiting))):
                waiting.append(ahead.submit(dataset.load, item, readers.map, pin_memory))
            if not waiting:
                return
            batch = waiting.popleft().result()
            largest = max(largest, batch.nbytes)
            depth = max(_AHEAD, min(window + _AHEAD, _AHEAD_BYTES // largest))
            yield batch
    finally:
        ahead.shutdown(cancel_futures=True)
        readers.shutdown(cancel_futures=True)


def count_workers(asked: int | None) -> int:
    """Return how many threads this training process reads ahead with.

    None asks for its share of the cores, less one for itself. Raises UserError where more are
    asked for than there are cores for all training processes of this machine.
    """
    cores, processes = usable_cores(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if asked is None:
        return max(0, cores // processes - 1)
    if asked * processes > cores:
        raise UserError(
            f"train.num_workers {asked} x {processes} processes on this machine: more than the "
            f"{cores} cores it gives (Slurm: --cpus-per-task); leave it out to use what there is"
        )
    return asked


def usable_cores() -> int:
    """Return the cores that this process may use: its affinity, and its container's quota."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = _CPU_QUOTA.read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no container, or one without a quota ("max")
        return cores


class _FrameMemory:
    """Memory for the frames of batches, used again when no tensor looks at it any more.

    Filling new memory in, page by page, costs a machine up to as much as decoding into it
    (docs/log.md). So a piece is taken as large as any batch may be: it is an address until it is
    filled, and a longer batch fills in what it has beyond those before it, where a piece that is
    too small would be given back and another be filled in from its beginning. Page-locked memory
    comes from torch, which keeps it by itself.
    """

    def __init__(self) -> None:
        self._free: list[NDArray[np.uint8]] = []

    def take(self, count: int, most: int, size: int, pin_memory: bool) -> Tensor:
        """Return uint8 ``[count, size, size, 3]`` of any content; ``most`` frames are the most."""
        shape = (count, size, size, 3)
        if pin_memory:
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        wanted, largest = (frames * size * size * 3 for frames in (count, max(count, most)))
        kept = self._free.pop() if self._free else np.empty(0, dtype=np.uint8)
        whole = kept if len(kept) >= wanted else np.empty(largest, dtype=np.uint8)
        part = whole[:wanted]
        weakref.finalize(part, self._free.append, whole)  # a tensor's storage holds its array
        return torch.from_numpy(part).view(shape)


def tokens_of(texts: Sequence[str], encode: Encode) -> tuple[Tensor, Tensor]:
    """Return the texts' tokens, padded, and how many each has."""
    rows = [encode(text) for text in texts]
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
    return tokens, lengths
