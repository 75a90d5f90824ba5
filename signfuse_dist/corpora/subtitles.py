"""Any folder of videos with captions of the same stem: YouTube-ASL, YouTube-SL-25, broadcasts.

``ROOT`` holds ``<id>.mp4`` (or another video) and ``<id>.<language>.vtt`` or ``.srt``, as yt-dlp
leaves them, and optionally ``subtitles.yaml`` with the rules of :class:`CaptionRules` and a list of
ids. A clip is a caption, or captions that follow each other up to a length. Which split a clip
belongs to follows from its video's id alone: a video is never divided.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pydantic.dataclasses import dataclass as pydantic_dataclass

from signfuse_dist.corpora.captions import Caption, read_captions
from signfuse_dist.corpora.rows import (
    VIDEO_SUFFIXES,
    ClipRow,
    Corpus,
    CorpusError,
    Fields,
    Orphan,
    Rejected,
    TextReader,
    Tree,
    accept,
    entries_in,
    flag_scripts,
    refuse_split,
    split_by_name,
)
from signfuse_dist.files import parse_yaml
from signfuse_dist.records import STRICT_KEYS, read_record
from signfuse_dist.system_errors import unreadable

NAME = "subtitles"
SPLITS = ("train", "dev", "test")
RULES = "subtitles.yaml"
_SUFFIXES = (".vtt", ".srt")
_POSE_SUFFIX = ".pose"
# A cue that is nothing but a sound: [Music], (applause), notes.
_SOUND = re.compile(r"(?:\s*(?:\[[^\[\]]*\]|\([^()]*\)|[\u2669-\u266f#*]+|>>)\s*)+\Z")
_IN_BRACKETS = re.compile(r"\[[^\[\]]*\]|[\u2669-\u266f]")
_SPEAKER = re.compile(r"\A(?:>>+\s*|-\s+)")
_BLANKS = re.compile(r"\s+")


@pydantic_dataclass(frozen=True, config=STRICT_KEYS)
class CaptionRules:
    """What of the captions becomes a clip: the keys of ``subtitles.yaml``, each may be left out.

    The bounds of seconds and characters are those that YouTube-ASL (Uthus et al., 2023, arXiv
    2306.15162) is preprocessed with: 0.2 to 60 seconds, at most 300 characters, as public code says
    that follows the paper. The paper's own text was not read.
    """

    language: str | None = None
    """The captions ``<id>.<language>.vtt``; null: each video has one file, whatever it says."""
    min_seconds: float = 0.2
    max_seconds: float = 60.0
    min_characters: int = 1
    max_characters: int = 300
    merge_seconds: float = 0.0
    """Captions are joined while a clip stays at most as long; 0: a clip is a caption."""
    merge_pause: float = 1.0
    """Captions that are farther apart, in seconds, are not joined."""
    ids: str | None = None
    """A file beside the rules with one video's id a line; null: all videos of the folder."""
    dev_share: float = 0.01
    test_share: float = 0.01


def read_subtitles(root: Path, split: str, poses: str | None = None) -> Corpus:
    """Read a split of the folder ``root``; with ``poses``, ``<id>.pose`` files beside the videos.

    Raises :class:`CorpusError` where there is no such folder, no caption, or rules that contradict
    each other.
    """
    refuse_split(NAME, split, SPLITS)
    rules = read_rules(root)
    entries = entries_in(root)
    files = [name for name, is_folder in entries.items() if not is_folder]
    captions = _captions(files, rules)
    if not captions:
        raise CorpusError(
            f"{NAME} {root}: no captions; <id>.<language>.vtt or .srt is looked for"
            + (f", of the language {rules.language!r}" if rules.language else "")
        )
    videos = _videos(files)
    wanted = _ids(root, rules) or sorted(captions.keys() | videos.keys())
    tree, texts = Tree(root), TextReader()
    lines: list[tuple[int, Fields | str]] = []
    rejected: list[Rejected] = []
    orphans: list[Orphan] = []
    windows: dict[str, tuple[str, Caption]] = {}
    for video in wanted:
        if split_of(video, rules) != split:
            continue
        if video not in captions:
            orphans.append(Orphan("no captions: the video has none of this language", video))
            continue
        if video not in videos:
            orphans.append(Orphan("no video: it is not there any more, or was not loaded", video))
            continue
        kept, dropped = _clips(root / captions[video], rules)
        rejected += [replace(one, id=f"{video}:{one.row}") for one in dropped]
        for caption in kept:
            clip = f"{video}:{round(1000 * caption.start)}"
            windows[clip] = video, caption
            lines.append((caption.line, {"id": clip, "text": caption.text}))

    def to_row(number: int, fields: Fields) -> ClipRow:
        video, caption = windows[fields["id"]]
        return ClipRow(
            row=number,
            id=fields["id"],
            video=tree.find(videos[video], "video"),
            source=videos[video],
            text=texts.read(fields["text"]),
            start=caption.start,
            end=caption.end,
            signer=None,
            language=rules.language or _language(captions[video], video),
            split=split,
            joints=None if poses is None else tree.find(f"{video}{_POSE_SUFFIX}", "poses"),
        )

    rows, wrong = accept(lines, "id", to_row)
    return Corpus(
        name=NAME,
        root=root.resolve().name,
        split=split,
        rows=flag_scripts(rows, (row.text for row in rows)),
        rejected=(*rejected, *wrong),
        has_joints=poses is not None,
        orphans=tuple(sorted(orphans)),
        notes=(*texts.notes, _note(wanted, split, rules)),
        pose_format=poses,
    )


def read_rules(root: Path) -> CaptionRules:
    """Return the rules beside the captions, else the defaults; raise :class:`CorpusError`."""
    if not root.is_dir():
        raise CorpusError(f"{NAME} {root}: no such folder")
    path = root / RULES
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return CaptionRules()
    except (OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError):
            raise unreadable(error, str(path), CorpusError) from error
        raise CorpusError(f"{path}: is not UTF-8") from error
    rules = read_record(CaptionRules, parse_yaml(text, str(path)) or {}, f"{path}: rules")
    wrong = []
    numbers = {name: value for name, value in vars(rules).items() if isinstance(value, float)}
    wrong += [f"{n}: {v} is below 0" for n, v in numbers.items() if not 0 <= v < math.inf]
    if not rules.min_seconds < rules.max_seconds:
        wrong.append(f"min_seconds {rules.min_seconds} is not below max_seconds")
    if not 1 <= rules.min_characters <= rules.max_characters:
        wrong.append(f"min_characters {rules.min_characters} is not from 1 to max_characters")
    if rules.merge_seconds > rules.max_seconds:
        wrong.append(f"merge_seconds {rules.merge_seconds} is above max_seconds")
    if rules.dev_share + rules.test_share >= 1:
        wrong.append("dev_share and test_share leave nothing for train")
    if wrong:
        raise CorpusError(f"{path}: {'; '.join(wrong)}")
    return rules


def split_of(video: str, rules: CaptionRules) -> str:
    """Return the split of a video: a pure function of its id and the shares."""
    return split_by_name(video, rules.dev_share, rules.test_share)


def _is_video(name: str) -> bool:
    return name.lower().endswith(VIDEO_SUFFIXES)


def _videos(files: Sequence[str]) -> dict[str, str]:
    """Return the file of each video by its id; raise :class:`CorpusError` where one has several."""
    found: dict[str, list[str]] = {}
    for name in filter(_is_video, sorted(files)):
        found.setdefault(name.rsplit(".", 1)[0], []).append(name)
    return _only(found, "videos are there in several files", "keep one of each")


def _captions(files: Sequence[str], rules: CaptionRules) -> dict[str, str]:
    """Return the file of captions of each video's id.

    Raises :class:`CorpusError` where a video has several and no language says which.
    """
    found: dict[str, list[str]] = {}
    for name in sorted(files):
        if not name.lower().endswith(_SUFFIXES):
            continue
        stem = name.rsplit(".", 1)[0]
        video, _, language = stem.rpartition(".")
        if rules.language is not None:
            if stem.endswith(f".{rules.language}"):
                found.setdefault(stem.removesuffix(f".{rules.language}"), []).append(name)
        else:
            found.setdefault(video if video and _is_language(language) else stem, []).append(name)
    step = f"say `language` in {RULES}, and keep one file of it a video"
    return _only(found, "videos have several files of captions", step)


def _only(found: Mapping[str, list[str]], several_are: str, step: str) -> dict[str, str]:
    """Return the one file of each video; raise :class:`CorpusError` where one has several."""
    several = [names for names in found.values() if len(names) > 1]
    if several:
        raise CorpusError(
            f"{NAME}: {len(several)} {several_are}, such as {', '.join(several[0])}; {step}"
        )
    return {video: names[0] for video, names in found.items()}


def _is_language(written: str) -> bool:
    return re.fullmatch(r"[A-Za-z]{2,3}(?:-[A-Za-z0-9]{1,8})*", written) is not None


def _language(name: str, video: str) -> str | None:
    return name.removeprefix(video).rsplit(".", 1)[0].lstrip(".") or None


def _ids(root: Path, rules: CaptionRules) -> list[str]:
    if rules.ids is None:
        return []
    path = Tree(root).find(rules.ids, "ids")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError):
            raise unreadable(error, str(path), CorpusError) from error
        raise CorpusError(f"{path}: is not UTF-8") from error
    return list(dict.fromkeys(line.split(",")[0].strip() for line in lines if line.strip()))


def _clips(path: Path, rules: CaptionRules) -> tuple[list[Caption], list[Rejected]]:
    """Return the clips of a file, and what of it is none with the reason."""
    try:
        read = read_captions(path)
    except CorpusError as error:
        return [], [Rejected(0, "", str(error))]
    dropped = [Rejected(line, "", reason) for line, reason in read.broken]
    spoken: list[Caption] = []
    in_time = sorted(read.captions, key=lambda caption: caption.start)  # files need not be
    for caption in _unrolled(in_time):
        words = " ".join(filter(None, map(_spoken, caption.lines)))
        if _SOUND.match(caption.text) or not any(map(str.isalnum, words)):
            dropped.append(Rejected(caption.line, "", f"sound cue: {caption.text[:60]!r}"))
            continue
        spoken.append(replace(caption, lines=(words,)))
    kept = []
    for clip in _merged(spoken, rules):
        reason = _unfit(clip, rules)
        if reason:
            dropped.append(Rejected(clip.line, "", reason))
        else:
            kept.append(clip)
    return kept, dropped


def _spoken(line: str) -> str:
    """Return the words of a line: two speakers may share a cue, a line and a dash each."""
    words = _IN_BRACKETS.sub(" ", _SPEAKER.sub("", line)).strip()
    return _BLANKS.sub(" ", _SPEAKER.sub("", words)).strip()


def _unrolled(captions: Sequence[Caption]) -> Iterator[Caption]:
    """Take from each cue the lines that the cue before it showed already, as rolling ones do.

    YouTube's automatic captions repeat the last line above the new one, with cues of a hundredth
    of a second between, in which nothing is new.
    """
    before: tuple[str, ...] = ()
    end = -math.inf
    for caption in captions:
        lines = caption.lines
        if caption.start <= end + 0.1:
            repeated = max(
                (n for n in range(len(lines) + 1) if n == 0 or before[-n:] == lines[:n]), default=0
            )
            fresh = lines[repeated:]
        else:
            fresh = lines
        before, end = lines or before, caption.end
        if fresh or not lines:
            yield replace(caption, lines=fresh)


def _merged(captions: Sequence[Caption], rules: CaptionRules) -> Iterator[Caption]:
    clip: Caption | None = None
    for caption in captions:
        if clip is not None and (
            caption.start - clip.end <= rules.merge_pause
            and caption.end - clip.start <= rules.merge_seconds
            and len(clip.text) + 1 + len(caption.text) <= rules.max_characters
        ):
            clip = replace(clip, end=max(clip.end, caption.end), lines=clip.lines + caption.lines)
            continue
        if clip is not None:
            yield clip
        clip = caption
    if clip is not None:
        yield clip


def _unfit(clip: Caption, rules: CaptionRules) -> str:
    seconds, characters = clip.end - clip.start, len(clip.text)
    if seconds < rules.min_seconds:
        return f"too short: {seconds:.2f} s, below min_seconds {rules.min_seconds:g}"
    if seconds > rules.max_seconds:
        return f"too long: {seconds:.2f} s, above max_seconds {rules.max_seconds:g}"
    if characters < rules.min_characters:
        return f"too few characters: {characters}, below min_characters {rules.min_characters}"
    if characters > rules.max_characters:
        return f"too many characters: {characters}, above max_characters {rules.max_characters}"
    return ""


def _note(wanted: Sequence[str], split: str, rules: CaptionRules) -> str:
    ours = sum(split_of(video, rules) == split for video in wanted)
    return (
        f"{ours} of {len(wanted)} videos belong to {split}, by their ids (dev_share "
        f"{rules.dev_share:g}, test_share {rules.test_share:g})"
    )
