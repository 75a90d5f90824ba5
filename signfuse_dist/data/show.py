"""A clip as a picture: its frames side by side with the skeleton drawn over them."""

from __future__ import annotations

import difflib

import numpy as np
from PIL import Image

from signfuse_dist.data.draw import contact_sheet
from signfuse_dist.data.manifest import (
    Manifest,
    SampleEntry,
    load_index,
    load_manifest,
    pose_path,
)
from signfuse_dist.data.shard import Clip, read_clip, read_pose
from signfuse_dist.data.storage import Folder
from signfuse_dist.errors import UserError

# Smaller frames are enlarged by a whole factor, or the skeleton would cover the signer.
_READABLE_SIDE = 192  # pixels


def show(folder: Folder, clip_id: str, num_frames: int, poses: str | None) -> Image.Image:
    """Return ``num_frames`` evenly spread frames of a clip, with joints of pose set ``poses``.

    Raises :class:`UserError` when the split has no such clip, or its shard is damaged.
    """
    shard, entry = find_clip(folder, load_manifest(folder), clip_id)
    chosen = spread(entry.num_frames, num_frames)
    clip = read_clip(folder, shard, entry.members, chosen)
    if poses is not None:
        other = folder / pose_path(poses)
        shard, entry = find_clip(other, load_manifest(other), clip_id)
        joints = read_pose(other, shard, entry.members, chosen)
        clip = Clip(clip.record, clip.frames, joints.pose, joints.mask)
    return sheet(clip, columns=min(len(chosen), 6))


def find_clip(folder: Folder, manifest: Manifest, clip_id: str) -> tuple[str, SampleEntry]:
    """Return the shard and the entry of a clip; raise :class:`UserError` where there is none."""
    ids = []
    for shard in manifest.shards:
        for entry in load_index(folder, shard).samples:
            if entry.id == clip_id:
                return shard.name, entry
            ids.append(entry.id)
    near = difflib.get_close_matches(clip_id, ids, n=3) or ids[:3]
    raise UserError(f"{folder} holds no clip {clip_id!r}; it holds {', '.join(near)} ...")


def spread(num_frames: int, wanted: int) -> list[int]:
    """Return at most ``wanted`` frames, the first and the last among them, each once."""
    chosen: list[int] = np.unique(
        np.linspace(0, num_frames - 1, wanted).round().astype(int)
    ).tolist()
    return chosen


def sheet(clip: Clip, columns: int) -> Image.Image:
    """Return the frames of a clip in a grid, each with its skeleton.

    Joints far outside the frame are drawn at its rim, and those that are not finite are left out:
    a shard is anybody's file, and the drawing library takes neither.
    """
    factor = max(1, _READABLE_SIDE // clip.frames.shape[1])
    frames = clip.frames.repeat(factor, axis=1).repeat(factor, axis=2)
    finite = np.isfinite(clip.pose).all(axis=-1)
    pose = np.clip(np.nan_to_num(clip.pose), -1.0, 2.0)
    return contact_sheet(frames, pose, clip.mask & finite, columns)
