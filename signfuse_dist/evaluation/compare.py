"""Comparing systems: intervals, p values against a baseline, mean and deviation over seeds.

Every system is scored on the same sentences under one preset. The first is the baseline. A p value
is of the difference between two sets of translations; it says nothing about other seeds of the
same experiment, whose mean and standard deviation stand beside it where runs are grouped.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from signfuse_dist.config import RunConfig
from signfuse_dist.errors import UserError, raise_together
from signfuse_dist.evaluation.protocols import Preset, Reference, in_order, prepare
from signfuse_dist.evaluation.scores import (
    check_ids,
    find_measures,
    name_ids,
    notes_of,
    refuse_empty,
    reported,
)
from signfuse_dist.evaluation.significance import Resampling, TestedScore, resample
from signfuse_dist.evaluation.translations import read_scored
from signfuse_dist.evaluation.unwritten import explain_unwritten
from signfuse_dist.experiment import load_resolved
from signfuse_dist.run_folder import EvaluationFolder


@dataclass(frozen=True)
class System:
    """One system's translations; ``config`` is None for a file, which is nobody's run."""

    name: str
    hypotheses: Mapping[str, str]
    references: Mapping[str, Reference]
    config: RunConfig | None
    notes: tuple[str, ...] = ()
    """What was changed in reading the texts."""


class Spread(NamedTuple):
    """A metric over the seeds of one experiment; the deviation of one seed is None."""

    mean: float
    deviation: float | None


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone, and their scores by metric name."""

    names: tuple[str, ...]
    seeds: tuple[int, ...]
    spreads: Mapping[str, Spread]


@dataclass(frozen=True)
class Comparison:
    """Every system's scores by metric name, in the order of ``systems``; the baseline is first.

    ``signatures`` name the method, its number of samples and its seed as well. ``groups`` is empty
    unless runs were grouped by seed.
    """

    preset: str
    num_samples: int
    resampling: str
    systems: tuple[str, ...]
    scores: Mapping[str, tuple[TestedScore, ...]]
    signatures: Mapping[str, str]
    unavailable: Mapping[str, str]
    groups: tuple[Group, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers: what ``--json`` writes."""
        plain = asdict(self)
        del plain["scores"]
        plain["figures"] = {
            name: [score._asdict() for score in scores] for name, scores in self.scores.items()
        }
        for group, written in zip(self.groups, plain["groups"], strict=True):
            written["spreads"] = {name: s._asdict() for name, s in group.spreads.items()}
        return plain


def read_systems(
    paths: Sequence[Path], split: str | None, references: Sequence[Path], allow_empty: bool
) -> list[System]:
    """Read the translations of run folders (of ``split``), evaluations and files, in their order.

    ``references`` is for files that hold none. Raises :class:`UserError` for a path named twice,
    what cannot be read, empty hypotheses unless ``allow_empty``, and systems that were not given
    the same sentences: other ids, or other references under the same id, are named.
    """
    names = [str(path) for path in paths]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"named twice: {', '.join(twice)}")
    systems = [_read(path, split, references) for path in paths]
    for system in systems:
        check_ids(system.hypotheses, system.references)
        if not allow_empty:
            refuse_empty(system.name, system.hypotheses)
    _check_same(systems)
    return systems


def compare(
    systems: Sequence[System],
    preset: Preset,
    how: Resampling,
    *,
    language: str | None = None,
    bleurt: Path | None = None,
    seeds: bool = False,
) -> Comparison:
    """Score systems that have the same references, and test each against the first.

    ``language`` None means that of the runs among them. ``seeds`` groups runs that differ in their
    seed alone. Raises :class:`UserError` for fewer than two sentences, and as
    :func:`group_by_seed` does.
    """
    groups = group_by_seed(systems) if seeds else []
    references = systems[0].references
    if len(references) < 2:
        raise UserError("there is one sentence only: nothing can be resampled")
    ids = sorted(references)
    prepared = prepare(
        [[system.hypotheses[i] for i in ids] for system in systems],
        [references[i] for i in ids],
        preset,
    )
    measures, unavailable = find_measures(preset, language or find_language(systems), bleurt)
    scores: dict[str, tuple[TestedScore, ...]] = {}
    signatures: dict[str, str] = {}
    for name in in_order(measures):
        tested, signatures[name] = resample(measures[name], prepared.systems, prepared.streams, how)
        scores[name] = tuple(tested)
    names = tuple(system.name for system in systems)
    return Comparison(
        preset.name,
        len(ids),
        str(how),
        names,
        scores,
        signatures,
        unavailable,
        tuple(_group(members, names, scores) for members in groups),
        tuple(
            dict.fromkeys(
                [*_notes(systems, preset, groups), *notes_of(references, preset, prepared)]
            )
        ),
    )


def _notes(
    systems: Sequence[System], preset: Preset, groups: Sequence[Sequence[System]]
) -> Iterator[str]:
    """Yield what is to be said of the systems' texts, and of too few trainings for the preset."""
    for system in systems:
        yield from system.notes
        for note in explain_unwritten(system.hypotheses, system.references, preset):
            yield f"{system.name}: {note}"
    if preset.seeds > 1 and not (groups and all(len(g) >= preset.seeds for g in groups)):
        yield f"{reported(preset)}; these are fewer"


def format_comparison(comparison: Comparison) -> str:
    """Return the comparison as text: a block for each metric, a line for each system."""
    systems = comparison.systems
    lines = [
        f"preset {comparison.preset}, {comparison.num_samples} sentences, {comparison.resampling}",
        f"p: two-sided, against the baseline {systems[0]}",
    ]
    width = max(map(len, systems))
    for metric, scores in comparison.scores.items():
        lines += ["", f"{metric}  {comparison.signatures[metric]}"]
        for name, score in zip(systems, scores, strict=True):
            lines.append(f"  {name:<{width}}  {_shown(score, scores[0])}")
    lines += ["", *(f"{name}: not scored: {why}" for name, why in comparison.unavailable.items())]
    for group in comparison.groups:
        lines += ["", *_shown_group(group)]
    lines += [f"note: {note}" for note in comparison.notes]
    return "\n".join(lines).rstrip()


def find_language(systems: Sequence[System]) -> str | None:
    """Return the language of the systems' runs; None when none of them is a run.

    Raises :class:`UserError` when runs differ in it.
    """
    languages = {system.config.data.language for system in systems if system.config is not None}
    if len(languages) > 1:
        raise UserError(f"the runs are of different languages: {', '.join(sorted(languages))}")
    return languages.pop() if languages else None


def group_by_seed(systems: Sequence[System]) -> list[list[System]]:
    """Return runs that differ in their seed alone together, in the order of the first of each.

    What may differ is ``train.seed``, the experiment's name and ``train.output``. Raises
    :class:`UserError` for a file, whose seed is not known, and for two runs of one seed, which are
    no repetition.
    """
    groups: dict[RunConfig, list[System]] = {}
    for system in systems:
        config = system.config
        if config is None:
            raise UserError(f"--seeds: {system.name} is a file, and its seed is not known")
        train = dataclasses.replace(config.train, seed=0, output="")
        groups.setdefault(dataclasses.replace(config, name="", train=train), []).append(system)
    for members in groups.values():
        seeds = [s.config.train.seed for s in members if s.config is not None]
        for system, seed in zip(members, seeds, strict=True):
            if seeds.count(seed) > 1:
                raise UserError(f"--seeds: {system.name} has the seed {seed}, and so has another")
    return list(groups.values())


def _read(path: Path, split: str | None, references: Sequence[Path]) -> System:
    notes: list[str] = []
    if not path.is_dir():
        ours, theirs = read_scored(path, references, notes)
        return System(str(path), ours, theirs, None, tuple(notes))
    folder = EvaluationFolder.open(path, split)
    ours, theirs = read_scored(folder.hypotheses, [], notes)
    return System(str(path), ours, theirs, load_resolved(folder.run.config), tuple(notes))


def _check_same(systems: Sequence[System]) -> None:
    first, errors = systems[0], []
    for other in systems[1:]:
        missing = sorted(set(first.references) - set(other.references))
        more = sorted(set(other.references) - set(first.references))
        both = set(first.references) & set(other.references)
        changed = sorted(i for i in both if first.references[i] != other.references[i])
        differences = (
            (missing, "sentences are missing"),
            (more, f"sentences are not in {first.name}"),
            (changed, "references have another text"),
        )
        for ids, what in differences:
            if ids:
                errors.append(f"{other.name}: {len(ids)} {what}: {name_ids(ids)}")
    raise_together(errors, f"these are not translations of the same sentences as {first.name}'s")


def _group(
    members: Sequence[System], names: Sequence[str], scores: Mapping[str, Sequence[TestedScore]]
) -> Group:
    places = [names.index(system.name) for system in members]
    spreads = {}
    for metric, tested in scores.items():
        values = [tested[place].value for place in places]
        deviation = statistics.stdev(values) if len(values) > 1 else None
        spreads[metric] = Spread(statistics.fmean(values), deviation)
    seeds = tuple(s.config.train.seed for s in members if s.config is not None)
    return Group(tuple(system.name for system in members), seeds, spreads)


def _shown(score: TestedScore, baseline: TestedScore) -> str:
    low, high = score.interval
    text = f"{score.value:6.2f}  95% [{low:.2f}, {high:.2f}]"
    if score.p_value is None:
        return text
    return f"{text}  {score.value - baseline.value:+.2f}  p {score.p_value:.4f}"


def _shown_group(group: Group) -> list[str]:
    seeds = ", ".join(map(str, group.seeds))
    lines = [f"mean and standard deviation over the seeds {seeds}: {', '.join(group.names)}"]
    for metric, (mean, deviation) in group.spreads.items():
        spread = "one seed, no deviation" if deviation is None else f"± {deviation:.2f}"
        lines.append(f"  {metric:<8} {mean:6.2f}  {spread}")
    return lines
