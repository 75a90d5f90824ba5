"""Translating new clips: the path of the packer, the model, and one JSON line a video."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch

from signfuse_dist.augment import spread_frames
from signfuse_dist.config import RunConfig
from signfuse_dist.data.corpora import Row
from signfuse_dist.data.encode import encode_clip
from signfuse_dist.data.loader import collate
from signfuse_dist.data.manifest import PackConfig, Packing
from signfuse_dist.data.pose import JointsFile, PoseExtractor
from signfuse_dist.data.pose_mediapipe import choose_extractor
from signfuse_dist.data.shard import Clip
from signfuse_dist.errors import UserError
from signfuse_dist.evaluation.translator import load_translator
from signfuse_dist.skeleton import JOINT_LAYOUT


def translate_videos(
    run_folder: Path, videos: Sequence[Path], joints: Sequence[Path] | None,
    pose_model: Path | None,
) -> int:  # fmt: skip
    """Print ``{"video", "translation", "num_frames", "flags"}`` for each video.

    Frames go through the packer's decoding and JPEG, so the model sees what it was trained on. A
    video that cannot be read is named on standard error and the others are translated; returns 1
    then, else 0. Raises UserError when there is no model or no pose extractor.
    """
    if joints is not None and len(joints) != len(videos):
        raise UserError(f"--joints names {len(joints)} files for {len(videos)} videos")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    translator = load_translator(run_folder, device)
    extractor = None if joints is not None else choose_extractor(pose_model)
    failed = 0
    for place, video in enumerate(videos):
        try:
            clip = read_video(video, joints[place] if joints else None, extractor, translator.run)
        except UserError as e:
            print(f"error: {video}: {e}", file=sys.stderr)
            failed += 1
            continue
        frames, lengths = torch.from_numpy(clip.frames), np.array([len(clip.frames)])
        batch = collate([clip], frames, lengths, encode=None)
        (translation,) = translator.translate(batch)
        print(json.dumps(_line(video, translation.text, clip), ensure_ascii=False), flush=True)
    return 1 if failed else 0


def read_video(
    video: Path, joints: Path | None, extractor: PoseExtractor | None, run: RunConfig
) -> Clip:
    """Decode a new clip as the packer would; raise UserError naming what is wrong with it."""
    source = extractor or JointsFile
    packing = Packing(
        corpus="translate",
        root="",
        split="",
        joint_layout=JOINT_LAYOUT,
        extractor=source.name,
        extractor_version=source.version,
        settings=PackConfig(frame_size=run.data.frame_size, fps=run.data.fps),
        rows_sha256="",
    )
    row = Row(
        row=0, id=video.stem or "clip", video=video, source=str(video), text="", start=None,
        end=None, signer=None, language=None, split="", joints=joints,
    )  # fmt: skip
    encoded = encode_clip(row, packing, extractor)
    count = len(encoded.jpegs)
    chosen = spread_frames(count, min(count, run.data.max_frames))
    frames = np.stack([simplejpeg.decode_jpeg(encoded.jpegs[i]) for i in chosen])
    return Clip(dict(encoded.record), frames, encoded.pose[chosen], encoded.mask[chosen])


def _line(video: Path, translation: str, clip: Clip) -> dict[str, Any]:
    return {
        "video": str(video),
        "translation": translation,
        "num_frames": clip.record["num_frames"],
        "flags": clip.record["flags"],
    }
