"""One clip from its row to its bytes, in one pass: decoded, compressed, seen by the extractor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from signfuse_dist.corpora import ClipRow, FolderFrames
from signfuse_dist.data.clock import VideoError
from signfuse_dist.data.frame_folder import FrameFolder
from signfuse_dist.data.joints import Joints, JointsFile, NoJoints, PoseExtractor
from signfuse_dist.data.manifest import Packing
from signfuse_dist.data.picture import VideoFrame
from signfuse_dist.data.shard import EncodedClip, EncodedPose
from signfuse_dist.data.video import FrameReader, VideoFile, open_video
from signfuse_dist.skeleton import LEFT_HAND, RIGHT_HAND


def encode_clip(row: ClipRow, packing: Packing, extractor: PoseExtractor | None) -> EncodedClip:
    """Return the clip of ``row``; without an extractor, with the joints that the row names.

    Only compressed frames are held. Raises :class:`VideoError` and
    :class:`~signfuse_dist.data.joints.PoseError` for what is wrong with the row's files.
    """
    settings = packing.settings
    finder = _finder(row, extractor)
    jpegs: list[bytes] = []
    with _open(row, packing) as source:
        frames = _frames(source, row, packing, finder)
        joints = finder.extract(_compressing(frames, settings.jpeg_quality, jpegs))
    if not len(jpegs) == len(joints.pose) == len(joints.mask):
        raise VideoError(f"bad joints: {len(joints.pose)} frames of joints for {len(jpegs)} frames")
    record = _record(row, frames.fps) | _pose_record(row, packing, joints, finder)
    record["flags"] = [*row.flags, *frames.flags, *record["flags"]]
    return EncodedClip(record, jpegs, joints.pose, joints.mask, joints.failure)


def encode_pose(row: ClipRow, packing: Packing, extractor: PoseExtractor | None) -> EncodedPose:
    """Return the joints of ``row`` alone, found in the same frames as :func:`encode_clip`'s.

    Raises as that does.
    """
    finder = _finder(row, extractor)
    with _open(row, packing) as source:
        joints = finder.extract(iter(_frames(source, row, packing, finder)))
    record = _pose_record(row, packing, joints, finder)
    return EncodedPose(record, joints.pose, joints.mask, joints.failure)


def _finder(row: ClipRow, extractor: PoseExtractor | None) -> PoseExtractor:
    if extractor is not None:
        return extractor
    if row.joints is None:
        raise ValueError("a row without joints needs a pose extractor")
    return JointsFile(row.joints)


def _open(row: ClipRow, packing: Packing) -> VideoFile | FrameFolder:
    known = row.folder or FolderFrames(packing.settings.fps, None)
    return open_video(row.video, known.fps, known.suffix)


def _frames(
    source: VideoFile | FrameFolder, row: ClipRow, packing: Packing, finder: PoseExtractor
) -> FrameReader:
    settings = packing.settings
    return FrameReader(
        source,
        settings.frame_size,
        row.start,
        row.end,
        settings.fps,
        exact_index=isinstance(finder, JointsFile),
        max_gap=settings.max_gap,
    )


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


def _record(row: ClipRow, fps: float) -> dict[str, Any]:
    return {
        "text": row.text,
        "fps": float(fps),
        "source": row.source,
        "start": row.start,
        "end": row.end,
        "signer": row.signer,
        "language": row.language,
        "split": row.split,
    }


def _pose_record(
    row: ClipRow, packing: Packing, joints: Joints, finder: PoseExtractor
) -> dict[str, Any]:
    return {
        "id": row.id,
        "num_frames": len(joints.mask),
        "joint_layout": packing.joint_layout,
        "extractor": packing.extractor,
        "extractor_version": packing.extractor_version,
        "failed_frames": joints.failed_frames,
        "found_frames": int(joints.mask.any(axis=1).sum()),
        "flags": _flags(joints, finder),
    }


def _flags(joints: Joints, finder: PoseExtractor) -> list[str]:
    """Name what was found in no frame at all, where somebody looked, and that frames failed."""
    absent = [] if isinstance(finder, NoJoints) else _absences(joints.mask)
    return [*absent, *(["failed_frames"] if joints.failed_frames else [])]


def _absences(mask: NDArray[np.bool_]) -> list[str]:
    right = len(LEFT_HAND) + len(RIGHT_HAND)
    groups = {
        "no_person": mask,
        "no_left_hand": mask[:, : len(LEFT_HAND)],
        "no_right_hand": mask[:, len(LEFT_HAND) : right],
    }
    return [flag for flag, group_mask in groups.items() if not group_mask.any()]
