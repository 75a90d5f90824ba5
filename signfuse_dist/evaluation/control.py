"""The shuffled control: the scores of the same system when the videos change places.

A translation depends on its video alone: decoding is deterministic and a clip's output does not
depend on its neighbours in a batch. So decoding shuffled videos against unmoved references gives
exactly the sentences already decoded, each under another id, and moving the hypotheses among the
ids is the same experiment without decoding again. What remains of a score is what the system earns
without watching: frequent phrases, length, and sentences that several videos share.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from signfuse_dist.errors import UserError
from signfuse_dist.evaluation.metrics import Scores, score
from signfuse_dist.evaluation.presets import Preset


def shuffled(hypotheses: Mapping[str, str], seed: int) -> dict[str, str]:
    """Return the hypotheses with every video moved to the sentence of another.

    Sattolo's shuffle of the sorted ids: one cycle through all of them, so no id keeps its own,
    and the same ids and seed always give the same result. Raises :class:`UserError` with fewer
    than two samples, which leave nothing to exchange.
    """
    if len(hypotheses) < 2:
        raise UserError(
            f"the shuffled control needs at least 2 samples, there is {len(hypotheses)}: "
            "a single video has no other sentence to go to"
        )
    targets = sorted(hypotheses)
    sources = list(targets)
    rng = random.Random(seed)
    for last in range(len(sources) - 1, 0, -1):
        other = rng.randrange(last)
        sources[last], sources[other] = sources[other], sources[last]
    return {target: hypotheses[source] for target, source in zip(targets, sources, strict=True)}


def score_control(
    hypotheses: Mapping[str, str],
    references: Mapping[str, str],
    preset: str | Preset,
    seed: int,
    language: str | None = None,
) -> Scores | None:
    """Return the scores of the shuffled control, or None (not applicable) for a single sample."""
    if len(hypotheses) == 1:
        return None
    return score(shuffled(hypotheses, seed), references, preset, language)
