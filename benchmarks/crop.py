"""What `pack --crop signer` gives and costs: the size of hands, and frames a second of packing.

Sizes come from one extraction: the joints in the square that is cut out, and the same joints where
they would lie if the picture were letterboxed. Speed is that of the packer's encoder in this
process, whole pictures and cropped ones in turn over the same clips.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from signfuse_dist.answer import answer
from signfuse_dist.cli import add_options, from_options, parse
from signfuse_dist.cli.data import add_pose_model
from signfuse_dist.corpora import Box, ClipRow, read_corpus
from signfuse_dist.data.crop import hands_cut, in_picture
from signfuse_dist.data.encode import encode_clip
from signfuse_dist.data.joints import PoseExtractor
from signfuse_dist.data.manifest import PackConfig, Packing
from signfuse_dist.data.mediapipe import choose_extractor
from signfuse_dist.data.shard import EncodedClip
from signfuse_dist.errors import UserError
from signfuse_dist.skeleton import JOINT_INDEX, JOINT_LAYOUT, LEFT_HAND, RIGHT_HAND

SPLIT = "train"
GOAL = 0.95  # of the frames a second without a crop
_HANDS = (slice(0, len(LEFT_HAND)), slice(len(LEFT_HAND), len(LEFT_HAND) + len(RIGHT_HAND)))
_SHOULDERS = [JOINT_INDEX["left_shoulder"], JOINT_INDEX["right_shoulder"]]


@dataclass(frozen=True)
class CropBench:
    """What is measured, and how long."""

    root: Path = field(
        metadata={"metavar": "TABLE", "help": "clips, a TSV with rows of split train"}
    )
    clips: int = field(
        default=0, metadata={"help": "measure sizes on so many of them (default: all)"}
    )
    timed_clips: int = field(
        default=4, metadata={"help": "measure speed on so many of them (default: %(default)s)"}
    )
    repeats: int = field(
        default=3, metadata={"help": "runs of each kind, in turn (default: %(default)s)"}
    )


@dataclass(frozen=True)
class Lengths:
    """Pixels of the stored square, one a frame in which there was something to measure."""

    hands: NDArray[np.float64]
    """Longer side of the box around the landmarks of a hand."""
    shoulders: NDArray[np.float64]

    @classmethod
    def of(cls, points: NDArray[np.float64], mask: NDArray[np.bool_]) -> Lengths:
        """Measure joints ``[frames, 75, 2]`` in pixels; a hand counts where all of it was found."""
        hands = [
            np.ptp(points[mask[:, hand].all(axis=1)][:, hand], axis=1).max(axis=-1)
            for hand in _HANDS
        ]
        left, right = points[mask[:, _SHOULDERS].all(axis=1)][:, _SHOULDERS].transpose(1, 0, 2)
        return cls(np.concatenate(hands), np.linalg.norm(left - right, axis=-1))


def measure_sizes(rows: Sequence[ClipRow], extractor: PoseExtractor) -> str:
    """Return the table of sizes with the whole picture and with the square around the signer."""
    before, after, sides, cut_clips, whole = [], [], [], 0, 0
    for row in tqdm(rows, unit="clip", desc="sizes"):
        clip = encode_clip(row, _packing("signer", extractor), extractor)
        if clip.record["box"] is None:
            whole += 1
            continue
        box = Box(*clip.record["box"])
        size = PackConfig().frame_size
        width, height = 1 / (box.x1 - box.x0), 1 / (box.y1 - box.y0)  # in sides of the square
        points = in_picture(clip.pose, box) * (width, height) / max(width, height) * size
        before.append(Lengths.of(points, clip.mask))
        after.append(Lengths.of(clip.pose * np.float64(size), clip.mask))
        sides.append(1 / min(width, height))
        cut_clips += bool(hands_cut(clip.pose, clip.mask, box)[0].any())
    lines = [f"{'pixels, median (5% and 95%)':34}{'whole picture':>24}{'signer':>24}"]
    for name in ("hands", "shoulders"):
        pair = [np.concatenate([getattr(one, name) for one in many]) for many in (before, after)]
        lines.append(f"{name + f', {len(pair[0])}':34}" + "".join(map(_spread, pair)))
    sides_of = f"{np.median(sides):.2f} ({min(sides):.2f} to {max(sides):.2f})"
    return "\n".join(
        [
            *lines,
            f"side of the square over the shorter side of the picture, median (range): {sides_of}",
            f"clips with a landmark of a hand cut off: {cut_clips} of {len(sides)}; "
            f"not cropped: {whole}",
        ]
    )


def measure_speed(rows: Sequence[ClipRow], extractor: PoseExtractor, repeats: int) -> str:
    """Return frames a second of processor and of wall time without a crop and with one."""
    rates: dict[str, list[tuple[float, float]]] = {"none": [], "signer": []}
    for _ in tqdm(range(repeats), unit="run", desc="speed"):
        for crop, of in rates.items():
            wall, cpu, frames = time.perf_counter(), time.process_time(), 0
            for row in rows:
                frames += len(_encoded(row, crop, extractor).jpegs)
            of.append((frames / (time.process_time() - cpu), frames / (time.perf_counter() - wall)))
    lines = [f"{'frames a second, best of the runs':34}{'none':>12}{'signer':>12}{'ratio':>12}"]
    for name, which in (("processor time", 0), ("wall", 1)):
        none, signer = (max(rate[which] for rate in rates[crop]) for crop in rates)
        ratio = signer / none
        met = "met" if ratio >= GOAL else "missed"
        lines.append(f"{name:34}{none:12.2f}{signer:12.2f}{ratio:12.3f}   goal {GOAL}: {met}")
    return "\n".join(lines)


def _spread(values: NDArray[np.float64]) -> str:
    low, middle, high = np.percentile(values, (5, 50, 95))
    return f"{f'{middle:.1f} ({low:.1f}, {high:.1f})':>24}"


def _encoded(row: ClipRow, crop: str, extractor: PoseExtractor) -> EncodedClip:
    return encode_clip(row, _packing(crop, extractor), extractor)


def _packing(crop: str, extractor: PoseExtractor) -> Packing:
    settings = replace(PackConfig(), crop=crop)  # type: ignore[arg-type]
    return Packing(
        "bench", "", SPLIT, JOINT_LAYOUT, extractor.name, extractor.version, settings, "0" * 64
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for, print the figures, return the exit status."""
    command = argparse.ArgumentParser(
        prog="python benchmarks/crop.py",
        description="Find the joints of clips with MediaPipe and compare the sizes of hands and "
        "shoulders in letterboxed pictures with those in squares around the signer; then compare "
        "the speed of packing. Takes a second for each 20 frames.",
        epilog="Example: python benchmarks/crop.py --root clips.tsv --timed-clips 4. Figures: "
        "docs/benchmarks.md.",
    )
    add_options(command, CropBench)
    add_pose_model(command)
    command.set_defaults(run=_crop)
    options = parse(command, arguments)
    return answer(lambda: options.run(options))


def _crop(options: argparse.Namespace) -> int:
    bench = from_options(CropBench, options)
    rows = [row for row in read_corpus("table", bench.root, SPLIT).rows if row.video.is_file()]
    if not rows:
        raise UserError(f"{bench.root}: no row of split {SPLIT!r} names a video file")
    extractor = choose_extractor(options.pose_model)
    spread = rows[:: max(1, len(rows) // bench.timed_clips)][: bench.timed_clips]
    print(measure_speed(spread, extractor, bench.repeats), flush=True)
    print(measure_sizes(rows[: bench.clips] if bench.clips else rows, extractor))
    return 0


if __name__ == "__main__":
    sys.exit(main())
