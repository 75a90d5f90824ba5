"""Scores of parts of a split: by the length of the reference, of the clip, and by signer.

Each part is scored as a corpus of its own under the same preset. A small part says little: counts
stand beside every score.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from signfuse_dist.evaluation import plots
from signfuse_dist.evaluation.figures import Figure, Table, plot
from signfuse_dist.evaluation.key_frames import PackedSplit
from signfuse_dist.evaluation.measures import tokens
from signfuse_dist.evaluation.metrics import Scores, score
from signfuse_dist.evaluation.presets import Preset
from signfuse_dist.evaluation.run_folder import RunFolder

NUM_BUCKETS = 4
SHOWN = ("BLEU-4", "ROUGE-L", "chrF")
SHOWN_SIGNERS = 20  # those with the most clips
UNKNOWN = "unknown"
_FEW = 5  # distinct lengths that are buckets of their own


@dataclass(frozen=True)
class Breakdown:
    """One way of dividing a split; ``figure`` is None where there is only one part."""

    title: str
    about: str
    table: Table
    figure: Figure | None


def breakdowns(run: RunFolder, packed: PackedSplit | None, preset: Preset) -> list[Breakdown]:
    """Return the divisions that can be made; what is not known is noted in the run."""
    lengths = {i: float(len(tokens(text, preset))) for i, text in run.references.items()}
    found = [
        _by_length(run, preset, "reference length", f"{preset.units} of the reference", lengths)
    ]
    seconds: dict[str, float] = {}
    signers: dict[str, str | None] = {}
    if packed is not None:
        seconds = run.attempt("lengths of the clips", packed.seconds, {})
        signers = run.attempt("signers", packed.signers, {})
    if run.references.keys() <= seconds.keys():
        of_ours = {i: seconds[i] for i in run.references}
        found.append(_by_length(run, preset, "clip length", "seconds of the clip", of_ours))
    elif packed is not None:
        run.note("scores by clip length", "the clips' lengths in seconds are not all known")
    return [*found, _by_signer(run, preset, signers)]


def _by_length(
    run: RunFolder, preset: Preset, title: str, unit: str, lengths: Mapping[str, float]
) -> Breakdown:
    parts = divide(lengths)
    table, scores = _table(run, preset, unit, parts)
    about = f"Parts of about the same number of sentences, by the {unit}."
    return Breakdown(f"By {title}", about, table, _bars(title, unit, parts, scores))


def _by_signer(run: RunFolder, preset: Preset, signers: Mapping[str, str | None]) -> Breakdown:
    parts: dict[str, list[str]] = {}
    for name in sorted(run.references):
        parts.setdefault(signers.get(name) or UNKNOWN, []).append(name)
    ordered = sorted(parts.items(), key=lambda part: (-len(part[1]), part[0]))
    about = "The signers as the corpus names them."
    if set(parts) == {UNKNOWN}:
        about = "The corpus names no signers, so they are unknown."
    if len(ordered) > SHOWN_SIGNERS:
        about += f" The {SHOWN_SIGNERS} with the most clips, of {len(ordered)}."
    shown = dict(ordered[:SHOWN_SIGNERS])
    table, scores = _table(run, preset, "signer", shown)
    return Breakdown("By signer", about, table, _bars("signer", "signer", shown, scores))


def divide(lengths: Mapping[str, float]) -> dict[str, list[str]]:
    """Return ids by the name of their bucket, shortest first.

    Few lengths are buckets of their own; more are cut at their quartiles.
    """
    values = sorted(set(lengths.values()))
    if len(values) <= _FEW:
        return {_number(v): sorted(i for i in lengths if lengths[i] == v) for v in values}
    shares = np.linspace(0, 1, NUM_BUCKETS + 1)[1:-1]
    edges = np.unique(np.quantile(list(lengths.values()), shares, method="lower"))
    places = {i: int(np.searchsorted(edges, v)) for i, v in lengths.items()}
    found = {}
    for place in sorted(set(places.values())):
        ids = sorted(i for i, p in places.items() if p == place)
        ends = [lengths[i] for i in ids]
        low, high = _number(min(ends)), _number(max(ends))
        found[low if low == high else f"{low} to {high}"] = ids
    return found


def _number(value: float) -> str:
    return f"{value:.0f}" if value == int(value) else f"{value:.1f}"


def _table(
    run: RunFolder, preset: Preset, unit: str, parts: Mapping[str, Sequence[str]]
) -> tuple[Table, list[Scores]]:
    scores = [_score(run, preset, ids) for ids in parts.values()]
    names = [name for name in SHOWN if all(name in part.scores for part in scores)]
    rows = tuple(
        (part, str(len(ids)), *(f"{found[name].value:.2f}" for name in names))
        for (part, ids), found in zip(parts.items(), scores, strict=True)
    )
    caption = f"Scores by {unit}, under the preset {preset.name}"
    return Table(caption, (unit, "sentences", *names), rows), scores


def _score(run: RunFolder, preset: Preset, ids: Sequence[str]) -> Scores:
    language = run.config.data.language if run.config else None
    pick: Callable[[Mapping[str, str]], dict[str, str]] = lambda texts: {i: texts[i] for i in ids}  # noqa: E731
    return score(pick(run.hypotheses), pick(run.references), preset, language)


def _bars(
    title: str, unit: str, parts: Mapping[str, Sequence[str]], scores: Sequence[Scores]
) -> Figure | None:
    if len(parts) < 2:
        return None
    values = [found["chrF"].value for found in scores]
    words = "; ".join(f"{name}: {value:.1f}" for name, value in zip(parts, values, strict=True))
    return plot(
        f"by_{title.replace(' ', '_')}",
        partial(plots.bucket_bars, [_short(name) for name in parts], values, "chrF"),
        f"Bars of chrF by {unit}. {words}.",
        f"chrF by {unit}; the table has the other scores and the counts.",
        None,
    )


def _short(name: str) -> str:
    return name if len(name) <= 10 else f"{name[:9]}…"
