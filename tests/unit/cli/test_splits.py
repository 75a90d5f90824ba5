"""One command for every split of a corpus: `pack --split all`, `verify` and `stats` above them."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.command_line import refused
from helpers.little_clips import COLUMNS, write_joints, write_table, write_video
from signfuse_dist.cli import main
from signfuse_dist.corpora import CorpusError, splits_of
from signfuse_dist.errors import MachineError

SPLITS = {"train": 3, "dev": 2, "test": 1}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    write_video(folder / "v.mp4")
    write_joints(folder / "v.npz")
    rows = [
        (f"{split}{number}", "v.mp4", f"{split} {number}", "v.npz", split)
        for split, count in SPLITS.items()
        for number in range(count)
    ]
    return write_table(folder / "t.tsv", rows, (*COLUMNS, "split"))


def words(table: Path, out: Path, *more: str) -> list[str]:
    sizes = ["--frame-size", "32", "--workers", "0"]
    return [
        "pack",
        "table",
        "--root",
        str(table),
        "--split",
        "all",
        "--out",
        str(out),
        *sizes,
        *(more),
    ]


def test_every_split_that_a_table_names_is_packed_verified_and_counted(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "shards"
    assert main(words(table, out)) == 0
    printed = capsys.readouterr().out
    for split, count in SPLITS.items():
        assert f"{split}: {count} rows = {count} packed + 0 dropped" in printed
    assert printed.splitlines()[-1].startswith("all 3 splits: 6 rows = 6 packed + 0 dropped")
    assert sorted(folder.name for folder in out.iterdir()) == sorted(SPLITS)
    assert main(["verify", str(out), "--workers", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        *(f"{out / s}: whole" for s in sorted(SPLITS)),
        f"all 3 splits of {out}: whole",
    ]
    assert all((out / split / "verified.json").exists() for split in SPLITS)
    assert main(["stats", str(out), "--plot", str(tmp_path / "s.png")]) == 0
    printed = capsys.readouterr().out
    assert all(f"table, split {split}" in printed for split in SPLITS)
    assert printed.splitlines()[-1] == f"all 3 splits of {out}: 6 clips, 48 frames, 0.00 h"
    assert sorted(p.name for p in tmp_path.glob("s*.png")) == [
        "s-dev.png",
        "s-test.png",
        "s-train.png",
    ]


def test_a_fault_of_one_split_is_named_and_counted_for_all(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "shards"
    assert main(words(table, out)) == 0
    (out / "dev" / "manifest.json").unlink()
    capsys.readouterr()
    assert main(["verify", str(out), "--workers", "0"]) == 1
    printed = capsys.readouterr().out
    assert "manifest.json: no such file, no finished split is in this folder" in printed
    assert f"{out / 'train'}: whole" in printed
    assert printed.splitlines()[-1] == f"all 3 splits of {out}: 1 faults, in 1 of them"


def test_a_folder_without_any_split_is_refused_by_its_own_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "videos").mkdir()
    assert main(["verify", str(tmp_path), "--workers", "0"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == f"{tmp_path}: 1 faults"


def test_a_split_that_cannot_be_packed_costs_no_other(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table.write_text(
        table.read_text()
        .replace("dev0\tv.mp4", "dev0\tw.mp4")
        .replace("dev1\tv.mp4", "dev1\tw.mp4")
    )
    out = tmp_path / "shards"
    assert main(words(table, out)) == 2
    error = capsys.readouterr().err
    assert "error: splits that are not packed, of 3 (1)" in error
    assert "split dev: none of the 2 rows could be packed: missing video (2 of 2)" in error
    assert (out / "train" / "manifest.json").exists()
    assert (out / "test" / "manifest.json").exists()


def test_a_machine_that_fails_ends_all_splits_with_75(
    table: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from signfuse_dist.data import pack

    asked = []

    def failing(corpus: str, root: Path, split: str, *_: object, **__: object) -> None:
        asked.append(split)
        raise MachineError("t.tsv: Stale file handle (ESTALE)")

    monkeypatch.setattr(pack, "pack", failing)
    assert main(words(table, tmp_path / "out")) == 75
    assert asked == ["train"]
    assert capsys.readouterr().err == "error: t.tsv: Stale file handle (ESTALE)\n"


def test_dropped_rows_of_all_splits_are_tried_again(table: Path, tmp_path: Path) -> None:
    out, video = tmp_path / "shards", table.parent / "w.mp4"
    table.write_text(table.read_text().replace("train1\tv.mp4", "train1\tw.mp4"))
    assert main(words(table, out)) == 0
    assert "train1" in (out / "train" / "dropped.tsv").read_text()
    write_video(video)
    assert main(words(table, out, "--retry-dropped")) == 0
    assert (out / "train" / "dropped.tsv").read_text() == "row\tid\treason\n"


def test_splits_whose_names_lead_elsewhere_are_refused(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table.write_text(table.read_text().replace("\tdev\n", "\t../dev\n"))
    error = refused(capsys, *words(table, tmp_path / "shards"))
    assert "'../dev' is no name for a folder" in error
    assert not (tmp_path / "shards").exists()


def test_a_table_without_splits_has_no_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_table(tmp_path / "t.tsv", [("a", "v.mp4", "x", "v.npz")], COLUMNS)
    assert "has no column `split`" in refused(capsys, *words(table, tmp_path / "out"))


def test_published_corpora_list_the_splits_they_were_published_with(tmp_path: Path) -> None:
    assert splits_of("phoenix14t", tmp_path) == ("train", "dev", "test")
    assert splits_of("how2sign", tmp_path) == ("train", "val", "test")
    assert splits_of("csl_daily", tmp_path) == splits_of("synthetic", tmp_path)
    with pytest.raises(CorpusError, match="corpus 'phonix': unknown"):
        splits_of("phonix", tmp_path)
