"""Folders of videos with captions: rolling lines, tags, sounds, bounds, ids, splits by video."""

from __future__ import annotations

from pathlib import Path

import pytest

from signfuse_dist.corpora import Corpus, CorpusError, read_corpus
from signfuse_dist.corpora.captions import read_captions
from signfuse_dist.corpora.subtitles import CaptionRules, split_of
from signfuse_dist.errors import UserError

ROLLING = """WEBVTT
Kind: captions
Language: en

STYLE
::cue { color: red }

00:00:00.000 --> 00:00:02.000 align:start position:0%
hello<00:00:00.500><c> there</c>

00:00:02.000 --> 00:00:02.010
hello there

00:00:02.010 --> 00:00:04.000
hello there
my &amp; your&nbsp;friends

00:00:04.010 --> 00:00:06.000
[Music]

00:00:06.000 --> 00:00:08.500
>> good <i>morning</i> [Applause]
"""
SRT = """1
00:00:01,000 --> 00:00:02,500
first

2
00:00:03,000 --> 00:00:02,000
back

3
0:1:0,5 --> x
"""


def write(root: Path, videos: dict[str, str], rules: str = "", suffix: str = "en.vtt") -> Path:
    root.mkdir(exist_ok=True)
    for video, content in videos.items():
        (root / f"{video}.mp4").write_bytes(b"")
        (root / f"{video}.{suffix}").write_text(content)
    if rules:
        (root / "subtitles.yaml").write_text(rules)
    return root


ALL = "dev_share: 0\ntest_share: 0\n"


def read(root: Path, split: str = "train", poses: str | None = None) -> Corpus:
    return read_corpus("subtitles", root, split, poses)


def test_rolling_captions_come_once_without_tags_and_sounds_are_dropped_by_name(tmp_path) -> None:
    corpus = read(write(tmp_path / "c", {"a_-b": ROLLING}, ALL))
    assert [(row.text, row.start, row.end) for row in corpus.rows] == [
        ("hello there", 0.0, 2.0),
        ("my & your friends", 2.01, 4.0),
        ("good morning", 6.0, 8.5),
    ]
    assert [row.id for row in corpus.rows] == ["a_-b:0", "a_-b:2010", "a_-b:6000"]
    assert [row.language for row in corpus.rows] == ["en"] * 3
    assert [row.reason for row in corpus.rejected] == ["sound cue: '[Music]'"]
    assert corpus.rows[0].source == "a_-b.mp4"


def test_the_first_line_on_a_bare_screen_is_kept(tmp_path) -> None:
    """YouTube's automatic captions begin with a line of one blank there, and end with one."""
    rolling = (
        "WEBVTT\n\n00:00:00.160 --> 00:00:02.070\n \nhello<00:00:00.400><c> world</c>\n\n"
        "00:00:02.070 --> 00:00:02.080\nhello world\n \n\n"
        "00:00:02.080 --> 00:00:04.000\nhello world\nnext<00:00:03.000><c> line</c>\n\n"
        "00:00:04.000 --> 00:00:04.010\nnext line\n \n\n"
        "00:00:09.000 --> 00:00:11.000\n \nafter a pause\n"
    )
    corpus = read(write(tmp_path / "c", {"v": rolling}, ALL))
    assert [row.text for row in corpus.rows] == ["hello world", "next line", "after a pause"]
    assert corpus.rejected == ()


def test_each_speaker_of_a_cue_loses_the_dash(tmp_path) -> None:
    lines = "WEBVTT\n\n00:01.000 --> 00:02.000\n- Hi. [Laughs]\n- Well-known.\n"
    corpus = read(write(tmp_path / "c", {"v": lines}, ALL))
    assert [row.text for row in corpus.rows] == ["Hi. Well-known."]


def test_cues_that_are_not_in_the_order_of_time_are_joined_in_it(tmp_path) -> None:
    lines = "WEBVTT\n\n00:05.000 --> 00:06.000\nlater\n\n00:04.000 --> 00:05.000\nearlier\n"
    corpus = read(write(tmp_path / "c", {"v": lines}, f"{ALL}merge_seconds: 10\n"))
    assert [(row.text, row.start, row.end) for row in corpus.rows] == [("earlier later", 4.0, 6.0)]


def test_a_video_in_two_files_is_refused(tmp_path) -> None:
    root = write(tmp_path / "c", {"v": "WEBVTT\n\n00:05.000 --> 00:06.000\nwords\n"}, ALL)
    (root / "v.webm").write_bytes(b"")
    with pytest.raises(CorpusError, match=r"several files, such as v\.mp4, v\.webm"):
        read(root)


def test_lines_of_blanks_divide_cues_of_srt(tmp_path) -> None:
    cues = "1\n00:00:01,000 --> 00:00:02,000\nfirst\n \n2\n00:00:03,000 --> 00:00:04,000\nsecond\n"
    (tmp_path / "a.srt").write_text(cues, encoding="utf-8")
    assert [c.text for c in read_captions(tmp_path / "a.srt").captions] == ["first", "second"]


@pytest.mark.parametrize(
    "cue", ["- [Music]", ">> [Applause]", "[Music] - [Laughs]", "...", "\u266a \u266a", ">>"]
)
def test_a_cue_of_which_no_word_is_left_is_a_sound(tmp_path, cue) -> None:
    lines = f"WEBVTT\n\n00:00:01.000 --> 00:00:02.000\n{cue}\n"
    corpus = read(write(tmp_path / "c", {"v": lines}, ALL))
    assert corpus.rows == ()
    assert [row.reason for row in corpus.rejected] == [f"sound cue: {cue!r}"]


def test_a_speaker_after_a_sound_is_no_part_of_the_text(tmp_path) -> None:
    lines = "WEBVTT\n\n00:00:01.000 --> 00:00:02.000\n[Music] >> good morning\n"
    assert [row.text for row in read(write(tmp_path / "c", {"v": lines}, ALL)).rows] == [
        "good morning"
    ]


def test_captions_that_follow_each_other_are_joined_up_to_a_length(tmp_path) -> None:
    lines = "\n\n".join(
        f"00:00:{n:02d}.000 --> 00:00:{n:02d}.900\nword{n}" for n in (0, 1, 2, 3, 8)
    )
    rules = f"{ALL}merge_seconds: 3\nmerge_pause: 0.5\n"
    corpus = read(write(tmp_path / "c", {"v": f"WEBVTT\n\n{lines}\n"}, rules))
    assert [row.text for row in corpus.rows] == ["word0 word1 word2", "word3", "word8"]
    assert (corpus.rows[0].start, corpus.rows[0].end) == (0.0, 2.9)


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ("min_seconds: 2.2", "too short: 2.00 s, below min_seconds 2.2"),
        ("max_seconds: 2.2", "too long: 2.50 s, above max_seconds 2.2"),
        ("min_characters: 12", "too few characters: 11, below min_characters 12"),
        ("max_characters: 12", "too many characters: 17, above max_characters 12"),
    ],
)
def test_a_clip_beyond_a_bound_is_dropped_with_the_bound(tmp_path, rule: str, reason: str) -> None:
    corpus = read(write(tmp_path / "c", {"v": ROLLING}, f"{ALL}{rule}\n"))
    assert reason in [row.reason for row in corpus.rejected]


def test_srt_is_read_and_a_cue_that_is_broken_takes_no_other_with_it(tmp_path) -> None:
    corpus = read(write(tmp_path / "c", {"v": SRT}, ALL, suffix="srt"))
    assert [row.text for row in corpus.rows] == ["first"]
    assert [row.reason.partition(":")[0] for row in corpus.rejected] == ["bad time", "bad time"]
    assert corpus.rows[0].language is None


def test_a_video_is_never_divided_and_its_split_follows_from_its_id_alone(tmp_path) -> None:
    videos = {f"video{n}": ROLLING for n in range(40)}
    root = write(tmp_path / "c", videos, "dev_share: 0.2\ntest_share: 0.2\n")
    ids = {
        split: {row.source for row in read(root, split).rows} for split in ("train", "dev", "test")
    }
    assert all(ids.values())
    assert sum(map(len, ids.values())) == 40
    rules = CaptionRules(dev_share=0.2, test_share=0.2)
    assert ids["test"] == {f"{v}.mp4" for v in videos if split_of(v, rules) == "test"}


def test_ids_without_a_file_are_orphans_and_videos_beside_the_list_are_left_out(tmp_path) -> None:
    root = write(tmp_path / "c", {"a": ROLLING, "b": ROLLING}, f"{ALL}ids: ids.txt\n")
    (root / "ids.txt").write_text("a\ngone\n")
    (root / "bare.mp4").write_bytes(b"")
    corpus = read(root)
    assert {row.source for row in corpus.rows} == {"a.mp4"}
    assert [orphan.id for orphan in corpus.orphans] == ["gone"]
    (root / "a.mp4").unlink()
    (root / "ids.txt").write_text("a\n")
    assert [orphan.reason.partition(":")[0] for orphan in read(root).orphans] == ["no video"]


def test_of_several_languages_one_is_to_be_named(tmp_path) -> None:
    root = write(tmp_path / "c", {"a.b": ROLLING}, ALL)
    (root / "a.b.de.vtt").write_text(ROLLING)
    with pytest.raises(CorpusError, match="several files of captions"):
        read(root)
    (root / "subtitles.yaml").write_text(f"{ALL}language: de\n")
    assert {row.language for row in read(root).rows} == {"de"}


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ("min_second: 1", "min_second"),
        ("min_seconds: 70", "not below max_seconds"),
        ("merge_seconds: 90", "above max_seconds"),
        ("dev_share: 0.6\ntest_share: 0.6", "nothing for train"),
        ("max_seconds: -1", "below 0"),
        ("ids: ../ids.txt", "leaves the corpus"),
    ],
)
def test_rules_that_contradict_are_refused_by_name(tmp_path, rules: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read(write(tmp_path / "c", {"a": ROLLING}, rules))


def test_poses_lie_beside_the_videos(tmp_path) -> None:
    corpus = read(write(tmp_path / "c", {"a": ROLLING}, ALL), poses="pose")
    assert {row.joints.name for row in corpus.rows} == {"a.pose"}
    assert corpus.pose_format == "pose"


def test_files_that_are_no_captions_are_named(tmp_path) -> None:
    (tmp_path / "a.vtt").write_bytes(b"\xff\xfe")
    with pytest.raises(CorpusError, match="not UTF-8"):
        read_captions(tmp_path / "a.vtt")
    (tmp_path / "a.vtt").write_text("WEBVTT\n")
    with pytest.raises(CorpusError, match="no cue"):
        read_captions(tmp_path / "a.vtt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match="no captions"):
        read(tmp_path / "empty")
