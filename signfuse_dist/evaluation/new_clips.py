"""New clips, which no shard holds: what is given, and how it is read as the packer would read it.

A clip is a video, a folder of frames, or a file of joints alone, for a model that needs no picture.
Imports no torch: the processes that read clips start without it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from signfuse_dist.config import Crop
from signfuse_dist.corpora import (
    VIDEO_SUFFIXES,
    Box,
    ClipRow,
    FolderFrames,
    boxed,
    picture_size,
)
from signfuse_dist.corpora.poses import OPENPOSE, POSE, POSE_ENDINGS
from signfuse_dist.data.clock import VideoError
from signfuse_dist.data.encode import encode_clip
from signfuse_dist.data.frame_folder import IMAGE_SUFFIXES
from signfuse_dist.data.joints import Joints, JointsFile, PoseExtractor
from signfuse_dist.data.manifest import PackConfig, Packing
from signfuse_dist.data.openpose import FRAME_ENDING
from signfuse_dist.data.pack_workers import Report
from signfuse_dist.data.picture import VideoFrame
from signfuse_dist.data.shard import Clip, EncodedClip
from signfuse_dist.data.tracks import TrackJoints
from signfuse_dist.data.video import VideoFile, open_video
from signfuse_dist.errors import MachineError, UserError
from signfuse_dist.evaluation.choices import Choices, Limits
from signfuse_dist.evaluation.extractors import difference, extractor_for
from signfuse_dist.model.usage import Usage
from signfuse_dist.plan import spread_frames
from signfuse_dist.skeleton import JOINT_LAYOUT

JOINT_ENDINGS = (".npz", *POSE_ENDINGS)
"""Of files of joints; ``.npz`` is this package's own form where nothing else is asked for."""
_FLAGS = {
    "no_person": "no person was found: the joints say nothing, and the sentence hardly anything",
    "no_left_hand": "no left hand was found in any frame",
    "no_right_hand": "no right hand was found in any frame",
    "failed_frames": "the pose extractor failed at some frames",
    "variable_rate": "the pictures come at varying distances",
    "gap": "for a while no new picture is shown",
    "interlaced": "each picture is made of two, half a moment apart (interlaced)",
    "missing_frames": "the numbers of the pictures leave some out",
    "no_crop": "nothing was found to cut the picture by: the model saw all of it, and was trained "
    "on pictures that are cut around the signer",
    "no_box": "no box was given: the picture was cut around the signer's joints, where those that "
    "the model was trained on are cut around boxes of the corpus",
    "hand_outside_box": "at times a hand lies outside the part of the picture that the model saw",
}


def find_videos(places: Sequence[Path]) -> list[Path]:
    """Return the clips at ``places``: a file or a folder of frames is one, others hold files.

    A folder of OpenPose's frames is one, too; files of joints count where no videos lie beside
    them. Raises UserError naming a folder that holds nothing of all this.
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
        tracks = [path for path in files if path.suffix.lower() in JOINT_ENDINGS]
        if not videos and not frames and not tracks and not is_joints(place):
            raise UserError(
                f"{place} holds no videos ({', '.join(VIDEO_SUFFIXES)}), no frames "
                f"({', '.join(IMAGE_SUFFIXES)}) and no joints ({', '.join(JOINT_ENDINGS)})"
            )
        clips += videos or ([place] if frames or is_joints(place) else tracks)
    return clips


def is_joints(place: Path) -> bool:
    """Tell whether a clip is given as joints alone: a file of them, or a folder of OpenPose's."""
    if place.is_dir():
        return next(place.glob(f"*{FRAME_ENDING}"), None) is not None
    return place.suffix.lower() in JOINT_ENDINGS


def _format_of(joints: Path, asked: str | None) -> str:
    """Return in which form joints are written, as a set of shards calls it."""
    if asked is not None:
        return asked
    if joints.is_dir():
        return OPENPOSE
    return POSE_ENDINGS.get(joints.suffix.lower(), JointsFile.name)


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
    frame_size: int
    """Side of the square, in pixels."""

    @property
    def notes(self) -> list[str]:
        """What a reader of the translation should know of the clip."""
        flags = self.encoded.record["flags"]
        notes = [_FLAGS.get(flag, flag) for flag in flags if not self._covered(flag)]
        count = len(self.encoded.mask)
        if len(self.chosen) < count:
            notes.append(
                f"too long: of {count} frames the model saw {len(self.chosen)}, evenly spread "
                "(data.max_frames)"
            )
        return notes

    def clip(self) -> Clip:
        """Return the clip as it is read from a shard: what the model sees."""
        frames = self.pictures(self.chosen)
        pose, mask = self.encoded.pose[self.chosen], self.encoded.mask[self.chosen]
        return Clip(dict(self.encoded.record), frames, pose, mask)

    def pictures(self, places: Sequence[int]) -> NDArray[np.uint8]:
        """Return frames, uint8 ``[places, size, size, 3]``; none of a clip of joints alone."""
        if not self.encoded.jpegs:
            return np.zeros((0, self.frame_size, self.frame_size, 3), dtype=np.uint8)
        return np.stack([simplejpeg.decode_jpeg(self.encoded.jpegs[place]) for place in places])

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
    """Looks at clips that come without a file of joints; None: there are none."""
    folder_fps: float | None = None
    """Rate of folders of frames, and of joints that have none of their own; None: ``data.fps``."""
    limits: Limits | None = None
    """None: the clips are the user's own, and may cost what they cost."""
    poses: str | None = None
    """Form of files of joints, of :data:`.POSE_FORMATS`; None: what their endings say."""
    picture_size: tuple[int, int] | None = None
    """Width and height of the picture that joints in pixels are in, where they do not say it."""

    def read(
        self, video: Path | None, joints: Path | None = None, box: Box | None = None
    ) -> NewClip:
        """Decode a clip, or take it from its joints alone; raise UserError naming what is wrong.

        It is cropped as the training clips were. ``box`` is for a model that was trained on boxes
        of its corpus: without one, the clip is cut around the signer's joints, and flagged
        ``no_box``.
        """
        extractor = self.extractor if joints is None else None
        if extractor is not None:
            found_by, version = extractor.name, extractor.version
        else:
            assert joints is not None
            found_by, version = _format_of(joints, self.poses), TrackJoints.version
        named = video or joints
        assert named is not None
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
            extractor=found_by,
            extractor_version=version,
            settings=settings,
            rows_sha256="",
        )
        # What may say its own rate is asked for another only where one was given.
        says = video is None and (found_by == POSE or self.folder_fps is None)
        folder = None if says else FolderFrames(self.folder_fps or self.data.fps, None)
        row = ClipRow(
            row=0,
            id=named.stem or "clip",
            video=video,
            source=str(named),
            text="",
            start=None,
            end=None,
            signer=None,
            language=None,
            split="",
            joints=joints,
            folder=folder,
            flags=("no_box",) if instead else (),
            box=box,
            size=self.picture_size,
        )
        encoded = encode_clip(row, packing, self._limited(extractor, video))
        count = len(encoded.mask)
        chosen = spread_frames(count, min(count, self.data.max_frames))
        return NewClip(encoded, chosen, self.data.frame_size)

    def _limited(self, extractor: PoseExtractor | None, video: Path | None) -> PoseExtractor | None:
        """Refuse a file whose header exceeds a limit, and watch over what it does not say."""
        if self.limits is None or extractor is None or video is None:
            return extractor
        with open_video(video, self.folder_fps) as source:
            self.limits.refuse_long(source.duration or 0.0)
            if isinstance(source, VideoFile):
                self.limits.refuse_large(*source.announced_size)
        return _LimitedExtractor(extractor, self.limits)


class Source(NamedTuple):
    """Where a clip is, its file of joints where no extractor looks for them, and its box."""

    video: Path | None
    """None: a clip of joints alone."""
    joints: Path | None
    box: Box | None

    @property
    def place(self) -> Path:
        """What the clip is called by: as it was given."""
        place = self.video or self.joints
        assert place is not None
        return place


def read_source(reader: ClipReader, source: Source, report: Report) -> NewClip | str:
    """Return a clip, or what is wrong with it: the task of a worker process."""
    report(str(source.place), 0)
    try:
        return reader.read(source.video, source.joints, source.box)
    except MachineError:
        raise
    except UserError as e:
        return str(e)


def refuse_published(usage: Usage) -> None:
    """Raise UserError where nobody knows how a new clip's vectors would be made."""
    unknown = [source.published for source in usage.features if source.published is not None]
    if unknown:
        raise UserError(
            f"the model was trained on the published vectors {' and '.join(unknown)}: what makes "
            "them is not known here, so no new clip can be brought to it. `signfuse evaluate` "
            "translates packed splits that have them; a model that is to read videos is trained on "
            "sets of `signfuse features SHARDS --model NAME`"
        )


def reader_for(
    usage: Usage,
    pose_model: Path | None,
    *,
    say: Callable[[str], object],
    sources: Sequence[Source] | None = None,
    choices: Choices | None = None,
    limits: Limits | None = None,
) -> ClipReader:
    """Return what reads new clips for a model, and ``say`` where their joints come from elsewhere.

    ``sources`` are the clips where they are known; None: videos without joints. Raises UserError
    when a pose extractor is needed and there is none, and for a model of published vectors.
    """
    refuse_published(usage)
    choices = choices or Choices()
    looked_at = sources is None or any(source.joints is None for source in sources)
    extractor = extractor_for(usage, pose_model) if looked_at else None
    given = {_format_of(s.joints, choices.poses) for s in sources or () if s.joints is not None}
    differs = [difference(usage, extractor)] if extractor is not None else []
    differs += [difference(usage, None, form) for form in sorted(given)]
    for note in filter(None, differs):
        say(note)
    size = None if choices.picture_size is None else picture_size(choices.picture_size)
    return ClipReader(usage, extractor, choices.folder_fps, limits, choices.poses, size)


def sources_of(videos: Sequence[Path], choices: Choices) -> list[Source]:
    """Return each clip with its file of joints and its box, as they were given beside it.

    Raises UserError where there are not as many of them as clips.
    """
    joints: Sequence[Path | None] = choices.joints or [None] * len(videos)
    if len(joints) != len(videos):
        raise UserError(f"--joints names {len(joints)} files for {len(videos)} videos")
    boxes = [_box(text) for text in choices.box or ()] or [None] * len(videos)
    if len(boxes) != len(videos):
        raise UserError(
            f"--box has {len(boxes)} boxes for {len(videos)} videos; one each is needed"
        )
    alone = [video for video in videos if is_joints(video)]
    if alone and choices.joints:
        raise UserError(f"--joints: {alone[0]} is joints itself; give --joints with videos alone")
    return [
        Source(None, video, box) if is_joints(video) else Source(video, track, box)
        for video, track, box in zip(videos, joints, boxes, strict=True)
    ]


def look_at_streams(streams: str, sources: Sequence[Source], say: Callable[[str], object]) -> None:
    """Refuse clips of joints alone for a model that looks at pictures alone.

    One of both streams has the joints stand in for the pictures, which is worth saying.
    """
    alone = [source.place for source in sources if source.video is None]
    if not alone:
        return
    if streams == "visual":
        raise UserError(
            f"{alone[0]} is joints alone, and the model looks at pictures alone "
            "(model.streams=visual): give the video"
        )
    if streams == "both":
        say(
            f"{len(alone)} clips are joints alone: the model has a stream for pictures too, in "
            "whose place the joints stand; it does so well only where it was trained on such clips"
        )


def _box(text: str) -> Box | None:
    """Return a box that was typed, None for an empty one."""
    try:
        return boxed(text)
    except UserError as error:
        raise UserError(f"--box: {error}") from error
