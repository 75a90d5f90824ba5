"""Scores, their signatures, and the presets that name published protocols."""

from __future__ import annotations

import dataclasses
import shutil
import zipfile

import nltk
import pytest
from nltk.corpus.reader import WordNetCorpusReader
from nltk.corpus.util import LazyCorpusLoader

from signfuse_dist.errors import UserError
from signfuse_dist.evaluation.metrics import tokens
from signfuse_dist.evaluation.protocols import METRICS, PRESETS, WER, find_preset
from signfuse_dist.evaluation.scores import format_scores, score, score_files, score_with_intervals
from signfuse_dist.evaluation.translations import read_pairs

REFERENCES = {
    "a": "Tomorrow rain comes from the west.",
    "b": "In the north it stays dry and cold.",
    "c": "Good evening, dear viewers!",
}
HYPOTHESES = {
    "a": "Rain comes from the west tomorrow.",
    "b": "In the north it stays dry.",
    "c": "Good evening, dear viewers!",
}


@pytest.fixture
def without_wordnet(monkeypatch):
    def missing():
        raise LookupError("Resource wordnet not found")

    monkeypatch.setattr("nltk.corpus.wordnet", type("Absent", (), {"ensure_loaded": missing}))


def test_perfect_translations_score_one_hundred():
    scores = score(REFERENCES, REFERENCES, "sacrebleu")
    for name in ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "chrF", "ROUGE-L"):
        assert scores[name].value == pytest.approx(100.0)
    assert scores["METEOR"].value > 99


def test_bleu_is_sacrebleus_own():
    from sacrebleu import corpus_bleu

    ids = sorted(REFERENCES)
    expected = corpus_bleu([HYPOTHESES[i] for i in ids], [[REFERENCES[i] for i in ids]])
    assert score(HYPOTHESES, REFERENCES, "sacrebleu")["BLEU-4"].value == expected.score


def test_every_score_of_every_preset_has_a_signature_with_its_version():
    for name, preset in PRESETS.items():
        scores = score(HYPOTHESES, REFERENCES, name)
        assert set(scores.scores) | set(scores.unavailable) | {WER} == set(METRICS)
        assert not set(scores.scores) & set(scores.unavailable)
        for value, signature in scores.scores.values():
            assert 0.0 <= value <= 100.0
            assert "version:" in signature
            assert "case:" in signature
        assert all(f"{k}:{v}" in scores["ROUGE-L"].signature for k, v in preset.changes.items())
        cut = "space" if preset.tokenizer == "none" else preset.tokenizer
        assert f"tok:{preset.tokenizer}" in scores["BLEU-4"].signature
        assert f"tok:{cut}" in scores["METEOR"].signature


def test_the_order_of_the_samples_changes_nothing():
    backwards = dict(reversed(HYPOTHESES.items()))
    assert score(backwards, REFERENCES, "neccam") == score(HYPOTHESES, REFERENCES, "neccam")


def test_neccam_ignores_case_and_keeps_a_full_stop_as_a_token():
    upper = {i: text.upper() for i, text in HYPOTHESES.items()}
    assert score(upper, REFERENCES, "neccam") == score(HYPOTHESES, REFERENCES, "neccam")
    assert tokens("Regen Kommt .", find_preset("neccam")) == ["regen", "kommt", "."]
    assert "beta:1.2" in score(HYPOTHESES, REFERENCES, "neccam")["ROUGE-L"].signature


def test_twostream_takes_beta_from_precision_and_recall():
    assert "beta:p/r" in score(HYPOTHESES, REFERENCES, "twostream")["ROUGE-L"].signature


def test_unisign_reads_full_width_punctuation_as_half_width():
    references, hypotheses = {"x": "你好\uff0c今天好吗\uff1f"}, {"x": "你好,今天好吗?"}
    assert score(hypotheses, references, "unisign")["BLEU-4"].value == pytest.approx(100.0)
    assert score(hypotheses, references, "char")["BLEU-4"].value < 80
    signature = score(hypotheses, references, "unisign")["BLEU-4"].signature
    assert signature.endswith("|punct:half-width")


def test_unisign_takes_rouge_from_the_package_of_its_protocol():
    references, hypotheses = {"x": "\u4eca\u5929\u597d"}, {"x": "\u4eca\u5929\u597d\u597d\u597d"}
    both = {p: score(hypotheses, references, p)["ROUGE-L"] for p in ("unisign", "char")}
    # The package counts a repeated character once, so nothing is wrong here but the length.
    assert both["unisign"].value == pytest.approx(100.0, abs=1e-4)
    assert both["char"].value == pytest.approx(100 * 2 * 0.6 / 1.6)
    assert both["unisign"].signature.endswith("|mean:sentences|version:rouge-1.0.1")
    assert "beta" not in both["unisign"].signature


def test_what_is_not_scored_is_named_with_what_it_wants():
    scores = score(HYPOTHESES, REFERENCES, "sacrebleu")
    assert set(scores.unavailable) == {"BLEURT"}
    assert "BLEURT   " in format_scores(scores)
    assert "not scored: needs a checkpoint (--bleurt FOLDER)" in format_scores(scores)


def test_a_spaced_full_stop_raises_every_word_score(shared):
    """PHOENIX-2014T as some loaders give it, with ' .' at the end, and as it is annotated."""
    path = shared / "data" / "hypotheses" / "phoenix14t_sample_pairs.tsv"
    ours, theirs = read_pairs(path, None)
    assert all(text.endswith(" .") for text in theirs.values())
    with_stop = score(ours, theirs, "neccam")
    ours, theirs = ({i: t.removesuffix(" .") for i, t in texts.items()} for texts in (ours, theirs))
    without = score(ours, theirs, "neccam")
    for name in ("BLEU-1", "BLEU-4", "ROUGE-L"):
        assert with_stop[name].value > without[name].value, name
    assert with_stop.notes != ()
    assert without.notes == ()


def test_intervals_hold_the_score_and_are_the_same_each_time():
    plain = score(HYPOTHESES, REFERENCES, "sacrebleu")
    scores = score_with_intervals(HYPOTHESES, REFERENCES, "sacrebleu")
    assert scores == score_with_intervals(HYPOTHESES, REFERENCES, "sacrebleu")
    assert set(scores.intervals) == set(scores.scores)
    assert scores.scores == plain.scores  # signatures too: intervals change no figure
    assert scores.resampling == "bs:1000|seed:12345"
    for name, (low, high) in scores.intervals.items():
        assert low < scores[name].value < high, name
    assert "95% intervals: bs:1000|seed:12345" in format_scores(scores)
    assert plain.intervals == {}


def test_one_sentence_has_no_interval():
    one = {"a": HYPOTHESES["a"]}
    scores = score_with_intervals(one, {"a": REFERENCES["a"]}, "sacrebleu")
    assert scores.intervals == {}
    assert scores.resampling == ""


def test_chinese_is_nothing_to_13a_and_something_to_characters():
    references, hypotheses = {"x": "他今年四岁了吗"}, {"x": "他今年五岁了吗"}
    values = {p: score(hypotheses, references, p)["ROUGE-L"].value for p in ("sacrebleu", "char")}
    assert values["sacrebleu"] == 0.0
    assert values["char"] == pytest.approx(100 * 6 / 7)
    chinese = find_preset("sacrebleu", tokenizer="zh")
    assert score(hypotheses, references, chinese)["ROUGE-L"].value == pytest.approx(100 * 6 / 7)
    assert "tok:zh" in score(hypotheses, references, chinese)["BLEU-4"].signature


def test_the_tokenizer_of_a_published_protocol_is_part_of_it():
    assert find_preset("neccam", tokenizer="13a") is PRESETS["neccam"]


def test_empty_hypotheses_score_as_empty_and_are_named():
    scores = score({**HYPOTHESES, "b": " "}, REFERENCES, "sacrebleu")
    assert scores.empty == ("b",)
    assert scores["BLEU-4"].value < score(HYPOTHESES, REFERENCES, "sacrebleu")["BLEU-4"].value
    assert "empty hypotheses, scored as empty: 1 ('b')" in format_scores(scores)


@pytest.mark.parametrize("preset", PRESETS)
def test_nothing_but_empty_hypotheses_scores_zero(preset):
    scores = score(dict.fromkeys(REFERENCES, ""), REFERENCES, preset)
    if PRESETS[preset].append:  # the full stop of the protocol is a token that is right
        assert 0 < scores["BLEU-1"].value < 1
    else:
        errors = {WER: 100.0}  # every word is missing
        assert {n: s.value for n, s in scores.scores.items() if s.value} == {
            name: value for name, value in errors.items() if name in scores.scores
        }


def test_missing_and_unknown_ids_and_empty_references_are_named_together():
    with pytest.raises(UserError) as caught:
        score({"a": "x", "z": "y"}, {**REFERENCES, "c": ""}, "sacrebleu")
    message = str(caught.value)
    assert "2 ids have no hypothesis: 'b', 'c'" in message
    assert "1 ids have no reference: 'z'" in message
    assert "1 references are empty: 'c'" in message


def test_many_missing_ids_are_counted_after_the_first():
    references = {f"id{i:03d}": "text" for i in range(40)}
    with pytest.raises(UserError, match=r"'id009' and 30 more"):
        score({}, references, "sacrebleu")


def test_nothing_to_score_is_refused():
    with pytest.raises(UserError, match="no references"):
        score({}, {}, "sacrebleu")


def test_an_unknown_preset_is_refused_with_a_suggestion():
    with pytest.raises(UserError, match="did you mean 'neccam'"):
        score(HYPOTHESES, REFERENCES, "necam")
    with pytest.raises(UserError, match="no BLEU tokenizer 'intl'"):
        find_preset("sacrebleu", tokenizer="intl")


def test_a_preset_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PRESETS["char"].lowercase = True
    with pytest.raises(TypeError):
        PRESETS["mine"] = PRESETS["char"]


def test_without_wordnet_meteor_matches_words_and_stems_and_says_so(without_wordnet):
    scores = score({"x": "rain comes"}, {"x": "rains come"}, "sacrebleu")
    assert scores["METEOR"].value > 90
    assert "match:exact+stem|" in scores["METEOR"].signature


def test_other_languages_than_english_do_not_ask_the_english_wordnet(monkeypatch):
    class Wordnet:
        def ensure_loaded(self):
            raise AssertionError("asked")

    monkeypatch.setattr("nltk.corpus.wordnet", Wordnet())
    scores = score(HYPOTHESES, REFERENCES, "sacrebleu", language="de-DE")
    assert "match:exact+stem|" in scores["METEOR"].signature


def test_a_wordnet_gives_synonyms_and_its_version_is_in_the_signature(monkeypatch):
    class Lemma:
        def __init__(self, word):
            self.word = word

        def name(self):
            return self.word

    class Synset:
        def lemmas(self):
            return [Lemma("car"), Lemma("auto")]

    class Wordnet:
        def ensure_loaded(self):
            pass

        def get_version(self):
            return "3.0"

        def synsets(self, word):
            return [Synset()] if word in ("car", "auto") else []

    monkeypatch.setattr("nltk.corpus.wordnet", Wordnet())
    scores = score({"x": "my red car"}, {"x": "my red auto"}, "sacrebleu", language="en")
    assert scores["METEOR"].value > 90
    assert "match:exact+stem+wordnet3.0" in scores["METEOR"].signature


def test_a_wordnet_that_cannot_be_read_is_an_error_not_a_lower_score(monkeypatch):
    class Torn:
        def ensure_loaded(self):
            raise zipfile.BadZipFile("File is not a zip file")

    monkeypatch.setattr("nltk.corpus.wordnet", Torn())
    with pytest.raises(UserError, match="cannot read it"):
        score(HYPOTHESES, REFERENCES, "sacrebleu")


def test_references_that_end_in_a_spaced_full_stop_are_pointed_out():
    spaced = {i: f"{text} ." for i, text in REFERENCES.items()}
    assert "3 of 3 references end in ' .'" in score(spaced, spaced, "neccam").notes[0]
    assert score(REFERENCES, REFERENCES, "neccam").notes == ()


def test_a_published_system_scores_what_was_published(shared, without_wordnet):
    path = shared / "data" / "hypotheses" / "unisign_pose_only.how2sign.test.tsv"
    scores = score_files(path, [], "sacrebleu")
    assert scores.num_samples == 2349
    names = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "chrF")
    assert [round(scores[n].value, 2) for n in names] == [39.38, 26.44, 19.22, 14.50, 34.61]


def test_the_real_wordnet_is_used_where_nltk_finds_it(shared, tmp_path, monkeypatch):
    (tmp_path / "corpora").mkdir()
    archive = shared / "models" / "nltk_wordnet30.zip"
    shutil.copyfile(archive, tmp_path / "corpora" / "wordnet.zip")
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    fresh = LazyCorpusLoader("wordnet", WordNetCorpusReader, None)
    monkeypatch.setattr("nltk.corpus.wordnet", fresh)
    scores = score({"x": "the car is quick"}, {"x": "the automobile is fast"}, "sacrebleu")
    assert "wordnet3.0" in scores["METEOR"].signature
    assert scores["METEOR"].value > 60
