"""The columns of a split say what its indexes say, and are taken only where they are whole."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.little_clips import write_corpus
from helpers.little_splits import LENGTHS, SHARD, data_config, write_split
from signfuse_dist.cli import main
from signfuse_dist.data import columns
from signfuse_dist.data.columns import (
    COLUMNS_NAME,
    Columns,
    Ids,
    open_columns,
    renew_columns,
    text_digest,
    write_columns,
)
from signfuse_dist.data.manifest import PackConfig, index_name
from signfuse_dist.data.manifest_files import load_index, load_manifest
from signfuse_dist.data.pack import pack
from signfuse_dist.data.split import open_split

NAMES = ["clip 0", "", "naïve/\N{SNOWMAN}", "\udcff", "last"]


def assert_same(one: Columns, other: Columns) -> None:
    assert (one.ids, one.content) == (other.ids, other.content)
    for field in dataclasses.fields(Columns):
        if field.name not in ("ids", "content"):
            ours, theirs = getattr(one, field.name), getattr(other, field.name)
            assert ours.dtype == theirs.dtype
            assert np.array_equal(ours, theirs), field.name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_split(tmp_path / "train")


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    out = tmp_path / "out"
    config = PackConfig(frame_size=32, fps=10.0, clips_per_shard=2)
    pack("table", write_corpus(tmp_path / "corpus", 3), "train", out, config, workers=0)
    return out


def refuse_indexes(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("an index was read")

    monkeypatch.setattr(columns, "load_index", refuse)


def test_names_are_those_that_were_given() -> None:
    ids = Ids.of(NAMES)
    assert list(ids) == NAMES
    assert [ids[i] for i in range(len(ids))] == NAMES
    assert ids[1:] == NAMES[1:]
    assert ids[-1] == NAMES[-1]
    assert "last" in ids
    assert ids == Ids.of(NAMES)
    assert ids != Ids.of(["".join(NAMES), *NAMES[1:]])
    with pytest.raises(IndexError):
        ids[len(NAMES)]


def test_texts_have_one_digest_each_in_every_process() -> None:
    assert text_digest("it rains") == text_digest("it rains")
    assert len({text_digest(text) for text in ("", "a", "b", None, "\udcff")}) == 5
    assert text_digest("it rains") == -1844700409393817193


def test_mapped_columns_are_those_of_the_indexes_and_no_index_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = load_manifest(folder)
    read = open_columns(folder, manifest)
    assert renew_columns(folder)
    refuse_indexes(monkeypatch)
    mapped = open_columns(folder, manifest)
    assert isinstance(mapped.members, np.memmap)
    assert_same(mapped, read)
    assert len(mapped.ids) == len(LENGTHS)


def test_packing_leaves_columns_from_which_the_loader_reads(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = load_manifest(packed)
    read = columns.gather(manifest, [load_index(packed, entry) for entry in manifest.shards])
    refuse_indexes(monkeypatch)
    data = dataclasses.replace(data_config(), frame_size=32, fps=10.0)
    assert_same(open_split(packed, data).columns, read)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.999])
@pytest.mark.parametrize("cut", [False, True])
def test_damaged_columns_are_named_and_the_indexes_read(
    folder: Path, share: float, cut: bool
) -> None:
    manifest = load_manifest(folder)
    read = open_columns(folder, manifest)
    write_columns(folder, manifest, [load_index(folder, entry) for entry in manifest.shards])
    file = folder / COLUMNS_NAME
    content = bytearray(file.read_bytes())
    place = int(share * len(content))
    if cut:
        del content[place:]
    else:
        content[place] ^= 128
    file.write_bytes(content)
    with pytest.warns(UserWarning, match=r"columns.*the indexes are read instead"):
        assert_same(open_columns(folder, manifest), read)
    assert renew_columns(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_columns(folder, manifest)


def test_columns_of_other_shards_are_not_taken(tmp_path: Path) -> None:
    old, new = write_split(tmp_path / "old"), write_split(tmp_path / "new", LENGTHS[::-1])
    assert renew_columns(old)
    (old / COLUMNS_NAME).rename(new / COLUMNS_NAME)
    with pytest.warns(UserWarning, match="made of other shards"):
        assert open_columns(new, load_manifest(new)).lengths.tolist() == list(LENGTHS[::-1])


def test_an_index_that_is_damaged_later_does_no_harm_and_is_named_by_verify(
    packed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The columns have what it said when it was whole."""
    manifest = load_manifest(packed)
    before = open_columns(packed, manifest)
    index = packed / index_name(SHARD)
    text = index.read_text()
    index.write_text(text.replace('"num_frames": ', '"num_frames": 1'))
    assert index.read_text() != text
    assert_same(open_columns(packed, manifest), before)
    assert main(["verify", str(packed), "--workers", "0"]) == 1
    assert index.name in capsys.readouterr().out


def test_columns_in_a_folder_that_cannot_be_written_are_done_without(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(columns, "write_bytes", refuse)
    assert not renew_columns(folder)
    assert len(open_columns(folder, load_manifest(folder)).ids) == len(LENGTHS)
