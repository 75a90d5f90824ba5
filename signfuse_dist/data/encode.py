"""One clip from its row to its bytes: decoded, seen by the extractor, cropped, compressed.

Whole pictures, and those that are cut around a box of the corpus, are read once. The square around
the signer is known only when the joints of the last frame are, so such a clip is decoded twice:
once for the joints, in the whole picture, and once for its frames. To keep the pictures in between
would take gigabytes of memory, to extract the joints twice would take the time of everything else
together many times over; a second decoding takes a few hundredths of it. The joints are moved into
the square by arithmetic. Of a clip of joints alone nothing is decoded: its joints are its film.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from signfuse_dist.corpora import Box, ClipRow, FolderFrames
from signfuse_dist.data.clock import VideoError
from signfuse_dist.data.crop import NOT_CROPPED, hands_cut, moved, signer_box
from signfuse_dist.data.frame_folder import FrameFolder
from signfuse_dist.data.joints import Joints, JointsFile, NoJoints, PoseError, PoseExtractor
from signfuse_dist.data.manifest import Packing
from signfuse_dist.data.picture import Placement, VideoFrame, squared
from signfuse_dist.data.published_poses import PUBLISHED, read_published
from signfuse_dist.data.shard import EncodedClip, EncodedPose
from signfuse_dist.data.tracks import TrackJoints, TrackSource
from signfuse_dist.data.video import FrameReader, VideoFile, open_video
from signfuse_dist.skeleton import LEFT_HAND, RIGHT_HAND

Sizes = list[tuple[int, int]]
"""Width and height of the upright picture of each frame."""
_CUT_HANDS = 0.01
"""Share of the landmarks of hands cut off above which a clip is flagged."""


def encode_clip(row: ClipRow, packing: Packing, extractor: PoseExtractor | None) -> EncodedClip:
    """Return the clip of ``row``; without an extractor, with the joints that the row names.

    Only compressed frames are held. Raises :class:`VideoError` and
    :class:`~signfuse_dist.data.joints.PoseError` for what is wrong with the row's files, a box of
    less than a pixel among it.
    """
    quality, crop = packing.settings.jpeg_quality, packing.settings.crop
    finder = _finder(row, packing, extractor)
    jpegs: list[bytes] = []
    sizes: Sizes = []
    box = row.box if crop == "box" else None
    with _open(row, packing, finder) as source:
        reader = _frames(source, row, packing, finder, box)
        frames = _sized(reader, sizes)
        if crop != "signer" and row.video is not None:
            frames = _compressing(frames, quality, jpegs)
        joints = finder.extract(frames)
    if not len(sizes) == len(joints.pose) == len(joints.mask):
        raise VideoError(f"bad joints: {len(joints.pose)} frames of joints for {len(sizes)} frames")
    if box is not None:
        box = squared(box, *sizes[0])
    if crop == "signer":
        box = _signer(joints, sizes, packing)
        joints = _moved(joints, sizes, packing, box)
    if crop == "signer" and row.video is not None:
        with _open(row, packing, finder) as source:
            for _ in _compressing(_frames(source, row, packing, finder, box), quality, jpegs):
                pass
        if len(jpegs) != len(sizes):
            raise VideoError(
                f"unreadable video: {row.source} had {len(sizes)} frames when its joints were "
                f"found, and {len(jpegs)} when it was read again"
            )
    record = _record(row, reader.fps) | _pose_record(row, packing, joints, finder)
    if row.video is None:
        record["pictures"] = False
    if crop != "none":
        record["box"] = None if box is None else list(box)
    record["flags"] = [
        *row.flags,
        *reader.flags,
        *record["flags"],
        *_crop_flags(joints, packing, box),
    ]
    return EncodedClip(record, jpegs, joints.pose, joints.mask, joints.failure)


def encode_pose(
    row: ClipRow, packing: Packing, extractor: PoseExtractor | None, box: Box | None = None
) -> EncodedPose:
    """Return the joints of ``row`` alone, found in the same frames as :func:`encode_clip`'s.

    ``box`` is the square of the packed clip where that was cut around its signer: joints of another
    extractor do not move it. Raises as that does.
    """
    finder = _finder(row, packing, extractor)
    sizes: Sizes = []
    own = row.box if packing.settings.crop == "box" else None
    with _open(row, packing, finder) as source:
        joints = finder.extract(_sized(_frames(source, row, packing, finder, own), sizes))
    if packing.settings.crop == "signer":
        joints = _moved(joints, sizes, packing, box)
    record = _pose_record(row, packing, joints, finder)
    return EncodedPose(record, joints.pose, joints.mask, joints.failure)


def _finder(row: ClipRow, packing: Packing, extractor: PoseExtractor | None) -> PoseExtractor:
    """Return what gives the joints of a row: ``extractor``, else a reader of the row's own file."""
    if extractor is not None:
        return extractor
    if row.joints is None:
        raise ValueError("a row without joints needs a pose extractor")
    if packing.extractor not in PUBLISHED:
        return JointsFile(row.joints)
    return TrackJoints(read_published(row, packing), packing.extractor, row.joints_start)


def _open(
    row: ClipRow, packing: Packing, finder: PoseExtractor
) -> VideoFile | FrameFolder | TrackSource:
    """Open the film of a row: its video, or where it has none its joints."""
    known = row.folder or FolderFrames(packing.settings.fps, None)
    if row.video is not None:
        return open_video(row.video, known.fps, known.suffix)
    if isinstance(finder, TrackJoints):
        track, size = finder.track, row.size
    elif isinstance(finder, JointsFile):
        track, size = finder.track(packing.settings.frame_size), None
    else:
        raise PoseError(
            f"no video: {row.source} is joints alone, and {finder.name} looks at pictures"
        )
    # The rate that is stored is the film's only where neither file nor row says another.
    fps = None if row.folder is None and track.fps is not None else known.fps
    return TrackSource(track, row.named_file, fps, size)


def _frames(
    source: VideoFile | FrameFolder | TrackSource,
    row: ClipRow,
    packing: Packing,
    finder: PoseExtractor,
    box: Box | None,
) -> FrameReader:
    settings = packing.settings
    if isinstance(finder, TrackJoints):
        finder.compare(source.rates[0], whole=row.start is None and row.end is None)
    return FrameReader(
        source,
        settings.frame_size,
        row.start,
        row.end,
        settings.fps,
        exact_index=isinstance(finder, (JointsFile, TrackJoints)),
        max_gap=settings.max_gap,
        box=box,
    )


def _sized(frames: Iterable[VideoFrame], sizes: Sizes) -> Iterator[VideoFrame]:
    """Pass the frames on, the size of each picture noted on the way."""
    for frame in frames:
        sizes.append((frame.picture.width, frame.picture.height))
        yield frame


def _signer(joints: Joints, sizes: Sizes, packing: Packing) -> Box | None:
    """Return the square around the signer whose ``joints`` are of the letterboxed square.

    Of a folder whose pictures differ in size, it is a square in the first.
    """
    size = packing.settings.frame_size
    shares = np.zeros(joints.pose.shape)
    for picture in set(sizes):  # mostly one
        rows = [number for number, other in enumerate(sizes) if other == picture]
        shares[rows] = Placement.centred(*picture, size).to_picture(joints.pose[rows])
    return signer_box(shares, joints.mask, *sizes[0])


def _moved(joints: Joints, sizes: Sizes, packing: Packing, box: Box | None) -> Joints:
    """Return joints of the letterboxed square as those of the square that ``box`` fills."""
    if box is None:
        return joints
    pose = moved(joints.pose, joints.mask, sizes, packing.settings.frame_size, box)
    return replace(joints, pose=pose)


def _crop_flags(joints: Joints, packing: Packing, box: Box | None) -> list[str]:
    """Name a picture that was not cropped, and a hand that was cut off."""
    if packing.settings.crop == "none":
        return []
    if box is None:
        return [NOT_CROPPED]
    cut, filmed = hands_cut(joints.pose, joints.mask, box)
    return ["hand_outside_box"] if cut.sum() > _CUT_HANDS * filmed.sum() else []


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
        **({} if row.corpus is None else {"corpus": row.corpus}),
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
        **({"pose_layout": finder.layout} if isinstance(finder, TrackJoints) else {}),
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
