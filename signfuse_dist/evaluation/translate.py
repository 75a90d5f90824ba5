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
from signfuse_dist.experiment import override_section
from signfuse_dist.files import STATE, checksum, special_kind, write_bytes
from signfuse_dist.locks import held
from signfuse_dist.model.signfuse import SignFuse
from signfuse_dist.model.vision import FrameVectors
from signfuse_dist.progress import Progress
from signfuse_dist.system_errors import at_path

Outcome = NewClip | str | Death
"""A clip, or why it could not be read."""
T = TypeVar("T")

_TOGETHER = 8  # batches of clips among which like lengths are computed together
_BEGINNING = b'{"video": '  # of every line that is written
_PATIENCE = 5.0  # seconds for a clip that is being read when nobody wants it any more


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


def _note(note: str) -> None:
    print(f"note: {note}", file=sys.stderr)


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
    found: dict[int, Translation] = {}
    size, vectorisers = translator.usage.decoding.batch_size, translator.vectorisers
    with closing(_ahead(_batched(clips, size, vectorisers))) as ready:
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


def _batched(
    clips: Generator[tuple[Source, Outcome], None, None],
    size: int,
    vectorisers: Sequence[FrameVectors],
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
                yield _Batch(places, join([whole[place] for place in places], vectorisers))
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
    kind = "a folder" if out.is_dir() else special_kind(out)
    if kind:
        raise UserError(f"--out {out}: is {kind}; name the file that the lines are added to")
    with at_path(out):
        *kept, torn = out.read_bytes().split(b"\n")
    wanted, done = {**by, "--nbest": nbest}, set()
    other = f"{out}: holds other lines than this command's; choose another"
    if not (torn.startswith(_BEGINNING) or _BEGINNING.startswith(torn)):
        raise UserError(other)
    for line in kept:
        try:
            row = json.loads(line.decode("utf-8"))
            held = {key: row[key] for key in by} | {"--nbest": len(row.get("candidates", [None]))}
            done.add(row["video"])
        except (ValueError, KeyError, TypeError, RecursionError) as e:
            raise UserError(other) from e
        if held != wanted:
            raise UserError(f"{out}: holds lines of {held}, not of {wanted}: choose another file")
    write_bytes(out, b"".join(line + b"\n" for line in kept))
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
