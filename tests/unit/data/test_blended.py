"""Splits of several corpora as one: whose clip a place is, what its batch says, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers.little_splits import data_config, encode, write_split
from helpers.repository import ROOT
from signfuse_dist.blend import BlendFrames
from signfuse_dist.config import AugmentConfig, BlendedCorpus, RunConfig
from signfuse_dist.data.blended import BlendedSplit, blend_of, content_of, open_training
from signfuse_dist.data.loader import ClipBatches
from signfuse_dist.errors import UserError
from signfuse_dist.experiment import load_resolved, load_run
from signfuse_dist.plan import PADDING, MicroBatch, make_plan
from signfuse_dist.preflight.check import describe
from signfuse_dist.preflight.inputs import check_splits, worst_frames
from signfuse_dist.run_folder import fixed, refuse_other_data

DEMO = str(ROOT / "configs" / "experiment" / "demo.yaml")


def blended(folder: Path, **second: int) -> RunConfig:
    """A run of two corpora: four clips of 4, 1, 6 and 3 frames, and two of 2 and 5."""
    write_split(folder / "train")
    (folder / "more").mkdir()
    write_split(folder / "more" / "train", (2, 5))
    parts = (
        BlendedCorpus(corpus="one", weight=2.0, data=data_config(shards=str(folder))),
        BlendedCorpus(corpus="two", data=data_config(shards=str(folder / "more")), **second),
    )
    run = load_run(DEMO, "finetune", ["train.global_batch_size=4", "train.micro_batch_size=4"])
    return replace(run, data=replace(parts[0].data, blend=parts))


def test_a_place_is_a_clip_of_one_corpus_and_its_batch_says_which(tmp_path: Path) -> None:
    run = blended(tmp_path)
    split = open_training(run)
    assert isinstance(split, BlendedSplit)
    assert split.lengths.tolist() == [4, 1, 6, 3, 2, 5]
    assert [split.name_of(place) for place in (0, 3, 4, 5)] == [
        "one/clip 0",
        "one/clip 3",
        "two/clip 0",
        "two/clip 1",
    ]
    frames = BlendFrames(split.lengths, 64, AugmentConfig(), 0)
    plan = [MicroBatch([5, PADDING, 2], np.array([1, 0, 0]))]
    batch = ClipBatches(split, plan, frames, encode)[0]
    assert batch.ids == ("two/clip 1", "", "one/clip 2")
    assert batch.known_corpus == (1, 0, 0)
    assert batch.frame_lengths.tolist() == [5, 1, 6]
    assert batch.text_lengths is not None
    assert batch.text_lengths.tolist() == [5, 1, 7], "their own texts"


def test_max_clips_leaves_the_others_out(tmp_path: Path) -> None:
    run = blended(tmp_path, max_clips=1)
    split = open_training(run)
    assert isinstance(split, BlendedSplit)
    assert split.sizes == (4, 1)
    assert blend_of(run, split.sizes).draws == (3, 2), "weights 2 and 1"
    assert split.lengths[4] == split.splits[1].lengths[split.locate(4)[1]]


def test_a_corpus_that_is_not_packed_is_named(tmp_path: Path) -> None:
    run = blended(tmp_path)
    (tmp_path / "more" / "train" / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"data\.blend: corpora cannot be read.*\n.*two: "):
        open_training(run)


def test_other_clips_of_one_corpus_are_refused_by_its_place(tmp_path: Path) -> None:
    run = blended(tmp_path)
    run = replace(run, train=replace(run.train, output=str(tmp_path), stages=("finetune",)))
    content = content_of(open_training(run))
    folder = run.folder / "checkpoints" / "step_00000001"
    folder.mkdir(parents=True)
    from signfuse_dist.files import write_folder
    from signfuse_dist.run_folder import TRAINED_ON

    folder.rmdir()
    write_folder(folder, {}, {"run": {TRAINED_ON: content}})
    refuse_other_data(run, content)
    other = {**content, "two": {**content["two"], "texts": "other"}}
    with pytest.raises(UserError, match=r"trained on other texts than .*more/train has now"):
        refuse_other_data(run, other)


def test_a_blend_is_read_from_data_files_and_kept_whole(tmp_path: Path) -> None:
    words = (
        "data.blend=[{corpus: synthetic, weight: 3}, {corpus: how2sign, data: {frame_size: 48}}]"
    )
    run = load_run(DEMO, "finetune", [words])
    assert [(p.corpus, p.weight, p.data.language) for p in run.data.blend] == [
        ("synthetic", 3.0, "en"),
        ("how2sign", 1.0, "en"),
    ]
    import yaml

    (tmp_path / "config.yaml").write_text(yaml.safe_dump(run.to_dict()))
    assert load_resolved(tmp_path / "config.yaml") == run
    moved = load_run(DEMO, "finetune", [words, "data.stage_to=/scratch", "data.shard_cache=/tmp"])
    assert moved.corpora[1].data.stage_to == "/scratch", "where clips are kept is the machine's"
    assert fixed(moved) == fixed(run)


@pytest.mark.parametrize(
    ("blend", "said"),
    [
        ("[{weight: 1}]", r"data\.blend\.entry 1\.corpus: missing"),
        (
            "[{corpus: synthetic, data: {blend: [{corpus: how2sign}]}}]",
            "synthetic is a blend itself",
        ),
        ("[{corpus: syntetic}]", "did you mean 'synthetic'"),
        ("[{corpus: synthetic, wieght: 2}]", "did you mean 'weight'"),
        ("[{corpus: synthetic, weight: 0}]", r"weight: 0\.0"),
        ("[synthetic]", "expected a mapping"),
        ("[{corpus: synthetic}, {corpus: synthetic}]", "synthetic is there twice"),
        ("[{corpus: how2sign}]", r"how2sign has data\.frame_size 224, the model sees 48"),
    ],
)
def test_what_is_wrong_with_a_blend_is_said(blend: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_run(DEMO, "finetune", [f"data.blend={blend}"])


def test_keys_of_a_blend_want_a_blend() -> None:
    for words in ("data.blend_temperature=5", "loss.negatives=corpus"):
        with pytest.raises(UserError, match=r"without data\.blend"):
            load_run(DEMO, "finetune", [words])


def test_check_says_the_draws_of_each_corpus_and_looks_at_all_of_them(tmp_path: Path) -> None:
    blended(tmp_path)
    entries = [
        f"{{corpus: {name}, weight: {weight}, data: {{shards: {folder}, frame_size: 32, fps: 10}}}}"
        for name, weight, folder in (("synthetic", 2, tmp_path), ("table", 1, tmp_path / "more"))
    ]
    words = [f"data.shards={tmp_path}", "data.frame_size=32", f"data.blend=[{', '.join(entries)}]"]
    text = describe(DEMO, words, 1).text
    assert "a blend of 2 corpora, an epoch of 6 draws:" in text
    assert f"synthetic: {tmp_path}/train, 4 clips, 4 draws (66.7%), 1.00 times each" in text
    run = load_run(DEMO, "finetune", words)
    assert worst_frames(run, make_plan(6, run.stage, run.train, 1)) >= 6
    said = [str(finding) for finding in check_splits(run)]
    assert any("table training split" in line and "2 clips in 1 shards" in line for line in said)
    assert any("synthetic training" in line and "4 clips in 1 shards" in line for line in said)
    (tmp_path / "more" / "train" / "manifest.json").unlink()
    faults = [finding for finding in check_splits(run) if finding.level == "error"]
    assert ["table training split" in finding.what for finding in faults] == [True]
