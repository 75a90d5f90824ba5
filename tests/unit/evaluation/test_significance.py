"""Intervals and paired tests against sacrebleu called directly, and against counting all cases."""

from __future__ import annotations

import itertools
import os
import random

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.significance import PairedTest

from signfuse_dist.errors import UserError
from signfuse_dist.evaluation.metrics import Measure, SentenceMean, build_measures
from signfuse_dist.evaluation.protocols import BLEU_NAMES, PRESETS
from signfuse_dist.evaluation.significance import SEED, Resampling, resample

MEASURES = build_measures(PRESETS["sacrebleu"], "x")
BOOTSTRAP, RANDOM = Resampling(), Resampling("randomization", 2000)
WORDS = [
    "rain",
    "snow",
    "sun",
    "wind",
    "west",
    "east",
    "north",
    "south",
    "comes",
    "goes",
    "today",
    "tomorrow",
]


def drawn(num_sentences: int, seed: int, share: float) -> tuple[list[str], list[str]]:
    """Translations with ``share`` of the words wrong, and their references."""
    rng = random.Random(seed)
    references = [" ".join(rng.choices(WORDS, k=8)) for _ in range(num_sentences)]
    ours = [
        " ".join(rng.choice(WORDS) if rng.random() < share else word for word in text.split())
        for text in references
    ]
    return ours, references


GOOD, REFERENCES = drawn(60, 1, 0.2)
BAD = [" ".join(text.split()[:3] + ["rain"] * 5) for text in GOOD]


def values_given(values: dict[str, float]) -> Measure:
    """A metric that reads each sentence's score off the sentence."""
    facts = {"version": "test"}
    return Measure(SentenceMean("given", lambda hypothesis, _: values[hypothesis], facts))


@pytest.mark.parametrize(("how", "kind"), [(BOOTSTRAP, "bs"), (RANDOM, "ar")])
def test_figures_are_those_of_sacrebleus_own_test(how: Resampling, kind: str) -> None:
    figures, signature = resample(MEASURES["BLEU-4"], [BAD, GOOD], [REFERENCES], how)
    confidence = 1000 if kind == "ar" else -1
    test = PairedTest(
        [("bad", BAD), ("good", GOOD)], {"BLEU": BLEU()}, [REFERENCES], kind, how.count, confidence
    )
    signatures, found = test()
    for figure, result in zip(figures, found["BLEU"], strict=True):
        assert figure.value == result.score
        assert figure.p_value == result.p_value
        assert sum(figure.interval) / 2 == pytest.approx(result.mean)
        assert figure.interval[1] - figure.interval[0] == pytest.approx(2 * result.ci)
    assert signature == str(signatures["BLEU"])
    assert f"{kind}:{how.count}" in signature
    assert f"seed:{SEED}" in signature


@pytest.mark.parametrize("how", [BOOTSTRAP, RANDOM], ids=["bootstrap", "randomization"])
@pytest.mark.parametrize("name", [*BLEU_NAMES, "chrF", "ROUGE-L", "METEOR"])
def test_every_metric_tells_a_better_system_and_not_itself(name: str, how: Resampling) -> None:
    figures, signature = resample(MEASURES[name], [BAD, GOOD, BAD], [REFERENCES], how)
    bad, good, same = figures
    assert bad.p_value is None
    assert good.p_value is not None
    assert good.p_value < 0.01
    assert good.value > bad.value
    assert (same.value, same.p_value) == (bad.value, 1.0)
    assert f"seed:{SEED}" in signature


def test_the_interval_of_a_mean_is_that_of_drawing_sentences() -> None:
    rng = np.random.default_rng(3)
    values = {str(i): v for i, v in enumerate(rng.random(50))}
    (figure,), _ = resample(values_given(values), [list(values)], [list(values)], BOOTSTRAP)
    scores = 100 * np.array(list(values.values()))
    means = np.sort(scores[rng.integers(50, size=(20_000, 50))].mean(1))
    low, high = means[500], means[-501]
    assert figure.value == pytest.approx(scores.mean())
    assert figure.interval[0] == pytest.approx(low, abs=1.0)
    assert figure.interval[1] == pytest.approx(high, abs=1.0)


def test_randomization_approaches_counting_every_exchange() -> None:
    rng = np.random.default_rng(5)
    ours = {f"a{i}": v for i, v in enumerate(rng.random(10) + 0.4)}
    theirs = {f"b{i}": v for i, v in enumerate(rng.random(10))}
    difference = np.array(list(ours.values())) - np.array(list(theirs.values()))
    observed = abs(difference.mean())
    signs = np.array(list(itertools.product((1, -1), repeat=10)))
    exact = np.mean(np.abs((signs * difference).mean(1)) > observed - 1e-12)
    measure = values_given({**ours, **theirs})
    how = Resampling("randomization")
    (_, figure), _ = resample(measure, [list(theirs), list(ours)], [["r"] * 10], how)
    assert 0.02 < exact < 0.5  # a case in which p says something
    assert figure.p_value == pytest.approx(exact, abs=0.02)


def test_a_seed_gives_the_same_figures_and_another_gives_others() -> None:
    def run(seed: int) -> object:
        return resample(MEASURES["BLEU-1"], [BAD, GOOD], [REFERENCES], Resampling(seed=seed))

    assert run(7) == run(7)
    assert run(7) != run(8)


def test_the_environment_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    for before in ("99", None):
        if before is None:
            monkeypatch.delenv("SACREBLEU_SEED")
        else:
            monkeypatch.setenv("SACREBLEU_SEED", before)
        _, signature = resample(MEASURES["chrF"], [BAD], [REFERENCES], BOOTSTRAP)
        assert os.environ.get("SACREBLEU_SEED") == before
        assert f"seed:{SEED}" in signature


def test_too_few_samples_and_a_seed_that_is_none_are_refused() -> None:
    with pytest.raises(UserError, match="5 resamples are too few"):
        Resampling(num_samples=5)
    with pytest.raises(UserError, match="seed 0 is not positive"):
        Resampling(seed=0)
