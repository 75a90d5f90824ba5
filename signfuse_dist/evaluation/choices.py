"""What `signfuse translate` and `signfuse serve` can be asked, with the help of each option.

In a module of its own, so that reading a command line imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from signfuse_dist.data.clock import VideoError


def _decoding() -> Any:
    return field(
        default=(),
        metadata={
            "nargs": "+",
            "metavar": "evaluation.key=value",
            "help": "other decoding than that of training, such as evaluation.num_beams=8",
        },
    )


@dataclass(frozen=True)
class Choices:
    """How `signfuse translate` works."""

    joints: Sequence[Path] | None = field(
        default=None,
        metadata={
            "nargs": "+",
            "help": "a file of joints for each video, in place of MediaPipe",
        },
    )
    box: Sequence[str] | None = field(
        default=None,
        metadata={
            "type": str,
            "nargs": "+",
            "metavar": "x0,y0,x1,y1",
            "help": "where the signer of each video is, as shares of the picture: for a model that "
            "was trained with data.crop=box (default: the signer's joints)",
        },
    )
    nbest: int = field(
        default=1,
        metadata={"help": "translations a video (default: %(default)s; at most the beams)"},
    )
    decoding: Sequence[str] = _decoding()
    out: Path | None = field(
        default=None,
        metadata={
            "help": "append the lines to this file; what it holds already is not done again "
            "(default: standard output)"
        },
    )
    workers: int = field(
        default=0,
        metadata={
            "help": "processes that decode and find joints (default: 0, none beside the model's)"
        },
    )
    folder_fps: float | None = field(
        default=None,
        metadata={
            "help": "rate of folders of frames, and of joints alone, where they say none of their "
            "own (default: data.fps)"
        },
    )
    poses: Literal["openpose", "pose", "wholebody", "holistic"] | None = field(
        default=None,
        metadata={
            "help": "in which form files of joints are written (default: what their endings say; "
            ".npz: this package's own)"
        },
    )
    picture_size: str | None = field(
        default=None,
        metadata={
            "metavar": "WIDTHxHEIGHT",
            "help": "of the picture that joints in pixels are in, where no video and no file says "
            "it, as of OpenPose",
        },
    )
    pose_model: Path | None = None
    """MediaPipe's model file; None: the one that MediaPipe brings with it."""


@dataclass(frozen=True)
class Limits:
    """What a clip from anybody may cost."""

    max_seconds: float = field(
        default=60.0, metadata={"help": "longest clip (default: %(default)g)"}
    )
    max_work_seconds: float = field(
        default=300.0,
        metadata={
            "help": "longest time for decoding a clip, finding its joints and drawing them; it is "
            "ended then, and the next one begins (default: %(default)g)"
        },
    )
    max_pixels: int = field(
        default=3840 * 2160, metadata={"help": "largest picture (default: %(default)s pixels)"}
    )
    max_frames: int = field(
        default=3600,
        metadata={
            "help": "most frames of a clip, at data.fps or at its own rate where that is null "
            "(default: %(default)s)"
        },
    )

    def refuse_long(self, seconds: float) -> None:
        """Raise VideoError for a clip that is longer than allowed."""
        if seconds > self.max_seconds:
            raise VideoError(f"the clip is longer than {self.max_seconds:g} s; cut it")

    def refuse_large(self, width: int, height: int) -> None:
        """Raise VideoError for pictures that are larger than allowed."""
        if width * height > self.max_pixels:
            raise VideoError(
                f"the picture of {width} x {height} is too large; at most {self.max_pixels:,} "
                "pixels"
            )

    def refuse_many(self, frames: int) -> None:
        """Raise VideoError for more frames than allowed."""
        if frames > self.max_frames:
            raise VideoError(
                f"the clip has more than {self.max_frames:,} frames; cut it, or record at a lower "
                "rate"
            )


@dataclass(frozen=True)
class Server:
    """Where the page of `signfuse serve` is, and what a visitor may ask of it."""

    limits: Limits
    host: str = field(
        default="127.0.0.1",
        metadata={
            "help": "address to listen at (default: %(default)s, this machine alone; browsers "
            "record from other machines over https only)"
        },
    )
    port: int = field(default=7860, metadata={"help": "default: %(default)s"})
    max_megabytes: int = field(
        default=100, metadata={"help": "largest upload (default: %(default)s)"}
    )
    max_waiting: int = field(
        default=16,
        metadata={"help": "clips in the queue before the next is refused (default: %(default)s)"},
    )
    max_kept_megabytes: int = field(
        default=2000,
        metadata={
            "help": "size of all clips that wait or were just answered, before the next upload is "
            "refused (default: %(default)s)"
        },
    )
    allow_host: Sequence[str] = field(
        default=(),
        metadata={
            "nargs": "+",
            "metavar": "NAME",
            "help": "other names under which browsers may open the page, such as that of a proxy "
            "(default: localhost, --host, and addresses in numbers)",
        },
    )
    decoding: Sequence[str] = _decoding()
