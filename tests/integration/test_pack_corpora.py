"""Each published corpus from its unpacked folder to shards: totals, drops, orphans, rates."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest

from helpers.little_clips import truncated
from helpers.published_trees import (
    CSL_PLACE,
    Still,
    csl_entry,
    how2sign_row,
    phoenix_row,
    write_csl,
    write_frames,
    write_how2sign,
    write_phoenix,
)
from signfuse_dist import cli
from signfuse_dist.corpora import FolderFrames, Orphan
from signfuse_dist.data.frame_folder import image_files
from signfuse_dist.data.pack import PackConfig, PackError, PackSummary, pack
from signfuse_dist.data.shard import Clip, load_index, load_manifest, read_clip
from signfuse_dist.data.verify import verify
from signfuse_dist.errors import UserError

CONFIG = PackConfig(frame_size=32, clips_per_shard=2)


def packed(corpus: str, root: Path, split: str, out: Path, fps: float | None = None) -> PackSummary:
    config = PackConfig(frame_size=32, clips_per_shard=2, fps=fps)
    return pack(corpus, root, split, out, config, workers=0, extractor=Still())


def clips(folder: Path) -> dict[str, Clip]:
    shards = [load_index(folder, entry) for entry in load_manifest(folder).shards]
    return {s.id: read_clip(folder, i.shard, s.members) for i in shards for s in i.samples}


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def lines(folder: Path, name: str) -> list[str]:
    return (folder / name).read_text("utf-8").splitlines()


def brightness(clip: Clip) -> list[int]:
    """The numbers that ``little_clips.picture`` gave the frames."""
    middle = clip.frames[:, 16, 24].mean(axis=1)
    return [round((value - 40) / 3) for value in middle]


def phoenix(root: Path) -> Path:
    """A split with whole clips, a truncated one, one without frames, a bad row, strays."""
    rows = [
        phoenix_row("clip-1", "am tag regen ."),
        phoenix_row("clip-2", '"schnee', "Signer01"),
        phoenix_row("torn", "kurz"),
        phoenix_row("lost", "weg"),
        "cut|short",
        phoenix_row("", "x"),
        phoenix_row("strays", "nur streuner"),
        phoenix_row("clip-3", "wind"),
    ]
    frames = {"clip-1": 8, "clip-2": 5, "clip-3": 6, "torn": 4, "unnamed": 2}
    anchor = write_phoenix(root, "dev", rows, frames)
    place = anchor / "features/fullFrame-210x260px/dev"
    (place / "clip-1/images0003.lprof").write_bytes(b"a profile that was left behind")
    shutil.copyfile(place / "clip-1/images0001.png", place / "clip-1/thumbnail.jpg")
    truncated(place / "torn/images0003.png", 0.5)
    (place / "strays").mkdir()
    (place / "strays/a.lprof").write_bytes(b"")
    return root


def test_phoenix_is_packed_at_its_own_rate_with_every_row_accounted_for(tmp_path):
    root, out = phoenix(tmp_path / "in"), tmp_path / "out"
    summary = packed("phoenix14t", root, "dev", out)
    printed = str(summary)
    assert printed.startswith("dev: 8 rows = 3 packed + 5 dropped; 19 frames in 3 shards\n")
    assert "  orphans, no row: 1 (unnamed)\n  orphans, no video: 1 (lost)" in printed
    assert "  note: dev has 8 rows here; the published phoenix14t has 519" in printed
    assert [line.split(":")[0] for line in lines(out, "dropped.tsv")[1:]] == [
        "4\ttorn\ttruncated video",
        "5\tlost\tmissing video",
        "6\t\tmalformed row",
        "7\t\tempty id",
        "8\tstrays\tempty video",
    ]
    assert lines(out, "orphans.tsv") == [
        "id\treason",
        "unnamed\tno row: it lies in features/fullFrame-210x260px/dev, and no row names it",
        "lost\tno video: features/fullFrame-210x260px/dev/lost is not there",
    ]
    manifest = load_manifest(out)
    assert (manifest.packing.corpus, manifest.packing.split) == ("phoenix14t", "dev")
    assert (manifest.num_rows, manifest.num_samples, manifest.num_dropped) == (8, 3, 5)
    found = clips(out)
    assert list(found) == ["clip-1", "clip-2", "clip-3"]
    assert brightness(found["clip-1"]) == list(range(8)), "neither the profile nor the thumbnail"
    record = found["clip-2"].record
    assert (record["fps"], record["text"], record["signer"], record["language"]) == (
        25.0,
        '"schnee',
        "Signer01",
        "de",
    )
    assert verify(out, 0) == []


def test_a_folder_with_a_known_rate_is_resampled(tmp_path):
    root = phoenix(tmp_path / "in")
    packed("phoenix14t", root, "dev", tmp_path / "half", fps=12.5)
    clip = clips(tmp_path / "half")["clip-1"]
    assert clip.record["fps"] == 12.5
    assert brightness(clip) == [0, 2, 4, 6]
    packed("phoenix14t", root, "dev", tmp_path / "same", fps=25.0)
    assert brightness(clips(tmp_path / "same")["clip-1"]) == list(range(8))


def test_packing_a_published_corpus_again_gives_the_same_bytes(tmp_path):
    root = phoenix(tmp_path / "in")
    packed("phoenix14t", root, "dev", tmp_path / "a")
    (anchor,) = (root / "PHOENIX-2014-T-release-v3").iterdir()
    packed("phoenix14t", anchor, "dev", tmp_path / "b")
    (tmp_path / "b/orphans.tsv").unlink()
    packed("phoenix14t", anchor, "dev", tmp_path / "b")
    pack(
        "phoenix14t", root, "dev", tmp_path / "c", CONFIG, workers=0, num_tasks=2, extractor=Still()
    )
    assert not (tmp_path / "c/orphans.tsv").exists(), "written with the manifest, at the end"
    pack(
        "phoenix14t",
        root,
        "dev",
        tmp_path / "c",
        CONFIG,
        workers=0,
        task_id=1,
        num_tasks=2,
        extractor=Still(),
    )
    assert files(tmp_path / "a") == files(tmp_path / "b") == files(tmp_path / "c")


def test_what_a_corpus_knows_of_its_folders_is_part_of_the_packing(tmp_path, monkeypatch):
    root, out = phoenix(tmp_path / "in"), tmp_path / "out"
    packed("phoenix14t", root, "dev", out)
    monkeypatch.setattr("signfuse_dist.corpora.phoenix14t.FRAMES", FolderFrames(24.0, ".png"))
    with pytest.raises(PackError, match="rows_sha256"):
        packed("phoenix14t", root, "dev", out)


def csl(root: Path) -> Path:
    names = [f"S{i:06d}_P0001_T00" for i in range(3)]
    entries = [csl_entry(name, [*"你好", "，", str(i)]) for i, name in enumerate(names)]
    unused = csl_entry("S000007_P0003_T00", ["好"], label_gloss=[])
    splits = {"S000005_P0004_T00": "train", **dict.fromkeys(names, "train")}
    write_csl(root, splits, [*entries, unused], {names[0]: 6, names[1]: 4, "S1_P1_T1": 1})
    write_frames(root / CSL_PLACE / names[0], 1, "stray.png")
    return root


def test_csl_daily_is_packed_with_its_known_defects_named(tmp_path):
    out = tmp_path / "out"
    summary = packed("csl_daily", csl(tmp_path / "in"), "train", out)
    assert str(summary).startswith("train: 4 rows = 2 packed + 2 dropped; 10 frames")
    assert summary.reasons == {"no annotation": 1, "missing video": 1}
    assert lines(out, "dropped.tsv")[1].startswith("2\tS000005_P0004_T00\tno annotation: ")
    assert [line.split(":")[0] for line in lines(out, "orphans.tsv")[1:]] == [
        "S000005_P0004_T00\tno annotation",
        "S1_P1_T1\tno row",
        "S000007_P0003_T00\tno split",
        "S000002_P0001_T00\tno video",
    ]
    for kind in ("no annotation", "no row", "no split", "no video"):
        assert f"  orphans, {kind}: 1 (S" in str(summary)
    clip = clips(out)["S000000_P0001_T00"]
    assert (clip.record["fps"], clip.record["text"]) == (30.0, "你好，0")
    assert brightness(clip) == list(range(6)), "frames are jpg; a png is a stray"
    assert summary.flagged == {}


def how2sign(root: Path) -> Path:
    rows = [
        how2sign_row("-a_b", 0, 0.5, 1.0, "first"),
        how2sign_row("-a_b", "1_2", 1.0, 2.0, '"He said ""no""."'),
        how2sign_row("-a_b", 3, 1.5, 9.0, "beyond the end"),
        how2sign_row("-a_b", 4, 30.0, 31.0, "far beyond"),
        how2sign_row("lost", 0, 0, 1, "no video"),
        how2sign_row("-a_b", 5, 0, 1, '"open'),
    ]
    whole = {row[3]: 7 for row in rows[:4]}
    write_how2sign(root, "test", rows, {"-a_b-1-rgb_front": 20}, whole, end="\r\n")
    return root


def test_how2sign_is_cut_from_full_videos_and_times_beyond_the_end_are_dropped(tmp_path):
    out = tmp_path / "out"
    summary = packed("how2sign", how2sign(tmp_path / "in"), "test", out)
    assert str(summary).startswith("test: 6 rows = 2 packed + 4 dropped; 15 frames")
    dropped = [line.split("\t") for line in lines(out, "dropped.tsv")[1:]]
    assert [(row, clip, reason[:40]) for row, clip, reason in dropped] == [
        ("4", "-a_b_3-1-rgb_front", "bad time: end 9 s is beyond the end of -"),
        ("5", "-a_b_4-1-rgb_front", "bad time: end 31 s is beyond the end of "),
        ("6", "lost_0-1-rgb_front", "missing video: lost-1-rgb_front.mp4 is n"),
        ("7", "", "malformed row: line 7, its quotes are br"),
    ]
    assert load_manifest(out).packing.corpus == "how2sign"
    found = clips(out)
    assert brightness(found["-a_b_0-1-rgb_front"]) == pytest.approx(range(5, 10), abs=1)
    clip = found["-a_b_1_2-1-rgb_front"]
    assert brightness(clip) == pytest.approx(range(10, 20), abs=1)
    assert (clip.record["text"], clip.record["start"]) == ('He said "no".', 1.0)
    assert summary.orphans == (
        Orphan(
            "no video: video_level/test/rgb_front/raw_videos/lost-1-rgb_front.mp4 is not there",
            "lost_0-1-rgb_front",
        ),
    )


def test_precut_clips_are_packed_whole_and_the_manifest_says_so(tmp_path):
    out = tmp_path / "out"
    summary = packed("how2sign_precut", how2sign(tmp_path / "in"), "test", out)
    assert str(summary).startswith("test: 6 rows = 4 packed + 2 dropped; 28 frames")
    assert "  note: these clips are cut at the times before re-alignment" in str(summary)
    assert load_manifest(out).packing.corpus == "how2sign_precut"
    with pytest.raises(PackError, match="corpus is 'how2sign_precut', asked 'how2sign'"):
        packed("how2sign", tmp_path / "in", "test", out)


def test_a_corpus_is_packed_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("signfuse_dist.data.pack.choose_extractor", lambda: Still())
    words = ["--root", str(how2sign(tmp_path / "in")), "--split", "test", "--workers", "0"]
    assert cli.main(["pack", "how2sign", *words, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "test: 6 rows = 2 packed + 4 dropped" in printed
    assert "orphans, no video: 1 (lost_0-1-rgb_front)" in printed
    assert cli.main(["pack", "how2sign", *words, "--out", str(tmp_path / "o"), "--split", "x"]) == 2
    assert "how2sign has train, val, test" in capsys.readouterr().err


def test_the_published_clips_are_packed_as_precut_ones(shared, tmp_path):
    """The real clips of How2Sign in their published place, with their exact texts."""
    with (shared / "data/how2sign/clips.tsv").open(encoding="utf-8", newline="") as table:
        chosen = [row for row in csv.reader(table, delimiter="\t") if len(row[5]) < 3][:3]
    place = tmp_path / "How2Sign/sentence_level/val/rgb_front/raw_videos"
    place.mkdir(parents=True)
    rows = []
    for name, file, text, signer, *_ in chosen:
        sentence = name.removesuffix(f"-{signer}-rgb_front")
        video, _, number = sentence.rpartition("_")
        quoted = '"' + text.replace('"', '""') + '"'
        rows.append(how2sign_row(video, number, 1, 2, quoted, int(signer)))
        shutil.copyfile(shared / "data/how2sign" / file, place / f"{name}.mp4")
    write_how2sign(tmp_path, "val", rows, {})
    summary = packed("how2sign_precut", tmp_path, "val", tmp_path / "out")
    assert (summary.num_packed, summary.orphans) == (3, ())
    found = clips(tmp_path / "out")
    for name, _, text, signer, _, frames, *_ in chosen:
        assert (found[name].record["text"], found[name].record["signer"]) == (text, signer)
        assert len(found[name].frames) == int(frames)


def test_only_files_with_the_ending_of_the_corpus_are_frames(tmp_path):
    folder = write_frames(tmp_path / "f", 2, "images{:04d}.png")
    write_frames(folder, 3, "{:06d}.jpg")
    assert [len(image_files(folder, suffix)) for suffix in (None, ".png", ".jpg")] == [5, 2, 3]
    with pytest.raises(UserError, match=r"folder f holds no \.jpeg frames"):
        image_files(folder, ".jpeg")
