"""What training sees of a split, as checksums: which of them a split packed again has anew."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from helpers.little_splits import LENGTHS, PACKING, clip, data_config
from signfuse_dist.data.columns import SplitContent
from signfuse_dist.data.manifest import Manifest, SampleEntry
from signfuse_dist.data.manifest_files import index_bytes, manifest_bytes
from signfuse_dist.data.shard import (
    Encoded,
    EncodedClip,
    EncodedPose,
    load_manifest,
    read_index,
    write_shard,
)
from signfuse_dist.data.split import open_split

CLIPS = [clip(i, n) for i, n in enumerate(LENGTHS)]


def write(folder: Path, clips: list[Any], packing: Any = PACKING, a_shard: int = 4) -> Path:
    """Write a set of shards with ``a_shard`` clips in each."""
    folder.mkdir(parents=True)
    entries = []
    for number, first in enumerate(range(0, len(clips), a_shard)):
        some: list[Encoded] = clips[first : first + a_shard]
        entries.append(write_shard(folder / f"shard-{number:06d}.tar", some, packing).entry())
    count, frames = len(clips), sum(entry.num_frames for entry in entries)
    manifest = Manifest(packing, tuple(entries), count, count, frames, 0, 0, "0")
    (folder / "manifest.json").write_bytes(manifest_bytes(manifest))
    return folder


def differ(one: SplitContent, other: SplitContent) -> set[str]:
    return {f.name for f in fields(one) if getattr(one, f.name) != getattr(other, f.name)}


def content(folder: Path, poses: str | None = None) -> SplitContent:
    return open_split(folder, data_config(poses=poses)).content


def changed(change: Callable[[EncodedClip], EncodedClip]) -> list[EncodedClip]:
    return [*CLIPS[:-1], change(CLIPS[-1])]


@pytest.mark.parametrize(
    ("clips", "odd"),
    [
        (CLIPS, set()),
        (changed(lambda c: replace(c, record={**c.record, "text": "x"})), {"texts", "shards"}),
        (changed(lambda c: replace(c, record={**c.record, "signer": "x"})), {"shards"}),
        (changed(lambda c: replace(c, jpegs=c.jpegs[::-1])), {"pictures", "shards"}),
        (changed(lambda c: replace(c, pose=c.pose * 2)), {"joints", "shards"}),
        (changed(lambda c: replace(c, mask=~c.mask)), {"joints", "shards"}),
        (CLIPS[::-1], {"clips", "texts", "pictures", "joints", "shards"}),
    ],
)
def test_each_part_of_a_split_has_a_checksum_of_its_own(
    tmp_path: Path, clips: list[EncodedClip], odd: set[str]
) -> None:
    before, now = write(tmp_path / "before", CLIPS), write(tmp_path / "now", clips)
    assert differ(content(before), content(now)) == odd


def test_how_clips_are_divided_into_shards_does_not_show(tmp_path: Path) -> None:
    one, three = write(tmp_path / "one", CLIPS), write(tmp_path / "three", CLIPS, a_shard=3)
    assert differ(content(one), content(three)) == {"shards"}


def test_joints_are_those_of_the_pose_set_in_use(tmp_path: Path) -> None:
    def joints(factor: float) -> list[EncodedPose]:
        return [EncodedPose(c.record, c.pose * factor, c.mask) for c in CLIPS]

    split = write(tmp_path / "split", CLIPS)
    packing = PACKING.of_poses("other", "2")
    for name, factor in (("a", 1.0), ("b", 1.0), ("c", 3.0)):
        write(split / "poses" / name, joints(factor), packing)
    own, a, b, c = (content(split, poses) for poses in (None, "a", "b", "c"))
    assert differ(own, a) == {"pose_set"}, "the same joints in another tar"
    assert differ(a, b) == set()
    assert differ(a, c) == {"joints", "pose_set"}


def test_shards_of_an_earlier_version_have_the_checksums_of_their_tars(tmp_path: Path) -> None:
    split = write(tmp_path / "split", CLIPS)
    before = content(split)
    index = read_index(split, "shard-000000.tar")
    names = ("pictures_sha256", "joints_sha256")
    old = [replace(s, **dict.fromkeys(names)) for s in index.samples]
    path = split / "shard-000000.index.json"
    path.write_bytes(index_bytes(replace(index, samples=tuple(old))))
    assert not set(names) & json.loads(path.read_bytes())["samples"][0].keys()
    assert load_manifest(split).num_samples == len(CLIPS)
    assert content(split) == replace(before, pictures=None, joints=None)
    assert {f.name for f in dataclasses.fields(SampleEntry)} >= set(names)
