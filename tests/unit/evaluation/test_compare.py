"""Comparing runs and files: the same sentences or an error, seeds grouped, text and JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.repository import ROOT
from signfuse_dist.cli import main
from signfuse_dist.evaluation.scores import score
from signfuse_dist.evaluation.translations import write_hypotheses
from signfuse_dist.experiment import load_run

DEMO = str(ROOT / "configs" / "experiment" / "demo.yaml")
REFERENCES = {
    f"clip{i}": f"{subject} sees the {colour} {thing}"
    for i, (subject, colour, thing) in enumerate(
        (s, c, t)
        for s in ("mother", "father", "the baker")
        for c in ("red", "blue")
        for t in ("box", "door", "house")
    )
}
GOOD = {**REFERENCES, "clip0": "mother sees a box", "clip7": "father sees the blue box"}
BAD = {i: text.replace("sees", "opens").replace("red", "blue") for i, text in REFERENCES.items()}


def write(path: Path, hypotheses: Mapping[str, str], references: Mapping[str, str]) -> str:
    write_hypotheses(path, hypotheses, references)
    return str(path)


def run_folder(
    root: Path, name: str, hypotheses: Mapping[str, str], *words: str
) -> str:  # `words` are overrides, as on the command line
    config = load_run(DEMO, "finetune", list(words))
    folder = root / name / "finetune"
    write(folder / "evaluation" / "test" / "hypotheses.jsonl", hypotheses, REFERENCES)
    raw = {**config.to_dict(), "name": name}
    (folder / "config.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    return str(folder)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["compare", *words, "--preset", "sacrebleu"]) == 2
    return capsys.readouterr().err


def compared(tmp_path: Path, *words: str) -> dict[str, Any]:
    file = tmp_path / "out" / "comparison.json"
    assert main(["compare", *words, "--preset", "sacrebleu", "--json", str(file)]) == 0
    return dict(json.loads(file.read_text(encoding="utf-8")))


@pytest.mark.parametrize("method", ["bootstrap", "randomization"])
def test_files_are_compared_with_the_first(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, good = (
        write(tmp_path / f"{name}.jsonl", texts, REFERENCES)
        for name, texts in (("bad", BAD), ("good", GOOD))
    )
    words = ("--method", method, "--num-samples", "500", "--seed", "3", "--language", "en")
    found = compared(tmp_path, bad, good, *words)
    assert found["systems"] == [bad, good]
    plain = {name: score(t, REFERENCES, "sacrebleu") for name, t in ((bad, BAD), (good, GOOD))}
    for metric, (first, second) in found["figures"].items():
        assert first["value"] == pytest.approx(plain[bad][metric].value)
        assert second["value"] == pytest.approx(plain[good][metric].value)
        assert first["p_value"] is None
        assert second["p_value"] < 0.05
        assert "seed:3" in found["signatures"][metric]
    assert set(found["figures"]) == set(plain[bad].scores)
    assert "bleurt" in found["unavailable"]["BLEURT"]
    text = capsys.readouterr().out
    assert f"against the baseline {bad}" in text
    assert f"{plain[good]['BLEU-4'].value:.2f}  95% [" in text
    assert "BLEURT: not scored: needs a checkpoint" in text


def test_runs_are_compared_on_a_split_and_grouped_by_seed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [
        run_folder(tmp_path, "base", BAD, "train.seed=1"),
        run_folder(tmp_path, "again", GOOD, "train.seed=2", "train.output=elsewhere"),
        run_folder(tmp_path, "other", GOOD, "train.seed=1", "model.fusion=concat"),
    ]
    found = compared(tmp_path, *runs, "--split", "test", "--seeds", "--num-samples", "100")
    first, second = found["groups"]
    assert (first["names"], first["seeds"]) == (runs[:2], [1, 2])
    assert (second["names"], second["seeds"]) == (runs[2:], [1])
    values = [figure["value"] for figure in found["figures"]["chrF"]]
    spread = first["spreads"]["chrF"]
    assert spread["mean"] == pytest.approx(statistics.fmean(values[:2]))
    assert spread["deviation"] == pytest.approx(statistics.stdev(values[:2]))
    assert second["spreads"]["chrF"] == {"mean": values[2], "deviation": None}
    text = capsys.readouterr().out
    assert "standard deviation over the seeds 1, 2" in text
    assert "one seed, no deviation" in text


def test_the_language_of_runs_reaches_meteor(tmp_path: Path) -> None:
    runs = [
        run_folder(tmp_path, n, GOOD, f"data.language={lang}")
        for n, lang in (("a", "de"), ("b", "de"))
    ]
    found = compared(tmp_path, *runs, "--split", "test", "--num-samples", "100")
    assert "match:exact+stem|" in found["signatures"]["METEOR"]


def test_runs_of_two_languages_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [run_folder(tmp_path, lang, GOOD, f"data.language={lang}") for lang in ("de", "zh")]
    assert "different languages: de, zh" in refused(capsys, *runs, "--split", "test")


def test_two_runs_of_one_seed_are_no_repetition(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [run_folder(tmp_path, name, GOOD) for name in ("a", "b")]
    error = refused(capsys, *runs, "--split", "test", "--seeds")
    assert "has the seed" in error
    files = [write(tmp_path / f"{n}.jsonl", GOOD, REFERENCES) for n in ("x", "y")]
    assert "is a file, and its seed is not known" in refused(capsys, *files, "--seeds")


def test_other_sentences_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write(tmp_path / "first.jsonl", GOOD, REFERENCES)
    texts = {**REFERENCES, "clip3": "another text", "new": "more"}
    del texts["clip5"]
    second = write(tmp_path / "second.jsonl", dict.fromkeys(texts, "x"), texts)
    error = refused(capsys, first, second)
    assert "1 sentences are missing: 'clip5'" in error
    assert f"1 sentences are not in {first}: 'new'" in error
    assert "1 references have another text: 'clip3'" in error


def test_what_cannot_be_compared_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = write(tmp_path / "good.jsonl", GOOD, REFERENCES)
    assert "two systems at least" in refused(capsys, good)
    assert f"named twice: {good}" in refused(capsys, good, good)
    run = run_folder(tmp_path, "run", GOOD)
    assert "say which split" in refused(capsys, good, run)
    assert "evaluate the run on 'dev' first" in refused(capsys, good, run, "--split", "dev")
    empty = write(tmp_path / "empty.jsonl", {**GOOD, "clip2": " "}, REFERENCES)
    assert "1 hypotheses are empty: 'clip2'" in refused(capsys, good, empty)
    assert "too few for a test" in refused(capsys, good, run, "--num-samples", "5")
    main(["compare", good, run, "--preset", "char", "--tokenizer", "zh"])
    assert "part of its protocol" in capsys.readouterr().err


def test_empty_hypotheses_are_compared_where_that_is_said(tmp_path: Path) -> None:
    good = write(tmp_path / "good.jsonl", GOOD, REFERENCES)
    empty = write(tmp_path / "empty.jsonl", dict.fromkeys(GOOD, ""), REFERENCES)
    found = compared(tmp_path, good, empty, "--allow-empty", "--num-samples", "100")
    assert found["figures"]["BLEU-4"][1]["value"] == 0.0


def test_one_sentence_cannot_be_resampled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [write(tmp_path / f"{n}.jsonl", {"a": "x"}, {"a": "x y"}) for n in ("x", "y")]
    assert "one sentence only" in refused(capsys, *files)


def test_score_writes_intervals_and_takes_a_tokenizer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, out = write(tmp_path / "good.jsonl", GOOD, REFERENCES), tmp_path / "scores.json"
    words = ["score", "--hypotheses", good, "--preset", "sacrebleu", "--tokenizer", "char"]
    assert main([*words, "--intervals", "--json", str(out)]) == 0
    text = capsys.readouterr().out
    assert "tok:char" in text
    low, high = json.loads(out.read_text())["scores"]["metrics"]["BLEU-4"]["interval"]
    assert f"[{low:.2f}, {high:.2f}]" in text


def test_a_run_is_scored_with_its_language_and_against_further_references(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_folder(tmp_path, "run", GOOD, "data.language=de")
    words = ["score", "--hypotheses", run, "--split", "test", "--preset", "sacrebleu"]
    assert main(words) == 0
    assert "match:exact+stem|" in capsys.readouterr().out, "no English synonyms for German"
    for name, texts in (("r1", REFERENCES), ("r2", GOOD)):
        rows = [{"id": i, "text": text} for i, text in texts.items()]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
        words += ["--references", str(tmp_path / f"{name}.json")]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "BLEU-4   100.00  nrefs:2|" in text


def test_fewer_trainings_than_a_protocol_reports_are_pointed_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [
        run_folder(tmp_path, f"seed{seed}", GOOD, f"train.seed={seed}", f"train.output=o{seed}")
        for seed in (1, 2, 3)
    ]
    words = ["--split", "test", "--preset", "sltbaselines", "--num-samples", "100", "--seeds"]
    assert main(["compare", *runs[:2], *words]) == 0
    assert "mean and deviation of 3 trainings" in capsys.readouterr().out
    assert main(["compare", *runs, *words]) == 0
    text = capsys.readouterr().out
    assert "over the seeds 1, 2, 3" in text
    assert "3 trainings" not in text
