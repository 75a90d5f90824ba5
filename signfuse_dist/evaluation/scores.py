"""Scoring translations, and ``scores.json``: the scores of a split beside those of its controls.

``{"version": 2, "scores": {...}, "controls": {name: {...}}, "inapplicable": {name: reason},
"decoding": {...}, "settings": {...}}``. Scores have ``preset``, ``num_samples``, ``metrics`` (name
-> ``value``, ``signature``), ``unavailable``, ``empty``, ``notes``, and where intervals were asked
for ``resampling`` and each metric's ``interval``: low and high of 95%. Values are not rounded.
``decoding`` is the section ``evaluation`` that the sentences were decoded with, ``settings`` what
they follow from besides, by name (:mod:`signfuse_dist.evaluation.asked`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from pydantic.dataclasses import dataclass as pydantic_dataclass

from signfuse_dist.errors import UserError, raise_together
from signfuse_dist.evaluation.bleurt import find_bleurt
from signfuse_dist.evaluation.metrics import Measure, build_measures
from signfuse_dist.evaluation.protocols import (
    METRICS,
    PreparedTexts,
    Preset,
    Reference,
    find_preset,
    in_order,
    prepare,
    texts_of,
)
from signfuse_dist.evaluation.significance import Resampling, resample
from signfuse_dist.evaluation.translations import comparable, comparable_references, read_scored
from signfuse_dist.evaluation.unwritten import explain_unwritten
from signfuse_dist.files import read_json, write_json
from signfuse_dist.records import Number, Whole, read_record

# How many ids an error or a table names before it goes on with a count.
NAMED_IDS = 10
VERSION = 2
Interval = tuple[float, float]


class Score(NamedTuple):
    """A value in 0..100 (BLEURT's may lie outside) and how it was computed."""

    value: float
    signature: str


@dataclass(frozen=True)
class Scores:
    """The scores of one set of translations under one preset, by metric name.

    ``unavailable`` gives the reason for each metric that was not computed, and ``empty`` the ids of
    empty hypotheses, which are scored as they are. ``intervals`` holds 95% intervals by metric name
    where they were asked for, and ``resampling`` says how they came about.
    """

    preset: str
    num_samples: int
    scores: Mapping[str, Score]
    unavailable: Mapping[str, str] = field(default_factory=dict)
    empty: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    resampling: str = ""

    def __getitem__(self, metric: str) -> Score:
        return self.scores[metric]


@dataclass(frozen=True)
class NearAttention:
    """How much of cross-attention stays near its own moment: of the first CMFA layer, Eq. 8-9.

    ``shares`` is, by direction, the share of a query's attention that falls within one step of its
    own, averaged over heads, queries and ``clips`` samples; ``chance`` that of attention which is
    the same everywhere. A correspondence "at each temporal position" (section 6.1) is well above.
    """

    shares: Mapping[str, float]
    chance: float
    clips: int

    def __str__(self) -> str:
        shares = ", ".join(f"{share:.2f} {way}" for way, share in sorted(self.shares.items()))
        return f"{shares}; {self.chance:.2f} by chance; {self.clips} clips"


@dataclass(frozen=True)
class SplitScores:
    """Scores, those of each control by name, and why a control that was asked for has none.

    ``near_attention`` is None for a fusion that does not attend.
    """

    scores: Scores
    controls: Mapping[str, Scores] = field(default_factory=dict)
    inapplicable: Mapping[str, str] = field(default_factory=dict)
    decoding: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    near_attention: NearAttention | None = None
    unseen: Scores | None = None
    """Of the sentences whose reference is no sentence of the training split; None where none of
    them is one, where all are, and where that is not known."""


def score(
    hypotheses: Mapping[str, str],
    references: Mapping[str, Reference],
    preset: str | Preset,
    language: str | None = None,
    *,
    resampling: Resampling | None = None,
    bleurt: Path | None = None,
) -> Scores:
    """Score translations against references of the same ids; an id may have several.

    ``language`` (a tag such as ``de``; None when unknown) decides only whether METEOR may use the
    English WordNet. ``resampling`` asks for 95% intervals, ``bleurt`` names a checkpoint of BLEURT.
    Texts are compared in NFC and without invisible characters, and the notes say where that changed
    any. Raises :class:`UserError` naming missing and unknown ids, empty references, an unknown
    preset, or that there is nothing to score.
    """
    protocol = find_preset(preset) if isinstance(preset, str) else preset
    found: list[str] = []
    hypotheses = comparable(hypotheses, "hypotheses", found)
    references = comparable_references(references, "references", found)
    check_ids(hypotheses, references)
    ids = sorted(references)
    prepared = prepare([[hypotheses[i] for i in ids]], [references[i] for i in ids], protocol)
    measures, unavailable = find_measures(protocol, language, bleurt)
    scores, intervals = _compute(measures, prepared, resampling)
    found += notes_of(references, protocol, prepared)
    found += explain_unwritten(hypotheses, references, protocol)
    if protocol.seeds > 1:
        found.append(f"{reported(protocol)}; these are the scores of one")
    return Scores(
        preset=protocol.name,
        num_samples=len(ids),
        scores=scores,
        unavailable=unavailable,
        empty=empty_ids(hypotheses),
        notes=tuple(found),
        intervals=intervals,
        resampling=str(resampling) if intervals else "",
    )


def score_one(
    metric: str, hypotheses: Mapping[str, str], references: Mapping[str, str], preset: Preset
) -> float:
    """Return one metric of translations, by its name, as :func:`score` finds it."""
    ours = comparable(hypotheses, "hypotheses", [])
    theirs = comparable_references(references, "references", [])
    check_ids(ours, theirs)
    ids = sorted(theirs)
    prepared = prepare([[ours[i] for i in ids]], [theirs[i] for i in ids], preset)
    measure = build_measures(preset, None)[metric].metric
    return float(measure.corpus_score(prepared.systems[0], prepared.streams).score)


def score_with_intervals(
    hypotheses: Mapping[str, str],
    references: Mapping[str, str],
    preset: str | Preset,
    language: str | None = None,
) -> Scores:
    """Return what :func:`score` does, with 95% intervals by a bootstrap of a fixed seed."""
    return score(hypotheses, references, preset, language, resampling=Resampling())


def score_files(
    hypotheses: Path,
    references: Sequence[Path],
    preset: str | Preset,
    language: str | None = None,
    *,
    allow_empty: bool = False,
    resampling: Resampling | None = None,
    bleurt: Path | None = None,
) -> Scores:
    """Score files of the formats of :mod:`signfuse_dist.evaluation.translations`.

    Without ``references`` the hypotheses' file holds them too. Raises :class:`UserError` as
    :func:`score` and :func:`~signfuse_dist.evaluation.translations.read_scored` do, and naming
    empty hypotheses unless ``allow_empty``.
    """
    protocol = find_preset(preset) if isinstance(preset, str) else preset
    found: list[str] = []
    ours, theirs = read_scored(hypotheses, references, found)
    if not allow_empty:
        refuse_empty(str(hypotheses), ours)
    scores = score(ours, theirs, protocol, language, resampling=resampling, bleurt=bleurt)
    return replace(scores, notes=(*found, *scores.notes))


def find_measures(
    preset: Preset, language: str | None, bleurt: Path | None
) -> tuple[dict[str, Measure], dict[str, str]]:
    """Return the metrics of a protocol by name, and why any is not among them."""
    measures = build_measures(preset, language)
    metric, reason = find_bleurt(bleurt)
    if metric is None:
        return measures, {"BLEURT": reason}
    return {**measures, "BLEURT": Measure(metric)}, {}


def empty_ids(hypotheses: Mapping[str, str]) -> tuple[str, ...]:
    """Return the sorted ids whose hypothesis is empty."""
    return tuple(sorted(i for i, text in hypotheses.items() if not text.strip()))


def refuse_empty(source: str, hypotheses: Mapping[str, str]) -> None:
    """Raise :class:`UserError` naming the ids of empty hypotheses, if there are any."""
    empty = empty_ids(hypotheses)
    if empty:
        raise UserError(
            f"{source}: {len(empty)} hypotheses are empty: {name_ids(empty)}. Where the system "
            "really said nothing, score them so with --allow-empty"
        )


def check_ids(hypotheses: Mapping[str, str], references: Mapping[str, Reference]) -> None:
    """Raise :class:`UserError` naming every id that keeps the two from being scored."""
    if not references:
        raise UserError("there are no references to score against")
    missing = sorted(set(references) - set(hypotheses))
    unknown = sorted(set(hypotheses) - set(references))
    blank = sorted(
        i
        for i, reference in references.items()
        if not all(text.strip() for text in texts_of(reference))
    )
    errors = []
    if missing:
        errors.append(f"{len(missing)} ids have no hypothesis: {name_ids(missing)}")
    if unknown:
        errors.append(f"{len(unknown)} ids have no reference: {name_ids(unknown)}")
    if blank:
        errors.append(f"{len(blank)} references are empty: {name_ids(blank)}; leave those rows out")
    raise_together(errors, "hypotheses and references do not fit together")


def name_ids(ids: Iterable[str]) -> str:
    """Return the first ids in words, and how many more there are."""
    ids = list(ids)
    more = len(ids) - NAMED_IDS
    return ", ".join(map(repr, ids[:NAMED_IDS])) + (f" and {more} more" if more > 0 else "")


def format_scores(scores: Scores) -> str:
    """Return a table for the terminal, with what was not scored and which hypotheses are empty."""
    shown = {name: f"[{low:.2f}, {high:.2f}]" for name, (low, high) in scores.intervals.items()}
    rows = [("metric", "score", "95%", "signature")]
    for name in in_order(scores.scores):
        score = scores.scores[name]
        rows.append((name, f"{score.value:.2f}", shown.get(name, ""), score.signature))
    rows += [(n, "-", "", f"not scored: {why}") for n, why in scores.unavailable.items()]
    names, values, spans = (max(len(row[i]) for row in rows) for i in range(3))
    lines = [f"preset {scores.preset}, {scores.num_samples} sentences", ""]
    for name, value, span, text in rows:
        middle = f"{span:<{spans}}  " if shown else ""
        lines.append(f"{name:<{names}}  {value:>{values}}  {middle}{text}")
    if scores.empty:
        count = len(scores.empty)
        lines += ["", f"empty hypotheses, scored as empty: {count} ({name_ids(scores.empty)})"]
    if shown:
        lines += ["", f"95% intervals: {scores.resampling}"]
    lines += [f"note: {note}" for note in scores.notes]
    return "\n".join(lines)


_TITLES = {
    "shuffled": "the same with the videos shuffled among the sentences",
    "blank": "the same with grey pictures, joints kept; what came through the joints, or by not "
    "watching as with shuffled videos",
    "masked_joints": "the same with all joints masked, pictures kept; what came through the "
    "pictures, or by not watching as with shuffled videos",
    "moved": "the same with pictures and joints a tenth smaller and a tenth of the picture further "
    "right; what is lost was read off place and size",
}


def format_split_scores(split_scores: SplitScores) -> str:
    """Return the tables of a split and of its controls for the terminal."""
    parts = [format_scores(split_scores.scores)]
    for name, title in _TITLES.items():
        if name in split_scores.controls:
            parts.append(f"{title}:\n{format_scores(split_scores.controls[name])}")
    parts += [f"no control {name}: {why}" for name, why in split_scores.inapplicable.items()]
    if split_scores.unseen is not None:
        title = "the sentences whose reference is no sentence of the training split"
        parts.insert(1, f"{title}:\n{format_scores(split_scores.unseen)}")
    if split_scores.near_attention is not None:
        parts.append(f"attention within one step of its own: {split_scores.near_attention}")
    return "\n\n".join(parts)


def write_split_scores(path: Path, split_scores: SplitScores) -> None:
    """Write ``scores.json``, whole or not at all; the bytes depend on the scores alone."""
    value = {
        "version": VERSION,
        "scores": _to_dict(split_scores.scores),
        "controls": {name: _to_dict(scores) for name, scores in split_scores.controls.items()},
        "inapplicable": dict(split_scores.inapplicable),
        "decoding": dict(split_scores.decoding),
        "settings": dict(split_scores.settings),
        "near_attention": split_scores.near_attention and asdict(split_scores.near_attention),
    }
    if split_scores.unseen is not None:
        value["unseen"] = _to_dict(split_scores.unseen)
    write_json(path, value)


def read_split_scores(path: Path) -> SplitScores:
    """Read what :func:`write_split_scores` wrote.

    Raises :class:`UserError` with every error of a file that is not that.
    """
    raw, headline = read_json(path), f"{path}: not a file of scores"
    version = read_record(_VersionRecord, raw, headline).version
    if version != VERSION:
        raise UserError(f"{path}: version {version}, this program reads {VERSION}: evaluate again")
    record = read_record(_SplitScoresRecord, raw, headline)
    return SplitScores(
        record.scores.to_scores(),
        {name: control.to_scores() for name, control in record.controls.items()},
        record.inapplicable,
        record.decoding,
        record.settings,
        record.near_attention,
        None if record.unseen is None else record.unseen.to_scores(),
    )


@pydantic_dataclass
class _VersionRecord:
    version: Whole


@pydantic_dataclass
class _MetricRecord:
    value: Number
    signature: str
    interval: tuple[Number, Number] | None = None


@pydantic_dataclass
class _ScoresRecord:
    """Scores as the file has them: a metric's interval beside its value."""

    preset: str
    num_samples: Whole
    metrics: dict[str, _MetricRecord]
    unavailable: dict[str, str]
    empty: tuple[str, ...]
    notes: tuple[str, ...]
    resampling: str = ""  # files written before there were intervals have none

    def to_scores(self) -> Scores:
        intervals = {n: m.interval for n, m in self.metrics.items() if m.interval is not None}
        return Scores(
            preset=self.preset,
            num_samples=self.num_samples,
            scores={name: Score(m.value, m.signature) for name, m in self.metrics.items()},
            unavailable=self.unavailable,
            empty=self.empty,
            notes=self.notes,
            intervals=intervals,
            resampling=self.resampling,
        )


@pydantic_dataclass
class _SplitScoresRecord:
    scores: _ScoresRecord
    controls: dict[str, _ScoresRecord]
    inapplicable: dict[str, str]
    decoding: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)  # earlier files have none
    near_attention: NearAttention | None = None  # nor this
    unseen: _ScoresRecord | None = None  # only where there are some of both


def _to_dict(scores: Scores) -> dict[str, Any]:
    metrics: dict[str, dict[str, Any]] = {n: s._asdict() for n, s in scores.scores.items()}
    for name, interval in scores.intervals.items():
        metrics[name]["interval"] = list(interval)
    return {
        "preset": scores.preset,
        "num_samples": scores.num_samples,
        "metrics": metrics,
        "resampling": scores.resampling,
        "unavailable": dict(scores.unavailable),
        "empty": list(scores.empty),
        "notes": list(scores.notes),
    }


def _compute(
    measures: Mapping[str, Measure],
    prepared: PreparedTexts,
    resampling: Resampling | None,
) -> tuple[dict[str, Score], dict[str, Interval]]:
    """Return scores by name in the usual order, and intervals; one sentence has none."""
    scores: dict[str, Score] = {}
    intervals: dict[str, Interval] = {}
    (ours,), streams = prepared.systems, prepared.streams
    for name in (metric for metric in METRICS if metric in measures):
        measure = measures[name]
        if resampling is not None and len(ours) > 1:
            (tested,), _ = resample(measure, [ours], streams, resampling)
            value, intervals[name] = tested.value, tested.interval
        else:
            value = float(measure.metric.corpus_score(ours, streams).score)
        scores[name] = Score(value, measure.signature())
    return scores, intervals


def notes_of(
    references: Mapping[str, Reference], preset: Preset, prepared: PreparedTexts
) -> list[str]:
    """Return what must be known of references before scores of them are compared with others."""
    notes = []
    numbers = sorted(len(texts_of(reference)) for reference in references.values())
    if numbers[0] != numbers[-1]:
        fewer = sum(number < numbers[-1] for number in numbers)
        notes.append(
            f"the sentences have {numbers[0]} to {numbers[-1]} references, {fewer} of "
            f"{len(numbers)} fewer than {numbers[-1]}"
        )
    left_out = len(references) - len(prepared.places)
    if left_out:
        notes.append(
            f"{left_out} of {len(references)} sentences are left out: their references hold no "
            f"word that the preset {preset.name} counts"
        )
    firsts = [texts_of(reference)[0] for reference in references.values()]
    count = sum(text.endswith(" .") for text in firsts)
    if 2 * count >= len(firsts):
        notes.append(
            f"{count} of {len(firsts)} references end in ' .', a token that is easily matched: "
            "do not compare with scores of text without it"
        )
    elif preset.append == " .":
        notes.append(
            f"the preset {preset.name} appends ' .' to both sides, a token that is always matched: "
            "do not compare with scores of text without it"
        )
    return notes


def reported(preset: Preset) -> str:
    """Return what a protocol of several trainings reports."""
    return (
        f"the preset {preset.name} reports mean and deviation of {preset.seeds} trainings "
        "(signfuse compare --seeds)"
    )
