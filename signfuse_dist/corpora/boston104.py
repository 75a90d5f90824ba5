"""The hand and nose tracks of RWTH-BOSTON-104 (shards/boston104.md): joints alone, no video.

The files are those of the public repository AIND-Recognizer: ``hands_condensed.csv`` (both hands
and the nose in every frame of 201 sentences), ``speaker.csv``, and the words of each sentence with
their first and last frame in ``train_words.csv`` and ``test_words.csv``. The text of a clip is its
words, in the order in which they begin: glosses, and no translation.

``train`` and ``test`` are as published. For choosing settings without a look at the test sentences
``train`` is divided in two: ``dev`` and ``fit``, by the clip's own name alone. ``spans`` is ``fit``
with every run of neighbouring words of its sentences as a clip of its own: 147 whole sentences say
too little about which of their frames is which word, and the tables know it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from signfuse_dist.corpora.poses import BOSTON104
from signfuse_dist.corpora.rows import (
    ClipRow,
    Corpus,
    CorpusError,
    Fields,
    FolderFrames,
    Orphan,
    Rejected,
    TextReader,
    accept,
    count_note,
    find_anchor,
    refuse_split,
)
from signfuse_dist.corpora.tables import Form, Lines, read_lines

NAME = "boston104"
ROWS = {"train": 161, "test": 40, "fit": None, "dev": None, "spans": None}
"""Clips of each split as published; None: not published, made of ``train``."""
FPS = 30.0
SIZE = (312, 242)
"""Width and height in pixels of the pictures that the tracks were made in."""
TRACKS = "hands_condensed.csv"

_ANCHORS = ("data", "", "AIND-Recognizer/data", "AIND-Recognizer-master/data")
_FORM = Form((",",))
_ONE_OF = 8  # clips of train, one is of dev
_MOST_FRAMES = 10**9


def read_boston104(root: Path, split: str) -> Corpus:
    """Read a split; ``root`` is a checkout of the repository, or its folder ``data``.

    Raises :class:`CorpusError` when its tables are not there or cannot be read.
    """
    refuse_split(NAME, split, tuple(ROWS))
    anchor = find_anchor(NAME, root, _ANCHORS, TRACKS)
    published = split if split in ("train", "test") else "train"
    words = read_lines(
        anchor / f"{published}_words.csv", ("video", "word", "startframe", "endframe"), form=_FORM
    )
    signers = _signers(anchor / "speaker.csv")
    tracked = {
        fields["video"]
        for _, fields in read_lines(anchor / TRACKS, ("video", "frame"), form=_FORM).fields
    }
    texts = TextReader(published=True)

    def to_row(number: int, fields: Fields) -> ClipRow:
        video = video_of(fields["video"])
        if video not in tracked:
            raise CorpusError(f"no poses: {TRACKS} has no frame of {video}")
        return ClipRow(
            row=number,
            id=fields["video"],
            video=None,
            source=TRACKS,
            text=texts.read(fields["text"]),
            start=float(fields["start"]) if "start" in fields else None,
            end=float(fields["end"]) if "end" in fields else None,
            signer=signers.get(video),
            language="en",
            split=split,
            joints=anchor / TRACKS,
            folder=FolderFrames(FPS, None),
            size=SIZE,
        )

    sentences, broken = _sentences(words)
    kept = [
        (min(word.number for word in found), fields)
        for video, found in sentences.items()
        if _belongs(video, split)
        for fields in (_spans(video, found) if split == "spans" else [_whole(video, found)])
    ]
    rows, rejected = accept(kept, "video", to_row)
    return Corpus(
        name=NAME,
        root=anchor.resolve().name,
        split=split,
        rows=tuple(rows),
        rejected=(*broken, *rejected),
        has_joints=True,
        orphans=_orphans(anchor, tracked),
        notes=(
            "texts are glosses in the order in which they are signed, and no translation",
            *texts.notes,
            *count_note(NAME, split, len(kept), ROWS[split]),
        ),
        pose_format=BOSTON104,
    )


def video_of(clip: str) -> str:
    """Return the name of the film that a clip is of, or is a part of."""
    return clip.partition(":")[0]


def _belongs(video: str, split: str) -> bool:
    if split in ("train", "test"):
        return True
    held_out = int(hashlib.sha256(video.encode()).hexdigest(), 16) % _ONE_OF == 0
    return held_out == (split == "dev")


def _signers(path: Path) -> dict[str, str]:
    lines = read_lines(path, ("video", "speaker"), form=_FORM)
    return {fields["video"]: fields["speaker"] for _, fields in lines.fields}


class _Word(NamedTuple):
    start: int
    number: int
    word: str
    end: int


def _sentences(words: Lines) -> tuple[dict[str, list[_Word]], list[Rejected]]:
    """Return the words of each video, and what is wrong with lines: their video is left out."""
    sentences: dict[str, list[_Word]] = {}
    broken: dict[str, Rejected] = {}
    for number, fields in words.lines:
        if isinstance(fields, str):
            # Nobody knows whose word it is, so it is named by its line.
            broken[f"line {number}"] = Rejected(number, "", f"malformed row: {fields}")
            continue
        video = fields["video"]
        try:
            word = _Word(
                _frame(fields, "startframe"), number, fields["word"], _frame(fields, "endframe")
            )
            if word.end < word.start:
                raise CorpusError(f"bad time: {word.word} ends before it begins")
        except CorpusError as error:
            broken.setdefault(video, Rejected(number, video, str(error)))
            continue
        sentences.setdefault(video, []).append(word)
    whole = {video: sorted(found) for video, found in sentences.items() if video not in broken}
    return whole, list(broken.values())


def _whole(video: str, words: list[_Word]) -> Fields:
    return {"video": video, "text": " ".join(word.word for word in words)}


def _spans(video: str, words: list[_Word]) -> Iterator[Fields]:
    """Yield the sentence, then each run of fewer words, from their first frame to their last."""
    yield _whole(video, words)
    for length in range(1, len(words)):
        for first in range(len(words) - length + 1):
            run = words[first : first + length]
            yield {
                "video": f"{video}:{first + 1}-{first + length}",
                "text": " ".join(word.word for word in run),
                "start": str(run[0].start / FPS),
                "end": str((max(word.end for word in run) + 1) / FPS),
            }


def _frame(fields: Fields, column: str) -> int:
    written = fields[column]
    if not written.isascii() or not written.isdigit() or int(written) >= _MOST_FRAMES:
        raise CorpusError(f"bad time: {column} {written[:40]!r} is no number of a frame")
    return int(written)


def _orphans(anchor: Path, tracked: set[str]) -> tuple[Orphan, ...]:
    """Return the tracks that no table of words names."""
    named: set[str] = set()
    for published in ("train", "test"):
        path = anchor / f"{published}_words.csv"
        if path.is_file():
            named |= {f["video"] for _, f in read_lines(path, ("video",), form=_FORM).fields}
    reason = f"no row: {TRACKS} has its tracks, and no table of words names it"
    return tuple(sorted(Orphan(reason, video) for video in tracked - named))
