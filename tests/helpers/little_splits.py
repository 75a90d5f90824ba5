"""Splits of a few drawn clips whose every frame can be told from every other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from signfuse_dist.config import AugmentConfig, DataConfig
from signfuse_dist.data.loader import ClipBatches
from signfuse_dist.data.manifest import Manifest, PackConfig, Packing
from signfuse_dist.data.manifest_files import manifest_bytes
from signfuse_dist.data.shard import EncodedClip, write_shard
from signfuse_dist.data.split import Split
from signfuse_dist.plan import ClipFrames, MicroBatch
from signfuse_dist.skeleton import JOINT_LAYOUT, NUM_JOINTS

OFF = AugmentConfig()


SIZE, SHARD = 32, "shard-000000.tar"


LENGTHS = (4, 1, 6, 3)  # frames of clip 0, 1, ...


PACKING = Packing(
    "table", "t.tsv", "train", JOINT_LAYOUT, "synthetic", "1", PackConfig(SIZE, 10.0), "0" * 64
)


def data_config(**changes: Any) -> DataConfig:
    values = {
        "corpus": "table",
        "shards": "shards",
        "train_split": "train",
        "dev_split": "dev",
        "test_split": "test",
        "fps": 10.0,
        "frame_size": SIZE,
        "max_frames": 64,
        "language": "en",
        "bleu_tokenizer": "13a",
        "metric_preset": "sacrebleu",
        **changes,
    }
    return DataConfig(**values)


def clip(number: int, frames: int) -> EncodedClip:
    """Every frame, joint and text says which clip it belongs to."""
    pictures = np.full((frames, SIZE, SIZE, 3), 50 * number, dtype=np.uint8)
    pictures += 5 * np.arange(frames, dtype=np.uint8)[:, None, None, None]
    mask = np.ones((frames, NUM_JOINTS), dtype=bool)
    mask[:, number] = False
    pose = np.full((frames, NUM_JOINTS, 2), number + 1, dtype=np.float32) * mask[..., None]
    record = {
        "id": f"clip {number}",
        "text": "ab" * (number + 1),
        "num_frames": frames,
        "signer": None,
        "flags": [],
        "failed_frames": 0,
        "split": "train",
    }
    return EncodedClip(record, [simplejpeg.encode_jpeg(p, 95) for p in pictures], pose, mask)


def write_split(folder: Path, lengths: tuple[int, ...] = LENGTHS) -> Path:
    folder.mkdir(exist_ok=True)
    clips = [clip(i, n) for i, n in enumerate(lengths)]
    index = write_shard(folder / SHARD, clips, PACKING)
    entry, count = index.entry(), len(lengths)
    manifest = Manifest(PACKING, (entry,), count, count, entry.num_frames, 0, 0, "0")
    (folder / "manifest.json").write_bytes(manifest_bytes(manifest))
    return folder


def clip_batches(
    split: Split,
    places: list[list[int]],
    max_frames: int = 64,
    encode: Any = None,
    augment: AugmentConfig = OFF,
    epoch: int = 0,
) -> ClipBatches:
    frames = ClipFrames(split.lengths, max_frames, augment, seed=5)
    return ClipBatches(split, [MicroBatch(clips, epoch) for clips in places], frames, encode)


def encode(text: str) -> list[int]:
    """A token a letter and an end token, 9."""
    return [*(ord(letter) - ord("a") + 1 for letter in text), 9]


def damage(split: Split, place: int, member: str, content: bytes, skip: int = 0) -> None:
    """Overwrite bytes of one member in the tar; its size stays."""
    offset, size = split.members_of(place)[member]
    assert skip + len(content) <= size
    with (split.folder / split.shard_of(place)).open("r+b") as file:
        file.seek(offset + skip)
        file.write(content)
