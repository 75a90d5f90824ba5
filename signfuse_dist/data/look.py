"""Looking at packed splits: `signfuse stats`, `signfuse show`, and skeletons drawn over frames.

``stats`` has lengths, texts, detections and signers as tables and as a picture. ``show`` puts the
frames of a clip side by side with their joints, as a report does.
"""

from __future__ import annotations

import difflib
import math
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from signfuse_dist.corpora import Box
from signfuse_dist.data.crop import NOT_CROPPED, hands_cut, in_picture, is_box
from signfuse_dist.data.manifest import Manifest, SampleEntry, ShardError, pose_path
from signfuse_dist.data.manifest_files import load_index, load_manifest
from signfuse_dist.data.shard import Clip, ClipPose, read_clip, read_pose
from signfuse_dist.data.storage import Folder
from signfuse_dist.errors import UserError, printable
from signfuse_dist.progress import Progress
from signfuse_dist.skeleton import BODY, BONES, FACE, JOINT_INDEX, JOINTS, LEFT_HAND, RIGHT_HAND

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
    pictureless: int = 0
    """Clips of joints alone."""
    corpora: Mapping[str, int] = field(default_factory=dict)
    """Clips of each corpus, where records name one."""
    languages: Mapping[str, int] = field(default_factory=dict)
    """Clips in each language."""

    def __str__(self) -> str:
        signers = f"signers: {len(self.signers)}" if self.signers else "signers: none is named"
        parts = [*self._head(), "", *self._lengths(), "", *self._detections(), "", signers]
        parts += _counts(self.signers)
        for title, counts in (("languages", self.languages), ("corpora", self.corpora)):
            if len(counts) > 1 or (title == "corpora" and counts):
                parts += ["", title, *_counts(counts)]
        if self.flags:
            parts += ["", "clips flagged", *_counts(self.flags)]
        return printable("\n".join(parts), several_lines=True)

    def _head(self) -> list[str]:
        manifest, packing, poses = self.manifest, self.manifest.packing, self.poses.packing
        fps = packing.settings.fps
        rate = "each video's own rate" if fps is None else f"{fps:g} frames/s"
        crop = packing.settings.crop
        cropped = "" if crop == "none" else f", cropped by {crop}"
        return [
            f"{self.name}: {packing.corpus}, split {packing.split}",
            f"  {manifest.num_rows:,} rows = {manifest.num_samples:,} clips + "
            f"{manifest.num_dropped:,} dropped; {manifest.num_frames:,} frames, "
            f"{self.seconds.sum() / 3600:.2f} h, {len(manifest.shards)} shards",
            f"  {packing.settings.frame_size} pixels{cropped}, {rate}; joints by {poses.extractor} "
            f"{poses.extractor_version}, which failed at {self.poses.num_failed_frames:,} frames",
            *([self._alone()] if self.pictureless else []),
        ]

    def _alone(self) -> str:
        every = self.pictureless == len(self.frames)
        which = "all clips are" if every else f"{self.pictureless:,} clips are"
        return f"  {which} joints alone, without pictures"

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
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

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
    manifest = _of_pictures_or_joints(folder)
    if not manifest.num_samples:
        raise UserError(f"{folder}: the split has no clips (see its dropped.tsv)")
    joints = folder if poses is None else folder / pose_path(poses)
    entries, rates, frames_found = [], [], []
    corpora: Counter[str] = Counter()
    languages: Counter[str] = Counter()
    for entry, own, other in _clips(folder, manifest, joints):
        entries.append(entry)
        rates.append(float(own.record["fps"]))
        frames_found.append(_found(other.mask))
        for counts, key in ((corpora, "corpus"), (languages, "language")):
            if own.record.get(key):
                counts[str(own.record[key])] += 1
    frames = np.array([entry.num_frames for entry in entries])
    return SplitStats(
        name=str(folder),
        manifest=manifest,
        poses=load_manifest(joints),
        frames=frames,
        seconds=frames / np.array(rates),
        characters=np.array([len(entry.text) for entry in entries]),
        words=np.array([len(entry.text.split()) for entry in entries]),
        found=np.array(frames_found),
        signers=Counter(entry.signer for entry in entries if entry.signer),
        flags=Counter(flag for entry in entries for flag in entry.flags),
        pictureless=sum(not entry.has_pictures for entry in entries),
        corpora=corpora,
        languages=languages,
    )


def _clips(
    folder: Folder, manifest: Manifest, joints: Folder
) -> Iterator[tuple[SampleEntry, ClipPose, ClipPose]]:
    """Yield each clip's entry, its own record and joints, and those of the other set."""
    split = printable(manifest.packing.split)
    with Progress(f"reading {split}", manifest.num_samples, "clip") as progress:
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
                progress.advance()


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


# Smaller frames are enlarged by a whole factor, or the skeleton would cover the signer.
_READABLE_SIDE = 192  # pixels
_BLANK = 40  # grey of the ground that joints without pictures are drawn on


def show(
    folder: Folder, clip_id: str, num_frames: int, poses: str | None
) -> tuple[Image.Image, str]:
    """Return ``num_frames`` evenly spread frames of a clip, and what there is to say of its crop.

    The joints are those of pose set ``poses`` where it is named. Of a clip that was cropped, the
    square in its picture stands below, with the landmarks of hands of all frames. Raises
    :class:`UserError` when the split has no such clip, or its shard is damaged.
    """
    shard, entry = find_clip(folder, _of_pictures_or_joints(folder), clip_id)
    chosen = spread(entry.num_frames, num_frames)
    clip = read_clip(folder, shard, entry.members, chosen)
    box, flags = clip.record.get("box"), entry.flags
    if poses is not None:
        folder = folder / pose_path(poses)
        shard, entry = find_clip(folder, _of_pictures_or_joints(folder), clip_id)
    joints = read_pose(folder, shard, entry.members)
    clip = Clip(clip.record, clip.frames, joints.pose[chosen], joints.mask[chosen])
    frames = sheet(clip, columns=min(len(chosen), 6))
    if box is None:
        return frames, "crop: none, nothing was found to cut by" if NOT_CROPPED in flags else ""
    if not is_box(box, flags):
        raise ShardError(shard, entry.key, f"box of the record is {box!r}")
    return below(frames, *crop_picture(joints, Box(*box)))


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
    """Return the frames of a clip in a grid, each with its skeleton; of joints alone on dark grey.

    Joints far outside the frame are drawn at its rim, and those that are not finite are left out:
    a shard is anybody's file, and the drawing library takes neither.
    """
    pictures = clip.frames
    if not len(pictures):  # joints alone
        pictures = np.full((len(clip.pose), _READABLE_SIDE, _READABLE_SIDE, 3), _BLANK, np.uint8)
    factor = max(1, _READABLE_SIDE // pictures.shape[1])
    frames = pictures.repeat(factor, axis=1).repeat(factor, axis=2)
    finite = np.isfinite(clip.pose).all(axis=-1)
    pose = np.clip(np.nan_to_num(clip.pose), -1.0, 2.0)
    return contact_sheet(frames, pose, clip.mask & finite, columns)


_PICTURE_SIDE, _LINE = 192, 14  # pixels: longer side of the picture, height of a line of text
_INK, _GROUND, _CUT = (0, 0, 0), (70, 70, 70), (255, 40, 40)


def crop_picture(joints: ClipPose, box: Box) -> tuple[Image.Image, str]:
    """Return the outline of a clip's picture with the square in it, and whether hands are cut off.

    Every landmark of a hand in every frame is a dot, red where it lies outside the square: what was
    filmed and is not in the frames.
    """
    aspect = min(max((box.y1 - box.y0) / (box.x1 - box.x0), 0.1), 10.0)  # anybody's file
    scale = _PICTURE_SIDE / max(aspect, 1.0)
    size = np.array([aspect * scale, scale])
    edges = np.clip(np.array(box).reshape(2, 2), -0.5, 1.5) * size
    origin = _MARGIN - np.minimum(edges[0], 0)  # so that a square that reaches out is seen, too
    room = np.maximum(edges[1], size) + origin + _MARGIN
    image = Image.new("RGB", (math.ceil(room[0]), math.ceil(room[1])), "white")
    canvas = ImageDraw.Draw(image)
    canvas.rectangle((*origin, *(origin + size)), fill=_GROUND)
    canvas.rectangle((*(origin + edges[0]), *(origin + edges[1])), outline=_INK, width=2)
    finite = np.isfinite(joints.pose).all(axis=-1)
    pose = np.clip(np.nan_to_num(joints.pose), -1e6, 1e6)
    cut, filmed = hands_cut(pose, joints.mask & finite, box)
    dots = in_picture(pose[:, : filmed.shape[1]], box) * size + origin
    for row in range(filmed.shape[1]):
        colour = COLOURS[JOINTS[row]]
        canvas.point([tuple(dot) for dot in dots[filmed[:, row], row]], fill=colour)
    for x, y in dots[cut]:
        canvas.ellipse((x - 1, y - 1, x + 1, y + 1), fill=_CUT)
    frames = int(cut.any(axis=1).sum())
    words = (
        f"crop: {box} of the picture; {int(cut.sum()):,} of {int(filmed.sum()):,} landmarks of "
        f"hands are cut off, in {frames:,} of {len(cut):,} frames"
    )
    return image, words


def below(sheet: Image.Image, picture: Image.Image, words: str) -> tuple[Image.Image, str]:
    """Return the sheet with a picture and its words below it, and the words."""
    lines = textwrap.wrap(words, max(20, (sheet.width - picture.width) // 7))
    height = max(picture.height, _LINE * len(lines) + 2 * _MARGIN)
    width = max(sheet.width, picture.width + 20 * 7)
    whole = Image.new("RGB", (width, sheet.height + height), "white")
    whole.paste(sheet, (0, 0))
    whole.paste(picture, (0, sheet.height))
    canvas = ImageDraw.Draw(whole)
    for number, line in enumerate(lines):
        place = (picture.width + _MARGIN, sheet.height + _MARGIN + number * _LINE)
        canvas.text(place, line, fill=_INK)
    return whole, words


COLOURS = {
    **dict.fromkeys(LEFT_HAND, (255, 170, 0)),
    **dict.fromkeys(RIGHT_HAND, (0, 200, 255)),
    **dict.fromkeys(BODY, (120, 255, 120)),
    **dict.fromkeys(FACE, (255, 90, 200)),
}
"""RGB by joint: orange left hand, blue right hand, green body, pink face."""
_BONE_ROWS = [(JOINT_INDEX[a], JOINT_INDEX[b], COLOURS[b]) for a, b in BONES]
_MARGIN = 4  # pixels between the pictures of a sheet


def draw_skeleton(
    frame: NDArray[np.uint8], pose: NDArray[np.float32], mask: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """Return a copy of ``frame`` with its skeleton drawn on it.

    ``frame`` uint8 ``[height, width, 3]``; ``pose`` ``[75, 2]`` in units of the frame; ``mask``
    bool ``[75]``: joints and bones that are masked are left out.
    """
    image = Image.fromarray(frame)
    canvas = ImageDraw.Draw(image)
    height, width = frame.shape[:2]
    points = [(float(x) * width, float(y) * height) for x, y in pose]
    thickness = max(1, round(max(height, width) / 160))
    for a, b, colour in _BONE_ROWS:
        if mask[a] and mask[b]:
            canvas.line([points[a], points[b]], fill=colour, width=thickness)
    for row, name in enumerate(JOINTS):
        if mask[row]:
            x, y = points[row]
            box = (x - thickness, y - thickness, x + thickness, y + thickness)
            canvas.ellipse(box, fill=COLOURS[name])
    return np.asarray(image)


def contact_sheet(
    frames: NDArray[np.uint8],
    poses: NDArray[np.float32],
    masks: NDArray[np.bool_],
    columns: int,
) -> Image.Image:
    """Return the frames with their skeletons in a grid of ``columns``, in reading order.

    ``frames`` uint8 ``[n, height, width, 3]``, ``poses`` ``[n, 75, 2]``, ``masks`` ``[n, 75]``.
    Raises ValueError when there is no frame or no column.
    """
    if not len(frames) or columns < 1:
        raise ValueError(f"{len(frames)} frames in {columns} columns make no sheet")
    drawn: Sequence[NDArray[np.uint8]] = [
        draw_skeleton(*one) for one in zip(frames, poses, masks, strict=True)
    ]
    height, width = frames.shape[1] + _MARGIN, frames.shape[2] + _MARGIN
    columns = min(columns, len(drawn))
    rows = math.ceil(len(drawn) / columns)
    sheet = Image.new("RGB", (columns * width + _MARGIN, rows * height + _MARGIN), "white")
    for i, picture in enumerate(drawn):
        row, column = divmod(i, columns)
        place = (column * width + _MARGIN, row * height + _MARGIN)
        sheet.paste(Image.fromarray(picture), place)
    return sheet


def _of_pictures_or_joints(folder: Folder) -> Manifest:
    """Return the manifest of a set; raise UserError for one of vectors, where there is no more."""
    manifest = load_manifest(folder)
    if manifest.packing.contents == "features":
        raise UserError(
            f"{folder}: holds the vectors of a feature set alone; name the folder with the clips, "
            "two above it"
        )
    return manifest
