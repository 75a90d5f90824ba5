"""Collecting ablations: drawn results in, tables, findings and contrasts out."""

from __future__ import annotations

import csv
import json
import math
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import yaml

from helpers.repository import ROOT
from signfuse_dist.ablation.results import Contrast, TableResults, collect, count_contrasts
from signfuse_dist.ablation.rows import read_ablations
from signfuse_dist.ablation.runs import AblationPlan, StageRun, make_plan
from signfuse_dist.ablation.tables import (
    compare_rows,
    mean_and_deviation,
    welch_p,
    write_table,
)
from signfuse_dist.cli import main
from signfuse_dist.evaluation.scores import NearAttention, SplitScores, score, write_split_scores
from signfuse_dist.evaluation.translations import write_hypotheses
from signfuse_dist.synthetic.language import all_sentences

SENTENCES = [s.text for s in random.Random(0).sample(all_sentences(), 60)]
REFERENCES = {f"dev_{i:04d}": text for i, text in enumerate(SENTENCES)}
Translate = Callable[[str, random.Random], str]


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


SEEDS = (0, 1, 2)


def exact(text: str, draw: random.Random) -> str:
    return text


def worse(text: str, draw: random.Random) -> str:
    """Lose a word in four."""
    return " ".join(word for word in text.split() if draw.random() > 0.25)


def blind_to_joints(text: str, draw: random.Random) -> str:
    """Guess what a hand behind the desk would tell."""
    words = [
        draw.choice(("mother", "father")) if w in ("mother", "father") else w for w in text.split()
    ]
    forms = (("open", "close"), ("opens", "closes"), ("opened", "closed"))
    pairs = {form: pair for pair in forms for form in pair}
    return " ".join(draw.choice(pairs[w]) if w in pairs else w for w in words)


def leave(run: StageRun, translate: Translate, seed: int, preset: str) -> None:
    """Leave what a finished and evaluated run leaves."""
    for stage in run.chain():
        (stage.folder / "model").mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    hypotheses = {name: translate(text, draw) for name, text in REFERENCES.items()}
    folder = run.folder / "evaluation" / "dev"
    folder.mkdir(parents=True)
    write_hypotheses(folder / "hypotheses.jsonl", hypotheses, REFERENCES)
    near = NearAttention({"visual_from_skeletal": 0.2, "skeletal_from_visual": 0.4}, 0.25, 8)
    scores = score(hypotheses, REFERENCES, preset)
    results = SplitScores(scores, near_attention=near if translate is exact else None)
    write_split_scores(folder / "scores.json", results)
    (run.folder / "plan.json").write_text('{"global_batch_size": 8, "world_size": 2}')
    (run.folder / "parameters.json").write_text(
        '{"visual": {"all": 900, "trained": 900}, "language_model": {"all": 70, "trained": 5}}'
    )
    rates = (1.0, 16.0, 20.0, 32.0)
    lines = [json.dumps({"step": i, "clips_per_second": rate}) for i, rate in enumerate(rates)]
    (run.folder / "metrics.jsonl").write_text("\n".join(lines))


def make(tmp_path: Path, seeds: tuple[int, ...] = (0,), preset: str = "sacrebleu") -> AblationPlan:
    rows = [
        {"name": "full"},
        {"name": "a | b", "words": ["model.fusion=sum"], "below": "full"},
        {"name": "c", "words": ["model.fusion=concat"], "above": "full"},
    ]
    content = {"title": "*Drawn*", "paper": "as drawn", "full": "full", "rows": rows}
    path = tmp_path / "drawn.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    words = [f"train.output={tmp_path}/runs", f"data.metric_preset={preset}"]
    return make_plan(read_ablations(str(path)), "demo", words, seeds, None)


def filled(
    tmp_path: Path,
    how: Mapping[str, Translate],
    seeds: tuple[int, ...] = (0,),
    preset: str = "sacrebleu",
) -> tuple[AblationPlan, TableResults]:
    plan = make(tmp_path, seeds, preset)
    shutil.rmtree(tmp_path / "runs", ignore_errors=True)
    for planned in plan.ablations[0].rows:
        for seed, run in planned.runs.items():
            if planned.row.name in how:
                leave(run, how[planned.row.name], seed, preset)
    return plan, collect(plan)[0]


def test_a_row_shows_what_its_run_has_left(tmp_path: Path) -> None:
    _, found = filled(tmp_path, {"full": exact})
    (seed,) = found.full.seeds
    assert found.full.values("BLEU-4") == [pytest.approx(100)]
    assert seed.trained == 905
    assert seed.step_seconds == pytest.approx(8 / 20)  # the first line holds the warming up
    assert seed.world_size == 2


def test_how_near_attention_stays_is_printed_beside_the_score(tmp_path: Path) -> None:
    _, found = filled(tmp_path, {"full": exact, "c": worse})
    text = write_table(found, tmp_path / "out")
    assert "attention within a step (by chance)" in text
    rows = list(csv.DictReader((tmp_path / "out" / "table.csv").open(encoding="utf-8")))
    shown = {row["row"]: row["attention within a step (by chance)"] for row in rows}
    assert shown["full"] == "0.30 (0.25)"
    assert shown["c"] == "–"  # its fusion does not attend, or it was evaluated before
    _, found = filled(tmp_path, {"c": worse})
    assert "attention within" not in write_table(found, tmp_path / "out")


def test_the_word_error_rate_comes_first_where_the_preset_has_it(tmp_path: Path) -> None:
    how = {"full": exact, "c": worse}
    _, found = filled(tmp_path, how, preset="glosses")
    assert "- WER: nrefs:1" in write_table(found, tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / "table.csv").open(encoding="utf-8")))
    assert list(rows[0])[:3] == ["row", "WER", "BLEU-1"]
    assert [row["WER"] for row in rows] == ["0.00", "–", f"{found.row('c').values('WER')[0]:.2f}"]
    _, found = filled(tmp_path, how)
    assert "WER" not in write_table(found, tmp_path / "out")


def test_what_the_paper_expects_is_compared_with_what_was_found(tmp_path: Path) -> None:
    _, found = filled(tmp_path, {"full": exact, "a | b": worse, "c": worse}, SEEDS)
    findings = compare_rows(found)
    assert findings["full"].verdict is None
    assert findings["full"].against_full is None
    assert findings["a | b"].verdict == "agrees"
    assert findings["c"].verdict == "contradicts"
    against = findings["c"].against_full
    assert against is not None
    mean, deviation = mean_and_deviation(found.row("c").values("BLEU-4"))
    assert against.value == pytest.approx(mean - 100)
    assert against.deviation == pytest.approx(deviation)  # that of the exact row is 0
    assert against.p_value is not None
    assert against.p_value < 0.01
    _, found = filled(tmp_path, {"full": worse, "a | b": worse}, SEEDS)
    assert compare_rows(found)["a | b"].verdict == "within noise"


@pytest.mark.parametrize(
    ("seeds", "said"),
    [((0,), "one seed: no verdict"), ((0, 1), "2 seeds: no verdict below 3")],
)
def test_fewer_than_three_seeds_have_no_verdict_however_far_apart(
    tmp_path: Path, seeds: tuple[int, ...], said: str
) -> None:
    _, found = filled(tmp_path, {"full": exact, "a | b": worse, "c": worse}, seeds)
    finding = compare_rows(found)["a | b"]
    assert finding.verdict == "no verdict"
    assert finding.against_full is not None
    assert finding.against_full.p_value is None
    text = write_table(found, tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / "table.csv").open(encoding="utf-8")))
    assert rows[1]["p"] == said
    assert rows[1]["found"].startswith(f"{said} (-")
    assert "against the paper's expectation" not in text


def test_p_is_that_of_welchs_test() -> None:
    """The values are scipy's ``ttest_ind(..., equal_var=False)``."""
    first, second = [61.9, 63.6, 67.5], [88.4, 74.7, 80.1]
    assert welch_p(first, second) == pytest.approx(0.03726239, abs=1e-8)
    assert welch_p(second, first) == welch_p(first, second)
    assert welch_p([1.0, 2.0, 4.0, 8.0], [1.5, 2.5, 3.5]) == pytest.approx(0.49363832, abs=1e-8)
    assert welch_p([3.0, 3.0, 3.0], [3.0, 3.0, 3.0]) == 1.0
    assert welch_p([3.0, 3.0, 3.0], [4.0, 4.0, 4.0]) == 0.0


def test_a_row_against_the_paper_is_told_from_the_word_none(tmp_path: Path) -> None:
    """A row may be called none, so names stand in quotes."""
    _, found = filled(tmp_path, {"full": exact, "a | b": worse, "c": worse}, SEEDS)
    text = write_table(found, tmp_path / "out")
    assert 'against the paper\'s expectation: "c"\n' in text


def test_a_table_names_every_row_and_what_is_missing_of_it(tmp_path: Path) -> None:
    plan, _ = filled(tmp_path, {"full": exact, "a | b": worse}, seeds=(0, 1))
    gone = plan.ablations[0].rows[1].runs[1]
    (gone.folder / "evaluation" / "dev" / "scores.json").unlink()
    text = write_table(collect(plan)[0], tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / "table.csv").open(encoding="utf-8")))
    assert [row["row"] for row in rows] == ["full", "a | b", "c"]
    assert rows[0]["seeds"] == "0, 1"
    assert rows[0]["BLEU-4"] == "100.00 ± 0.00"
    assert rows[1]["seeds"] == "0; missing 1"
    assert rows[2]["seeds"] == "missing 0, 1"
    assert rows[2]["BLEU-4"] == "–"
    assert rows[2]["found"] == "not known"
    assert "a \\| b, seed 1: missing: not evaluated on dev" in text
    assert "c, seed 0: missing: stage contrastive is not trained" in text
    assert text.startswith("# \\*Drawn\\*\n")
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1
    written = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in written["rows"]] == ["full", "a | b", "c"]
    assert list(written["rows"][1]["missing"]) == ["1"]
    assert written["rows"][1]["against_full"]["seeds"] == [0]
    assert (tmp_path / "out" / "chart.png").read_bytes().startswith(b"\x89PNG")
    before = (tmp_path / "out" / "chart.png").read_bytes()
    assert write_table(collect(plan)[0], tmp_path / "out") == text
    assert (tmp_path / "out" / "chart.png").read_bytes() == before


def test_only_seeds_that_both_rows_have_are_compared(tmp_path: Path) -> None:
    plan, _ = filled(tmp_path, {"full": exact, "a | b": worse}, seeds=(0, 1, 2))
    shutil.rmtree(plan.ablations[0].rows[0].runs[1].folder / "evaluation")
    against = compare_rows(collect(plan)[0])["a | b"].against_full
    assert against is not None
    assert against.seeds == (0, 2)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("plan.json", "plan.json: not JSON"),
        ("parameters.json", "parameters.json: not JSON"),
        ("metrics.jsonl", "metrics.jsonl: cannot be read"),
        ("evaluation/dev/scores.json", "scores.json: not JSON"),
        ("evaluation/dev/hypotheses.jsonl", "hypotheses.jsonl: cannot be scored"),
    ],
)
def test_a_torn_file_makes_its_row_missing_by_name(tmp_path: Path, file: str, said: str) -> None:
    plan, _ = filled(tmp_path, {"full": exact})
    (plan.ablations[0].rows[0].runs[0].folder / file).write_text("{torn")
    found = collect(plan)[0].full
    assert not found.seeds
    assert said in found.missing[0]


def test_collect_writes_the_tables_of_what_is_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, _ = filled(tmp_path, {"full": exact})
    words = ["ablate", str(tmp_path / "drawn.yaml"), "demo", *plan.overrides, "--collect"]
    assert main(words) == 0
    assert "| full | 100.00 |" in capsys.readouterr().out
    folder = tmp_path / "runs" / "ablation" / "tables" / "demo" / "drawn"
    assert {path.name for path in folder.iterdir()} == {
        "table.md",
        "table.csv",
        "results.json",
        "chart.png",
    }


def test_words_of_one_channel_are_told_or_guessed(tmp_path: Path) -> None:
    _, found = filled(tmp_path, {"full": exact, "a | b": blind_to_joints})
    told, guessed = found.full.contrast("joints"), found.row("a | b").contrast("joints")
    assert told is not None
    assert guessed is not None
    assert told.right == told.named == told.num == guessed.named
    assert told.is_told
    assert not guessed.is_told
    picture = found.row("a | b").contrast("picture")
    assert picture is not None
    assert picture.is_told
    text = write_table(found, tmp_path / "out")
    assert f"guessed: {guessed.right} of {guessed.named} named" in text


def test_contrasts_count_translations_that_name_one_word_of_a_group() -> None:
    references = {
        "1": "today the mother opens the red box",
        "2": "today the baker opens the box",
        "3": "did the father close the blue car today",
    }
    hypotheses = {
        "1": "today the mother closes the blue box",
        "2": "today the mother sells the box",
        "3": "did the father or mother close the car today",
    }
    found = count_contrasts(hypotheses, references)
    # mother, opens, opens, father, close: father and mother are both named, opens once not at all.
    assert found["joints"] == Contrast(num=5, named=3, right=2, chance=0.5)
    assert found["picture"] == Contrast(num=2, named=1, right=0, chance=1 / 3)


def test_the_p_value_of_a_contrast_is_the_binomial_one() -> None:
    assert Contrast(10, 10, 8, 0.5).p_value == pytest.approx((45 + 10 + 1) / 1024)
    assert Contrast(10, 0, 0, 0.5).p_value == 1.0
    assert math.isnan(Contrast(10, 0, 0, 0.5).accuracy)
