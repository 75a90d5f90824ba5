"""A split cut around its signer: packed, verified, shown, and its joints extracted again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers.little_clips import COLUMNS, write_joints, write_table, write_video
from signfuse_dist.cli import main
from signfuse_dist.corpora import Box, ClipRow, Corpus
from signfuse_dist.data.joints import NoJoints
from signfuse_dist.data.manifest import PackConfig
from signfuse_dist.data.manifest_files import load_index, load_manifest
from signfuse_dist.data.pack import PackError, extract_poses, pack
from signfuse_dist.data.planned import rows_digest
from signfuse_dist.data.shard import read_clip, read_pose, read_record
from signfuse_dist.data.split import open_split
from signfuse_dist.data.verify import verify
from signfuse_dist.errors import UserError
from signfuse_dist.experiment import load_run
from signfuse_dist.skeleton import NUM_JOINTS


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A signer left of the middle, and a clip in which nothing is found."""
    folder = tmp_path / "corpus"
    for name in ("0", "1"):
        write_video(folder / f"{name}.mp4", 6, 128, 64)
    pose = np.full((6, NUM_JOINTS, 2), 0.5, np.float32)
    pose[..., 0] += np.linspace(-0.2, 0.0, NUM_JOINTS)
    pose[..., 1] += np.linspace(-0.1, 0.1, NUM_JOINTS)
    np.savez(folder / "0.npz", pose=pose, mask=np.ones((6, NUM_JOINTS), bool))
    write_joints(folder / "1.npz", 6, slice(0, NUM_JOINTS))
    rows = [("there", "0.mp4", "a text", "0.npz"), ("nobody", "1.mp4", "b text", "1.npz")]
    return write_table(folder / "t.tsv", rows, COLUMNS)


def crop(table: Path, out: Path, *words: str) -> int:
    command = ["pack", "table", "--root", str(table), "--split", "train", "--out", str(out)]
    return main([*command, "--frame-size", "32", "--workers", "0", *words])


def test_a_cropped_split_is_whole_and_its_joints_are_extracted_into_its_squares(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert crop(table, out, "--crop", "signer") == 0
    assert "packed, flagged no_crop: 1 (nobody)" in capsys.readouterr().out
    assert verify(out, 0) == []
    assert load_manifest(out).packing.settings.crop == "signer"
    (shard,) = load_manifest(out).shards
    there, nobody = load_index(out, shard).samples
    clip = read_clip(out, shard.name, there.members)
    assert read_record(out, shard.name, there.members) == clip.record
    assert clip.record["box"][0] > 0.2
    assert clip.record["box"][2] < 0.6
    assert read_clip(out, shard.name, nobody.members).record["box"] is None
    # The other extraction is the same, so its joints are the packed ones.
    extract_poses("table", table, "train", out, "again", workers=0)
    assert verify(out / "poses" / "again", 0) == []
    (entry, _) = load_index(out / "poses" / "again", shard_of(out)).samples
    again = read_pose(out / "poses" / "again", shard.name, entry.members)
    assert np.array_equal(again.pose, clip.pose)
    assert main(["show", str(out), "there", "--out", str(tmp_path / "c.png")]) == 0
    assert "0 of 252 landmarks of hands are cut off" in capsys.readouterr().out


def shard_of(out: Path):
    return load_manifest(out / "poses" / "again").shards[0]


def test_a_split_of_whole_pictures_is_another_packing_than_a_cropped_one(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert crop(table, out) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert crop(table, out, "--crop", "none") == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    capsys.readouterr()
    assert crop(table, out, "--crop", "signer") == 2
    assert "crop is 'none', asked 'signer'" in capsys.readouterr().err


def test_a_run_is_refused_shards_of_another_crop(table: Path, tmp_path: Path) -> None:
    assert crop(table, tmp_path / "out", "--crop", "signer") == 0
    data = load_run("demo", "finetune", ["data.frame_size=32", "data.fps=null"]).data
    with pytest.raises(UserError, match="packed with crop signer, asked none"):
        open_split(tmp_path / "out", data)
    assert len(open_split(tmp_path / "out", replace(data, crop="signer"))) == 2


def test_a_crop_that_no_clip_could_have_is_refused_at_once(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(PackError, match="with the extractor none there are none"):
        pack("table", table, "train", out, PackConfig(crop="signer"), extractor=NoJoints())
    with pytest.raises(PackError, match=r"no row of table, t.tsv, split train has a box"):
        pack("table", table, "train", out, PackConfig(crop="box"))
    assert not out.exists()


def test_rows_without_boxes_have_the_digest_that_they_had() -> None:
    """Or every split that is packed would be one of other rows."""
    rows = tuple(
        ClipRow(
            row=number + 2,
            id=f"clip.{number}",
            video=Path("x"),
            source=f"{number}.mp4",
            text=f"sentence {number}",
            start=None,
            end=None,
            signer=None,
            language=None,
            split="train",
            joints=None,
        )
        for number in range(2)
    )
    corpus = Corpus("table", "t.tsv", "train", rows, (), False)
    had = "91145e133070ccf233be4ded9dca076db6fa59d57a7b3d68215cd59b2af20839"
    assert rows_digest(corpus) == had
    boxed = (replace(rows[0], box=Box(0, 0, 1, 1)), rows[1])
    assert rows_digest(replace(corpus, rows=boxed)) != had
