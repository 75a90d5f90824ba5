"""New clips are cropped as the training clips were."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import simplejpeg

from helpers.little_clips import write_video
from helpers.little_splits import data_config
from helpers.signers import InTheMiddle
from signfuse_dist.batch import SignBatch
from signfuse_dist.corpora import Box
from signfuse_dist.data.joints import NoJoints
from signfuse_dist.data.video import VideoFile
from signfuse_dist.errors import UserError
from signfuse_dist.evaluation.choices import Choices, Limits
from signfuse_dist.evaluation.translate import ClipReader, NewClip, _sources, translated
from signfuse_dist.evaluation.translator import Translation

DATA = data_config(fps=None, frame_size=32, max_frames=100)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return write_video(tmp_path / "v.mp4", 6, 128, 64)


def read(video: Path, crop: str, box: Box | None = None, found: bool = True):
    reader = ClipReader(replace(DATA, crop=crop), InTheMiddle(found), limits=Limits())
    return reader.read(video, box=box)


def test_a_model_of_whole_pictures_sees_the_whole_picture(video: Path) -> None:
    clip = read(video, "none")
    assert "box" not in clip.encoded.record
    assert clip.notes == []
    assert simplejpeg.decode_jpeg(clip.encoded.jpegs[0])[:7].max() < 20


def test_a_model_of_cropped_pictures_sees_the_square_around_the_signer(video: Path) -> None:
    clip = read(video, "signer")
    x0, y0, x1, y1 = clip.encoded.record["box"]
    assert (x1 - x0) * 128 == (y1 - y0) * 64 < 64
    assert simplejpeg.decode_jpeg(clip.encoded.jpegs[0]).min() > 20
    assert clip.notes == []
    assert len(clip.clip().frames) == 6


def test_a_clip_without_a_signer_is_whole_and_says_so(video: Path) -> None:
    clip = read(video, "signer", found=False)
    assert clip.encoded.record["box"] is None
    assert len(clip.notes) == 2
    assert "no person was found" in clip.notes[0]
    assert "the model saw all of it" in clip.notes[1]


def test_a_model_of_boxes_takes_the_one_that_is_given(video: Path) -> None:
    clip = read(video, "box", Box(0.25, 0.25, 0.5, 0.75))
    assert clip.encoded.record["box"] == [0.25, 0.25, 0.5, 0.75]
    assert clip.encoded.record["flags"] == []


def test_a_model_of_boxes_says_what_it_used_where_none_is_given(video: Path) -> None:
    clip = read(video, "box")
    assert clip.encoded.record["box"] == read(video, "signer").encoded.record["box"]
    assert clip.encoded.record["flags"] == ["no_box"]
    assert "no box was given" in clip.notes[0]


def test_boxes_are_typed_one_a_video() -> None:
    videos = [Path("a.mp4"), Path("b.mp4")]
    first, second = _sources(videos, Choices(box=["0,0,0.5,1", "0.5 0 1 1"]))
    assert (first.box, second.box) == (Box(0, 0, 0.5, 1), Box(0.5, 0, 1, 1))
    assert [source.box for source in _sources(videos, Choices())] == [None, None]
    with pytest.raises(UserError, match="--box has 1 boxes for 2 videos"):
        _sources(videos, Choices(box=["0,0,1,1"]))
    with pytest.raises(UserError, match="--box: bad box: '0,0,640,480' is not x0 y0 x1 y1"):
        _sources(videos[:1], Choices(box=["0,0,640,480"]))


def refuse_decoding(*_: object) -> None:
    raise AssertionError("a frame was decoded")


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(max_seconds=0.5), r"the clip is longer than 0\.5 s"),
        (Limits(max_pixels=128 * 64 - 1), "the picture of 128 x 64 is too large; at most 8,191"),
    ],
)
def test_what_a_file_announces_is_refused_before_a_frame_is_decoded(
    video: Path, limits: Limits, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(VideoFile, "_decode", refuse_decoding)
    with pytest.raises(UserError, match=reason):
        ClipReader(DATA, InTheMiddle(), limits=limits).read(video)
    with pytest.raises(AssertionError, match="a frame was decoded"):
        ClipReader(DATA, InTheMiddle(), limits=Limits()).read(video)


def test_a_clip_of_more_frames_than_allowed_is_refused(video: Path) -> None:
    """A recording of a minute can hold a thousand frames a second."""
    ClipReader(DATA, InTheMiddle(), limits=Limits(max_frames=6)).read(video)
    with pytest.raises(UserError, match="the clip has more than 5 frames"):
        ClipReader(DATA, InTheMiddle(), limits=Limits(max_frames=5)).read(video)


class Counts:
    """Stands for the translator: a sentence is the number of frames that it saw."""

    usage = SimpleNamespace(decoding=SimpleNamespace(batch_size=2))

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def translate(self, batch: SignBatch, nbest: int) -> list[Translation]:
        lengths = batch.frame_lengths.tolist()
        self.batches.append(lengths)
        return [Translation(i, str(n), None) for i, n in zip(batch.ids, lengths, strict=True)]


def test_clips_of_like_lengths_are_computed_together_and_come_in_their_order(
    tmp_path: Path,
) -> None:
    lengths = (1, 5, 2, 6, 1, 5, 2, 6, 3)
    videos = [write_video(tmp_path / f"{i}.mp4", n) for i, n in enumerate(lengths)]
    reader, translator = ClipReader(DATA, NoJoints()), Counts()
    read: list[Path] = []

    def clips() -> Iterator[tuple[Path, NewClip]]:
        for video in videos:
            read.append(video)
            yield video, reader.read(video)

    found = translated(translator, clips())
    assert next(found)[0] == videos[0]
    assert read == videos[:8]  # four batches, and not the ninth clip yet
    assert translator.batches == [[6, 6], [5, 5], [2, 2], [1, 1]]
    assert [t.text for _, _, t in found] == [str(n) for n in lengths[1:]]
