"""Manifests and indexes as they are written and read, and what is said of damaged ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from signfuse_dist.corpora import Rejected
from signfuse_dist.data.manifest import (
    Manifest,
    PackConfig,
    Packing,
    SampleEntry,
    ShardError,
    ShardIndex,
    VersionError,
    index_name,
)
from signfuse_dist.data.manifest_files import (
    index_bytes,
    load_index,
    load_manifest,
    manifest_bytes,
    read_index,
    read_manifest,
)
from signfuse_dist.errors import UserError
from signfuse_dist.skeleton import JOINT_LAYOUT

SHARD, INDEX = "shard-000000.tar", "shard-000000.index.json"
PACKING = Packing(
    corpus="table",
    root="t.tsv",
    split="train",
    joint_layout=JOINT_LAYOUT,
    extractor="synthetic",
    extractor_version="1",
    settings=PackConfig(frame_size=32),
    rows_sha256="0" * 64,
)


def sample(key: str, clip_id: str, frames: int, start: int) -> SampleEntry:
    members = {
        "json": (start + 512, 100),
        "jpegs": (start + 1536, 900),
        "offsets.npy": (start + 3072, 168),
        "pose.npy": (start + 4096, 700),
        "mask.npy": (start + 5632, 203),
    }
    return SampleEntry(
        key=key,
        id=clip_id,
        num_frames=frames,
        flags=("no_left_hand",),
        members=members,
        failed_frames=1,
        text=f"Text von {clip_id}",
        signer=None,
    )


INDEX_WRITTEN = ShardIndex(
    shard=SHARD,
    sha256="f" * 64,
    size=20480,
    packing=PACKING,
    samples=(sample("a%2Eb%2Fc", "a.b/c", 4, 0), sample("x", "x", 2, 6144)),
    dropped=(Rejected(7, "lost", "missing video: lost.mp4"),),
)
MANIFEST = Manifest(PACKING, (INDEX_WRITTEN.entry(),), 3, 2, 6, 1, 2, "0.1.0", 2)


@pytest.fixture
def split(tmp_path: Path) -> Path:
    (tmp_path / SHARD).write_bytes(bytes(INDEX_WRITTEN.size))
    (tmp_path / INDEX).write_bytes(index_bytes(INDEX_WRITTEN))
    (tmp_path / "manifest.json").write_bytes(manifest_bytes(MANIFEST))
    return tmp_path


def test_what_is_written_is_read(split: Path) -> None:
    manifest = load_manifest(split)
    assert manifest == MANIFEST
    assert load_index(split, manifest.shards[0]) == INDEX_WRITTEN


def test_the_bytes_of_the_files_are_those_of_their_format() -> None:
    """A change of them would make every split that is packed another one: raise the version."""
    checksums = [hashlib.sha256(content).hexdigest() for content in
                 (index_bytes(INDEX_WRITTEN), manifest_bytes(MANIFEST))]  # fmt: skip
    assert checksums == [
        "60ec1454de1d1b4b7deecd6039bde113615ce4fde486733189aa9af83ff2ba64",
        "9660b0acdb5ace826db6a28e0dc8039351331852078ac316e4a892a07cbd2498",
    ]


def test_the_spans_are_those_of_the_members_in_the_order_of_the_tar(split: Path) -> None:
    index = read_index(split, SHARD)
    assert index.spans.tolist() == [[list(s.members[m]) for m in PACKING.members]
                                    for s in INDEX_WRITTEN.samples]  # fmt: skip
    assert index.num_frames.tolist() == [4, 2]


def test_a_pose_set_has_neither_texts_nor_pictures(split: Path) -> None:
    poses = PACKING.of_poses("other", "2")
    bare = SampleEntry("x", "x", 2, (), {"json": (512, 9), "pose.npy": (1536, 9),
                                         "mask.npy": (2560, 9)}, 0)  # fmt: skip
    written = ShardIndex(SHARD, "f" * 64, 20480, poses, (bare,), ())
    content = index_bytes(written)
    (split / INDEX).write_bytes(content)
    assert "text" not in json.loads(content)["samples"][0]
    assert read_index(split, SHARD) == written


def at(*path: str | int, value: Any) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        for step in path[:-1]:
            document = document[step]
        document[path[-1]] = value

    return change


def signed(path: Path) -> None:
    """Give an index that was changed the checksum of what it is now."""
    document = json.loads(path.read_text("utf-8"))
    del document["index_sha256"]
    own = hashlib.sha256(laid_out(document)).hexdigest()
    path.write_bytes(laid_out({**document, "index_sha256": own}))


def laid_out(document: Any) -> bytes:
    text = json.dumps(document, ensure_ascii=False, sort_keys=True, indent=1)
    return f"{text}\n".encode()


def without(*path: str | int) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        for step in path[:-1]:
            document = document[step]
        del document[path[-1]]

    return change


def again(*path: str) -> Callable[[Any], None]:
    return lambda document: document[path[0]].append(document[path[0]][0])


# What every error names, as it did when both files were read field by field.
WRONG_MANIFESTS: dict[str, tuple[Callable[[Any], None], tuple[str, ...]]] = {
    "a path for a name": (at("shards", 0, "name", value="../shard-000000.tar"), ("../shard-0",)),
    "a name with a line end": (at("shards", 0, "name", value=f"{SHARD}\n"), (f"{SHARD}\\n",)),
    "a negative size": (at("shards", 0, "size", value=-1), ("size",)),
    "a size that is true": (at("shards", 0, "size", value=True), ("size", "of the wrong kind")),
    "a size in quotes": (at("shards", 0, "size", value="20480"), ("size", "of the wrong kind")),
    "a size with a fraction": (at("shards", 0, "size", value=5.5), ("size", "of the wrong kind")),
    "a size that is NaN": (at("shards", 0, "size", value=float("nan")), ("size",)),
    "a shard twice": (again("shards"), ("lists a shard twice",)),
    "frames that do not add up": (at("num_frames", value=7), ("totals are not the sums",)),
    "clips that do not add up": (at("num_samples", value=7), ("totals are not the sums",)),
    "failed frames too many": (at("num_failed_frames", value=3), ("totals are not the sums",)),
    "rows that do not add up": (at("num_rows", value=9), ("rows are not clips packed plus",)),
    "other contents": (at("contents", value="films"), ("contents", "'films'")),
    "another layout of joints": (at("joint_layout", value="coco-17"), ("laid out as 'coco-17'",)),
    "frames too large": (at("settings", "frame_size", value=9999), ("frame_size 9999",)),
    "a rate that is NaN": (at("settings", "fps", value=float("nan")), ("fps nan",)),
    "a rate in quotes": (at("settings", "fps", value="25"), ("fps", "of the wrong kind")),
    "no settings": (without("settings"), ("settings", "is missing")),
    "no split": (without("split"), ("'split' is missing",)),
    "no contents": (without("contents"), ("'contents' is missing",)),
    "no count of failed frames": (without("shards", 0, "num_failed_frames"), ("num_failed_fram",)),
    "no version": (without("version"), ("'version' is missing",)),
    "a version in quotes": (at("version", value="2"), ("version", "of the wrong kind")),
    "a shard that is a text": (at("shards", 0, value="x"), ("n object",)),
    "shards that are none": (at("shards", value={}), ("'shards'", "of the wrong kind")),
}

WRONG_INDEXES: dict[str, tuple[Callable[[Any], None], tuple[str, ...]]] = {
    "a member behind the end": (at("samples", 1, "members", "jpegs", value=[512, 10**9]),
                                ("'jpegs'", "reaches beyond the end of the tar")),
    "a member one byte too long": (at("samples", 1, "members", "mask.npy", value=[20000, 481]),
                                   ("'mask.npy'", "reaches beyond the end of the tar")),
    "a member of 2^63 bytes": (at("samples", 1, "members", "jpegs", value=[2**63 - 1, 2**63 - 1]),
                               ("'jpegs'", "reaches beyond the end of the tar")),
    "a member before the tar": (at("samples", 0, "members", "jpegs", value=[-1, 5]), ("jpegs",)),
    "a member without a size": (at("samples", 0, "members", "jpegs", value=[5]), ("jpegs",)),
    "no pictures": (without("samples", 0, "members", "jpegs"), ("'jpegs'", "is missing")),
    "another clip's key": (at("samples", 1, "key", value="../../etc/passwd"),
                           ("key '../../etc/passwd' is not the key of id 'x'",)),
    "no key": (at("samples", 1, "key", value=""), ("key '' is not the key of",)),
    "no id": (lambda index: index["samples"][1].update(id="", key=""), ("key '' is not the key",)),
    "a clip twice": (again("samples"), ("names a clip twice",)),
    "no frames": (at("samples", 0, "num_frames", value=0), ("frames",)),
    "a fraction of a frame": (at("samples", 0, "num_frames", value=4.0), ("num_frames",)),
    "more failed frames than frames": (at("samples", 1, "failed_frames", value=3),
                                       ("clip", "x", "has more failed frames than frames")),
    "a negative row": (at("dropped", 0, "row", value=-7), ("row",)),
    "no text": (without("samples", 0, "text"), ("'text'", "is missing")),
    "a text that is a number": (at("samples", 0, "text", value=5), ("text", "of the wrong kind")),
    "a flag for a list": (at("samples", 0, "flags", value="no_person"), ("flags",)),
    "another shard's index": (at("shard", value="shard-000001.tar"), ("names the shard 'shard-0",)),
    "no packing": (without("packing"), ("'packing' is missing",)),
    "samples that are none": (at("samples", value=None), ("'samples'", "of the wrong kind")),
}  # fmt: skip


def damage(path: Path, change: Callable[[Any], None]) -> None:
    document = json.loads(path.read_bytes())
    change(document)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(("change", "parts"), WRONG_MANIFESTS.values(), ids=WRONG_MANIFESTS)
def test_a_wrong_manifest_is_refused_by_what_is_wrong(
    split: Path, change: Callable[[Any], None], parts: tuple[str, ...]
) -> None:
    damage(split / "manifest.json", change)
    with pytest.raises(ShardError) as error:
        read_manifest(split)
    for part in ("manifest.json", *parts, "signfuse verify", "signfuse pack"):
        assert part in str(error.value)
    assert type(error.value) is ShardError


@pytest.mark.parametrize(("change", "parts"), WRONG_INDEXES.values(), ids=WRONG_INDEXES)
def test_a_wrong_index_is_refused_by_what_is_wrong(
    split: Path, change: Callable[[Any], None], parts: tuple[str, ...]
) -> None:
    damage(split / INDEX, change)
    with pytest.raises(ShardError) as error:
        read_index(split, SHARD)
    for part in (INDEX, *parts, "signfuse verify", "signfuse pack"):
        assert part in str(error.value)


def test_an_index_that_the_manifest_does_not_describe_is_refused(split: Path) -> None:
    damage(split / INDEX, at("samples", 0, "num_frames", value=3))
    signed(split / INDEX)
    with pytest.raises(ShardError, match=r"does not agree with manifest\.json"):
        load_index(split, MANIFEST.shards[0])


@pytest.mark.parametrize("version", [1, 3, 10**6])
def test_another_version_is_told_apart_from_damage_whatever_else_the_file_holds(
    split: Path, version: int
) -> None:
    what = rf"version {version} of the format, this program reads 2; pack the split again"
    for change in (at("num_rows", value="many"), at("version", value=version)):
        damage(split / "manifest.json", change)
    with pytest.raises(VersionError, match=what):
        read_manifest(split)
    damage(split / INDEX, at("version", value=version))
    with pytest.raises(VersionError, match=what):
        read_index(split, SHARD)


def test_all_errors_of_a_file_come_together(split: Path) -> None:
    for change in (
        at("shards", 0, "size", value=-1),
        without("split"),
        at("settings", "fps", value="fast"),
    ):
        damage(split / "manifest.json", change)
    with pytest.raises(ShardError) as error:
        read_manifest(split)
    for name in ("'shards.0.size'", "'split'", "'settings.fps'"):
        assert name in str(error.value)
    for number in (0, 1):
        damage(split / INDEX, at("samples", number, "key", value="k"))
        damage(split / INDEX, at("samples", number, "failed_frames", value=9))
    with pytest.raises(ShardError) as error:
        read_index(split, SHARD)
    assert str(error.value).count("is not the key of") == 2
    assert str(error.value).count("has more failed frames") == 2
    assert "names a clip twice" in str(error.value)


def test_errors_without_number_are_counted_and_values_cut_short(split: Path) -> None:
    many = [{"row": "x" * 10**5, "id": "i", "reason": "r"}] * 1000
    damage(split / INDEX, at("dropped", value=many))
    with pytest.raises(ShardError, match="and 990 more;") as error:
        read_index(split, SHARD)
    assert len(str(error.value)) < 3000


@pytest.mark.parametrize(
    "change",
    [at("samples", 0, "text", value="Another text"), at("dropped", 0, "reason", value="lost")],
    ids=["a text", "a reason"],
)
def test_an_index_that_was_edited_does_not_agree_with_its_own_checksum(
    split: Path, change: Callable[[Any], None]
) -> None:
    damage(split / INDEX, change)
    document = json.loads((split / INDEX).read_text("utf-8"))
    (split / INDEX).write_bytes(laid_out(document))
    with pytest.raises(ShardError, match="does not agree with its own checksum"):
        read_index(split, SHARD)


def test_an_index_of_before_it_had_a_checksum_of_its_own_is_read(split: Path) -> None:
    damage(split / INDEX, without("index_sha256"))
    assert read_index(split, SHARD) == INDEX_WRITTEN


def test_the_checksum_of_an_index_is_that_of_its_other_lines() -> None:
    content = index_bytes(INDEX_WRITTEN)
    lines = content.splitlines(keepends=True)
    others = b"".join(line for line in lines if not line.startswith(b' "index_sha256"'))
    assert json.loads(content)["index_sha256"] == hashlib.sha256(others).hexdigest()
    assert len(others.splitlines()) == len(lines) - 1


def test_keys_of_later_programs_are_passed_over(split: Path) -> None:
    damage(split / "manifest.json", at("licence", value="CC0"))
    damage(split / INDEX, at("samples", 0, "camera", value=3))
    signed(split / INDEX)
    assert read_manifest(split) == MANIFEST
    assert read_index(split, SHARD) == INDEX_WRITTEN


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff{}", b"[" * 100_000, b'{"split": "\\ud800"}', b"1" * 10_000, b"{} x"],
    ids=["nothing", "torn", "no UTF-8", "a nest", "half a character", "digits", "more"],
)
def test_what_is_no_json_is_refused_by_the_files_name(split: Path, content: bytes) -> None:
    (split / "manifest.json").write_bytes(content)
    with pytest.raises(ShardError, match=r"manifest\.json: ") as error:
        read_manifest(split)
    assert "signfuse pack" in str(error.value)


def test_missing_files_are_named(split: Path) -> None:
    (split / SHARD).rename(split / "away")
    with pytest.raises(ShardError, match=r"shard-000000.tar: the shard is missing"):
        load_manifest(split)
    (split / INDEX).unlink()
    with pytest.raises(ShardError, match=r"no such file, the index of a shard is missing"):
        read_index(split, SHARD)
    (split / "manifest.json").unlink()
    with pytest.raises(ShardError, match=r"manifest.json: no such file, no finished split"):
        load_manifest(split)


def test_impossible_settings_are_refused_together() -> None:
    with pytest.raises(UserError) as error:
        PackConfig(frame_size=0, fps=-1.0, jpeg_quality=101, clips_per_shard=0, max_gap=-1.0)
    for name in ("frame_size 0", "fps -1.0", "jpeg_quality 101", "clips_per_shard 0"):
        assert name in str(error.value)
    assert "max_gap -1.0" in str(error.value)


def test_the_index_lies_beside_its_tar() -> None:
    assert index_name(SHARD) == INDEX


@pytest.mark.parametrize("crop", ["signer", "box"])
def test_how_clips_are_cropped_is_written_and_read(split: Path, crop: str) -> None:
    packing = replace(PACKING, settings=replace(PACKING.settings, crop=crop))
    index = replace(INDEX_WRITTEN, packing=packing)
    manifest = replace(MANIFEST, packing=packing)
    (split / INDEX).write_bytes(index_bytes(index))
    (split / "manifest.json").write_bytes(manifest_bytes(manifest))
    assert load_manifest(split) == manifest
    assert load_index(split, manifest.shards[0]) == index
    assert MANIFEST.packing.differences(packing) == [f"crop is 'none', asked {crop!r}"]


def test_shards_that_say_nothing_of_a_crop_hold_whole_pictures(split: Path) -> None:
    assert b"crop" not in (split / "manifest.json").read_bytes()
    assert b"crop" not in (split / INDEX).read_bytes()
    assert load_manifest(split).packing.settings.crop == "none"
    assert load_index(split, MANIFEST.shards[0]).packing == PACKING


def test_a_crop_that_there_is_not_is_refused(split: Path) -> None:
    content = json.loads((split / "manifest.json").read_text())
    content["settings"]["crop"] = "face"
    (split / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(ShardError, match=r"'settings.crop' is of the wrong kind, 'face'"):
        load_manifest(split)
