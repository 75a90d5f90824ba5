"""The loader beside others that read signing clips, each a frame a core, in one run.

All read the same clips, whole, in the order in which they are stored: the JPEGs of a packed split
through this loader, stock webdataset, litdata, mosaicml-streaming and a folder of pictures; and the
same frames as H.264 in an mp4 a clip, through PyAV, OpenCV, decord and torchcodec; with ``--films``
the films that they came from as well, in their own size and without scaling. Each decodes with one
thread and ends with RGB frames ``[frames, height, width, 3]``; JPEGs are decoded with simplejpeg
everywhere but in OpenCV. Data sets are read in this process, and by a worker process of torch's
DataLoader, as they are mostly used.

Other work on the machine makes wall time noisy. So all take turns, forwards and backwards, each
figure is of processor time, and ratios are those of one round. What is not installed has a row that
says so.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import simplejpeg
import torch
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm

from signfuse_dist.answer import answer
from signfuse_dist.cli import add_options, from_options, parse
from signfuse_dist.config import AugmentConfig
from signfuse_dist.corpora import read_corpus
from signfuse_dist.data.loader import ClipBatches, batches
from signfuse_dist.data.manifest_files import load_manifest
from signfuse_dist.data.split import Split, read_split
from signfuse_dist.data.storage import is_local, open_folder, read_file
from signfuse_dist.errors import UserError
from signfuse_dist.plan import ClipFrames, MicroBatch

Frames = NDArray[np.uint8]
"""uint8 ``[frames, height, width, 3]``, RGB."""
Read = Callable[[], Iterator[Frames]]
_FPS = 25
_CLIPS_A_BATCH = 4


@dataclass(frozen=True)
class ReadersBench:
    """What is read, and how often."""

    folder: str
    """A packed split on this machine."""
    clips: int = field(default=60, metadata={"help": "at most (default: %(default)s)"})
    films: Path | None = field(
        default=None,
        metadata={
            "metavar": "TABLE",
            "help": "read the mp4 that the clips were packed from as well, which a table names",
        },
    )
    rounds: int = field(default=5, metadata={"help": "of each way (default: %(default)s)"})


@dataclass(frozen=True)
class Stored:
    """A clip as it is packed: its JPEGs, one after the other, and where each begins and ends."""

    name: str
    id: str
    blob: bytes
    ends: NDArray[np.int64]

    def decode(self) -> Frames:
        """Return its frames."""
        return decode(self.blob, self.ends)


def decode(blob: bytes, ends: NDArray[np.int64]) -> Frames:
    """Return the frames of JPEGs that lie one after the other."""
    view = memoryview(blob)
    return np.stack([simplejpeg.decode_jpeg(view[a:b]) for a, b in pairwise(ends)])


def bench_readers(bench: ReadersBench) -> str:
    """Measure all readers that are installed; return the table.

    Raises UserError when there is no such split, or it is not of this machine.
    """
    folder = open_folder(bench.folder)
    if not is_local(folder):
        raise UserError(f"{bench.folder}: give a folder on this machine")
    split = read_split(folder, load_manifest(folder), cache=None)
    clips = list(_stored(split, bench.clips))
    with tempfile.TemporaryDirectory(prefix="signfuse-readers-") as scratch:
        ways, missing = _ways(split, clips, Path(scratch))
        if bench.films is not None:
            films, others = _of_videos("film", _films(bench.films, clips))
            ways, missing = ways | films, missing | others
        return _table(ways, missing, clips, bench.rounds)


def _table(
    ways: dict[str, Read], missing: dict[str, str], clips: Sequence[Stored], rounds: int
) -> str:
    count = sum(len(clip.ends) - 1 for clip in clips)
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for number in tqdm(range(rounds), desc="rounds", unit="round"):
        for way in list(ways)[:: -1 if number % 2 else 1]:
            rates[way].append(_rate(ways[way], count))
    ours = next(iter(rates.values()))
    lines = [
        f"{len(clips)} clips, {count:,} frames; frames a processor second, medians of {rounds} "
        "rounds; how many times as many the loader reads, median (least to most)",
        *(
            _row(way, rate, [a / b for a, b in zip(ours, rate, strict=True)])
            for way, rate in rates.items()
        ),
        *(f"{way:58} {why}" for way, why in missing.items()),
    ]
    return "\n".join(lines)


def _row(way: str, rates: Sequence[float], ratios: Sequence[float]) -> str:
    spread = f"{statistics.median(ratios):6.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    return f"{way:58} {statistics.median(rates):9,.0f} {spread}"


def _rate(read: Read, count: int) -> float:
    """Return frames a second of this process's time and that of its workers."""
    began = _processor_time()
    frames = sum(len(clip) for clip in read())
    if frames != count:
        raise UserError(f"{frames} frames were read where there are {count}")
    return frames / (_processor_time() - began)


def _processor_time() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _stored(split: Split, most: int) -> Iterator[Stored]:
    """Yield the first clips that have pictures, in the order of the shards."""
    tars = {shard.name: split.folder / shard.name for shard in split.manifest.shards}
    for place in [i for i in range(len(split)) if split.has_pictures[i]][:most]:
        tar, members = read_file(tars[split.shard_of(place)]), split.members_of(place)
        start, size = members["offsets.npy"]
        ends = np.load(BytesIO(tar[start : start + size]), allow_pickle=False)
        start, size = members["jpegs"]
        yield Stored(f"{place:05d}", split.ids[place], tar[start : start + size], ends)


def _ways(
    split: Split, clips: Sequence[Stored], scratch: Path
) -> tuple[dict[str, Read], dict[str, str]]:
    """Return each way to read the clips by its name, and why others are not there."""
    ways: dict[str, Read] = {
        "this loader, in this process": partial(_ours, split, len(clips), 0),
        "this loader, a thread beside this one": partial(_ours, split, len(clips), 1),
        "bare loop: simplejpeg on bytes in memory": lambda: (clip.decode() for clip in clips),
    }
    missing: dict[str, str] = {}
    data_sets = {
        "webdataset": _webdataset,
        "litdata": _litdata,
        "mosaicml-streaming": _mosaic,
        "opencv": _picture_folders,
    }
    for package, prepare in data_sets.items():
        title = "a folder of JPEGs a clip, OpenCV" if package == "opencv" else package
        try:
            named = f"{title} {_version(package)}"
            read = prepare(clips, _made(scratch / package))
        except (ImportError, OSError, RuntimeError) as error:
            missing[title] = f"not measured: {_first_line(error)}"
            continue
        ways[named] = read
        ways[f"{named}, a worker of DataLoader"] = partial(_with_worker, read)
    files = [_write_mp4(clip, _made(scratch / "mp4") / f"{clip.name}.mp4") for clip in clips]
    videos, others = _of_videos("mp4", files)
    return ways | videos, missing | others


def _of_videos(what: str, files: Sequence[Path]) -> tuple[dict[str, Read], dict[str, str]]:
    """Return each way to decode videos by its name, and why others are not there."""
    ways: dict[str, Read] = {}
    missing: dict[str, str] = {}
    readers = {"av": _pyav, "opencv": _opencv_video, "decord": _decord, "torchcodec": _torchcodec}
    for package, open_video in readers.items():
        title = {"av": "PyAV", "opencv": "OpenCV"}.get(package, package)
        try:
            named = f"{what}, {title} {_version(package)}"
            read = partial(_videos, open_video(), files)
            next(read())
        except (ImportError, OSError, RuntimeError) as error:
            missing[f"{what}, {title}"] = f"not measured: {_first_line(error)}"
            continue
        ways[named] = read
    return ways, missing


def _films(table: Path, clips: Sequence[Stored]) -> list[Path]:
    """Return the videos of clips, which a table names by their ids."""
    videos = {row.id: row.video for row in read_corpus("table", table, "train").rows}
    films = [videos.get(clip.id) for clip in clips]
    if None in films:
        raise UserError(f"{table}: names no video of clip {clips[films.index(None)].id!r}")
    return [film for film in films if film is not None]


def _version(package: str) -> str:
    """Return a package's version; of OpenCV's builds that of the one that is imported."""
    if package == "opencv":
        import cv2

        return str(cv2.__version__)
    try:
        return version(package)
    except PackageNotFoundError as error:
        raise ImportError(f"no package {package}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:90]


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


def _ours(split: Split, count: int, threads: int) -> Iterator[Frames]:
    """Read the clips as training does, a few a batch."""
    places = [i for i in range(len(split)) if split.has_pictures[i]][:count]
    sizes = range(0, count, _CLIPS_A_BATCH)
    plan = [MicroBatch(places[i : i + _CLIPS_A_BATCH], 0) for i in sizes]
    frames = ClipFrames(split.lengths, int(split.lengths.max()), AugmentConfig(), seed=0)
    dataset = ClipBatches(split, plan, frames, encode=None)
    for batch in batches(dataset, threads, pin_memory=False):
        yield batch.frames.permute(0, 2, 3, 1).numpy()


class _Clips(IterableDataset[Tensor]):
    """What a reader yields, as tensors, for a worker process."""

    def __init__(self, read: Read) -> None:
        self._read = read

    def __iter__(self) -> Iterator[Tensor]:
        for clip in self._read():
            yield torch.from_numpy(clip)


def _with_worker(read: Read) -> Iterator[Frames]:
    """Read in one worker process; what it has decoded comes through shared memory."""
    for clip in DataLoader(_Clips(read), batch_size=None, num_workers=1):
        yield clip.numpy()


def _webdataset(clips: Sequence[Stored], folder: Path) -> Read:
    import webdataset

    with webdataset.TarWriter(str(folder / "clips.tar")) as writer:
        for clip in clips:
            writer.write({"__key__": clip.name, "jpegs": clip.blob, "npy": _npy(clip.ends)})

    def read() -> Iterator[Frames]:
        for clip in webdataset.WebDataset(str(folder / "clips.tar"), shardshuffle=False):
            yield decode(clip["jpegs"], _of_npy(clip["npy"]))

    return read


def _npy(array: NDArray[np.int64]) -> bytes:
    file = BytesIO()
    np.save(file, array)
    return file.getvalue()


def _of_npy(content: bytes) -> NDArray[np.int64]:
    return np.asarray(np.load(BytesIO(content), allow_pickle=False))


def _litdata(clips: Sequence[Stored], folder: Path) -> Read:
    os.environ.setdefault("DATA_OPTIMIZER_CACHE_FOLDER", str(folder / "cache"))
    from litdata import StreamingDataset
    from litdata.streaming.cache import Cache

    packed = folder / "packed"
    cache = Cache(str(packed), chunk_bytes="64MB")
    for number, clip in enumerate(clips):
        cache[number] = {"jpegs": clip.blob, "ends": _npy(clip.ends)}
    cache.done()
    cache.merge()

    def read() -> Iterator[Frames]:
        for clip in StreamingDataset(str(packed), shuffle=False):
            yield decode(clip["jpegs"], _of_npy(clip["ends"]))

    return read


def _mosaic(clips: Sequence[Stored], folder: Path) -> Read:
    from streaming import MDSWriter, StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    columns = {"jpegs": "bytes", "ends": "bytes"}
    with MDSWriter(out=str(folder), columns=columns, progress_bar=False) as writer:
        for clip in clips:
            writer.write({"jpegs": clip.blob, "ends": _npy(clip.ends)})

    def read() -> Iterator[Frames]:
        clean_stale_shared_memory()
        for clip in StreamingDataset(local=str(folder), shuffle=False, batch_size=1):
            yield decode(clip["jpegs"], _of_npy(clip["ends"]))

    return read


def _picture_folders(clips: Sequence[Stored], folder: Path) -> Read:
    import cv2

    cv2.setNumThreads(1)
    for clip in clips:
        place = _made(folder / clip.name)
        for number, (start, end) in enumerate(pairwise(clip.ends)):
            (place / f"{number:05d}.jpg").write_bytes(clip.blob[start:end])

    def read() -> Iterator[Frames]:
        for place in sorted(folder.iterdir()):
            pictures = (cv2.imread(str(path)) for path in sorted(place.iterdir()))
            yield np.stack([cv2.cvtColor(picture, cv2.COLOR_BGR2RGB) for picture in pictures])

    return read


def _write_mp4(clip: Stored, path: Path) -> Path:
    """Write the clip's frames as H.264 at x264's own quality."""
    frames = clip.decode()
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("h264", rate=_FPS)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def _videos(open_video: Callable[[Path], Frames], files: Sequence[Path]) -> Iterator[Frames]:
    for file in files:
        yield open_video(file)


def _pyav() -> Callable[[Path], Frames]:
    scaler = VideoReformatter()

    def open_video(path: Path) -> Frames:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            frames = (
                scaler.reformat(frame, format="rgb24", threads=1)
                for frame in container.decode(stream)
            )
            return np.stack([frame.to_ndarray() for frame in frames])

    return open_video


def _opencv_video() -> Callable[[Path], Frames]:
    import cv2

    cv2.setNumThreads(1)

    def open_video(path: Path) -> Frames:
        one_thread = [cv2.CAP_PROP_N_THREADS, 1]
        video = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, one_thread)
        frames: list[NDArray[Any]] = []
        while True:
            there, frame = video.read()
            if not there:
                return np.stack(frames)
            frames.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))

    return open_video


def _decord() -> Callable[[Path], Frames]:
    import decord

    def open_video(path: Path) -> Frames:
        video = decord.VideoReader(str(path), num_threads=1)
        return np.asarray(video.get_batch(range(len(video))).asnumpy())

    return open_video


def _torchcodec() -> Callable[[Path], Frames]:
    from torchcodec.decoders import VideoDecoder

    def open_video(path: Path) -> Frames:
        video = VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1)
        return np.asarray(video.get_frames_in_range(0, len(video)).data.numpy())

    return open_video


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for, print the figures, return the exit status."""
    command = argparse.ArgumentParser(
        prog="python benchmarks/readers.py",
        description="Read the clips of a packed split with this loader, and the same clips with "
        "webdataset, litdata, mosaicml-streaming, OpenCV's pictures, and as mp4 with PyAV, OpenCV, "
        "decord and torchcodec, in turn: the packages of the extra `benchmarks`, and as "
        "docs/benchmarks.md says mosaicml-streaming. "
        "Printed are frames a processor second, and how many times as many this loader reads.",
        epilog="Example: OMP_NUM_THREADS=1 python benchmarks/readers.py shards/how2sign/dev. "
        "Figures: docs/benchmarks.md.",
    )
    command.add_argument("folder", help="a split's folder (with manifest.json)")
    add_options(command, ReadersBench)
    command.set_defaults(run=_readers)
    options = parse(command, arguments)
    return answer(lambda: options.run(options))


def _readers(options: argparse.Namespace) -> int:
    print(bench_readers(from_options(ReadersBench, options, folder=options.folder)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
