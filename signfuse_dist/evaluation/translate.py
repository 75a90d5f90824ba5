"""Translating new clips: the path of the packer, the model, and one JSON line a video."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from signfuse_dist.batch import SignBatch
from signfuse_dist.data.loader import collate
from signfuse_dist.data.pool import Death, WorkerPool
from signfuse_dist.data.pose_mediapipe import choose_extractor
from signfuse_dist.errors import UserError
from signfuse_dist.evaluation.new_clip import (
    ClipReader,
    NewClip,
    Source,
    find_videos,
    read_source,
)
from signfuse_dist.evaluation.translator import Translation, Translator, load_translator
from signfuse_dist.files import STATE, checksum, write_text


@dataclass(frozen=True)
class Choices:
    """How `signfuse translate` is asked to work."""

    joints: Sequence[Path] | None = None
    """A file of joints for each video, in place of MediaPipe."""
    pose_model: Path | None = None
    folder_fps: float | None = None
    """Rate of folders of frames; None: the corpus's."""
    nbest: int = 1
    decoding: Sequence[str] = ()
    """``evaluation.key=value``, what differs from the run's decoding."""
    workers: int = 0
    """Processes that decode and find joints; 0: this one."""
    out: Path | None = None
    """Where lines go; None: standard output. What it holds already is not done again."""


def translate_videos(run_folder: Path, places: Sequence[Path], choices: Choices) -> int:
    """Write a JSON line for each video at ``places``, in their order; return 0, or 1 after errors.

    A line holds ``video``, ``translation``, ``num_frames``, ``flags``, ``notes``, ``model`` (a
    checksum of it), ``decoding`` and, with ``nbest`` above 1, ``candidates`` with their scores.
    Frames go through the packer's decoding and JPEG, so the model sees what it was trained on. A
    video that cannot be read is named on standard error and the others are translated. Raises
    UserError when there is no model or no pose extractor, for a word that is wrong and for more
    candidates than beams.
    """
    sources = _sources(find_videos(places), choices.joints)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    translator = load_translator(run_folder, device, choices.decoding)
    beams = translator.run.evaluation.num_beams
    if choices.nbest > beams:  # before minutes of reading videos
        raise UserError(
            f"--nbest {choices.nbest}: evaluation.num_beams is {beams}; add "
            f"--decoding evaluation.num_beams={choices.nbest}"
        )
    by = _made_by(run_folder, translator)
    done = _already(choices.out, by, choices.nbest)
    waiting = [source for source in sources if str(source.video) not in done]
    if len(waiting) < len(sources):
        print(
            f"{choices.out}: holds {len(sources) - len(waiting)} of {len(sources)}", file=sys.stderr
        )
    extractor = None if choices.joints is not None else choose_extractor(choices.pose_model)
    reader = ClipReader(translator.run.data, extractor, choices.folder_fps)
    with tqdm(total=len(waiting), unit="clip", desc="translating") as bar:
        say = partial(bar.write, file=sys.stderr)
        clips = _read_all(reader, waiting, choices.workers, say, bar)
        failed = len(waiting) - _write_all(translator, clips, choices, by, bar)
    return 1 if failed else 0


def join(clips: Sequence[NewClip]) -> SignBatch:
    """Return clips as one batch."""
    read = [clip.clip() for clip in clips]
    frames = torch.cat([torch.from_numpy(clip.frames) for clip in read])
    return collate(read, frames, np.array([len(clip.frames) for clip in read]), encode=None)


def _sources(videos: Sequence[Path], joints: Sequence[Path] | None) -> list[Source]:
    if joints is None:
        return [Source(video, None) for video in videos]
    if len(joints) != len(videos):
        raise UserError(f"--joints names {len(joints)} files for {len(videos)} videos")
    return [Source(*pair) for pair in zip(videos, joints, strict=True)]


def _made_by(run_folder: Path, translator: Translator) -> dict[str, Any]:
    """Return what every line says of the model and of how it was asked."""
    asked = translator.run.evaluation
    return {
        "model": checksum(run_folder / "model" / STATE)[:16],  # which holds those of its files
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
            found = {key: row[key] for key in by} | {"--nbest": len(row.get("candidates", [None]))}
            done.add(row["video"])
        except (ValueError, KeyError, TypeError) as e:
            raise UserError(f"{out}: holds other lines than this command's; choose another") from e
        if found != wanted:
            raise UserError(f"{out}: holds lines of {found}, not of {wanted}: choose another file")
    write_text(out, "".join(f"{line}\n" for line in kept))
    return done


def _read_all(
    reader: ClipReader, sources: Sequence[Source], workers: int, say: Callable[[str], object],
    bar: tqdm[Any],
) -> Iterator[tuple[Path, NewClip]]:  # fmt: skip
    """Yield the clips that can be read in the order of ``sources``, and name the others."""
    pool: WorkerPool[Source, NewClip | str] = WorkerPool(
        partial(read_source, reader), workers, lambda name, finished: None
    )
    early: dict[int, NewClip | str | Death] = {}
    following = 0
    for number, outcome in pool.run(sources):
        early[number] = outcome
        while following in early:
            found, video = early.pop(following), sources[following].video
            following += 1
            if isinstance(found, NewClip):
                yield video, found
                continue
            why = f"a process died ({found.how})" if isinstance(found, Death) else found
            say(f"error: {video}: {why}")
            bar.update()


def _write_all(
    translator: Translator, clips: Iterator[tuple[Path, NewClip]], choices: Choices,
    by: dict[str, Any], bar: tqdm[Any],
) -> int:  # fmt: skip
    """Translate in batches; return how many clips were translated."""
    written = 0
    file = choices.out.open("a", encoding="utf-8") if choices.out else None
    try:
        while batch := list(islice(clips, translator.run.evaluation.batch_size)):
            found = translator.translate(join([clip for _, clip in batch]), choices.nbest)
            for (video, clip), translation in zip(batch, found, strict=True):
                line = json.dumps(_line(video, translation, clip, by), ensure_ascii=False)
                print(line, file=file or sys.stdout, flush=True)
            bar.update(len(batch))
            written += len(batch)
    finally:
        if file is not None:
            file.close()
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
