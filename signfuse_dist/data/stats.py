"""What is in a packed split: lengths, texts, detections and signers, as tables and as a picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tqdm import tqdm

from signfuse_dist.data.manifest import (
    Manifest,
    SampleEntry,
    ShardError,
    load_index,
    load_manifest,
    pose_path,
)
from signfuse_dist.data.shard import ClipPose, read_pose
from signfuse_dist.data.storage import Folder
from signfuse_dist.errors import UserError
from signfuse_dist.skeleton import BODY, FACE, LEFT_HAND, RIGHT_HAND

_QUANTILES = {"min": 0, "1%": 1, "median": 50, "99%": 99, "max": 100}
_SHOWN = 12  # signers with the most clips
GROUPS = {"left hand": LEFT_HAND, "right hand": RIGHT_HAND, "body": BODY, "face": FACE}


@dataclass(frozen=True)
class SplitStats:
    """Figures of n clips; arrays have one row a clip."""

    name: str
    manifest: Manifest
    poses: Manifest
    """Of the shards that the joints come from: the clips' own, or a pose set's."""
    frames: NDArray[np.int64]
    seconds: NDArray[np.float64]
    characters: NDArray[np.int64]
    words: NDArray[np.int64]
    """Parts between spaces: of little use for a language that is written without."""
    found: NDArray[np.int64]
    """Frames in which any landmark of a group was found, ``[n, groups]``."""
    signers: Mapping[str, int]
    flags: Mapping[str, int]

    def __str__(self) -> str:
        signers = f"signers: {len(self.signers)}" if self.signers else "signers: none is named"
        parts = [*self._head(), "", *self._lengths(), "", *self._detections(), "", signers]
        parts += _counts(self.signers)
        if self.flags:
            parts += ["", "clips flagged", *_counts(self.flags)]
        return "\n".join(parts)

    def _head(self) -> list[str]:
        manifest, packing, poses = self.manifest, self.manifest.packing, self.poses.packing
        fps = packing.settings.fps
        rate = "each video's own rate" if fps is None else f"{fps:g} frames/s"
        return [
            f"{self.name}: {packing.corpus}, split {packing.split}",
            f"  {manifest.num_rows:,} rows = {manifest.num_samples:,} clips + "
            f"{manifest.num_dropped:,} dropped; {manifest.num_frames:,} frames, "
            f"{self.seconds.sum() / 3600:.2f} h, {len(manifest.shards)} shards",
            f"  {packing.settings.frame_size} pixels, {rate}; joints by {poses.extractor} "
            f"{poses.extractor_version}, which failed at {self.poses.num_failed_frames:,} frames",
        ]

    def _lengths(self) -> list[str]:
        rows: dict[str, NDArray[Any]] = {
            "frames": self.frames,
            "seconds": self.seconds,
            "characters": self.characters,
            "words": self.words,
        }
        lines = [f"{'a clip':12s}" + "".join(f"{name:>9s}" for name in (*_QUANTILES, "mean"))]
        for name, values in rows.items():
            figures = [*np.percentile(values, list(_QUANTILES.values())), values.mean()]
            lines.append(f"{name:12s}" + "".join(f"{figure:9.2f}" for figure in figures))
        return lines

    def _detections(self) -> list[str]:
        never = (self.found == 0).sum(axis=0)
        lines = [f"{'found':12s}{'frames':>9s}{'clips without':>16s}"]
        for name, share, missing in zip(GROUPS, self._shares(), never, strict=True):
            lines.append(f"{name:12s}{share:9.1%}{missing:16,}")
        return lines

    def _shares(self) -> NDArray[np.float64]:
        """Return the share of all frames in which each group was found, ``[groups]``."""
        return np.asarray(self.found.sum(axis=0) / self.frames.sum())

    def plot(self) -> bytes:
        """Return four panels as a PNG: lengths, texts, detections, signers."""
        figure = Figure(figsize=(11, 7), dpi=110, layout="constrained")
        FigureCanvasAgg(figure)
        lengths, texts, detections, signers = figure.subplots(2, 2).flatten()
        _histogram(lengths, self.frames, "frames of a clip")
        _histogram(texts, self.characters, "characters of a text")
        bars = detections.barh(list(GROUPS), 100 * self._shares())
        detections.bar_label(bars, fmt="%.1f", padding=3)
        detections.set(xlim=(0, 100), xlabel="frames in which it was found, %")
        common = Counter(self.signers).most_common(_SHOWN)[::-1]
        signers.barh([name for name, _ in common], [count for _, count in common])
        signers.set(xlabel=f"clips of a signer ({len(self.signers)} signers)")
        figure.suptitle(f"{self.name}: {len(self.frames):,} clips")
        buffer = BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
        return buffer.getvalue()


def collect(folder: Folder, poses: str | None = None) -> SplitStats:
    """Read every record and mask of a split, with the joints of pose set ``poses`` where named.

    Raises :class:`UserError` when the split, or the pose set, is missing or damaged.
    """
    manifest = load_manifest(folder)
    if not manifest.num_samples:
        raise UserError(f"{folder}: the split has no clips (see its dropped.tsv)")
    joints = folder if poses is None else folder / pose_path(poses)
    entries, rates, found = [], [], []
    for entry, own, other in _clips(folder, manifest, joints):
        entries.append(entry)
        rates.append(float(own.record["fps"]))
        found.append(_found(other.mask))
    frames = np.array([entry.num_frames for entry in entries])
    return SplitStats(
        name=str(folder),
        manifest=manifest,
        poses=load_manifest(joints),
        frames=frames,
        seconds=frames / np.array(rates),
        characters=np.array([len(entry.text) for entry in entries]),
        words=np.array([len(entry.text.split()) for entry in entries]),
        found=np.array(found),
        signers=Counter(entry.signer for entry in entries if entry.signer),
        flags=Counter(flag for entry in entries for flag in entry.flags),
    )


def _clips(
    folder: Folder, manifest: Manifest, joints: Folder
) -> Iterator[tuple[SampleEntry, ClipPose, ClipPose]]:
    """Yield each clip's entry, its own record and joints, and those of the other set."""
    with tqdm(total=manifest.num_samples, unit="clip", desc=manifest.packing.split) as bar:
        others = iter(load_manifest(joints).shards)
        for shard in manifest.shards:
            spare = {s.key: s for s in load_index(joints, next(others)).samples}
            for entry in load_index(folder, shard).samples:
                own = read_pose(folder, shard.name, entry.members)
                if "fps" not in own.record:
                    raise ShardError(shard.name, entry.key, "the record has no fps")
                same = joints is folder
                other = own if same else read_pose(joints, shard.name, spare[entry.key].members)
                yield entry, own, other
                bar.update()


def _found(mask: NDArray[np.bool_]) -> list[int]:
    """Return the frames of ``[frames, 75]`` in which any landmark of each group was found."""
    ends = np.cumsum([len(names) for names in GROUPS.values()])[:-1]
    return [int(part.any(axis=1).sum()) for part in np.split(mask, ends, axis=1)]


def _histogram(axes: Axes, values: NDArray[np.int64], label: str) -> None:
    axes.hist(values, bins=min(60, max(1, len(np.unique(values)))))
    axes.set(xlabel=label, ylabel="clips")


def _counts(counts: Mapping[str, int]) -> list[str]:
    common = Counter(counts).most_common(_SHOWN)
    lines = [f"  {name}: {count:,}" for name, count in common]
    return lines + ([f"  and {len(counts) - _SHOWN} more"] if len(counts) > _SHOWN else [])
