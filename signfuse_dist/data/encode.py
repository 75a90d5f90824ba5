"""One clip from its row to its bytes, in one pass: decoded, compressed, seen by the extractor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from signfuse_dist.data.corpora import FolderFrames, Row
from signfuse_dist.data.frames import VideoError, VideoFrame
from signfuse_dist.data.manifest import Packing
from signfuse_dist.data.pose import JointsFile, PoseExtractor
from signfuse_dist.data.shard import EncodedClip
from signfuse_dist.data.video import open_video, read_frames
from signfuse_dist.skeleton import LEFT_HAND, RIGHT_HAND


def encode_clip(row: Row, packing: Packing, extractor: PoseExtractor | None) -> EncodedClip:
    """Return the clip of ``row``. Its own joints are used where it has some.

    Only compressed frames are held. Raises :class:`VideoError` and
    :class:`~signfuse_dist.data.pose.PoseError` for what is wrong with the row's files.
    """
    settings = packing.settings
    finder = JointsFile(row.joints) if row.joints else extractor
    if finder is None:
        raise ValueError("a row without joints needs a pose extractor")
    jpegs: list[bytes] = []
    known = row.folder or FolderFrames(settings.fps, None)
    with open_video(row.video, known.fps, known.suffix) as source:
        frames = read_frames(
            source, settings.frame_size, row.start, row.end, settings.fps, row.joints is not None
        )
        pose, mask = finder.extract(_compressing(frames, settings.jpeg_quality, jpegs))
        fps = settings.fps or source.fps
    if not len(jpegs) == len(pose) == len(mask):
        raise VideoError(f"bad joints: {len(pose)} frames of joints for {len(jpegs)} frames")
    return EncodedClip(_record(row, packing, fps, mask), jpegs, pose, mask)


def _compressing(
    frames: Iterable[VideoFrame], quality: int, jpegs: list[bytes]
) -> Iterator[VideoFrame]:
    """Pass the frames on to the pose extractor, each compressed on the way."""
    for frame in frames:
        jpegs.append(
            simplejpeg.encode_jpeg(
                frame.square, quality=quality, colorspace="RGB", colorsubsampling="420"
            )
        )
        yield frame


def _record(row: Row, packing: Packing, fps: float, mask: NDArray[np.bool_]) -> dict[str, Any]:
    return {
        "id": row.id,
        "text": row.text,
        "num_frames": len(mask),
        "fps": float(fps),
        "source": row.source,
        "start": row.start,
        "end": row.end,
        "signer": row.signer,
        "language": row.language,
        "split": row.split,
        "joint_layout": packing.joint_layout,
        "extractor": packing.extractor,
        "extractor_version": packing.extractor_version,
        "flags": [*row.flags, *_absences(mask)],
    }


def _absences(mask: NDArray[np.bool_]) -> list[str]:
    """Name what was found in no frame at all."""
    right = len(LEFT_HAND) + len(RIGHT_HAND)
    groups = {
        "no_person": mask,
        "no_left_hand": mask[:, : len(LEFT_HAND)],
        "no_right_hand": mask[:, len(LEFT_HAND) : right],
    }
    return [flag for flag, found in groups.items() if not found.any()]
