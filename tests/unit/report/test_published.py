"""Published results: the data file, its checks, and ours among them."""

from __future__ import annotations

import dataclasses
import re
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from helpers.repository import ROOT
from signfuse_dist.errors import UserError
from signfuse_dist.evaluation.protocols import PRESETS, find_preset
from signfuse_dist.evaluation.scores import Score, Scores
from signfuse_dist.report import published

TEXT = (files("signfuse_dist.report") / "published.yaml").read_text(encoding="utf-8")
CORPORA = {"PHOENIX-2014T": "phoenix14t", "CSL-Daily": "csl_daily", "How2Sign": "how2sign"}


def ours(bleu4: float, **more: float) -> Scores:
    values = {"BLEU-4": bleu4, **more}
    return Scores("char", 10, {name: Score(value, "s") for name, value in values.items()})


def test_results_are_of_one_corpus_and_the_best_comes_first() -> None:
    for corpus in CORPORA.values():
        rows = published.results(corpus, "test")
        assert len(rows) > 5
        assert {(row.corpus, row.split, row.gloss_free) for row in rows} == {(corpus, "test", True)}
        assert [row.bleu4 for row in rows] == sorted((row.bleu4 for row in rows), reverse=True)
    assert published.results("table", "test") == []
    assert published.results("phoenix14t", "dev") == []


def test_every_figure_is_the_one_that_was_gathered(shared: Path) -> None:
    text = (shared / "EVALUATION.md").read_text(encoding="utf-8")
    text = text[text.index("## Published gloss-free results") :]
    count = 0
    for title, corpus in CORPORA.items():
        (part,) = re.findall(rf"{title}: (.*?)\.\n", text, re.DOTALL)
        found = {row.name: row for row in published.results(corpus, "test")}
        for entry in " ".join(part.split()).split("; "):
            name, bleu4, rouge_l = re.match(r"(\S+) ([\d.]+)(?:/([\d.]+))?", entry).groups()
            assert found[name].bleu4 == float(bleu4)
            assert found[name].rouge_l == (float(rouge_l) if rouge_l else None)
            count += 1
    assert count == len(yaml_results()) - 1  # SSVP-SLT has two results in one entry


def yaml_results() -> list[dict[str, object]]:
    return [result for paper in yaml.safe_load(TEXT) for result in paper["results"]]


def test_table_3_of_the_paper_is_there_as_printed(shared: Path) -> None:
    (paper,) = (shared / "paper").glob("*.txt")
    table = paper.read_text(encoding="utf-8").split("Table 3.")[1].split("5.4.")[0]
    printed = re.findall(r"^(\S+) \[\d+\] \(.*?\)\t([\d.]+)\t([\d.]+)$", table, re.MULTILINE)
    assert len(printed) == 5
    rows = {row.name: row for row in published.results("phoenix14t", "test")}
    for name, bleu4, rouge_l in printed:
        expected = published.Printed(float(bleu4), float(rouge_l))
        assert rows[name].printed_in_signfuse == expected


def test_seven_figures_of_table_3_are_not_the_originals() -> None:
    table = published.table3_markdown()
    assert table.count("**") == 2 * 7
    assert "| SignLLM | 23.51 | **23.40** | 46.35 | **44.49** |" in table


def test_the_documents_tables_are_those_of_the_data() -> None:
    text = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    assert published.table3_markdown() in text
    for corpus in CORPORA.values():
        assert published.results_markdown(corpus, "test") in text


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("year: 2023", "year: '2023'", "GASLT: year: '2023' is not an int"),
        ("year: 2023", "year: 2023.5", "GASLT: year: 2023.5 is not an int"),
        ("year: 2023", "year: true", "GASLT: year: True is not an int"),
        ("venue: CVPR\n", "venu: CVPR\n", "GASLT: unknown key 'venu'; did you mean 'venue'?"),
        ("  venue: CVPR\n", "", "GASLT: venue: missing"),
        ("method: GASLT", "method: null", "None: method: None is not a str"),
        ("gloss_free: true", "gloss_free: 'yes'", "GASLT: gloss_free: 'yes' is not a bool"),
        ("gloss_free: true", "gloss_free: null", "GASLT: gloss_free: None is not a bool"),
        ("bleu4: 15.74", "bleu4: 157.4", "GASLT, phoenix14t: bleu4: 157.4 is not a score"),
        ("bleu4: 15.74", "bleu4: -1.0", "GASLT, phoenix14t: bleu4: -1.0 is not a score"),
        ("bleu4: 15.74", "bleu4: .nan", "GASLT, phoenix14t: bleu4: nan is not a score"),
        ("bleu4: 15.74", "bleu4: null", "GASLT, phoenix14t: bleu4: None is not a figure"),
        ("bleu4: 15.74", "bleu4: 15", "GASLT, phoenix14t: bleu4: 15 is not a figure"),
        ("bleu4: 15.74", "bleu4: '15.74'", "GASLT, phoenix14t: bleu4: '15.74' is not a figure"),
        ("bleu4: 15.74, ", "", "GASLT, phoenix14t: bleu4: missing"),
        ("bleu4: 15.74", "bleu5: 15.74", "unknown key 'bleu5'; did you mean 'bleu4'?"),
        ("rouge_l: 39.86", "rouge_l: 101.0", "GASLT, phoenix14t: rouge_l: 101.0 is not a score"),
        ("corpus: phoenix14t", "corpus: null", "GASLT, None: corpus: None is not a str"),
        ("extra_data: null", "extra_data: 3", "GASLT, phoenix14t: extra_data: 3 is not a str"),
        ("preset: unisign", "preset: unasign", "'unasign' is no preset; did you mean 'unisign'?"),
        ("preset: null", "preset: 3", "GASLT, phoenix14t: preset: 3 is not a str"),
        ("{bleu4: 21.44, rouge_l: 43.78}", "3", "printed_in_signfuse: expected a mapping of bleu4"),
        ("rouge_l: 43.78}", "rouge_l: 'a'}", "printed_in_signfuse.rouge_l: 'a' is not a figure"),
        (", rouge_l: 43.78}", "}", "printed_in_signfuse.rouge_l: missing"),
        ("setting: with YouTube-ASL", "setting: null", "How2Sign, test: is there twice"),
    ],
)
def test_a_wrong_record_is_refused_by_name(old: str, new: str, said: str) -> None:
    assert old in TEXT
    with pytest.raises(UserError) as refused:
        published.read_published(TEXT.replace(old, new, 1))
    assert said.casefold() in str(refused.value).casefold()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "None is not a list"),
        ("a: 1", "{'a': 1} is not a list"),
        ("[3]", "entry 1: expected a mapping of method, title"),
        ("[{method: x, results: null}]", "x: results: None is not a list"),
        ("[{method: x, results: [3]}]", "x, 3: expected a mapping of corpus, split"),
    ],
)
def test_a_file_of_another_kind_is_refused(text: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        published.read_published(text)
    assert f"- {said}" in str(refused.value)


def test_every_error_of_the_file_is_told_at_once() -> None:
    text = TEXT.replace("year: 2023", "year: '2023'", 1).replace("bleu4: 2.24", "bleu4: 224.0", 1)
    with pytest.raises(UserError, match=r"no file of published results \(2\)"):
        published.read_published(text)


def test_what_is_not_known_of_a_protocol_counts_as_a_difference() -> None:
    row = published.results("phoenix14t", "test")[0]
    assert published.protocol_differences(row, "neccam") == [published.UNKNOWN_PROTOCOL]


def test_the_differences_of_a_known_protocol_are_named() -> None:
    (row,) = (r for r in published.results("csl_daily", "test") if r.method == "Uni-Sign")
    more = "trained with more: CSL-News"
    assert published.protocol_differences(row, "unisign") == [more]
    chinese = find_preset("sacrebleu", "zh")
    assert published.protocol_differences(row, chinese) == [
        more,
        "tokenizer is char, ours zh",
        "punctuation is half-width, ours kept",
        "rouge_l is package, ours 1.0",
    ]
    own = dataclasses.replace(row, preset="neccam", extra_data=None)
    assert published.protocol_differences(own, PRESETS["neccam"]) == []


def test_ours_stands_among_the_published() -> None:
    rows = published.table_for("csl_daily", "test", ours(21.0, **{"ROUGE-L": 40.0}), "char", "me")
    names = [row.name for row in rows]
    assert names[names.index("me") - 1 : names.index("me") + 2] == ["MMSLT", "me", "SpaMo"]
    (mine,) = (row for row in rows if row.ours)
    assert (mine.bleu4, mine.rouge_l, mine.differences) == (21.0, 40.0, ())
    assert all(row.differences for row in rows if not row.ours)
    without = published.table_for("csl_daily", "test", None, "char")
    assert [row.name for row in without] == [name for name in names if name != "me"]


def test_a_corpus_without_published_results_shows_ours_alone() -> None:
    assert [row.name for row in published.table_for("table", "test", ours(1.0), "char")] == [
        "this run"
    ]
