"""New videos: found, decoded as the packer decodes them, and what there is to say of each.

Imports no torch, so that a process that reads clips starts in a second.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg

from signfuse_dist.augment import spread_frames
from signfuse_dist.config import DataConfig
from signfuse_dist.data.corpora import FolderFrames, Row
from signfuse_dist.data.encode import encode_clip
from signfuse_dist.data.frames import IMAGE_SUFFIXES, VideoError, VideoFrame
from signfuse_dist.data.manifest import PackConfig, Packing
from signfuse_dist.data.pool import Report
from signfuse_dist.data.pose import Joints, JointsFile, PoseExtractor
from signfuse_dist.data.shard import Clip, EncodedClip
from signfuse_dist.data.video import open_video
from signfuse_dist.errors import UserError
from signfuse_dist.skeleton import JOINT_LAYOUT

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".flv", ".ogv")
_FLAGS = {
    "no_person": "no person was found: the joints say nothing, and the sentence hardly anything",
    "no_left_hand": "no left hand was found in any frame",
    "no_right_hand": "no right hand was found in any frame",
    "failed_frames": "the pose extractor failed at some frames",
}


def find_videos(places: Sequence[Path]) -> list[Path]:
    """Return the clips at ``places``: a file or a folder of frames is one, others hold files.

    Raises UserError naming a folder that holds neither videos nor frames.
    """
    found: list[Path] = []
    for place in places:
        if not place.is_dir():
            found.append(place)  # a file that is not there is an error of its own, later
            continue
        files = sorted(path for path in place.iterdir() if path.is_file())
        videos = [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES]
        frames = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
        if videos and frames:
            raise UserError(
                f"{place} holds {len(videos)} videos and {len(frames)} pictures: give the videos, "
                "or a folder of frames alone"
            )
        if not videos and not frames:
            raise UserError(
                f"{place} holds no videos ({', '.join(VIDEO_SUFFIXES)}) and no frames "
                f"({', '.join(IMAGE_SUFFIXES)})"
            )
        found += videos or [place]
    return found


@dataclass(frozen=True)
class Limits:
    """What a clip from anybody may cost."""

    max_seconds: float
    """Length of the clip."""
    max_work_seconds: float
    """Time for decoding it and finding its joints."""
    max_pixels: int = 3840 * 2160

    def refuse_long(self, seconds: float) -> None:
        """Raise VideoError for a clip that is longer than allowed."""
        if seconds > self.max_seconds:
            raise VideoError(f"the clip is longer than {self.max_seconds:g} s; cut it")


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
        for frame in frames:
            limits.refuse_long(frame.time)
            if frame.picture.width * frame.picture.height > limits.max_pixels:
                raise VideoError(
                    f"the picture of {frame.picture.width} x {frame.picture.height} is too large; "
                    f"at most {limits.max_pixels:,} pixels"
                )
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

    @property
    def notes(self) -> list[str]:
        """What a reader of the translation should know of the clip."""
        flags = self.encoded.record["flags"]
        notes = [_FLAGS.get(flag, flag) for flag in flags if not self._covered(flag)]
        count = len(self.encoded.jpegs)
        if len(self.chosen) < count:
            notes.append(
                f"too long: of {count} frames the model saw {len(self.chosen)}, evenly spread "
                "(data.max_frames)"
            )
        return notes

    def clip(self) -> Clip:
        """Return the clip as it is read from a shard: what the model sees."""
        frames = np.stack([simplejpeg.decode_jpeg(self.encoded.jpegs[i]) for i in self.chosen])
        pose, mask = self.encoded.pose[self.chosen], self.encoded.mask[self.chosen]
        return Clip(dict(self.encoded.record), frames, pose, mask)

    def _covered(self, flag: str) -> bool:
        """Where there is no person, that there are no hands goes without saying."""
        return flag != "no_person" and "no_person" in self.encoded.record["flags"]


@dataclass(frozen=True)
class ClipReader:
    """Reads new clips as the packer would read them; picklable until its first clip."""

    data: DataConfig
    extractor: PoseExtractor | None
    """None: each clip comes with a file of joints."""
    folder_fps: float | None = None
    """Rate of folders of frames, which have none of their own; None: ``data.fps``."""
    limits: Limits | None = None
    """None: the clips are the user's own, and may cost what they cost."""

    def read(self, video: Path, joints: Path | None = None) -> NewClip:
        """Decode a clip; raise UserError naming what is wrong with it."""
        source = self.extractor or JointsFile
        packing = Packing(
            corpus="translate", root="", split="", joint_layout=JOINT_LAYOUT,
            extractor=source.name, extractor_version=source.version,
            settings=PackConfig(frame_size=self.data.frame_size, fps=self.data.fps),
            rows_sha256="",
        )  # fmt: skip
        rate = self.folder_fps or self.data.fps
        row = Row(
            row=0, id=video.stem or "clip", video=video, source=str(video), text="", start=None,
            end=None, signer=None, language=None, split="", joints=joints,
            folder=FolderFrames(rate, None),
        )  # fmt: skip
        encoded = encode_clip(row, packing, self._limited(video))
        count = len(encoded.jpegs)
        return NewClip(encoded, spread_frames(count, min(count, self.data.max_frames)))

    def _limited(self, video: Path) -> PoseExtractor | None:
        """Refuse a file that says it is too long, and watch over one that does not say."""
        if self.limits is None or self.extractor is None:
            return self.extractor
        with open_video(video, self.folder_fps) as source:
            self.limits.refuse_long((source.expected_frames or 0) / source.fps)
        return _LimitedExtractor(self.extractor, self.limits)


class Source(NamedTuple):
    """Where a clip is, and its file of joints where no extractor looks for them."""

    video: Path
    joints: Path | None


def read_source(reader: ClipReader, source: Source, report: Report) -> NewClip | str:
    """Return a clip, or what is wrong with it: the task of a worker process."""
    report(str(source.video), 0)
    try:
        return reader.read(source.video, source.joints)
    except UserError as e:
        return str(e)
