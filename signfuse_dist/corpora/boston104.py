"""The hand and nose tracks of RWTH-BOSTON-104 (shards/boston104.md): joints alone, no video.

The files are those of the public repository AIND-Recognizer: ``hands_condensed.csv`` (both hands
and the nose in every frame of 201 sentences), ``speaker.csv``, and the words of each sentence with
their first and last frame in ``train_words.csv`` and ``test_words.csv``. The text of a clip is its
words, in the order in which they begin: glosses, and no translation.

``train`` and ``test`` are as published. For choosing settings without a look at the test sentences
``train`` is divided in two: ``dev`` and ``fit``, by the clip's own name alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

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
ROWS = {"train": 161, "test": 40, "fit": None, "dev": None}
"""Clips of each split as published; None: not published, a part of ``train``."""
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
        if fields["video"] not in tracked:
            raise CorpusError(f"no poses: {TRACKS} has no frame of {fields['video']}")
        return ClipRow(
            row=number,
            id=fields["video"],
            video=None,
            source=TRACKS,
            text=texts.read(fields["text"]),
            start=None,
            end=None,
            signer=signers.get(fields["video"]),
            language="en",
            split=split,
            joints=anchor / TRACKS,
            folder=FolderFrames(FPS, None),
            size=SIZE,
        )

    sentences, broken = _sentences(words)
    kept = {video: line for video, line in sentences.items() if _belongs(video, split)}
    rows, rejected = accept(list(kept.values()), "video", to_row)
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


def _belongs(video: str, split: str) -> bool:
    if split in ("train", "test"):
        return True
    held_out = int(hashlib.sha256(video.encode()).hexdigest(), 16) % _ONE_OF == 0
    return held_out == (split == "dev")


def _signers(path: Path) -> dict[str, str]:
    lines = read_lines(path, ("video", "speaker"), form=_FORM)
    return {fields["video"]: fields["speaker"] for _, fields in lines.fields}


def _sentences(words: Lines) -> tuple[dict[str, tuple[int, Fields]], list[Rejected]]:
    """Return the sentence of each video, and what is wrong with lines: their video is left out."""
    begins: dict[str, list[tuple[int, int, str]]] = {}
    broken: dict[str, Rejected] = {}
    for number, fields in words.lines:
        if isinstance(fields, str):
            # Nobody knows whose word it is, so it is named by its line.
            broken[f"line {number}"] = Rejected(number, "", f"malformed row: {fields}")
            continue
        video = fields["video"]
        try:
            start = _frame(fields, "startframe")
            if _frame(fields, "endframe") < start:
                raise CorpusError(f"bad time: {fields['word']} ends before it begins")
        except CorpusError as error:
            broken.setdefault(video, Rejected(number, video, str(error)))
            continue
        begins.setdefault(video, []).append((start, number, fields["word"]))
    sentences: dict[str, tuple[int, Fields]] = {}
    for video, found in begins.items():
        if video not in broken:
            text = " ".join(word for _, _, word in sorted(found))
            sentences[video] = (min(number for _, number, _ in found), _fields(video, text))
    return sentences, list(broken.values())


def _fields(video: str, text: str) -> Mapping[str, str]:
    return {"video": video, "text": text}


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
