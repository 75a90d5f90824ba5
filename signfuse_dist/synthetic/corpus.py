"""The synthetic corpus: a drawn signer signing sentences of an invented language.

``python -m signfuse_dist.synthetic.corpus ROOT`` writes ``ROOT/synthetic.tsv`` (a table that the
packer reads), ``ROOT/clips/<id>.mp4``, ``ROOT/joints/<id>.npz`` (``pose`` float32
``[frames, 75, 2]`` in units of the square frame, ``mask`` bool ``[frames, 75]``) and, last of
all, ``ROOT/corpus.json``. The same seed writes the same sentences, joints and pictures.

The joints are those of a tracker worn by the signer: it sees a hand behind the desk, trembles a
little, and loses a hand now and then. Paper: joints come from MediaPipe. Here: they come with the
corpus. Because: only a tracker that does not look at the picture can know what the picture hides.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from signfuse_dist.answer import answer
from signfuse_dist.errors import UserError
from signfuse_dist.files import write_bytes
from signfuse_dist.progress import Progress
from signfuse_dist.skeleton import JOINT_LAYOUT, LEFT_HAND, NUM_JOINTS
from signfuse_dist.synthetic.language import (
    SIGN_LANGUAGES,
    SPLITS,
    Sentence,
    SignLanguage,
    SplitSizes,
    draw_splits,
)
from signfuse_dist.synthetic.signer import SIGNERS, Signer, draw_frame, dress, joints_of
from signfuse_dist.synthetic.signs import perform

VERSION = 1
TABLE = "synthetic.tsv"
LANGUAGE = "x-synthetic"
COLUMNS = ("id", "video", "text", "signer", "split", "language", "joints")
FPS = 10
FRAME_SIZE = 64
DEFAULT_SEED = 7
DEFAULT_SIZES = SplitSizes()
_BEFORE = {"sign_language": "first"}  # of descriptions that were written before there were two

_FINISHED, _UNFINISHED = "corpus.json", "corpus.json.unfinished"
_TREMBLE, _LOST_HAND = 0.003, 0.02
_GRID = 1024  # joints are kept to a sixteenth of a pixel, which halves their files
_CODECS = {
    # Its macroblock tree reads memory that nobody has written: the same clip would not always give
    # the same bytes.
    "libx264": {"crf": "17", "preset": "medium", "bf": "0", "threads": "1", "mbtree": "0"},
    "libopenh264": {"b": "400000"},
    "mpeg4": {"qmin": "1", "qmax": "3", "bf": "0"},
}


@dataclass(frozen=True)
class DrawnClip:
    """A rendered clip: ``frames`` uint8 ``[frames, size, size, 3]`` RGB; ``pose`` float32
    ``[frames, 75, 2]`` in units of the square frame; ``mask`` bool ``[frames, 75]``."""

    frames: NDArray[np.uint8]
    pose: NDArray[np.float32]
    mask: NDArray[np.bool_]


@dataclass(frozen=True)
class PlannedClip:
    """A clip to be written: its id, split, sentence, signer and the seed of everything random."""

    id: str
    split: str
    sentence: Sentence
    signer: Signer
    seed: tuple[int, int]

    def row(self) -> dict[str, str]:
        """Return the clip's row of the table."""
        return {
            "id": self.id,
            "video": f"clips/{self.id}.mp4",
            "text": self.sentence.text,
            "signer": self.signer.name,
            "split": self.split,
            "language": LANGUAGE,
            "joints": f"joints/{self.id}.npz",
        }


def _track(
    joints: NDArray[np.float64], rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return what a tracker reports: trembling joints, and frames in which a hand is lost."""
    pose = joints + rng.normal(0.0, _TREMBLE, joints.shape)
    mask = np.ones(joints.shape[:2], dtype=bool)
    for hand, lost in enumerate(rng.random((2, len(joints))) < _LOST_HAND):
        first = hand * len(LEFT_HAND)
        mask[lost, first : first + len(LEFT_HAND)] = False
    pose = np.where(mask[..., None], np.round(pose * _GRID) / _GRID, 0.0)
    return pose.astype(np.float32), mask


def render_clip(
    sentence: Sentence,
    signer: Signer,
    seed: int | Sequence[int],
    *,
    frame_size: int = FRAME_SIZE,
    language: SignLanguage = "first",
) -> DrawnClip:
    """Render ``sentence``. The same seed draws the same room, pace, movements and tremble."""
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3)]
    room, motion, tracker = streams
    body, look = dress(signer, room)
    postures = perform(sentence.glosses_in(language), sentence.mode, FPS, motion, language)
    joints = np.stack([joints_of(body, posture) for posture in postures])
    frames = [
        draw_frame(frame_size, signer, body, look, here, posture.face, posture.card)
        for here, posture in zip(joints, postures, strict=True)
    ]
    return DrawnClip(np.stack(frames), *_track(joints, tracker))


def plan_corpus(seed: int, sizes: SplitSizes) -> list[PlannedClip]:
    """Return every clip of the corpus in the order of the table."""
    splits = draw_splits(seed, sizes)
    flat = [(split, i, s) for split in SPLITS for i, s in enumerate(splits[split])]
    signers = np.random.default_rng([seed, 1]).integers(len(SIGNERS), size=len(flat))
    return [
        PlannedClip(f"{split}_{i:04d}", split, sentence, SIGNERS[signer], (seed, number))
        for number, ((split, i, sentence), signer) in enumerate(zip(flat, signers, strict=True))
    ]


def _codec() -> str:
    return next(name for name in _CODECS if name in av.codecs_available)


def _video_bytes(frames: NDArray[np.uint8], codec: str) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream: Any = container.add_stream(codec, rate=FPS, options=_CODECS[codec])
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def _joint_bytes(clip: DrawnClip) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, pose=clip.pose, mask=clip.mask)
    return buffer.getvalue()


def _table_bytes(plan: Sequence[PlannedClip]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(clip.row() for clip in plan)
    return text.getvalue().encode()


def _write_clip(
    root: Path, planned: PlannedClip, frame_size: int, codec: str, language: SignLanguage
) -> None:
    row = planned.row()
    video, joints = root / row["video"], root / row["joints"]
    if video.is_file() and joints.is_file():
        return
    clip = render_clip(
        planned.sentence, planned.signer, planned.seed, frame_size=frame_size, language=language
    )
    write_bytes(joints, _joint_bytes(clip))
    write_bytes(video, _video_bytes(clip.frames, codec))


def _read_description(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        description = json.loads(path.read_bytes())
    except ValueError:
        description = None
    if not isinstance(description, dict):
        raise UserError(f"{path} is not a description of a synthetic corpus; delete it and go on")
    return description


def is_written(root: Path) -> bool:
    """Tell whether ``root`` holds a finished corpus of this version."""
    description = _read_description(root / _FINISHED)
    return description is not None and description.get("version") == VERSION


def _refuse_another(root: Path, wanted: dict[str, Any]) -> None:
    for name in (_FINISHED, _UNFINISHED):
        there = _read_description(root / name)
        if there is None:
            continue
        there = {**_BEFORE, **there}
        differing = [key for key in wanted if there.get(key) != wanted[key]]
        if differing:
            listed = ", ".join(f"{k} is {there.get(k)}, not {wanted[k]}" for k in differing)
            raise UserError(
                f"{root} already holds another synthetic corpus ({listed}); give another folder, "
                "ask for the same corpus, or delete that one"
            )


def _describe(
    seed: int, sizes: SplitSizes, frame_size: int, language: SignLanguage
) -> dict[str, Any]:
    return {
        "version": VERSION,
        "seed": seed,
        "sizes": asdict(sizes),
        "frame_size": frame_size,
        "fps": FPS,
        "joint_layout": JOINT_LAYOUT,
        "num_joints": NUM_JOINTS,
        "codec": _codec(),
        "sign_language": language,
    }


def _check(root: Path, seed: int, frame_size: int) -> None:
    if seed < 0:
        raise UserError(f"seed is {seed}; it must be 0 or more")
    if frame_size < 32 or frame_size % 2:
        raise UserError(f"frame size is {frame_size}; it must be even and at least 32 pixels")
    if root.exists() and not root.is_dir():
        raise UserError(f"{root} is a file; give a folder to write the corpus in")


def write_corpus(
    root: Path,
    seed: int = DEFAULT_SEED,
    sizes: SplitSizes = DEFAULT_SIZES,
    *,
    frame_size: int = FRAME_SIZE,
    language: SignLanguage = "first",
) -> None:
    """Write the corpus to ``root``; a corpus that was interrupted is carried on.

    Several processes may do so at once, such as the tasks of an array job that find none.

    Does nothing when the same corpus is already there. Raises :class:`UserError` when ``root``
    holds another corpus or is a file, and for sizes that the language cannot fill.
    """
    _check(root, seed, frame_size)
    plan, description = plan_corpus(seed, sizes), _describe(seed, sizes, frame_size, language)
    _refuse_another(root, description)
    if is_written(root):
        return
    for folder in ("clips", "joints"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    write_bytes(root / _UNFINISHED, (json.dumps(description, indent=2) + "\n").encode())
    write_bytes(root / TABLE, _table_bytes(plan))
    with Progress("drawing the synthetic corpus", len(plan), "clip") as progress:
        for planned in plan:
            _write_clip(root, planned, frame_size, description["codec"], language)
            progress.advance()
    _finish(root)


def _finish(root: Path) -> None:
    try:
        (root / _UNFINISHED).replace(root / _FINISHED)
    except FileNotFoundError:
        if not is_written(root):  # else another process has drawn the same corpus beside this one
            raise


def read_rows(root: Path) -> Iterator[dict[str, str]]:
    """Yield the rows of a corpus's table as dictionaries of :data:`COLUMNS`."""
    with (root / TABLE).open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file, delimiter="\t")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m signfuse_dist.synthetic.corpus",
        description="Draw the synthetic sign language corpus.",
    )
    parser.add_argument("root", type=Path, metavar="ROOT", help="folder to write the corpus in")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED, help="default: %(default)s")
    for split in SPLITS:
        default = DEFAULT_SIZES.of(split)
        parser.add_argument(f"--{split}", type=int, default=default, help="default: %(default)s")
    parser.add_argument("--frame-size", type=int, default=FRAME_SIZE, help="default: %(default)s")
    parser.add_argument(
        "--sign-language",
        choices=SIGN_LANGUAGES,
        default="first",
        help="the second has other signs in another order (default: %(default)s)",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status (2 for an error of the user's)."""
    given = _parser().parse_args(arguments)
    return answer(lambda: _run(given))


def _run(given: argparse.Namespace) -> int:
    sizes = SplitSizes(given.train, given.dev, given.test)
    write_corpus(
        given.root,
        given.seed,
        sizes,
        frame_size=given.frame_size,
        language=given.sign_language,
    )
    print(f"{given.root / TABLE}: {sizes.train + sizes.dev + sizes.test} clips")
    return 0


if __name__ == "__main__":
    sys.exit(main())
