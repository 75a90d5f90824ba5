"""Parts of a split: every sentence is in exactly one, and each part is scored by itself."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signfuse_dist.evaluation.protocols import find_preset
from signfuse_dist.evaluation.scores import Score, Scores, SplitScores, score
from signfuse_dist.report import score_sections
from signfuse_dist.report.inputs import PackedSplit, ReportInputs
from signfuse_dist.report.score_sections import bin_lengths, divide

# Of 6, 12 and 18 words.
REFERENCES = {f"id{i}": " ".join(["word", "and", "more"][: i % 3 + 1] * 6) for i in range(12)}
HYPOTHESES = dict.fromkeys(REFERENCES, "word and")
PRESET = find_preset("sacrebleu")


class Packed(PackedSplit):
    """A packed split of which only lengths and signers are asked."""

    def __init__(self, seconds: dict[str, float], signers: dict[str, str | None]) -> None:
        self._seconds, self._signers = seconds, signers

    def seconds(self) -> dict[str, float]:
        return self._seconds

    def signers(self) -> dict[str, str | None]:
        return self._signers


def divide_split(run, packed, preset):
    statistics = score_sections.count_sentences(run, preset)
    return score_sections.divide_split(run, packed, preset, statistics)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(score_sections, "plot", lambda name, *_: name)  # drawn in test_report.py
    return ReportInputs(tmp_path, "test", HYPOTHESES, REFERENCES)


@given(st.lists(st.floats(0.5, 900, width=16), min_size=1, max_size=60))
def test_every_clip_is_in_one_bucket_and_buckets_are_in_order(values):
    lengths = {f"id{i}": value for i, value in enumerate(values)}
    buckets = list(divide(lengths).values())
    assert sorted(name for ids in buckets for name in ids) == sorted(lengths)
    assert 1 <= len(buckets) <= 5
    for shorter, longer in itertools.pairwise(buckets):
        assert max(lengths[i] for i in shorter) < min(lengths[i] for i in longer)


def test_references_are_put_into_the_bins_of_the_field():
    lengths = {f"{n}": n for n in (1, 6, 7, 12, 13, 18, 19, 24, 25, 31, 32, 900)}
    assert bin_lengths(lengths) == {
        "1 to 6": ["1", "6"],
        "7 to 12": ["12", "7"],
        "13 to 18": ["13", "18"],
        "19 to 24": ["19", "24"],
        "25 to 31": ["25", "31"],
        "above 31": ["32", "900"],
    }
    assert bin_lengths({"a": 0, "b": 40}) == {"1 to 6": ["a"], "above 31": ["b"]}


def test_many_lengths_are_cut_at_their_quartiles():
    buckets = divide({f"id{i:02d}": float(i + 1) for i in range(20)})
    assert {name: len(ids) for name, ids in buckets.items()} == {
        "1 to 5": 5,
        "6 to 10": 5,
        "11 to 15": 5,
        "16 to 20": 5,
    }


def test_a_part_is_scored_as_a_corpus_of_its_own(run):
    by_length = divide_split(run, None, PRESET)[0]
    assert by_length.table.header == (
        "words of the reference",
        "sentences",
        "BLEU-4",
        "ROUGE-L",
        "chrF",
    )
    ids = [name for name, text in REFERENCES.items() if len(text.split()) == 12]
    alone = score({i: HYPOTHESES[i] for i in ids}, {i: REFERENCES[i] for i in ids}, PRESET)
    row = by_length.table.rows[1]
    assert row[:2] == ("7 to 12", "4")
    assert row[2:] == tuple(f"{alone[n].value:.2f}" for n in ("BLEU-4", "ROUGE-L", "chrF"))
    assert [r[1] for r in by_length.table.rows] == ["4", "4", "4"]


def test_a_part_without_a_sentence_that_counts_has_no_figures(run):
    run.references.update({"id0": "that's it", "id3": "so it is", "id6": "go", "id9": "do it"})
    by_length = divide_split(run, None, find_preset("rbleu"))[0]
    assert by_length.table.rows[0] == ("1 to 6", "4", "–", "–", "–")
    assert "–" not in by_length.table.rows[1]
    assert by_length.figure is not None


def test_signers_are_named_and_the_unknown_said(run):
    signers = {name: "ada" if int(name[2:]) < 7 else None for name in REFERENCES}
    seconds = dict.fromkeys(REFERENCES, 1.5)
    of_length, of_seconds, of_signers = divide_split(run, Packed(seconds, signers), PRESET)
    assert [row[:2] for row in of_signers.table.rows] == [("ada", "7"), ("unknown", "5")]
    assert of_seconds.table.rows[0][:2] == ("1.5", "12")
    assert of_seconds.figure is None  # one bar shows nothing
    assert of_length.figure is not None
    nobody = divide_split(run, Packed(seconds, dict.fromkeys(REFERENCES)), PRESET)[-1]
    assert "names no signers" in nobody.about


def test_lengths_in_seconds_that_are_not_known_are_noted(run):
    titles = [part.title for part in divide_split(run, Packed({}, {}), PRESET)]
    assert titles == ["By reference length", "By signer"]
    assert any("clip length" in note for note in run.missing)


def test_a_hidden_stream_is_read_beside_not_watching_at_all():
    def with_bleu(value):
        return Scores("sacrebleu", 12, {"BLEU-4": Score(value, "s")})

    controls = {"shuffled": with_bleu(3.2), "blank": with_bleu(4.5)}
    split_scores = SplitScores(with_bleu(20.0), controls)
    text = score_sections.about_control("blank", split_scores)
    assert "came through the joints, or is earned without watching" in text
    assert text.endswith("the shuffled videos have BLEU-4 3.20, this control 4.50.")
    alone = SplitScores(with_bleu(20.0), {"blank": with_bleu(4.5)})
    text = score_sections.about_control("blank", alone)
    assert text.endswith("there is no shuffled score to tell how much of it.")
