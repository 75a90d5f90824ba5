"""What each row can tell of the synthetic corpus's words that one stream alone shows.

The members of a group (mother, father; red, green, blue; ...) look the same in one channel. So a
model without the other can find the group and must guess its member. Counted over the references
that hold a member: how often the translation names exactly one member of the group, and how often
it is the right one. A model that guesses is right in 1 / members of those it names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from signfuse_dist.data.synthetic_language import JOINTS_ONLY, PICTURE_ONLY, VERBS

CORPUS = "synthetic"
Channel = Literal["picture", "joints"]
CHANNELS: tuple[Channel, ...] = ("picture", "joints")
_GROUPS: Mapping[Channel, tuple[tuple[str, ...], ...]] = {
    "picture": PICTURE_ONLY,
    "joints": JOINTS_ONLY,
}
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Contrast:
    """Counts over the references that hold a member of a group of one channel.

    ``num`` references, ``named`` of them translated with one member, ``right`` with the right one;
    ``chance`` is what guessing gets right of ``named``.
    """

    num: int
    named: int
    right: int
    chance: float

    @property
    def accuracy(self) -> float:
        """Share of right ones among those named; not a number when none is."""
        return self.right / self.named if self.named else math.nan

    @property
    def p_value(self) -> float:
        """Chance that guessing gets at least as many right: the binomial test, one-sided."""
        n, p = self.named, self.chance
        return sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(self.right, n + 1))

    @property
    def is_told(self) -> bool:
        """Whether guessing does not explain it."""
        return self.p_value < SIGNIFICANT

    def __add__(self, other: Contrast) -> Contrast:
        """Join the counts of two sets of translations."""
        return Contrast(self.num + other.num, self.named + other.named, self.right + other.right,
                        self.chance)  # fmt: skip


def measure(
    hypotheses: Mapping[str, str], references: Mapping[str, str]
) -> dict[Channel, Contrast]:
    """Return the contrast of each channel over translations and references of the same ids."""
    return {channel: _of_channel(channel, hypotheses, references) for channel in CHANNELS}


def _of_channel(
    channel: Channel, hypotheses: Mapping[str, str], references: Mapping[str, str]
) -> Contrast:
    num = named = right = 0
    groups = _GROUPS[channel]
    for name, reference in references.items():
        for group in groups:
            wanted = _members(reference, group)
            if not wanted:
                continue
            num += 1
            found = _members(hypotheses[name], group)
            named += len(found) == 1
            right += found == wanted
    return Contrast(num, named, right, 1 / len(groups[0]))


def _members(text: str, group: tuple[str, ...]) -> set[str]:
    """Return the members of a group that a text names, in any form."""
    words = set(text.split())
    return {
        member
        for member in group
        if words & set(VERBS[member].forms() if member in VERBS else (member,))
    }
