"""Protocols of the field against counts that were made by hand on ten sentences."""

from __future__ import annotations

import math

import pytest

from signfuse_dist.errors import UserError
from signfuse_dist.evaluation.protocols import PRESETS, normalize, prepare
from signfuse_dist.evaluation.scores import score

# Reference and hypothesis, as PHOENIX-2014T annotates them: without a full stop.
GERMAN = [
    ("morgen regnet es im westen", "morgen regnet es im westen"),
    ("im norden bleibt es trocken", "im norden bleibt es kalt"),
    ("heute nacht schneit es", "heute nacht"),
    ("die sonne scheint", "die sonne scheint"),
    ("am tag weht der wind schwach", "der wind weht schwach"),
    ("guten abend", "guten abend liebe zuschauer"),
    ("es ist kalt", "es ist es ist kalt"),
    ("wolken im süden", ""),
    ("regen und wind", "Regen und wind"),
    ("schnee", "sonne"),
]


def texts(pairs: list[tuple[str, str]]) -> tuple[dict[str, str], dict[str, str]]:
    """Hypotheses and references by id."""
    return (
        {f"s{i}": hypothesis for i, (_, hypothesis) in enumerate(pairs)},
        {f"s{i}": reference for i, (reference, _) in enumerate(pairs)},
    )


def bleu(shares: list[tuple[int, int]], ours: int, theirs: int) -> float:
    """BLEU of matched and all n-grams, for 1, 2 ..., and of the tokens on both sides."""
    brevity = math.exp(1 - theirs / ours) if ours < theirs else 1.0
    logs = [math.log(matched / every) for matched, every in shares]
    return 100 * brevity * math.exp(sum(logs) / len(logs))


def test_sltbaselines_appends_a_full_stop_to_both_sides() -> None:
    # A row a sentence: matched 1- to 4-grams, tokens of hypothesis and reference, LCS.
    counts = [
        ((6, 5, 4, 3), 6, 6, 6),
        ((5, 3, 2, 1), 6, 6, 5),
        ((3, 1, 0, 0), 3, 5, 3),
        ((4, 3, 2, 1), 4, 4, 4),
        ((5, 2, 0, 0), 5, 7, 4),  # der wind schwach .
        ((3, 1, 0, 0), 5, 3, 3),
        ((4, 3, 2, 1), 6, 4, 4),
        ((1, 0, 0, 0), 1, 4, 1),  # the full stop alone
        ((3, 2, 1, 0), 4, 4, 3),  # Regen is not regen
        ((1, 0, 0, 0), 2, 2, 1),
    ]
    matched = [sum(row[0][n] for row in counts) for n in range(4)]
    ours, theirs = sum(row[1] for row in counts), sum(row[2] for row in counts)
    every = [sum(max(row[1] - n, 0) for row in counts) for n in range(4)]
    assert (matched, every, ours, theirs) == ([35, 20, 11, 6], [42, 32, 23, 15], 42, 45)

    scores = score(*texts(GERMAN), "sltbaselines")
    shares = list(zip(matched, every, strict=True))
    for order in range(1, 5):
        expected = bleu(shares[:order], ours, theirs)
        assert scores[f"BLEU-{order}"].value == pytest.approx(expected)
    rouge = sum(2 * lcs / (mine + yours) for _, mine, yours, lcs in counts) / len(counts)
    assert scores["ROUGE-L"].value == pytest.approx(100 * rouge)
    assert scores["BLEU-4"].signature.endswith("|append:' .'")
    assert "append:' .'" in scores["ROUGE-L"].signature


def test_sltbaselines_says_what_the_full_stop_does_and_how_many_trainings_it_reports() -> None:
    notes = score(*texts(GERMAN), "sltbaselines").notes
    assert any("appends ' .' to both sides" in note for note in notes)
    assert any("mean and deviation of 3 trainings" in note for note in notes)
    assert score(*texts(GERMAN), "sacrebleu").notes == ()


def test_a_full_stop_that_is_there_already_is_not_appended_again() -> None:
    with_stop = [(f"{reference} .", f"{hypothesis} .") for reference, hypothesis in GERMAN]
    spaced, plain = (score(*texts(pairs), "sltbaselines") for pairs in (with_stop, GERMAN))
    assert spaced.scores == plain.scores
    assert normalize("schnee .", PRESETS["sltbaselines"]) == "schnee ."


def test_lower_case_13a_ignores_case_and_appends_nothing() -> None:
    scores = score(*texts(GERMAN), "sacrebleu-lc")
    shares = [(26, 32), (16, 23), (8, 15), (3, 8)]
    assert scores["BLEU-1"].value == pytest.approx(bleu(shares[:1], 32, 35))
    assert scores["BLEU-4"].value == pytest.approx(bleu(shares, 32, 35))
    assert "case:lc" in scores["BLEU-4"].signature
    assert "tok:13a" in scores["BLEU-4"].signature


def test_sltbaselines_scores_chinese_by_characters_with_half_width_marks() -> None:
    """The German sentences with a character for each word, so that the counts are the same."""
    words = sorted({word.lower() for pair in GERMAN for text in pair for word in text.split()})
    letters = {word: chr(0x4E00 + place) for place, word in enumerate(words)}
    marked = [
        {**letters, "wind": mark} for mark in ("\uff0c", ",")
    ]  # full-width in references, half-width in hypotheses
    pairs = [
        tuple(
            "".join(written[word] for word in text.lower().split())
            for written, text in zip(marked, pair, strict=True)
        )
        for pair in GERMAN
    ]
    scores = score(*texts(pairs), "sltbaselines-char")
    shares = [(26, 32), (16, 23), (8, 15), (3, 8)]
    assert scores["BLEU-4"].value == pytest.approx(bleu(shares, 32, 35))
    assert scores["BLEU-4"].value > score(*texts(pairs), "char")["BLEU-4"].value


ENGLISH = [
    # reference, hypothesis; of the reduced vocabulary remain ...
    ("The wing is red.", "The wing is blue."),  # wing red; wing blue
    ("Hold the stick, and push it.", "Hold the stick, push it!"),  # Hold stick push, twice
    ("That's it.", "It's a stick."),  # nothing: left out
    ("Was cold.", "Was cold."),  # Was cold: the published list writes "Cas"
    ("the oil was cold", "The oil cold"),  # oil cold; oil cold
    ("We need two eggs", "you need eggs"),  # need two eggs; need eggs
    ("Don't touch hot metal.", "Do touch the hot metal"),  # touch hot metal, twice
    ("Swing the golf club.", ""),  # Swing golf club; nothing
    ("IT stays dry", "it stays dry"),  # IT stays dry; stays dry
    ("Turn left here", "turn right"),  # Turn left; turn
]


def test_rbleu_counts_the_reduced_vocabulary_of_how2sign() -> None:
    preset = PRESETS["rbleu"]
    assert normalize("Hold the stick, and push it.", preset) == "Hold stick push"
    assert normalize("IT was the Was's end", preset) == "IT Was's"
    # Matched 1- to 4-grams, tokens of hypothesis and reference.
    counts = [
        ((1, 0, 0, 0), 2, 2),
        ((3, 2, 1, 0), 3, 3),
        ((2, 1, 0, 0), 2, 2),
        ((2, 1, 0, 0), 2, 2),
        ((2, 0, 0, 0), 2, 3),
        ((3, 2, 1, 0), 3, 3),
        ((0, 0, 0, 0), 0, 3),
        ((2, 1, 0, 0), 2, 3),
        ((0, 0, 0, 0), 1, 2),
    ]
    matched = [sum(row[0][n] for row in counts) for n in range(4)]
    every = [sum(max(row[1] - n, 0) for row in counts) for n in range(4)]
    ours, theirs = sum(row[1] for row in counts), sum(row[2] for row in counts)
    assert (matched[:3], every[:3], ours, theirs) == ([15, 7, 2], [17, 9, 2], 17, 23)
    scores = score(*texts(ENGLISH), "rbleu")
    shares = list(zip(matched, every, strict=True))
    for order in range(1, 4):
        expected = bleu(shares[:order], ours, theirs)
        assert scores[f"BLEU-{order}"].value == pytest.approx(expected)
    assert scores["BLEU-4"].signature.endswith("|words:how2sign-reduced")
    assert "1 of 10 sentences are left out" in scores.notes[0]
    assert scores.num_samples == 10


def test_references_without_a_word_that_counts_are_refused() -> None:
    with pytest.raises(UserError, match="no reference holds a word that it counts"):
        score({"a": "wing"}, {"a": "That's it."}, "rbleu")


def test_a_reference_of_which_nothing_is_left_is_no_reference() -> None:
    prepared = prepare([["wing"]], [("That's it.", "A wing.")], PRESETS["rbleu"])
    assert prepared.streams == [["wing"]]
