from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from signfuse_dist.corpora import Rejected
from signfuse_dist.data.manifest import (
    MEMBERS,
    Manifest,
    PackConfig,
    Packing,
    VersionError,
    index_name,
    manifest_bytes,
)
from signfuse_dist.data.shard import (
    EncodedClip,
    ShardError,
    load_index,
    load_manifest,
    read_clip,
    write_shard,
)
from signfuse_dist.errors import UserError
from signfuse_dist.skeleton import JOINT_LAYOUT, NUM_JOINTS

SIZE, SHARD = 32, "shard-000000.tar"
PACKING = Packing(
    corpus="table",
    root="t.tsv",
    split="train",
    joint_layout=JOINT_LAYOUT,
    extractor="synthetic",
    extractor_version="1",
    settings=PackConfig(frame_size=SIZE),
    rows_sha256="0" * 64,
)


def clip(clip_id: str, frames: int) -> EncodedClip:
    pictures = np.zeros((frames, SIZE, SIZE, 3), dtype=np.uint8)
    pictures += np.arange(frames, dtype=np.uint8)[:, None, None, None] * 20
    record = {
        "id": clip_id,
        "text": f"text of {clip_id}",
        "num_frames": frames,
        "signer": None,
        "flags": [],
        "failed_frames": 0,
        "split": "train",
    }
    pose = np.arange(frames * NUM_JOINTS * 2, dtype=np.float32).reshape(frames, NUM_JOINTS, 2)
    jpegs = [simplejpeg.encode_jpeg(picture, quality=90) for picture in pictures]
    return EncodedClip(record, jpegs, pose, np.ones((frames, NUM_JOINTS), dtype=bool))


CLIPS = (clip("a.b/c", 4), clip("_-一", 1))


@pytest.fixture
def split(tmp_path: Path) -> Path:
    dropped = Rejected(7, "lost", "missing video: lost.mp4")
    index = write_shard(tmp_path / SHARD, [CLIPS[0], dropped, CLIPS[1]], PACKING)
    manifest = Manifest(PACKING, (index.entry(),), 3, 2, 5, 1, 0, "0.1.0")
    (tmp_path / "manifest.json").write_bytes(manifest_bytes(manifest))
    return tmp_path


def members_of(folder: Path, sample: int = 0):
    return load_index(folder, load_manifest(folder).shards[0]).samples[sample].members


def test_what_is_written_is_read(split):
    index = load_index(split, load_manifest(split).shards[0])
    assert index.packing == PACKING
    assert index.dropped[0].id == "lost"
    for sample, written in zip(index.samples, CLIPS, strict=True):
        read = read_clip(split, SHARD, sample.members)
        assert sample.id == read.record["id"] == written.record["id"]
        assert (read.pose == written.pose).all()
        assert (read.mask == written.mask).all()
        levels = read.frames.reshape(len(read.frames), -1).mean(axis=1)
        assert np.allclose(levels, np.arange(len(levels)) * 20, atol=2)


def test_chosen_frames_come_in_the_order_asked(split):
    chosen = read_clip(split, SHARD, members_of(split), [3, 1, 1])
    assert np.allclose(chosen.frames[:, 5, 5, 0], [60, 20, 20], atol=2)
    assert (chosen.pose == CLIPS[0].pose[[3, 1, 1]]).all()
    for wrong in ([4], [-1], []):
        with pytest.raises(ValueError, match="frame indices"):
            read_clip(split, SHARD, members_of(split), wrong)


def test_stock_webdataset_reads_a_shard(split):
    import webdataset

    dataset = webdataset.WebDataset(str(split / SHARD), shardshuffle=False).decode()
    samples = list(dataset)
    assert [s["__key__"] for s in samples] == ["a%2Eb%2Fc", "_-%E4%B8%80"]
    for sample, written in zip(samples, CLIPS, strict=True):
        assert sample["json"] == written.record
        offsets = sample["offsets.npy"]
        second = sample["jpegs"][offsets[-2] : offsets[-1]]
        assert second == written.jpegs[-1]
        assert (sample["pose.npy"] == written.pose).all()
        assert sample["mask.npy"].dtype == bool


def test_the_tar_holds_the_members_in_order_and_nothing_of_the_day(split):
    with tarfile.open(split / SHARD) as tar:
        infos = tar.getmembers()
    assert [i.name for i in infos[:5]] == [f"a%2Eb%2Fc.{name}" for name in MEMBERS]
    assert {(i.mtime, i.uid, i.gid, i.uname, i.mode) for i in infos} == {
        (0, 0, 0, "signfuse", 0o644)
    }


def test_the_tar_is_in_pax_format_and_holds_what_the_index_says(split):
    with tarfile.open(split / SHARD) as tar:
        infos = tar.getmembers()
        contents = [tar.extractfile(info).read() for info in infos]
    again = io.BytesIO()
    with tarfile.open(fileobj=again, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, content in zip(infos, contents, strict=True):
            tar.addfile(info, io.BytesIO(content))
    assert again.getvalue() == (split / SHARD).read_bytes()
    places = [(info.offset_data, info.size) for info in infos]
    index = load_index(split, load_manifest(split).shards[0])
    assert places == [place for sample in index.samples for place in sample.members.values()]


def test_long_names_fit_and_the_same_clips_give_the_same_bytes(tmp_path):
    names = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        index = write_shard(folder / SHARD, [clip("語" * 26, 1)], PACKING)
        read_clip(folder, SHARD, index.samples[0].members)
        names.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert names[0] == names[1]
    assert set(names[0]) == {SHARD, index_name(SHARD)}


def test_an_interrupted_write_leaves_nothing(tmp_path):
    def clips():
        yield CLIPS[0]
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        write_shard(tmp_path / SHARD, clips(), PACKING)
    assert list(tmp_path.iterdir()) == []


def test_reading_imports_no_torch(split):
    program = (
        "import sys; from pathlib import Path; from signfuse_dist.data import shard;"
        f"folder = Path({str(split)!r}); manifest = shard.load_manifest(folder);"
        "index = shard.load_index(folder, manifest.shards[0]);"
        "shard.read_clip(folder, index.shard, index.samples[0].members);"
        "assert not {'torch', 'webdataset', 'mediapipe'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def edit(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda m: m["shards"][0].update(name="../shard-000000.tar"), "no name of a shard"),
        (lambda m: m["shards"][0].update(size=-1), "'size' is negative"),
        (lambda m: m["shards"][0].update(size=True), "'size' is missing or of the wrong kind"),
        (lambda m: m["shards"].append(m["shards"][0]), "lists a shard twice"),
        (lambda m: m.update(num_frames=6), "totals are not the sums"),
        (lambda m: m.update(num_rows=9), "rows are not clips packed"),
        (lambda m: m.update(version=1), r"version 1 of the format, this program reads 2; pack the"),
        (lambda m: m.update(version=3), "version 3 of the format"),
        (lambda m: m.update(contents="films"), "contents 'films'"),
        (lambda m: m.update(num_failed_frames=1), "totals are not the sums"),
        (lambda m: m.update(split="\ud800"), "'split' is no Unicode text"),
        (lambda m: m["settings"].update(fps=10**400), "'fps' is beyond all numbers"),
        (lambda m: m.update(joint_layout="coco-17"), "laid out as 'coco-17'"),
        (lambda m: m["settings"].update(frame_size=9999), "frame_size 9999"),
        (lambda m: m.pop("split"), "'split' is missing"),
        (lambda m: m["shards"].__setitem__(0, "x"), "something else than an object"),
    ],
)
def test_a_wrong_manifest_is_refused(split, change, what):
    edit(split / "manifest.json", change)
    with pytest.raises(ShardError, match=what) as error:
        load_manifest(split)
    if not isinstance(error.value, VersionError):
        assert "signfuse verify" in str(error.value)
        assert "signfuse pack" in str(error.value)


def test_missing_files_are_named(split):
    (split / SHARD).rename(split / "away")
    with pytest.raises(ShardError, match=r"shard-000000.tar: the shard is missing"):
        load_manifest(split)
    (split / "manifest.json").unlink()
    with pytest.raises(ShardError, match=r"manifest.json: no such file, no finished split"):
        load_manifest(split)
    (split / "manifest.json").write_text("{")
    with pytest.raises(ShardError, match="cannot be read as JSON"):
        load_manifest(split)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda s: s["members"].update(jpegs=[512, 10**9]), "beyond the end of the tar"),
        (lambda s: s["members"].update(jpegs=[-1, 5]), "needs an offset and a size"),
        (lambda s: s["members"].pop("jpegs"), "'jpegs' is missing"),
        (lambda s: s.update(key="../../etc/passwd"), "is not the key of"),
        (lambda s: s.update(num_frames=0), "has no frames"),
        (lambda s: s.update(failed_frames=5), "more failed frames than frames"),
        (lambda s: s.update(flags=["\udfff"]), "'flags' is no Unicode text"),
        (lambda s: s.update(num_frames=3), "does not agree with manifest.json"),
        (lambda s: s.update(flags="no_person"), "'flags'"),
    ],
)
def test_a_wrong_index_is_refused(split, change, what):
    edit(split / index_name(SHARD), lambda index: change(index["samples"][0]))
    entry = load_manifest(split).shards[0]
    with pytest.raises(ShardError, match=what):
        load_index(split, entry)


def npy(array: np.ndarray, **options: bool) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


HUGE = npy(np.zeros((4, 75), bool)).replace(b"(4, 75)", b"(9**9,)")


@pytest.mark.parametrize(
    ("member", "content", "what"),
    [
        ("json", b"[1]", "no JSON object with an id"),
        ("json", b'{"id": "a.b/c", "num_frames": 10000000}', "num_frames of the record"),
        ("jpegs", b"garbage", "frame 0: no JPEG"),
        ("offsets.npy", npy(np.array([0, 9, 5, 7, 8])), "do not cut the JPEGs"),
        ("pose.npy", npy(np.zeros((4, 70, 2), np.float32)), r"not float32 \[4, 75, 2\]"),
        ("pose.npy", npy(np.array([{}] * 9, object), allow_pickle=True), "pose.npy is"),
        ("mask.npy", HUGE, "mask.npy is"),
        ("mask.npy", b"no array", "mask.npy is no array"),
    ],
)
def test_damage_inside_a_clip_is_named(split, member, content, what):
    members = members_of(split)
    offset, size = members[member]
    assert len(content) <= size
    data = bytearray((split / SHARD).read_bytes())
    data[offset : offset + size] = content.ljust(size, b" " if member == "json" else b"\0")
    (split / SHARD).write_bytes(data)
    with pytest.raises(ShardError, match=what) as error:
        read_clip(split, SHARD, members)
    assert SHARD in str(error.value)
    assert error.value.key


def test_frames_of_another_size_are_refused_before_they_are_decoded(split):
    members = members_of(split)
    assert read_clip(split, SHARD, members, frame_size=SIZE).frames.shape == (4, SIZE, SIZE, 3)
    with pytest.raises(ShardError, match="frames of 32 pixels, not of 224"):
        read_clip(split, SHARD, members, frame_size=224)


def test_a_torn_tar_is_refused_by_name(split):
    members = members_of(split, 1)
    data = (split / SHARD).read_bytes()
    (split / SHARD).write_bytes(data[: members["pose.npy"][0] + 100])
    with pytest.raises(ShardError, match=r"shard-000000.tar, clip _-%E4%B8%80: torn: pose.npy"):
        read_clip(split, SHARD, members)
    with pytest.raises(ShardError, match=r"shard-000000.tar: torn: \d+ of \d+ bytes"):
        load_manifest(split)


def test_the_index_holds_the_tars_checksum(split):
    entry = load_manifest(split).shards[0]
    assert entry.sha256 == hashlib.sha256((split / SHARD).read_bytes()).hexdigest()


def test_impossible_settings_are_refused_together():
    with pytest.raises(UserError) as error:
        PackConfig(frame_size=0, fps=-1.0, jpeg_quality=101, clips_per_shard=0)
    for name in ("frame_size 0", "fps -1.0", "jpeg_quality 101", "clips_per_shard 0"):
        assert name in str(error.value)
