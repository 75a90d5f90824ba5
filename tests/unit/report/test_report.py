"""The report: what a run left behind on one page, whatever is missing and whoever wrote it."""

from __future__ import annotations

import io
import itertools
import json
import random
import subprocess
import sys
import time
from html.parser import HTMLParser

import numpy as np
import pytest
import simplejpeg
import yaml
from PIL import Image
from sacrebleu.metrics.chrf import CHRF

from helpers.lock_holder import lock_holder
from helpers.repository import ROOT
from signfuse_dist.data import shard
from signfuse_dist.data.manifest import Manifest, PackConfig, Packing
from signfuse_dist.data.manifest_files import manifest_bytes
from signfuse_dist.errors import UserError
from signfuse_dist.evaluation.controls import score_control
from signfuse_dist.evaluation.scores import (
    SplitScores,
    score,
    score_with_intervals,
    write_split_scores,
)
from signfuse_dist.evaluation.translations import (
    rank_samples,
    spread_samples,
    write_arrays,
    write_hypotheses,
)
from signfuse_dist.experiment import load_run
from signfuse_dist.locks import HeldError
from signfuse_dist.report import plots
from signfuse_dist.report.inputs import read_run
from signfuse_dist.report.markup import escape_markdown
from signfuse_dist.report.report import write_report
from signfuse_dist.run_folder import RunFolder
from signfuse_dist.skeleton import JOINT_LAYOUT, NUM_JOINTS

EXPERIMENT = ROOT / "configs" / "experiment" / "demo.yaml"
EVIL = "<script>alert('x')</script>"
EVIL_ID = f'{EVIL}"/../..'
PAIRS = {
    EVIL_ID: (f"{EVIL} ![x](http://evil.example/a.png) | `rain`", "rain comes from the west"),
    "file": ("the sun shines", "the sun shines"),
    "clip.03": ("", f"snow & {EVIL} fall"),
    "b\u202ed": ("fog\x00 in the north", "fog in the\u2028north"),
}
# Losses and rates; bars by reference length and by signer; frames, gate and maps of each sample.
NUM_FIGURES = 2 + 2 + 3 * len(PAIRS)


def pack(folder, ids):
    """Write a packed split of small clips of grey frames."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    packing = Packing(
        "synthetic<b>", "root", "test", JOINT_LAYOUT, "synthetic", "1", PackConfig(32, 10.0), "0"
    )
    clips = []
    for name in ids:
        frames = rng.integers(0, 255, (5, 32, 32, 3), np.uint8)
        jpegs = [simplejpeg.encode_jpeg(frame, colorspace="RGB") for frame in frames]
        pose = rng.random((5, NUM_JOINTS, 2), np.float32)
        record = {"id": name, "num_frames": 5, "text": "t", "flags": []}
        record["signer"] = None if name == "file" else "Signer05<i>"
        record["failed_frames"] = 0
        clips.append(shard.EncodedClip(record, jpegs, pose, np.ones((5, NUM_JOINTS), bool)))
    index = shard.write_shard(folder / "shard-000000.tar", clips, packing)
    entry = index.entry()
    manifest = Manifest(packing, (entry,), len(clips), len(clips), entry.num_frames, 0, 0, "0.1.0")
    (folder / "manifest.json").write_bytes(manifest_bytes(manifest))


def write_log(folder, stage, steps=30):
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "step": s,
            "epoch": 0,
            "stage": stage,
            "total": 4 / s,
            "learning_rate": 1e-4 * s,
            "clips_per_second": 2.0,
        }
        for s in range(1, steps + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "plan.json").write_text(json.dumps({"global_batch_size": 8, "total_steps": steps}))


def make_run(root, stages, num_samples):
    """Write a run folder, evaluated on `test`, with hostile ids and sentences."""
    folder = root / "runs" / "demo<i>" / "finetune"
    for stage in stages:
        write_log(folder.parent / stage, stage)
    shards = root / "shards"
    words = [
        f"data.shards={shards}",
        f"evaluation.num_samples={num_samples}",
        "data.train_split=train",
    ]
    config = load_run(str(EXPERIMENT), "finetune", words)
    (folder / "config.yaml").write_text(yaml.safe_dump(config.to_dict()))
    (folder / "versions.json").write_text(json.dumps({"commit": EVIL, "packages": {"torch": "2"}}))
    for split in ("test", "train"):
        pack(shards / split, PAIRS)
    hypotheses = {i: pair[0] for i, pair in PAIRS.items()}
    references = {i: pair[1] for i, pair in PAIRS.items()}
    results = folder / "evaluation" / "test"
    write_hypotheses(results / "hypotheses.jsonl", hypotheses, references)
    control = score_control(hypotheses, references, "sacrebleu", 0)
    assert control is not None
    scores = score_with_intervals(hypotheses, references, "sacrebleu")
    controls = {"shuffled": control, "blank": control}
    why = {"masked_joints": "the model sees no joints"}
    write_split_scores(
        results / "scores.json", SplitScores(scores, controls, why, {"num_beams": 4})
    )
    (results / "evaluation.json").write_text(json.dumps({"processes": 2, "device": EVIL}))
    write_arrays(results / "gates.npz", {i: np.linspace(0.2, 0.8, 9) for i in PAIRS})
    maps = {"visual_from_skeletal": np.eye(9), "skeletal_from_visual": np.full((9, 9), 1 / 9)}
    write_arrays(results / "attention.npz", {f"{w}/{i}": m for w, m in maps.items() for i in PAIRS})
    return folder


@pytest.fixture
def drawn(tmp_path):
    """A run to damage; small, because every report draws its plots anew."""
    return make_run(tmp_path, ["finetune"], 1)


@pytest.fixture
def run(drawn, monkeypatch):
    """The same for tests that look at no plot: each is a grey pixel."""
    pixel = io.BytesIO()
    Image.new("L", (1, 1), 128).save(pixel, "PNG")
    monkeypatch.setattr(plots, "_png", lambda figure: pixel.getvalue())
    return drawn


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with every piece: its folder, its page and its Markdown; only to be looked at."""
    stages = ("contrastive", "alignment", "finetune")
    folder = make_run(tmp_path_factory.mktemp("whole"), stages, len(PAIRS))
    return folder, *read(folder)


class Page(HTMLParser):
    """What a browser would make of the page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self._open = [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def read(run):
    file = write_report(run, "test")
    assert file == run / "evaluation" / "test" / "report.html"
    return file.read_text("utf-8"), file.with_name("report.md").read_text("utf-8")


def missing_of(page):
    return page.text.split("What is missing")[-1]


def test_a_whole_run_is_reported_with_nothing_missing(whole):
    _, text, markdown = whole
    page = Page(text)
    assert "Nothing: every piece of the run was there." in page.text
    assert "Nothing: every piece of the run was there." in markdown
    assert len(page.all("img")) == NUM_FIGURES
    for piece in (
        "BLEU-4",
        "Videos shuffled",
        "Pictures blank",
        "version:2.6.0",
        "synthetic<b>",
        "frames 1, 2",
        "Recipe paper: what of the method is not as printed",
    ):
        assert piece in page.text
    assert "total from 4 to 0.133 in 30 steps" in page.text
    assert "“joints masked” is not applicable: the model sees no joints." in page.text
    assert "about 2 min 00 s" in page.text  # 30 steps of 8 clips, 2 a second
    assert "95% interval" in page.text
    assert "1 hypothesis is empty and scored as empty." in page.text


def test_hostile_text_is_shown_and_never_run(whole):
    _, text, markdown = whole
    page = Page(text)
    assert "<script" not in text.lower()
    assert "<script" not in markdown.lower()
    assert "<b>" not in text
    assert "<i>" not in text
    assert EVIL in page.text  # a reader sees the sentence as it was written
    assert not {"\x00", "\u202e"} & set(text + markdown)
    assert "![x]" not in markdown
    assert "http://" not in markdown


def test_the_page_needs_no_other_file_and_no_network(whole):
    page = Page(whole[1])
    assert not page.all("script")
    assert not page.all("link")
    assert not page.all("iframe")
    for tag, attributes in page.tags:
        for name in ("src", "srcset", "href"):
            value = attributes.get(name, "#")
            assert value.startswith(("#", "data:image/")), (tag, name, value[:40])
        assert not any(name.startswith("on") for name in attributes)
    policy = [m["content"] for m in page.all("meta") if "http-equiv" in m]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_the_page_can_be_heard_and_walked_by_keyboard(whole):
    page = Page(whole[1])
    assert page.all("main") == [{"id": "content", "tabindex": "-1"}]
    assert len(page.all("summary")) == len(page.all("details"))
    # What a plot draws stands in a table as well: curves, gates and maps.
    assert len(page.all("details")) == 2 + 2 * len(PAIRS) + 1
    levels = [int(tag[1]) for tag, _ in page.tags if tag in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert all(len(image["alt"]) > 20 and int(image["width"]) > 0 for image in page.all("img"))
    assert len(page.all("table")) == len(page.all("caption"))
    assert len(page.all("figure")) == len(page.all("figcaption"))
    assert all(cell["scope"] in ("row", "col") for cell in page.all("th"))
    assert page.all("html") == [{"lang": "en"}]
    identities = [a["id"] for _, a in page.tags if "id" in a]
    assert {a["href"][1:] for a in page.all("a")} <= set(identities)
    assert len(identities) == len(set(identities))


def test_markdown_shows_the_same_pictures_from_its_own_folder(whole):
    folder, _, markdown = whole
    figures = sorted(p.name for p in (folder / "evaluation" / "test" / "figures").iterdir())
    assert len(figures) == NUM_FIGURES
    assert all(f"](figures/{name})" in markdown for name in figures)


def test_a_second_report_into_one_folder_is_refused_and_an_evaluation_beside_it_is_not(run):
    folder = RunFolder(run).evaluation("test")
    with lock_holder(folder.lock):
        first = read(run)
    with lock_holder(folder.report_lock), pytest.raises(HeldError, match=r"the report in .* is"):
        read(run)
    assert read(run) == first
    assert not folder.report_lock.exists()


def test_writing_again_gives_the_same_bytes_and_leaves_no_old_pictures(drawn):
    first = read(drawn)
    old = drawn / "evaluation" / "test" / "figures" / "sample-09-gate.png"
    old.write_bytes(b"old")
    assert read(drawn) == first
    assert not old.exists()


def test_what_is_missing_is_named_and_the_rest_is_reported(run):
    results = run / "evaluation" / "test"
    for path in (results / "gates.npz", results / "scores.json", run / "versions.json"):
        path.unlink()
    (run.parent / "alignment").mkdir()
    (run.parent.parent.parent / "shards" / "test" / "manifest.json").unlink()
    text, markdown = read(run)
    listed = missing_of(Page(text))
    for piece in ("scores.json", "versions.json", "alignment", "manifest.json"):
        assert piece in listed
        assert piece.replace("_", r"\_") in markdown.split("## What is missing")[1]
    assert "'contrastive' has no folder" in listed
    for report in (Page(text).text, markdown):
        assert "The evaluation left no gates.npz: the fusion has nothing of the kind" in report
    assert len(Page(text).all("img")) == 2 + 1 + 1  # without packed data only the maps are left


def test_a_run_of_which_only_the_hypotheses_are_left_is_reported(run):
    for path in (run / "config.yaml", run / "metrics.jsonl"):
        path.unlink()
    page = Page(read(run)[0])
    assert "without the configuration its folder is not known" in missing_of(page)
    assert "the sun shines" in page.text


def test_damaged_pieces_are_named(run):
    results = run / "evaluation" / "test"
    (results / "gates.npz").write_bytes(b"PK no zip")
    (results / "scores.json").write_text('{"version": 2, "scores": {}}')
    with (run / "metrics.jsonl").open("a") as log:
        log.write('{"step": 31, "total": NaN}\n{"step": 32, "tot')
    tar = run.parents[2] / "shards" / "test" / "shard-000000.tar"
    tar.write_bytes(tar.read_bytes()[:-100])
    listed = missing_of(Page(read(run)[0]))
    for piece in ("gates.npz cannot be read", "not a file of scores", "line 32", "torn"):
        assert piece in listed


def test_a_known_corpus_is_shown_among_published_results(run, whole):
    assert "Among published results" not in Page(whole[1]).text  # of the synthetic corpus
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["corpus"] = "phoenix14t"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    text, markdown = read(run)
    page = Page(text)
    for piece in ("Among published results", "GFSLT-VLP", "21.44", "(ours)", "protocol not known"):
        assert piece in page.text
    assert "GFSLT-VLP" in markdown


def test_after_a_resume_the_later_row_of_a_step_counts(run):
    with (run / "metrics.jsonl").open("a") as log:
        log.write('{"step": 30, "total": 0.5}\n')
    assert "finetune: total from 4 to 0.5 in 30 steps" in Page(read(run)[0]).text


def test_scores_of_the_development_split_are_drawn_and_told(drawn):
    figure = drawn / "evaluation" / "test" / "figures" / "losses.png"
    # The same losses, so that only the scores differ:
    with (drawn / "metrics.jsonl").open("a") as log:
        log.write('{"step": 7, "total": 0.6}\n{"step": 30, "total": 0.5}\n')
    read(drawn)
    without = figure.read_bytes()
    with (drawn / "metrics.jsonl").open("a") as log:
        log.write('{"step": 7, "total": 0.6, "dev_language": 2.25}\n')
        log.write('{"step": 30, "total": 0.5, "dev_language": 1.125}\n')
    page = Page(read(drawn)[0])
    assert "total from 4 to 0.5, dev_language from 2.25 to 1.12 in 30 steps" in page.text
    for told in ("dev language", "2.25", "1.125"):
        assert told in page.text  # the table, though it shows one step in two
    assert figure.read_bytes() != without


def test_stages_that_the_run_does_not_use_are_neither_shown_nor_missing(run):
    write_log(run.parent / "alignment", "alignment")
    file = run / "config.yaml"
    resolved = yaml.safe_load(file.read_text())
    resolved["train"]["stages"] = ["finetune"]
    file.write_text(yaml.safe_dump(resolved))
    found = read_run(run, "test")
    assert list(found.curves) == ["finetune"]
    assert not [line for line in found.missing if "stage" in line]


def test_a_run_folder_of_another_name_is_reported_with_its_own_log(run):
    other = run.with_name("tune$\\bad{$")
    run.rename(other)
    page = Page(write_report(other, "test").read_text("utf-8"))
    assert "tune$\\bad{$: total from 4 to 0.133 in 30 steps" in page.text


def test_a_clip_without_a_gate_or_without_frames_is_named(run):
    results = run / "evaluation" / "test"
    write_arrays(results / "gates.npz", {"file": np.full(4, 0.5)})
    more = {"elsewhere": "one"}
    write_hypotheses(results / "hypotheses.jsonl", {"file": "x", **more}, {"file": "x", **more})
    listed = missing_of(Page(read(run)[0]))
    assert "has none for 'elsewhere'" in listed
    assert "holds no clip of this id" in listed
    assert "is of 4 sentences, hypotheses.jsonl has 2" in listed


def test_what_was_recorded_is_drawn_whatever_the_fusion_is_called(run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"]["fusion"] = "concat"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    results = run / "evaluation" / "test"
    write_arrays(results / "attention.npz", {f"both_at_once/{i}": np.eye(9) for i in PAIRS})
    text, _ = read(run)
    assert "Mean gate over 9 steps" in text
    assert "both at once: strongest weight 1.00 on average" in text
    assert "left no" not in text
    (results / "gates.npz").unlink()
    (results / "attention.npz").unlink()
    page = Page(read(run)[0])
    assert "The evaluation left no gates.npz and no attention.npz" in page.text
    assert "npz" not in missing_of(page)


def test_the_directions_of_a_clip_are_those_that_were_recorded(run):
    results = run / "evaluation" / "test"
    maps = {"b": {"visual_from_skeletal": np.eye(3)}, "a/b": {"own": np.eye(2), "other": np.eye(2)}}
    arrays = {f"{way}/{name}": array for name, by in maps.items() for way, array in by.items()}
    write_arrays(results / "attention.npz", arrays)
    inputs = read_run(run, "test")
    found = inputs.attention(["a/b", "b", "c"])
    assert {name: sorted(by_way) for name, by_way in found.items()} == {
        "a/b": ["other", "own"],
        "b": ["visual_from_skeletal"],
    }
    assert [note for note in inputs.missing if "attention" in note] == [
        "cross-attention: attention.npz has none for 'c'"
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"step": 31, "total": "low"}', "total: 'low' is not a number"),
        ('{"step": true}', "step: True is not an int"),
        ('{"total": 1.0}', "step: missing"),
        ("[1]", "[1] is not a mapping"),
        ('{"step": 31, "tot', "not JSON"),
    ],
)
def test_a_wrong_line_of_the_log_is_named_and_left_out(run, line, said):
    with (run / "metrics.jsonl").open("a") as log:
        log.write(line + "\n")
    inputs = read_run(run, "test")
    assert len(inputs.curves["finetune"]) == 30
    (note,) = [note for note in inputs.missing if "metrics.jsonl: line 31" in note]
    assert said in note


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        (
            "plan.json",
            '{"world_size": "two"}',
            "not a batch plan (1)\n  - world_size: 'two' is not",
        ),
        ("plan.json", "[]", "not a batch plan (1)\n  - expected a mapping of num_clips"),
        ("plan.json", "{", "not JSON"),
        ("versions.json", "[]", "not a JSON object"),
        ("evaluation/test/evaluation.json", "3", "not a JSON object"),
    ],
)
def test_a_damaged_file_beside_the_scores_is_named(run, file, text, said):
    (run / file).write_text(text)
    inputs = read_run(run, "test")
    assert [note for note in inputs.missing if f"{run / file}: {said}" in note]


def test_one_sentence_has_no_control(run):
    results = run / "evaluation" / "test"
    one = {"file": "the sun"}
    write_hypotheses(results / "hypotheses.jsonl", one, one)
    why = {"shuffled": "there is one clip only"}
    write_split_scores(results / "scores.json", SplitScores(score(one, one, "char"), {}, why))
    page = Page(read(run)[0])
    assert "“videos shuffled” is not applicable: there is one clip only" in page.text
    assert "control blank: it was not asked for" in missing_of(page)


def test_a_report_needs_a_run_that_was_evaluated(run, tmp_path):
    with pytest.raises(UserError, match="no such run folder"):
        write_report(tmp_path / "nowhere", "test")
    with pytest.raises(UserError, match="evaluate the run on 'dev'"):
        write_report(run, "dev")
    for split in ("../test", "", "a/b", ".."):
        with pytest.raises(UserError, match="is not a name"):
            write_report(run, split)


def test_a_sentence_without_end_is_scored_and_its_beginning_shown(run):
    file = run / "evaluation" / "test" / "hypotheses.jsonl"
    pairs = {"a": ("x" * 600_000, "rain comes"), "b": ("rain " * 120_000, "rain comes today")}
    texts = [{i: pair[place] for i, pair in pairs.items()} for place in (0, 1)]
    write_hypotheses(file, *texts)
    begin = time.process_time()
    page, markdown = read(run)
    assert time.process_time() - begin < 60  # of a second of many hours where it grew with squares
    for text in (page, markdown):
        assert f"{'x' * 2000}… (600,000 characters)" in text
        assert "x" * 2001 not in text
        assert len(text) < 2_000_000


def test_each_sentence_is_counted_once_a_metric(run, monkeypatch):
    counted = []
    count = CHRF._compute_segment_statistics

    def counting(self, hypothesis, references):
        counted.append(hypothesis)
        return count(self, hypothesis, references)

    monkeypatch.setattr(CHRF, "_compute_segment_statistics", counting)
    read(run)
    assert sorted(counted) == sorted(pair[0] for pair in PAIRS.values())


@pytest.mark.long
def test_twenty_thousand_sentences_are_reported_in_seconds(run):
    rng = random.Random(1)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 8))) for _ in range(3000)]
    references = {f"{i}": " ".join(rng.choices(words, k=rng.randint(3, 35))) for i in range(20000)}
    hypotheses = {
        i: " ".join(w if rng.random() < 0.6 else rng.choice(words) for w in text.split())
        for i, text in references.items()
    }
    file = run / "evaluation" / "test" / "hypotheses.jsonl"
    write_hypotheses(file, hypotheses, references)
    begin = time.process_time()
    read(run)
    assert time.process_time() - begin < 40  # 79 s once; about 15 s by itself


def test_samples_are_spread_from_the_best_to_the_worst():
    references = {f"id{i}": "one two three four five six seven" for i in range(20)}
    hypotheses = {f"id{i}": "one two three four five six seven"[: i + 1] for i in range(20)}
    ranked = rank_samples(hypotheses, references)
    assert [sample.rank for sample in ranked] == list(range(1, 21))
    assert ranked[0].chrf >= ranked[-1].chrf
    chosen = spread_samples(ranked, 5)
    assert [chosen[0], chosen[-1]] == [ranked[0], ranked[-1]]
    assert len(chosen) == 5
    assert spread_samples(ranked, 50) == ranked
    assert spread_samples(ranked, 0) == []
    assert len(spread_samples(ranked, 1)) == 1


def test_markdown_is_escaped_to_plain_text():
    assert escape_markdown("a *b* | [c](http://x) <d>\n# e") == (
        r"a \*b\* \| \[c\](http\://x) &lt;d&gt; \# e"
    )


def test_the_report_imports_no_torch():
    code = "import sys, signfuse_dist.report.report as r; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
