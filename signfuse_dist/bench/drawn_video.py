"""A video to measure with where no real one is given: the drawn signer under camera noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np

from signfuse_dist.data.synthetic import DEFAULT_SEED, DEFAULT_SIZES, plan_corpus, render_clip

WIDTH, HEIGHT, FPS = 1280, 720, 25
_REPEATS = 2  # of the sentence
_NOISE = 6.0  # standard deviation in grey levels: without noise, decoding would cost too little
_NUM_NOISES = 7  # different fields of noise, shown in turn


def write_drawn_video(path: Path) -> Path:
    """Write an H.264 video of 720 lines and two seconds, always the same."""
    planned = plan_corpus(DEFAULT_SEED, DEFAULT_SIZES)[0]
    clip = render_clip(planned.sentence, planned.signer, planned.seed, frame_size=HEIGHT)
    generator = np.random.default_rng(DEFAULT_SEED)
    noises = generator.normal(0.0, _NOISE, (_NUM_NOISES, HEIGHT, WIDTH, 1)).astype(np.int16)
    left = (WIDTH - HEIGHT) // 2
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("h264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.options = {"preset": "veryfast"}
        for number, frame in enumerate(np.concatenate([clip.frames] * _REPEATS)):
            picture = np.pad(frame, ((0, 0), (left, left), (0, 0)), mode="edge")
            pixels = (picture + noises[number % _NUM_NOISES]).clip(0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path
