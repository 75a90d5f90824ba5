"""The systems of a comparison: run folders or files, on the same sentences."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from signfuse_dist.config import RunConfig
from signfuse_dist.config_load import load_resolved
from signfuse_dist.errors import UserError, raise_together
from signfuse_dist.evaluation.files import read_pairs
from signfuse_dist.evaluation.metrics import check_ids, name_ids, refuse_empty


@dataclass(frozen=True)
class System:
    """One system's translations; ``config`` is None for a file, which is nobody's run."""

    name: str
    hypotheses: Mapping[str, str]
    references: Mapping[str, str]
    config: RunConfig | None


def read_systems(
    paths: Sequence[Path], split: str | None, references: Path | None, allow_empty: bool
) -> list[System]:
    """Read the translations of run folders (of ``split``) and of files, in their order.

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


def _read(path: Path, split: str | None, references: Path | None) -> System:
    if not path.is_dir():
        ours, theirs = read_pairs(path, references)
        return System(str(path), ours, theirs, None)
    if split is None:
        raise UserError(f"{path} is a run folder: say which split of it, such as --split test")
    file = path / "evaluation" / split / "hypotheses.jsonl"
    if not file.is_file():
        raise UserError(f"{file}: does not exist; evaluate the run on {split!r} first")
    ours, theirs = read_pairs(file, None)
    return System(str(path), ours, theirs, load_resolved(path / "config.yaml"))


def _check_same(systems: Sequence[System]) -> None:
    first, errors = systems[0], []
    for other in systems[1:]:
        missing = sorted(set(first.references) - set(other.references))
        more = sorted(set(other.references) - set(first.references))
        both = set(first.references) & set(other.references)
        changed = sorted(i for i in both if first.references[i] != other.references[i])
        found = (
            (missing, "sentences are missing"),
            (more, f"sentences are not in {first.name}"),
            (changed, "references have another text"),
        )
        for ids, what in found:
            if ids:
                errors.append(f"{other.name}: {len(ids)} {what}: {name_ids(ids)}")
    raise_together(errors, f"these are not translations of the same sentences as {first.name}'s")


def find_language(systems: Sequence[System]) -> str | None:
    """Return the language of the systems' runs; None when none of them is a run.

    Raises :class:`UserError` when runs differ in it.
    """
    found = {system.config.data.language for system in systems if system.config is not None}
    if len(found) > 1:
        raise UserError(f"the runs are of different languages: {', '.join(sorted(found))}")
    return found.pop() if found else None


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
