"""Little videos, joints and tables that tests make for themselves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np

from signfuse_dist.skeleton import NUM_JOINTS

FPS = 10


def picture(number: int, width: int, height: int) -> np.ndarray:
    """A smooth picture that gets brighter with its number, red on its left edge."""
    image = np.full((height, width, 3), 40 + 3 * (number % 60), dtype=np.uint8)
    image[:, : max(1, width // 4)] = (220, 20, 20)
    return image


def write_video(
    path: Path, frames: int = 8, width: int = 64, height: int = 48, **options: str
) -> Path:
    """Write a video at 10 frames per second; ``options`` are the container's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"qmin": "1", "qmax": "3"}
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(number, width, height), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def truncated(path: Path, share: float) -> Path:
    """Cut a file down to its first ``share``."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def write_joints(path: Path, frames: int = 8, absent: slice = slice(0, 0)) -> Path:
    """Write joints that differ from frame to frame, of 700; those of ``absent`` are masked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pose = np.zeros((frames, NUM_JOINTS, 2), dtype=np.float32)
    pose += (np.arange(frames, dtype=np.float32) % 700)[:, None, None] / 100 + 0.1
    mask = np.ones((frames, NUM_JOINTS), dtype=bool)
    mask[:, absent] = False
    np.savez(path, pose=pose, mask=mask)
    return path


def write_table(path: Path, rows: Sequence[Sequence[object]], columns: Sequence[str]) -> Path:
    """Write a TSV with a header."""
    lines = ["\t".join(columns), *("\t".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


COLUMNS = ("id", "video", "text", "joints")


def write_corpus(folder: Path, clips: int = 5) -> Path:
    """Write a table of whole clips with joints of their own; return the table."""
    rows = []
    for number in range(clips):
        frames = 6 + number % 3
        write_video(folder / f"{number}.mp4", frames)
        write_joints(folder / f"{number}.npz", frames)
        rows.append((f"clip.{number}", f"{number}.mp4", f"sentence {number}", f"{number}.npz"))
    return write_table(folder / "corpus.tsv", rows, COLUMNS)
