"""Files of joints as others publish them, read by the format that a corpus names.

One module reads one family; each maps its points by name to the 75 joints of
:mod:`signfuse_dist.skeleton`. Joints that a family does not have are missing, and so is a point
whose confidence is below ``pose_confidence``. Left and right are the signer's in all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from signfuse_dist.corpora import ClipRow
from signfuse_dist.corpora.boston104 import video_of
from signfuse_dist.corpora.poses import BOSTON104, HOLISTIC, OPENPOSE, POSE, WHOLEBODY
from signfuse_dist.data.boston104_tracks import read_boston104_track
from signfuse_dist.data.holistic import read_holistic
from signfuse_dist.data.joints import PoseError, PoseTrack
from signfuse_dist.data.manifest import Packing
from signfuse_dist.data.openpose import read_openpose
from signfuse_dist.data.pose_files import read_pose_file
from signfuse_dist.data.tracks import with_size
from signfuse_dist.data.wholebody import read_wholebody

_READERS: Mapping[str, Callable[[Path, float], PoseTrack]] = {
    OPENPOSE: read_openpose,
    POSE: read_pose_file,
    WHOLEBODY: read_wholebody,
    HOLISTIC: read_holistic,
}
PUBLISHED = frozenset((*_READERS, BOSTON104))
"""Names of the formats, which stand in the place of an extractor's in a set of shards."""


def read_published(row: ClipRow, packing: Packing) -> PoseTrack:
    """Read the joints of a row in the format that ``packing`` names.

    Raises :class:`PoseError` where there is no such file, and where it is none of that format.
    """
    path = row.joints
    if path is None or not path.exists():
        raise PoseError(f"no poses: {path.name if path else row.source} is not there")
    if packing.extractor == BOSTON104:
        return read_boston104_track(path, video_of(row.id))
    track = _READERS[packing.extractor](path, packing.settings.pose_confidence)
    return with_size(track, row.size)
