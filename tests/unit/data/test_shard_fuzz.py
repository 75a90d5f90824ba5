"""Shards that nobody vouches for: an error by name or whole clips, and nothing else.

Files of a small valid set are damaged at random, byte by byte and value by value. While they are
read, nothing may be written, started, imported or evaluated, and it may not take long.
"""

from __future__ import annotations

import copy
import io
import json
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from signfuse_dist.data.manifest import Manifest, PackConfig, Packing, ShardIndex
from signfuse_dist.data.manifest_files import (
    load_index,
    load_manifest,
    manifest_bytes,
    read_index,
    read_manifest,
)
from signfuse_dist.data.shard import (
    EncodedClip,
    EncodedPose,
    ShardError,
    read_clip,
    read_pose,
    write_shard,
)
from signfuse_dist.data.verify import verify
from signfuse_dist.skeleton import JOINT_LAYOUT, NUM_JOINTS

SIZE, SHARD, INDEX = 16, "shard-000000.tar", "shard-000000.index.json"
FILES = ("manifest.json", INDEX, SHARD)
MAX_SECONDS = 2.0  # of processor time, to read and verify a set of two clips of a few frames

quick = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
thorough = settings(
    max_examples=4000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def record(clip_id: str, frames: int) -> dict[str, Any]:
    return {
        "id": clip_id,
        "text": "a sentence",
        "num_frames": frames,
        "signer": "s1",
        "flags": [],
        "failed_frames": 0,
        "split": "train",
        "joint_layout": JOINT_LAYOUT,
        "extractor": "synthetic",
        "extractor_version": "1",
    }


def encoded(clip_id: str, frames: int, poses: bool) -> EncodedClip | EncodedPose:
    pictures = np.full((frames, SIZE, SIZE, 3), 90, dtype=np.uint8)
    pose = np.full((frames, NUM_JOINTS, 2), 0.5, dtype=np.float32)
    mask = np.ones((frames, NUM_JOINTS), dtype=bool)
    if poses:
        return EncodedPose(record(clip_id, frames), pose, mask)
    jpegs = [simplejpeg.encode_jpeg(picture) for picture in pictures]
    return EncodedClip(record(clip_id, frames), jpegs, pose, mask)


@dataclass(frozen=True)
class Set:
    """A valid set of shards in a folder of its own, deep inside another."""

    folder: Path
    whole: dict[str, bytes] = field(repr=False)

    def read(self) -> int:
        """Read all there is to read; return how many clips there were."""
        manifest, count = load_manifest(self.folder), 0
        for entry in manifest.shards:
            index = load_index(self.folder, entry)
            for sample in index.samples:
                self.read_sample(index, sample.members)
                count += 1
        return count

    def read_sample(self, index: ShardIndex, members: Any) -> None:
        if index.packing.contents == "clips":
            clip = read_clip(self.folder, index.shard, members, frame_size=SIZE)
            assert len(clip.frames) == len(clip.pose) == len(clip.mask)
        else:
            read_pose(self.folder, index.shard, members)


def write_set(folder: Path, poses: bool) -> Set:
    folder.mkdir(parents=True)
    packing = Packing(
        "table",
        "t.tsv",
        "train",
        JOINT_LAYOUT,
        "synthetic",
        "1",
        PackConfig(SIZE),
        "0" * 64,
        "poses" if poses else "clips",
    )
    clips = [encoded("a.b", 3, poses), encoded("c", 2, poses)]
    index = write_shard(folder / SHARD, clips, packing)
    manifest = Manifest(packing, (index.entry(),), 2, 2, 5, 0, 0, "0.1.0")
    (folder / "manifest.json").write_bytes(manifest_bytes(manifest))
    return Set(folder, {name: (folder / name).read_bytes() for name in FILES})


@pytest.fixture(scope="module", params=[False, True], ids=["clips", "poses"])
def valid(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Set:
    valid = write_set(tmp_path_factory.mktemp("fuzz") / "a" / "b" / "set", request.param)
    verify(valid.folder, 0)  # tqdm imports some of its modules when it is first used
    return valid


_FORBIDDEN = {
    "exec", "compile", "import", "subprocess", "pickle", "shutil", "os.system", "os.remove",
    "os.rename", "os.mkdir", "os.link", "os.symlink",
}  # fmt: skip
_WATCHED: list[str] | None = None


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _WATCHED is None:
        return
    if event == "open":
        _, mode, flags = arguments
        if (mode and set("wax+") & set(mode)) or (not mode and flags & 0o3):
            _WATCHED.append(f"opened {arguments[0]!r} to write")
    elif event.split(".")[0] in _FORBIDDEN or event in _FORBIDDEN:
        _WATCHED.append(f"{event} {arguments!r}"[:200])


sys.addaudithook(_audit)


@contextmanager
def harmless() -> Iterator[None]:
    """Assert that a block takes little time and writes, starts, imports and evaluates nothing."""
    global _WATCHED
    began, _WATCHED = time.process_time(), []
    try:
        yield
        done = _WATCHED
    finally:
        _WATCHED = None
    assert done == []
    assert time.process_time() - began < MAX_SECONDS


def survives(valid: Set, name: str, content: bytes) -> None:
    """Assert that a set with this file in it is read or refused by name."""
    path = valid.folder / name
    path.write_bytes(content)
    try:
        with harmless():
            for read in (valid.read, lambda: read_every_index(valid)):
                try:
                    read()
                except ShardError as error:
                    str(error).encode("utf-8")
            for fault in verify(valid.folder, 0):
                assert str(fault).replace("\n", "").isprintable()
    finally:
        path.write_bytes(valid.whole[name])


def read_every_index(valid: Set) -> None:
    """Read the shard as a reader does that trusts the index alone."""
    read_manifest(valid.folder)
    index = read_index(valid.folder, SHARD)
    for sample in index.samples:
        try:
            valid.read_sample(index, sample.members)
        except ShardError:
            continue


def test_a_valid_set_is_read_whole_and_the_watch_notices_what_it_watches(
    valid: Set, tmp_path: Path
) -> None:
    with harmless():
        assert valid.read() == 2
        assert verify(valid.folder, 0) == []
    for act in (
        lambda: (tmp_path / "file").write_text(""),
        lambda: compile("1", "x", "eval"),
        lambda: (tmp_path / "folder").mkdir(),
    ):
        with pytest.raises(AssertionError), harmless():
            act()


edits = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "insert", "erase", "zero", "repeat"]),
        st.floats(0, 1),
        st.binary(min_size=1, max_size=12),
    ),
    min_size=1,
    max_size=4,
)


def edited(content: bytes, changes: list[tuple[str, float, bytes]]) -> bytes:
    for how, where, what in changes:
        at, span = int(where * len(content)), len(what) ** 2
        before, after = content[:at], content[at:]
        content = {
            "flip": before + what + after[len(what) :],
            "cut": before,
            "insert": before + what + after,
            "erase": before + after[span:],
            "zero": before + bytes(min(span, len(after))) + after[span:],
            "repeat": before + after[:span] * 2 + after[span:],
        }[how]
    return content


def check_bytes(valid: Set, name: str, changes: list[tuple[str, float, bytes]]) -> None:
    survives(valid, name, edited(valid.whole[name], changes))


@quick
@given(name=st.sampled_from(FILES), changes=edits)
def test_damaged_bytes_are_an_error_by_name(valid: Set, name: str, changes: Any) -> None:
    check_bytes(valid, name, changes)


@pytest.mark.long
@thorough
@given(name=st.sampled_from(FILES), changes=edits)
def test_damaged_bytes_are_an_error_by_name_each_time(valid: Set, name: str, changes: Any) -> None:
    check_bytes(valid, name, changes)


texts = st.text(st.characters(codec=None), max_size=12) | st.sampled_from(
    ["\ud800", "../../x", "/etc/passwd", "shard-000000.tar", "a\x1b[2Jb", "clips", "poses", "a.b"]
)
numbers = st.integers(-3, 200) | st.sampled_from(
    [2**31, 2**63 - 1, 2**63, 10**30, -(10**30), 10**400, 1e308, -0.0, 0.5]
)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value, as the keys that lead there."""
    found = [path]
    if isinstance(value, dict | list):
        for step, inside in value.items() if isinstance(value, dict) else enumerate(value):
            found += places(inside, (*path, step))
    return found


def changed(content: bytes, where: float, value: Any, remove: bool) -> bytes:
    document = copy.deepcopy(json.loads(content))
    found = places(document)
    path = found[min(int(where * len(found)), len(found) - 1)]
    if not path:
        return json.dumps(value).encode()
    target = document
    for step in path[:-1]:
        target = target[step]
    if remove:
        del target[path[-1]]
    else:
        target[path[-1]] = value
    return json.dumps(document).encode()


def check_values(valid: Set, name: str, where: float, value: Any, remove: bool) -> None:
    survives(valid, name, changed(valid.whole[name], where, value, remove))


@quick
@given(name=st.sampled_from(FILES[:2]), where=st.floats(0, 1), value=values, remove=st.booleans())
def test_a_manifest_or_index_with_any_other_value_is_an_error_by_name(
    valid: Set, name: str, where: float, value: Any, remove: bool
) -> None:
    check_values(valid, name, where, value, remove)


@pytest.mark.long
@thorough
@given(name=st.sampled_from(FILES[:2]), where=st.floats(0, 1), value=values, remove=st.booleans())
def test_a_manifest_or_index_with_any_other_value_is_an_error_by_name_each_time(
    valid: Set, name: str, where: float, value: Any, remove: bool
) -> None:
    check_values(valid, name, where, value, remove)


def with_member(valid: Set, member: str, content: bytes, clip: int = 0) -> bytes:
    """The tar with other bytes in one member, cut or filled up to its size."""
    offset, size = read_index(valid.folder, SHARD).samples[clip].members[member]
    whole = valid.whole[SHARD]
    return whole[:offset] + content[:size].ljust(size, b" ") + whole[offset + size :]


@quick
@given(where=st.floats(0, 1), value=values, remove=st.booleans())
def test_a_record_with_any_other_value_is_an_error_by_name(
    valid: Set, where: float, value: Any, remove: bool
) -> None:
    whole = json.dumps(record("a.b", 3)).encode()
    survives(valid, SHARD, with_member(valid, "json", changed(whole, where, value, remove)))


HEADERS = (
    "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 75, 2), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (3, 75, 2), }",
    "{'descr': '<f4', 'fortran_order': True, 'shape': (3, 75, 2), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (9**9**9,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (3, -75, 2), }",
    "__import__('os').system('touch x')",
    "(" * 200,
    "{'descr': [('a', '<f4')]}",
    "",
)


@quick
@given(
    member=st.sampled_from(["pose.npy", "mask.npy", "offsets.npy"]),
    header=st.sampled_from(HEADERS) | st.text(max_size=60),
    length=st.none() | st.integers(0, 2**16 - 1),
    version=st.sampled_from([(1, 0), (2, 0), (3, 0), (0, 0), (255, 255)]),
    rest=st.binary(max_size=20),
)
def test_an_array_with_any_other_header_is_an_error_by_name(
    valid: Set, member: str, header: str, length: int | None, version: Any, rest: bytes
) -> None:
    if member == "offsets.npy" and "offsets.npy" not in first_members(valid):
        member = "pose.npy"
    words = header.encode("utf-8")
    size = struct.pack("<H", (len(words) if length is None else length) & 0xFFFF)
    content = b"\x93NUMPY" + bytes(version) + size + words + rest
    survives(valid, SHARD, with_member(valid, member, content))


def first_members(valid: Set) -> Any:
    return read_index(valid.folder, SHARD).samples[0].members


@quick
@given(offsets=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=4, max_size=4))
def test_offsets_that_lead_anywhere_are_an_error_by_name(valid: Set, offsets: list[int]) -> None:
    if "jpegs" not in first_members(valid):
        pytest.skip("a pose set has no offsets")
    size = first_members(valid)["jpegs"][1]
    for ends in (offsets, [0, *offsets[1:3], size], [0, 2**63 - 1, -(2**63) + 5, size]):
        file = io.BytesIO()
        np.save(file, np.array(ends, dtype=np.int64))
        survives(valid, SHARD, with_member(valid, "offsets.npy", file.getvalue()))


def _large_jpeg(side: int) -> bytes:
    return bytes(simplejpeg.encode_jpeg(np.zeros((side, side, 3), np.uint8), quality=1))


@pytest.mark.parametrize(
    "jpeg", [lambda: _large_jpeg(32), lambda: b"\xff\xd8\xff" + bytes(400), lambda: b"GIF89a"]
)
def test_a_picture_that_is_none_or_of_another_size_is_an_error_by_name(
    tmp_path: Path, jpeg: Callable[[], bytes]
) -> None:
    clips = write_set(tmp_path / "set", poses=False)
    survives(clips, SHARD, with_member(clips, "jpegs", jpeg()))


@pytest.mark.parametrize("size", [8 * 2**30, 10**13, 10**18, 10**30])
def test_a_size_that_no_memory_has_is_an_error_by_name(valid: Set, size: int) -> None:
    def enlarge(document: dict[str, Any]) -> bytes:
        document["size"] = 3 * size
        for sample in document["samples"]:
            sample["members"] = {name: [512, size] for name in sample["members"]}
        return json.dumps(document).encode()

    survives(valid, INDEX, enlarge(json.loads(valid.whole[INDEX])))
