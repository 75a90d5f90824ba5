"""A clip as a video with its skeleton drawn over it."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import simplejpeg

from signfuse_dist.data.draw import draw_skeleton
from signfuse_dist.data.shard import EncodedClip

# Smaller frames are enlarged by a whole factor, or the skeleton would cover the signer.
_READABLE_SIDE = 384  # pixels
_MAX_FPS = 60  # a browser's recording can claim a thousand


def write_overlay(path: Path, clip: EncodedClip) -> None:
    """Write every frame of ``clip`` with its skeleton as H.264 in an MP4, at the clip's rate."""
    rate = Fraction(min(float(clip.record["fps"]), _MAX_FPS)).limit_denominator(1000)
    side = simplejpeg.decode_jpeg_header(clip.jpegs[0])[0]
    factor = max(1, _READABLE_SIDE // side)
    even = side * factor // 2 * 2  # the codec halves the colours' resolution
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=rate, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = even, even, "yuv420p"
        for jpeg, pose, mask in zip(clip.jpegs, clip.pose, clip.mask, strict=True):
            frame = simplejpeg.decode_jpeg(jpeg).repeat(factor, axis=0).repeat(factor, axis=1)
            drawn = draw_skeleton(frame, np.clip(pose, -1.0, 2.0), mask)[:even, :even]
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(drawn), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
