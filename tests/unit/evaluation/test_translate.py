"""New clips: cropped as the training clips were, read ahead, and of joints alone."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from helpers.little_clips import write_video
from helpers.little_splits import data_config
from helpers.published_poses import HEIGHT, WIDTH, signer, wholebody, write_openpose, write_pose
from helpers.signers import InTheMiddle
from signfuse_dist.batch import SignBatch
from signfuse_dist.corpora import Box
from signfuse_dist.data.joints import NoJoints
from signfuse_dist.data.video import VideoFile
from signfuse_dist.errors import MachineError, UserError
from signfuse_dist.evaluation import translate
from signfuse_dist.evaluation.choices import Choices, Limits
from signfuse_dist.evaluation.new_clips import (
    ClipReader,
    NewClip,
    Source,
    find_videos,
    is_joints,
    look_at_streams,
    read_source,
    sources_of,
)
from signfuse_dist.evaluation.translate import _already, translated
from signfuse_dist.evaluation.translator import Translation, join
from signfuse_dist.skeleton import LEFT_HAND, NUM_JOINTS

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
    first, second = sources_of(videos, Choices(box=["0,0,0.5,1", "0.5 0 1 1"]))
    assert (first.box, second.box) == (Box(0, 0, 0.5, 1), Box(0.5, 0, 1, 1))
    assert [source.box for source in sources_of(videos, Choices())] == [None, None]
    with pytest.raises(UserError, match="--box has 1 boxes for 2 videos"):
        sources_of(videos, Choices(box=["0,0,1,1"]))
    with pytest.raises(UserError, match="--box: bad box: '0,0,640,480' is not x0 y0 x1 y1"):
        sources_of(videos[:1], Choices(box=["0,0,640,480"]))


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
    vectorisers = ()

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def translate(self, batch: SignBatch, nbest: int) -> list[Translation]:
        lengths = batch.frame_lengths.tolist()
        self.batches.append(lengths)
        return [Translation(i, str(n), None) for i, n in zip(batch.ids, lengths, strict=True)]


def test_clips_of_like_lengths_are_computed_together_and_come_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(translate, "_TOGETHER", 4)
    lengths = (1, 5, 2, 6, 1, 5, 2, 6, 3)
    sources = [
        Source(write_video(tmp_path / f"{i}.mp4", n), None, None) for i, n in enumerate(lengths)
    ]
    translator = Counts()
    found = list(translated(translator, read_by(ClipReader(DATA, NoJoints()), sources)))
    assert translator.batches == [[6, 6], [5, 5], [2, 2], [1, 1], [3]]
    assert [source for source, _, _ in found] == sources
    assert [t.text for _, _, t in found if t] == [str(n) for n in lengths]


def read_by(
    reader: ClipReader, sources: list[Source]
) -> Generator[tuple[Source, NewClip | str], None, None]:
    for source in sources:
        yield source, read_source(reader, source, lambda name, finished: None)


def test_clips_are_read_while_the_model_computes_and_no_more_of_them_than_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(translate, "_TOGETHER", 1)
    source = Source(write_video(tmp_path / "v.mp4", 2), None, None)
    read = [threading.Event() for _ in range(40)]

    def clips() -> Generator[tuple[Source, NewClip | str], None, None]:
        for event, result in zip(read, read_by(reader, [source] * len(read)), strict=True):
            event.set()
            yield result
        closed.set()

    class Waits(Counts):
        def translate(self, batch: SignBatch, nbest: int) -> list[Translation]:
            assert read[2].wait(20), "the next batch is not read"  # while this one is computed
            return super().translate(batch, nbest)

    reader, closed = ClipReader(DATA, NoJoints()), threading.Event()
    found = translated(Waits(), clips())
    assert next(found)[0] == source
    found.close()
    assert not read[-1].is_set()
    assert not closed.is_set()
    assert not [thread for thread in threading.enumerate() if thread.name == "read"]


def test_what_cannot_be_read_is_told_in_its_place_and_a_fault_of_reading_is_raised(
    tmp_path: Path,
) -> None:
    good = Source(write_video(tmp_path / "v.mp4", 2), None, None)
    absent = Source(tmp_path / "absent.mp4", None, None)
    reader = ClipReader(DATA, NoJoints())
    found = list(translated(Counts(), read_by(reader, [absent, good])))
    assert [source for source, _, _ in found] == [absent, good]
    assert "absent.mp4" in str(found[0][1])
    assert [t and t.text for _, _, t in found] == [None, "2"]

    def broken() -> Generator[tuple[Source, NewClip | str], None, None]:
        yield from read_by(reader, [good])
        raise MachineError("the disk is away")

    with pytest.raises(MachineError, match="the disk is away"):
        list(translated(Counts(), broken()))


def write_joints(path: Path, frames: int) -> Path:
    """Write joints in this package's own form, those of the left hand not found."""
    mask = np.ones((frames, NUM_JOINTS), dtype=bool)
    mask[:, : len(LEFT_HAND)] = False
    np.savez(path, pose=signer(frames).astype(np.float32), mask=mask)
    return path


def test_joints_alone_are_a_clip_without_pictures(tmp_path: Path) -> None:
    """Of any published form; what their endings do not say is said beside them."""
    joints, reader = signer(6), ClipReader(replace(DATA, fps=10.0), None)
    own = write_joints(tmp_path / "own.npz", 6)
    posed = write_pose(tmp_path / "a.pose", joints)
    folder = write_openpose(tmp_path / "b", joints)
    (tmp_path / "empty").mkdir()
    places = [own, posed, folder]
    assert find_videos([tmp_path, folder]) == [posed, own, folder]
    assert all(map(is_joints, places))
    assert not is_joints(tmp_path / "empty")
    with pytest.raises(UserError, match=r"b does not say which picture"):
        reader.read(None, folder)
    sized = replace(reader, picture_size=(WIDTH, HEIGHT))
    clips = [sized.read(None, place) for place in places]
    assert [clip.encoded.record["extractor"] for clip in clips] == ["synthetic", "pose", "openpose"]
    batch = join([*clips, ClipReader(DATA, NoJoints()).read(write_video(tmp_path / "v.mp4", 3))])
    assert batch.has_visual.tolist() == [False, False, False, True]
    assert batch.has_skeletal.tolist() == [True, True, True, False]
    assert batch.frame_lengths.tolist() == [6, 6, 6, 3]
    assert len(batch.frames) == 3
    # Shares of the picture become those of the square that it is letterboxed into.
    posed_at, openposed_at = (clip.encoded for clip in clips[1:])
    found = posed_at.mask & openposed_at.mask
    assert found.any(axis=0).sum() > len(LEFT_HAND) * 2
    assert np.allclose(posed_at.pose[found], openposed_at.pose[found], atol=1e-3)
    assert clips[0].notes == ["no left hand was found in any frame"]


def test_joints_that_say_their_own_rate_are_asked_for_no_other(tmp_path: Path) -> None:
    points, scores = wholebody(signer(6))
    size = {"width": WIDTH, "height": HEIGHT}
    np.savez(tmp_path / "w.npz", keypoints=points, scores=scores, fps=25, **size)
    reader = ClipReader(replace(DATA, fps=10.0), None, poses="wholebody")
    clip = reader.read(None, tmp_path / "w.npz")
    assert clip.encoded.record["num_frames"] == 3  # 6 of 25 a second, at 10 a second
    with pytest.raises(UserError, match="has 25 frames a second"):
        replace(reader, folder_fps=10.0).read(None, tmp_path / "w.npz")


@pytest.mark.parametrize("rate", [1e-9, 0.05, 2000.0, float("nan"), float("inf")])
def test_a_rate_at_which_nobody_films_is_refused_before_anything_is_made_of_it(
    tmp_path: Path, rate: float
) -> None:
    """A frame of an hour would be there for each tenth of a second of it."""
    posed = write_pose(tmp_path / "a.pose", signer(6), rate)
    reader = ClipReader(replace(DATA, fps=10.0), NoJoints(), folder_fps=rate)
    with pytest.raises(UserError, match=r"bad (rate|poses): a\.pose"):
        reader.read(None, posed)
    with pytest.raises(UserError, match=r"bad rate: own\.npz"):
        reader.read(None, write_joints(tmp_path / "own.npz", 6))
    (tmp_path / "frames").mkdir()
    for number in range(3):
        Image.new("RGB", (32, 32)).save(tmp_path / "frames" / f"{number}.png")
    with pytest.raises(UserError, match="bad rate: frames"):
        reader.read(tmp_path / "frames")


def test_less_than_no_process_is_refused() -> None:
    reader = ClipReader(DATA, NoJoints())
    with pytest.raises(UserError, match="--workers -1: must be 0 or more"):
        next(translate.in_order(reader, [Source(Path("v.mp4"), None, None)], -1))


def test_joints_alone_are_refused_where_a_model_looks_at_pictures_alone(tmp_path: Path) -> None:
    own = write_joints(tmp_path / "own.npz", 6)
    sources, said = sources_of([own, Path("v.mp4")], Choices()), []
    assert sources == [Source(None, own, None), Source(Path("v.mp4"), None, None)]
    with pytest.raises(UserError, match=r"own\.npz is joints alone, and the model looks at"):
        look_at_streams("visual", sources, said.append)
    look_at_streams("skeletal", sources, said.append)
    look_at_streams("both", sources[1:], said.append)
    assert said == []
    look_at_streams("both", sources, said.append)
    assert "1 clips are joints alone" in said[0]
    with pytest.raises(UserError, match=r"own\.npz is joints itself"):
        sources_of([own], Choices(joints=[own]))


LINE = b'{"video": "a.mp4", "translation": "f\xc3\xbcr", "model": "m"}\n'


def test_a_line_that_was_torn_within_a_letter_is_cut_off_and_the_others_are_kept(
    tmp_path: Path,
) -> None:
    out = tmp_path / "out.jsonl"
    for torn in (LINE[:4], LINE[: LINE.index(b"\xbc")]):
        out.write_bytes(LINE + torn)
        assert _already(out, {"model": "m"}, 1) == {"a.mp4"}
        assert out.read_bytes() == LINE


@pytest.mark.parametrize(
    "content",
    [b"my notes, without a line break", b'{"answer": 42}', b"\x00\xff\n", b"[" * 100_000 + b"\n"],
)
def test_a_file_of_something_else_is_refused_and_left_as_it_is(
    tmp_path: Path, content: bytes
) -> None:
    out = tmp_path / "out.jsonl"
    out.write_bytes(content)
    with pytest.raises(UserError, match="holds other lines"):
        _already(out, {"model": "m"}, 1)
    assert out.read_bytes() == content


def test_lines_are_added_to_no_folder_and_no_device(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--out .*: is a folder"):
        _already(tmp_path, {"model": "m"}, 1)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UserError, match=r"--out .*: is a FIFO"):
        _already(tmp_path / "fifo", {"model": "m"}, 1)
