"""Parts of a corpus, scored from the counts of its sentences, score as corpora of their own."""

from __future__ import annotations

import random

import pytest

from signfuse_dist.errors import UserError
from signfuse_dist.evaluation.metrics import build_measures
from signfuse_dist.evaluation.protocols import PRESETS, find_preset
from signfuse_dist.evaluation.scores import score
from signfuse_dist.evaluation.sentences import SentenceStatistics
from signfuse_dist.evaluation.translations import rank_samples

WORDS = ["rain", "snow", "wind", "west", "the", "comes", "goes", "Today"]
NAMES = ("BLEU-4", "ROUGE-L", "chrF")
rng = random.Random(3)
REFERENCES = {f"s{i}": " ".join(rng.choices(WORDS, k=rng.randint(3, 12))) for i in range(30)}
HYPOTHESES = {
    i: " ".join(w if rng.random() < 0.6 else rng.choice(WORDS) for w in text.split())
    for i, text in REFERENCES.items()
}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_part_scores_as_a_corpus_of_its_own(preset: str) -> None:
    statistics = SentenceStatistics(HYPOTHESES, REFERENCES, find_preset(preset), NAMES)
    for part in ([*REFERENCES], ["s3", "s4", "s9"], ["s1"]):
        texts = [{i: of[i] for i in part} for of in (HYPOTHESES, REFERENCES)]
        alone = score(texts[0], texts[1], preset)
        assert statistics.scores(part) == {name: alone[name].value for name in NAMES}


def test_a_part_without_a_sentence_that_counts_has_no_scores() -> None:
    references = {**REFERENCES, "none": "that's it"}
    statistics = SentenceStatistics(
        {**HYPOTHESES, "none": "rain"}, references, find_preset("rbleu"), NAMES
    )
    assert statistics.scores(["none"]) == {}
    assert statistics.scores([]) == {}
    assert "none" not in statistics.of_sentences("chrF")


def test_sentences_are_ordered_by_sacrebleus_own_chrf() -> None:
    statistics = SentenceStatistics(HYPOTHESES, REFERENCES, find_preset("sacrebleu"), NAMES)
    chrf = build_measures(find_preset("sacrebleu"), None)["chrF"].metric
    ranked = rank_samples(HYPOTHESES, REFERENCES)
    assert ranked == rank_samples(HYPOTHESES, REFERENCES, statistics)
    for sample in ranked:
        own = chrf.sentence_score(sample.hypothesis, [sample.reference])
        assert sample.chrf == own.score
    assert [s.chrf for s in ranked] == sorted((s.chrf for s in ranked), reverse=True)
    assert rank_samples({}, {}) == []


def test_no_sentence_that_counts_is_refused() -> None:
    with pytest.raises(UserError, match="no reference holds a word"):
        SentenceStatistics({"a": "x"}, {"a": "so"}, find_preset("rbleu"), NAMES)
