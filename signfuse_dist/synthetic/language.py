"""The invented language of the synthetic corpus: its words, its two word orders, and its splits.

A sentence is a choice for each of six independent slots. The text reads in English order
("yesterday the baker did not paint the red box"); the signs come time first, then object,
adjective after its noun, subject, verb. Negation and question have no sign of their own: they are
a head shake with a drawn mouth, and raised brows over a tilted head, all through the sentence.

Some words show in one channel only (:func:`channel_of`), so that neither the frames nor the
joints are enough: the colours differ in the picture alone, and the words of
``JOINTS_ONLY`` differ in a hand that a desk hides from the camera but not from the tracker.

There are two sign languages of this text language, as of English there are several. The ``second``
has other signs for the words (:data:`~signfuse_dist.synthetic.signs.SIGNS_OF`) and another order.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Literal

import numpy as np

from signfuse_dist.errors import UserError

Channel = Literal["picture", "joints", "both"]
Mode = Literal["statement", "negation", "question"]
MODES: tuple[Mode, ...] = ("statement", "negation", "question")
SignLanguage = Literal["first", "second"]
SIGN_LANGUAGES: tuple[SignLanguage, ...] = ("first", "second")
SPLITS = ("train", "dev", "test")

AUXILIARIES = {"yesterday": "did", "today": "does", "tomorrow": "will"}
TIMES = tuple(AUXILIARIES)
OBJECTS = ("box", "door", "car", "gate")
COLOURS = ("red", "green", "blue")
ADJECTIVES = (*COLOURS, "big")
SUBJECTS = ("mother", "father", "teacher", "baker")


@dataclass(frozen=True)
class Verb:
    """The forms of a verb in the text; its sign is always the base."""

    base: str
    third: str
    past: str

    def forms(self) -> tuple[str, str, str]:
        """Return every form, base first."""
        return (self.base, self.third, self.past)


VERBS = {
    verb.base: verb
    for verb in (
        Verb("open", "opens", "opened"),
        Verb("close", "closes", "closed"),
        Verb("paint", "paints", "painted"),
        Verb("sell", "sells", "sold"),
    )
}

# Each group shares one look: its members differ in the named channel and nowhere else.
PICTURE_ONLY = (COLOURS,)
JOINTS_ONLY = (("mother", "father"), ("open", "close"))


@dataclass(frozen=True)
class Sentence:
    """One meaning: a word for each slot, and the mode. ``adjective`` may be absent."""

    time: str
    subject: str
    verb: str
    object: str
    adjective: str | None
    mode: Mode

    @property
    def text(self) -> str:
        """The sentence in text order: 6 to 9 words in lower case, no punctuation."""
        verb, helper = VERBS[self.verb], AUXILIARIES[self.time]
        subject = f"the {self.subject}"
        thing = " ".join(word for word in ("the", self.adjective, self.object) if word)
        if self.mode == "question":
            return f"{helper} {subject} {verb.base} {thing} {self.time}"
        if self.mode == "negation":
            return f"{self.time} {subject} {helper} not {verb.base} {thing}"
        finite = {"did": verb.past, "does": verb.third, "will": f"will {verb.base}"}[helper]
        return f"{self.time} {subject} {finite} {thing}"

    @property
    def glosses(self) -> tuple[str, ...]:
        """The signs in signed order: time, object, adjective, subject, verb (4 or 5 of them)."""
        return self.glosses_in("first")

    def glosses_in(self, language: SignLanguage) -> tuple[str, ...]:
        """Return the signs in the order of a language; the second's is SVO, the time last."""
        if language == "first":
            signs = (self.time, self.object, self.adjective, self.subject, self.verb)
        else:
            signs = (self.subject, self.verb, self.adjective, self.object, self.time)
        return tuple(sign for sign in signs if sign)


@dataclass(frozen=True)
class SplitSizes:
    """How many sentences each split has."""

    train: int = 480
    dev: int = 40
    test: int = 60

    def of(self, split: str) -> int:
        """Return the size of ``split``, one of :data:`SPLITS`."""
        return {"train": self.train, "dev": self.dev, "test": self.test}[split]


@lru_cache(maxsize=1)
def all_sentences() -> tuple[Sentence, ...]:
    """Return every sentence the language has, in a fixed order; no two share a text."""
    slots = product(TIMES, SUBJECTS, VERBS, OBJECTS, (None, *ADJECTIVES), MODES)
    return tuple(Sentence(*slot) for slot in slots)


def words_of(sentences: Iterable[Sentence]) -> set[str]:
    """Return the words that the texts of ``sentences`` use."""
    return {word for sentence in sentences for word in sentence.text.split()}


@lru_cache(maxsize=1)
def _channels() -> dict[str, Channel]:
    channels: dict[str, Channel] = dict.fromkeys(words_of(all_sentences()), "both")
    channels.update(dict.fromkeys((word for group in PICTURE_ONLY for word in group), "picture"))
    for lemma in (word for group in JOINTS_ONLY for word in group):
        forms = VERBS[lemma].forms() if lemma in VERBS else (lemma,)
        channels.update(dict.fromkeys(forms, "joints"))
    return channels


def vocabulary() -> tuple[str, ...]:
    """Return every word that a text can hold, sorted."""
    return tuple(sorted(_channels()))


def channel_of(word: str) -> Channel:
    """Return the channel that tells ``word`` from its alternatives.

    ``picture``: only the frames do; ``joints``: only the joints do; ``both``: either is enough
    (this includes function words, whose choice follows from time and mode). Raises
    :class:`UserError` for a word that the language does not have.
    """
    channels = _channels()
    if word not in channels:
        raise UserError(
            f"the synthetic language has no word {word!r}; its {len(channels)} words are: "
            + " ".join(sorted(channels))
        )
    return channels[word]


def draw_splits(seed: int, sizes: SplitSizes) -> dict[str, tuple[Sentence, ...]]:
    """Draw the sentences of every split, no text twice in the whole corpus.

    Held-out sentences are drawn from those whose every word occurs in training, so that a
    translation is new as a whole and known in its parts. Raises :class:`UserError` for a split
    smaller than one sentence, or when the language has too few sentences for ``sizes``.
    """
    for split in SPLITS:
        if sizes.of(split) < 1:
            raise UserError(f"{split} has {sizes.of(split)} sentences; it needs at least 1")
    sentences = all_sentences()
    order = np.random.default_rng(seed).permutation(len(sentences))
    drawn = [sentences[i] for i in order]
    train, rest = drawn[: sizes.train], drawn[sizes.train :]
    known = words_of(train)
    rest = [sentence for sentence in rest if words_of([sentence]) <= known]
    if len(rest) < sizes.dev + sizes.test:
        raise UserError(
            f"dev={sizes.dev} and test={sizes.test} need {sizes.dev + sizes.test} sentences made "
            f"of words seen in train={sizes.train}, and there are {len(rest)} (the language has "
            f"{len(sentences)} sentences); ask for a smaller dev and test or another train"
        )
    held_out = rest[sizes.dev : sizes.dev + sizes.test]
    return {"train": tuple(train), "dev": tuple(rest[: sizes.dev]), "test": tuple(held_out)}
