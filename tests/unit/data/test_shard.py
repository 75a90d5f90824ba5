from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from signfuse_dist.corpora import Rejected
from signfuse_dist.data.manifest import MEMBERS, Manifest, PackConfig, Packing, index_name
from signfuse_dist.data.manifest_files import manifest_bytes
from signfuse_dist.data.shard import (
    EncodedClip,
    ShardError,
    load_index,
    load_manifest,
    read_clip,
    write_shard,
)
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
    assert places == [tuple(span) for sample in index.spans.tolist() for span in sample]


def test_the_bytes_are_those_of_webdatasets_own_writer(split):
    from webdataset.writer import TarWriter

    theirs = io.BytesIO()
    owner = "signfuse"
    with TarWriter(theirs, owner, owner, 0o644, compress=False, encoder=False, mtime=0) as writer:
        for written, key in zip(CLIPS, ("a%2Eb%2Fc", "_-%E4%B8%80"), strict=True):
            for name, content in written.members().items():
                writer.write({"__key__": key, name: content})
    assert theirs.getvalue() == (split / SHARD).read_bytes()


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


def test_reading_and_writing_import_no_torch(split):
    program = (
        "import sys; from pathlib import Path; from signfuse_dist.data import pack, shard;"
        f"folder = Path({str(split)!r}); manifest = shard.load_manifest(folder);"
        "index = shard.load_index(folder, manifest.shards[0]);"
        "clip = shard.read_clip(folder, index.shard, index.samples[0].members);"
        "again = shard.EncodedClip(clip.record | {'pictures': False}, (), clip.pose, clip.mask);"
        "shard.write_shard(folder / 'again.tar', [again], index.packing);"
        "assert not {'torch', 'webdataset', 'mediapipe'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


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
