"""Little corpora in the layouts of the published ones, with their traps, drawn by the tests."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from helpers.little_clips import picture, write_video
from signfuse_dist.data.joints import Joints
from signfuse_dist.skeleton import NUM_JOINTS


class Still:
    """Stands for the pose model: every joint of every frame is in the middle."""

    name, version, seconds = "mediapipe-holistic", "0", 0.0

    def extract(self, frames):
        count = sum(1 for _ in frames)
        pose = np.full((count, NUM_JOINTS, 2), 0.5, np.float32)
        return Joints(pose, np.ones((count, NUM_JOINTS), bool))


def write_lines(path: Path, lines: Sequence[str], end: str = "\n", mark: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((mark + end.join(lines) + end).encode("utf-8"))
    return path


def write_frames(folder: Path, count: int, pattern: str) -> Path:
    """Write frames that get brighter, named by ``pattern``, such as ``images{:04d}.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(picture(number, 21, 26)).save(folder / pattern.format(number + 1))
    return folder


# PHOENIX-2014T -----------------------------------------------------------------------------------

PHOENIX = "PHOENIX-2014-T-release-v3/PHOENIX-2014-T"
PHOENIX_HEADER = "name|video|start|end|speaker|orth|translation"


def phoenix_row(name: str, text: str, speaker: str = "Signer08") -> str:
    return f"{name}|{name}/1/*.png|-1|-1|{speaker}|DRUCK TIEF KOMMEN|{text}"


def write_phoenix(
    root: Path, split: str, rows: Sequence[str], frames: Mapping[str, int], inside: str = PHOENIX
) -> Path:
    """Write a split's annotation and its frame folders; return the folder that holds both."""
    anchor = root / inside
    manual = anchor / "annotations/manual"
    write_lines(manual / f"PHOENIX-2014-T.{split}.corpus.csv", [PHOENIX_HEADER, *rows])
    write_lines(
        manual / "PHOENIX-2014-T.train-complex-annotation.corpus.csv",
        [PHOENIX_HEADER, phoenix_row("complex", "loc-a cl-b tief")],
    )
    for name, count in frames.items():
        folder = anchor / "features/fullFrame-210x260px" / split / name
        write_frames(folder, count, "images{:04d}.png")
    return anchor


# CSL-Daily ---------------------------------------------------------------------------------------

CSL_PLACE = "sentence/frames_512x512"


def csl_entry(name: str, characters: Sequence[str], **changes: object) -> dict[str, object]:
    return {
        "name": name,
        "label_gloss": ["他", "今天"],
        "label_char": list(characters),
        "label_word": ["他", "今天"],
        "label_postag": ["r", "t"],
        "length": 54,
        "signer": 0,
        **changes,
    }


def write_csl(
    root: Path,
    splits: Mapping[str, str],
    entries: Sequence[Mapping[str, object]],
    frames: Mapping[str, int],
    place: str = CSL_PLACE,
    with_pickle: bool = True,
    with_map: bool = True,
) -> Path:
    """Write labels and frames; ``splits`` maps names to splits; return the folder of the labels."""
    labels = root / "sentence_label"
    lines = ["name|split", *(f"{name}|{split}" for name, split in splits.items())]
    write_lines(labels / "split_1.txt", lines)
    if with_pickle:
        content = {"info": list(entries), "gloss_map": ["他", "今天"], "char_map": {"他": 0}}
        (labels / "csl2020ct_v2.pkl").write_bytes(pickle.dumps(content))
    if with_map:
        lines = ["index|name|length|gloss|char|word|postag"]
        for index, entry in enumerate(entries):
            gloss, char, word, tags = (
                " ".join(map(str, entry[f"label_{kind}"]))
                for kind in ("gloss", "char", "word", "postag")
            )
            lines.append(f"{index}|{entry['name']}|{entry['length']}|{gloss}|{char}|{word}|{tags}")
        write_lines(labels / "video_map.txt", lines)
    for name, count in frames.items():
        write_frames(root / place / name, count, "{:06d}.jpg")
    return labels


# How2Sign ----------------------------------------------------------------------------------------

HOW2SIGN_COLUMNS = ("VIDEO_ID", "VIDEO_NAME", "SENTENCE_ID", "SENTENCE_NAME", "START_REALIGNED",
                    "END_REALIGNED", "SENTENCE")  # fmt: skip


def how2sign_row(
    video: str, number: object, start: object, end: object, text: str, signer: int = 1
) -> tuple[str, ...]:
    """Fields of a row; ``text`` is as the file has it, quotes included."""
    name = f"{video}-{signer}-rgb_front"
    sentence = f"{video}_{number}"
    return (video, name, sentence, f"{sentence}-{signer}-rgb_front", str(start), str(end), text)


def how2sign_table(root: Path, split: str) -> Path:
    folder = root / f"How2Sign/sentence_level/{split}/text/en/raw_text/re_aligned"
    return folder / f"how2sign_realigned_{split}.csv"


def write_how2sign(
    root: Path,
    split: str,
    rows: Sequence[Sequence[str]],
    videos: Mapping[str, int],
    clips: Mapping[str, int] | None = None,
    separator: str = "\t",
    columns: Sequence[str] = HOW2SIGN_COLUMNS,
    end: str = "\n",
    mark: str = "",
) -> Path:
    """Write a split's table, full videos and pre-cut clips (10 frames a second); return it."""
    lines = [separator.join(row) for row in (columns, *rows)]
    table = write_lines(how2sign_table(root, split), lines, end, mark)
    for level, files in (("video_level", videos), ("sentence_level", clips or {})):
        for name, count in files.items():
            folder = root / "How2Sign" / level / split / "rgb_front/raw_videos"
            write_video(folder / f"{name}.mp4", count)
    return table


# RWTH-BOSTON-104's tracks ------------------------------------------------------------------------

BOSTON_TRACKS = "video,frame,left-x,left-y,right-x,right-y,nose-x,nose-y"
BOSTON_WORDS = "video,speaker,word,startframe,endframe"
Words = Sequence[tuple[str, int, int]]


def write_boston104(root: Path, sentences: Mapping[str, Mapping[str, Words]], frames: int) -> Path:
    """Write tracks of ``frames`` frames and words of clips, ``{split: {clip: words}}``.

    Return the folder that holds the tables. Frame f of clip v has its left hand at (200 + f, 150),
    its right hand at (100, 150 + v) and the nose at (160, 60).
    """
    anchor = root / "data"
    tracks, speakers = [BOSTON_TRACKS], ["video,speaker"]
    for split, clips in sentences.items():
        lines = [BOSTON_WORDS]
        for clip, words in clips.items():
            speakers.append(f"{clip},woman-1")
            lines += [f"{clip},woman-1,{word},{start},{end}" for word, start, end in words]
            tracks += [
                f"{clip},{f},{200 + f},150,100,{150 + int(clip)},160,60" for f in range(frames)
            ]
        write_lines(anchor / f"{split}_words.csv", lines)
    write_lines(anchor / "hands_condensed.csv", tracks)
    write_lines(anchor / "speaker.csv", speakers)
    return anchor
