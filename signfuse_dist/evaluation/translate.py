"""`signfuse translate`: new clips by the path of the packer and the model, a JSON line a video."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
<<<<<<< HEAD
from typing import Any, NamedTuple, Protocol

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray

from signfuse_dist import device
from signfuse_dist.batch import SignBatch
from signfuse_dist.config import Crop
from signfuse_dist.corpora import VIDEO_SUFFIXES, Box, ClipRow, FolderFrames, boxed
from signfuse_dist.data.clock import VideoError
from signfuse_dist.data.encode import encode_clip
from signfuse_dist.data.frame_folder import IMAGE_SUFFIXES
from signfuse_dist.data.joints import Joints, JointsFile, PoseExtractor
from signfuse_dist.data.loader import collate
from signfuse_dist.data.manifest import PackConfig, Packing
from signfuse_dist.data.pack_workers import Death, Report, WorkerPool
from signfuse_dist.data.picture import VideoFrame
from signfuse_dist.data.shard import Clip, EncodedClip
from signfuse_dist.data.video import VideoFile, open_video
from signfuse_dist.errors import MachineError, UserError
from signfuse_dist.evaluation.choices import Choices, Limits
from signfuse_dist.evaluation.extractors import difference, extractor_for
from signfuse_dist.evaluation.new_vectors import refuse_published, vectors_of
from signfuse_dist.evaluation.translator import Translation, Translator, load_translator
=======
from queue import Full, Queue
from typing import Any, NamedTuple, TypeVar

from signfuse_dist import device
from signfuse_dist.batch import SignBatch
from signfuse_dist.data.pack_workers import Death, WorkerPool
from signfuse_dist.errors import UserError
from signfuse_dist.evaluation.choices import Choices
from signfuse_dist.evaluation.new_clips import (
    ClipReader,
    NewClip,
    Source,
    find_videos,
    look_at_streams,
    read_source,
    reader_for,
    sources_of,
)
from signfuse_dist.evaluation.translator import Translation, Translator, join, load_translator
>>>>>>> f7b335e (Joints alone are new clips; clips are read beside the model, as fast as an evaluation)
from signfuse_dist.experiment import override_section
from signfuse_dist.files import STATE, checksum, write_text
from signfuse_dist.locks import held
from signfuse_dist.model.signfuse import SignFuse
<<<<<<< HEAD
from signfuse_dist.model.usage import Usage
from signfuse_dist.model.vision import FrameVectors
from signfuse_dist.plan import spread_frames
=======
>>>>>>> f7b335e (Joints alone are new clips; clips are read beside the model, as fast as an evaluation)
from signfuse_dist.progress import Progress
from signfuse_dist.system_errors import at_path

Outcome = NewClip | str | Death
"""A clip, or why it could not be read."""
T = TypeVar("T")

<<<<<<< HEAD
_TOGETHER = 4  # batches of clips that are read before they are translated


def find_videos(places: Sequence[Path]) -> list[Path]:
    """Return the clips at ``places``: a file or a folder of frames is one, others hold files.

    Raises UserError naming a folder that holds neither videos nor frames.
    """
    clips: list[Path] = []
    for place in places:
        if not place.is_dir():
            clips.append(place)  # a file that is not there is an error of its own, later
            continue
        files = sorted(p for p in place.iterdir() if p.is_file() and not p.name.startswith("."))
        videos = [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES]
        frames = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
        if videos and frames:
            raise UserError(
                f"{place} holds {len(videos)} videos and {len(frames)} pictures: give the videos, "
                "or a folder of frames alone"
            )
        if not videos and not frames:
            raise UserError(
                f"{place} holds no videos ({', '.join(VIDEO_SUFFIXES)}) and no frames "
                f"({', '.join(IMAGE_SUFFIXES)})"
            )
        clips += videos or [place]
    return clips


class _LimitedExtractor(PoseExtractor):
    """An extractor that gives up on a clip that goes beyond the limits."""

    def __init__(self, inner: PoseExtractor, limits: Limits) -> None:
        self._inner, self._limits = inner, limits
        self.name, self.version = inner.name, inner.version

    def extract(self, frames: Iterable[VideoFrame]) -> Joints:
        """Return the joints of a clip; raise VideoError where it exceeds a limit."""
        return self._inner.extract(self._within(frames))

    def _within(self, frames: Iterable[VideoFrame]) -> Iterator[VideoFrame]:
        limits, began = self._limits, time.monotonic()
        for number, frame in enumerate(frames, start=1):
            limits.refuse_long(frame.time)
            limits.refuse_many(number)
            limits.refuse_large(frame.picture.width, frame.picture.height)
            if time.monotonic() - began > limits.max_work_seconds:
                raise VideoError(
                    f"reading the clip took longer than {limits.max_work_seconds:g} s; use a "
                    "shorter or smaller one"
                )
            yield frame


@dataclass(frozen=True)
class NewClip:
    """A clip that no shard holds."""

    encoded: EncodedClip
    chosen: list[int]
    """The frames that the model sees."""

    @property
    def notes(self) -> list[str]:
        """What a reader of the translation should know of the clip."""
        flags = self.encoded.record["flags"]
        notes = [_FLAGS.get(flag, flag) for flag in flags if not self._covered(flag)]
        count = len(self.encoded.jpegs)
        if len(self.chosen) < count:
            notes.append(
                f"too long: of {count} frames the model saw {len(self.chosen)}, evenly spread "
                "(data.max_frames)"
            )
        return notes

    def clip(self) -> Clip:
        """Return the clip as it is read from a shard: what the model sees."""
        frames = self._frames(self.chosen)
        pose, mask = self.encoded.pose[self.chosen], self.encoded.mask[self.chosen]
        return Clip(dict(self.encoded.record), frames, pose, mask)

    def vectors(self, vectorisers: Sequence[FrameVectors]) -> NDArray[np.float32]:
        """Return ``[chosen, dim]``, what models make of its frames in the place of pictures.

        Of all of its frames, as for a feature set: some models look at several at once.
        """
        return vectors_of(self._frames(range(len(self.encoded.jpegs))), vectorisers)[self.chosen]

    def _frames(self, places: Sequence[int]) -> NDArray[np.uint8]:
        return np.stack([simplejpeg.decode_jpeg(self.encoded.jpegs[i]) for i in places])

    def _covered(self, flag: str) -> bool:
        """Where there is no person, that there are no hands goes without saying."""
        told = ("no_person", "no_crop", "no_box")
        return flag not in told and "no_person" in self.encoded.record["flags"]


class ClipFormat(Protocol):
    """How clips are packed: as a model's usage says it, or a run's section ``data``."""

    @property
    def fps(self) -> float | None:
        """Frames a second; None: the rate of each video."""

    @property
    def frame_size(self) -> int:
        """Side of the square, in pixels."""

    @property
    def crop(self) -> Crop:
        """What of the picture is in it."""

    @property
    def max_frames(self) -> int:
        """Longer clips are sampled down to as many."""


@dataclass(frozen=True)
class ClipReader:
    """Reads new clips as the packer would read them; picklable until its first clip."""

    data: ClipFormat
    extractor: PoseExtractor | None
    """None: each clip comes with a file of joints."""
    folder_fps: float | None = None
    """Rate of folders of frames, which have none of their own; None: ``data.fps``."""
    limits: Limits | None = None
    """None: the clips are the user's own, and may cost what they cost."""

    def read(self, video: Path, joints: Path | None = None, box: Box | None = None) -> NewClip:
        """Decode a clip; raise UserError naming what is wrong with it.

        It is cropped as the training clips were. ``box`` is for a model that was trained on boxes
        of its corpus: without one, the clip is cut around the signer's joints, and flagged
        ``no_box``.
        """
        source = self.extractor or JointsFile
        instead = self.data.crop == "box" and box is None
        settings = PackConfig(
            frame_size=self.data.frame_size,
            fps=self.data.fps,
            crop="signer" if instead else self.data.crop,
        )
        packing = Packing(
            corpus="translate",
            root="",
            split="",
            joint_layout=JOINT_LAYOUT,
            extractor=source.name,
            extractor_version=source.version,
            settings=settings,
            rows_sha256="",
        )
        rate = self.folder_fps or self.data.fps
        row = ClipRow(
            row=0,
            id=video.stem or "clip",
            video=video,
            source=str(video),
            text="",
            start=None,
            end=None,
            signer=None,
            language=None,
            split="",
            joints=joints,
            folder=FolderFrames(rate, None),
            flags=("no_box",) if instead else (),
            box=box,
        )
        encoded = encode_clip(row, packing, self._limited(video))
        count = len(encoded.jpegs)
        return NewClip(encoded, spread_frames(count, min(count, self.data.max_frames)))

    def _limited(self, video: Path) -> PoseExtractor | None:
        """Refuse a file whose header exceeds a limit, and watch over what it does not say."""
        if self.limits is None or self.extractor is None:
            return self.extractor
        with open_video(video, self.folder_fps) as source:
            self.limits.refuse_long(source.duration or 0.0)
            if isinstance(source, VideoFile):
                self.limits.refuse_large(*source.announced_size)
        return _LimitedExtractor(self.extractor, self.limits)


class Source(NamedTuple):
    """Where a clip is, its file of joints where no extractor looks for them, and its box."""

    video: Path
    joints: Path | None
    box: Box | None


def read_source(reader: ClipReader, source: Source, report: Report) -> NewClip | str:
    """Return a clip, or what is wrong with it: the task of a worker process."""
    report(str(source.video), 0)
    try:
        return reader.read(source.video, source.joints, source.box)
    except MachineError:
        raise
    except UserError as e:
        return str(e)
=======
_TOGETHER = 8  # batches of clips among which like lengths are computed together
_PATIENCE = 5.0  # seconds for a clip that is being read when nobody wants it any more
>>>>>>> f7b335e (Joints alone are new clips; clips are read beside the model, as fast as an evaluation)


def translate_videos(model: Path, places: Sequence[Path], choices: Choices) -> int:
    """Write a JSON line for each video at ``places``, in their order; return 0, or 1 after errors.

    ``model`` is a run folder, the folder of a model, or a name of the model hub.

    A line holds ``video``, ``translation``, ``num_frames``, ``flags``, ``notes``, ``model`` (a
    checksum of it), ``decoding`` and, with ``nbest`` above 1, ``candidates`` with their scores.
    Frames go through the packer's decoding and JPEG, so the model sees what it was trained on. A
    video that cannot be read is named on standard error and the others are translated. Raises
    UserError when there is no model or no pose extractor, for a word that is wrong and for more
    candidates than beams.
    """
    sources = sources_of(find_videos(places), choices)
    translator = load_translator(model, device.choose(), choices.decoding)
    beams = translator.usage.decoding.num_beams
    if choices.nbest > beams:  # before minutes of reading videos
        raise UserError(
            f"--nbest {choices.nbest}: evaluation.num_beams is {beams}; add "
            f"--decoding evaluation.num_beams={choices.nbest}"
        )
    if choices.box is not None and translator.usage.crop != "box":
        raise UserError(
            f"--box: data.crop of {model} is {translator.usage.crop}, so the model was not "
            "trained on boxes; leave it out"
        )
    look_at_streams(translator.model.built_from.streams, sources, _note)
    with _writing_alone(choices.out):
        return _translate(translator, sources, choices)


def sentences(
    model: SignFuse,
    videos: Sequence[Path],
    choices: Choices,
    say: Callable[[str], object],
) -> list[str]:
    """Return the translation of each video: :meth:`.SignFuse.translate`.

    ``choices.decoding`` differs from the decoding of training; of what a reader should know of the
    clips each is said. Raises UserError for a model that does not say how clips are brought to it,
    and naming the first video that cannot be read.
    """
    usage = model.usage
    if usage is None:
        raise UserError(
            "the model does not say how clips are brought to it (usage.json): load the folder "
            "model/ of a run that this version has trained"
        )
    decoding = override_section("evaluation", usage.decoding, choices.decoding, "translate")
    translator = Translator(model, replace(usage, decoding=decoding))
    sources = sources_of(videos, choices)
    look_at_streams(model.built_from.streams, sources, say)
    reader = reader_for(usage, choices.pose_model, say=say, sources=sources, choices=choices)
    texts: list[str] = []
    with closing(translated(translator, in_order(reader, sources, choices.workers))) as found:
        for source, clip, translation in found:
            if not isinstance(clip, NewClip) or translation is None:
                raise UserError(f"{source.place}: {_why(clip)}")
            for note in clip.notes:
                say(f"{source.place}: {note}")
            texts.append(translation.text)
    return texts


@contextmanager
def _writing_alone(out: Path | None) -> Iterator[None]:
    """Hold the file that the lines are added to, where there is one."""
    if out is None:
        yield
        return
    with ExitStack() as until_end:
        with at_path(out, lock := out.with_name(f".{out.name}.lock")):
            until_end.enter_context(held(lock, f"the file {out}"))
        yield


def _translate(translator: Translator, sources: Sequence[Source], choices: Choices) -> int:
    by = _made_by(translator)
    done = _already(choices.out, by, choices.nbest)
    waiting = [source for source in sources if str(source.place) not in done]
    if len(waiting) < len(sources):
        print(
            f"{choices.out}: holds {len(sources) - len(waiting)} of {len(sources)}", file=sys.stderr
        )
    reader = reader_for(
        translator.usage, choices.pose_model, say=_note, sources=waiting, choices=choices
    )
    with Progress("translating", len(waiting), "clip") as progress:
        clips = in_order(reader, waiting, choices.workers)
        failed = len(waiting) - _write_all(translator, clips, choices, by, progress)
    return 1 if failed else 0


<<<<<<< HEAD
def reader_for(
    usage: Usage,
    pose_model: Path | None,
    *,
    say: Callable[[str], object],
    with_joints: bool = False,
    folder_fps: float | None = None,
    limits: Limits | None = None,
) -> ClipReader:
    """Return what reads new clips for a model, and ``say`` where their joints come from elsewhere.

    ``with_joints``: each clip comes with a file of them. Raises UserError when there is no pose
    extractor, and for a model of published vectors.
    """
    refuse_published(usage)
    extractor = None if with_joints else extractor_for(usage, pose_model)
    differs = difference(usage, extractor)
    if differs is not None:
        say(differs)
    return ClipReader(usage, extractor, folder_fps, limits)
=======
def _note(note: str) -> None:
    print(f"note: {note}", file=sys.stderr)
>>>>>>> f7b335e (Joints alone are new clips; clips are read beside the model, as fast as an evaluation)


def translated(
    translator: Translator,
    clips: Generator[tuple[Source, Outcome], None, None],
    nbest: int = 1,
) -> Generator[tuple[Source, Outcome, Translation | None], None, None]:
    """Translate clips in batches of ``evaluation.batch_size``, and yield them in their order.

    As an evaluation does, clips of like lengths are computed together, so that little is padding;
    here among :data:`_TOGETHER` batches. Clips are read, and their pictures put into a batch, in a
    thread beside the model. What could not be read has no translation.
    """
<<<<<<< HEAD
    size, vectorisers = translator.usage.decoding.batch_size, translator.vectorisers
    while read := list(islice(clips, size * _TOGETHER)):
        longest_first = sorted(range(len(read)), key=lambda i: -len(read[i][1].chosen))
        found: dict[int, Translation] = {}
        for start in range(0, len(read), size):
            places = longest_first[start : start + size]
            batch = join([read[place][1] for place in places], vectorisers)
            found.update(zip(places, translator.translate(batch, nbest), strict=True))
        for place, (video, clip) in enumerate(read):
            yield video, clip, found[place]


def join(clips: Sequence[NewClip], vectorisers: Sequence[FrameVectors] = ()) -> SignBatch:
    """Return clips as one batch; with ``vectorisers``, with vectors in the place of pictures."""
    read = [clip.clip() for clip in clips]
    frames = torch.cat([torch.from_numpy(clip.frames) for clip in read])
    batch = collate(read, frames, np.array([len(clip.frames) for clip in read]), encode=None)
    if not vectorisers:
        return batch
    vectors = torch.cat([torch.from_numpy(clip.vectors(vectorisers)) for clip in clips])
    return replace(batch, frames=batch.frames[:0], frame_vectors=vectors)
=======
    found: dict[int, Translation] = {}
    with closing(_ahead(_batched(clips, translator.usage.decoding.batch_size))) as ready:
        for made in ready:
            if isinstance(made, _Batch):
                translations = translator.translate(made.batch, nbest)
                found.update(zip(made.places, translations, strict=True))
                continue
            for place, (source, clip) in enumerate(made):
                yield source, clip, found.get(place)
            found.clear()


class _Batch(NamedTuple):
    """Clips that are computed together."""

    places: list[int]
    """Of each clip among those that were read with it."""
    batch: SignBatch
>>>>>>> f7b335e (Joints alone are new clips; clips are read beside the model, as fast as an evaluation)


def _batched(
    clips: Generator[tuple[Source, Outcome], None, None], size: int
) -> Generator[_Batch | list[tuple[Source, Outcome]], None, None]:
    """Yield the batches of so many clips, the longest first, then those clips in their order."""
    with closing(clips):
        while read := list(islice(clips, size * _TOGETHER)):
            whole = {
                place: clip for place, (_, clip) in enumerate(read) if isinstance(clip, NewClip)
            }
            longest_first = sorted(whole, key=lambda place: -len(whole[place].chosen))
            for start in range(0, len(whole), size):
                places = longest_first[start : start + size]
                yield _Batch(places, join([whole[place] for place in places]))
            yield read


def _ahead(items: Generator[T, None, None]) -> Generator[T, None, None]:
    """Yield items that are made in a thread, one waiting while the one before is worked on."""
    made: Queue[tuple[T | None, BaseException | None]] = Queue(1)
    ended = threading.Event()

    def put(item: T | None, error: BaseException | None) -> bool:
        while not ended.is_set():
            try:
                made.put((item, error), timeout=0.1)
                return True
            except Full:
                continue
        return False

    def make() -> None:
        fault: BaseException | None = None
        try:
            with closing(items):
                for item in items:
                    if not put(item, None):
                        return
        except BaseException as error:  # raised where the items are wanted
            fault = error
        put(None, fault)

    thread = threading.Thread(target=make, name="read", daemon=True)
    thread.start()
    try:
        while True:
            item, error = made.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        ended.set()
        thread.join(_PATIENCE)


def _made_by(translator: Translator) -> dict[str, Any]:
    """Return what every line says of the model and of how it was asked."""
    asked = translator.usage.decoding
    assert translator.folder is not None
    return {
        "model": checksum(translator.folder / STATE)[:16],  # which holds those of its files
        "decoding": {
            "num_beams": asked.num_beams,
            "length_penalty": asked.length_penalty,
            "max_new_tokens": asked.max_new_tokens,
        },
    }


def _already(out: Path | None, by: dict[str, Any], nbest: int) -> set[str]:
    """Return the videos whose lines an earlier call has written; cut off a line that is torn."""
    if out is None or not out.exists():
        return set()
    *kept, _torn = out.read_text(encoding="utf-8").split("\n")
    wanted, done = {**by, "--nbest": nbest}, set()
    for line in kept:
        try:
            row = json.loads(line)
            held = {key: row[key] for key in by} | {"--nbest": len(row.get("candidates", [None]))}
            done.add(row["video"])
        except (ValueError, KeyError, TypeError) as e:
            raise UserError(f"{out}: holds other lines than this command's; choose another") from e
        if held != wanted:
            raise UserError(f"{out}: holds lines of {held}, not of {wanted}: choose another file")
    write_text(out, "".join(f"{line}\n" for line in kept))
    return done


def in_order(
    reader: ClipReader, sources: Sequence[Source], workers: int
) -> Generator[tuple[Source, Outcome], None, None]:
    """Yield each source with its clip, or with what is wrong with it."""
    pool: WorkerPool[Source, NewClip | str] = WorkerPool(
        partial(read_source, reader), workers, lambda name, finished: None
    )
    early: dict[int, Outcome] = {}
    following = 0
    with closing(pool.run(sources)) as results:
        for number, result in results:
            early[number] = result
            while following in early:
                yield sources[following], early.pop(following)
                following += 1


def _why(failure: Outcome) -> str:
    return f"a process died ({failure.how})" if isinstance(failure, Death) else str(failure)


def _write_all(
    translator: Translator,
    clips: Generator[tuple[Source, Outcome], None, None],
    choices: Choices,
    by: dict[str, Any],
    progress: Progress,
) -> int:
    """Translate in batches; return how many clips were translated."""
    written = 0
    with ExitStack() as opened:
        file = sys.stdout
        if choices.out:
            opened.enter_context(at_path(choices.out))
            file = opened.enter_context(choices.out.open("a", encoding="utf-8"))
        found = opened.enter_context(closing(translated(translator, clips, choices.nbest)))
        for source, clip, translation in found:
            if isinstance(clip, NewClip) and translation is not None:
                line = _line(source.place, translation, clip, by)
                progress.print(json.dumps(line, ensure_ascii=False), file)
                written += 1
            else:
                progress.print(f"error: {source.place}: {_why(clip)}", sys.stderr)
            progress.advance()
    return written


def _line(
    video: Path, translation: Translation, clip: NewClip, by: dict[str, Any]
) -> dict[str, Any]:
    line = {
        "video": str(video),
        "translation": translation.text,
        "num_frames": clip.encoded.record["num_frames"],
        "flags": clip.encoded.record["flags"],
        "notes": clip.notes,
        **by,
    }
    if len(translation.candidates) > 1:
        line["candidates"] = [{"text": text, "score": s} for text, s in translation.candidates]
    return line
