"""Reading a run: files combined and overridden.

An experiment file names one file of ``configs/data`` and one of ``configs/model`` (``use:``); the
stage brings one of ``configs/stage``. It may name one of ``configs/recipe`` besides, which sets
keys of several sections (:mod:`signfuse_dist.recipe`). Those files do not overlap. Only the
experiment's own sections and ``section.key=value`` overrides on the command line replace a value;
of these ``stage.NAME.key=value`` holds in the stage of that name alone. Imports no torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from signfuse_dist.config import STAGES, RunConfig, StageConfig
from signfuse_dist.contradictions import contradictions
from signfuse_dist.errors import (
    MachineError,
    UserError,
    raise_together,
    refuse_unknown,
    shortened,
    suggest,
)
from signfuse_dist.files import locate, package_files, parse_yaml, read_yaml, yaml_files
from signfuse_dist.origin import Origin
from signfuse_dist.recipe import PAPER, RECIPE_SECTIONS
from signfuse_dist.records import build, dotted
from signfuse_dist.sections import SECTIONS, build_section

_CHOICES = ("data", "model", "stage")
_RECIPE = "recipe"
_STAGE_KEYS = tuple(field.name for field in dataclasses.fields(StageConfig) if field.name != "name")
T = TypeVar("T")


def load_run(experiment: str, stage: str | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read one stage of an experiment.

    ``experiment`` is a YAML file or the name of one in ``configs/experiment``; ``stage`` a name of
    :data:`STAGES`, or None when ``stage=NAME`` is among the ``overrides``. Raises
    :class:`UserError` with every error of every file and override together.
    """
    path = find_experiment(experiment)
    sections, errors = _read_sections(path, stage, overrides)
    run = None if errors else RunConfig(name=path.stem, **sections)
    if run is not None:
        errors = contradictions(run)
    raise_together(errors, f"{path}: the configuration has errors")
    assert run is not None
    return run


def load_stages(experiment: str, overrides: Sequence[str] = ()) -> list[RunConfig]:
    """Read the stages of ``train.stages`` in order, or the one that is named in ``overrides``.

    Raises :class:`UserError` with every error of every stage.
    """
    named = [o.partition("=")[2] for o in overrides if o.startswith("stage=")]
    others = [o for o in overrides if not o.startswith("stage=")]
    train = _read_sections(find_experiment(experiment), STAGES[-1], others)[0].get("train")
    runs, errors = [], []
    for stage in named or (train and train.stages) or STAGES:
        try:
            runs.append(load_run(experiment, stage, others))
        except MachineError:
            raise
        except UserError as e:
            errors.append(str(e))
    if errors:
        raise UserError("\n".join(dict.fromkeys(errors)))
    return runs


def load_resolved(path: Path) -> RunConfig:
    """Read the ``config.yaml`` of a run folder; raise :class:`UserError` when it does not fit."""
    return resolve(_read_mapping(path), str(path))


def resolve(raw: dict[str, Any], path: str) -> RunConfig:
    """Return the run of a resolved mapping, which ``path`` names; raise :class:`UserError`."""
    errors: list[str] = []
    name, said = raw.pop("name", None), raw.pop("origin", None)
    recipe = raw.pop("recipe", PAPER)
    origin = (
        None if said is None else build(Origin, said, errors, lambda at: f"origin.{dotted(at)}")
    )
    refuse_unknown(raw, SECTIONS, f"{path}: section", errors)
    sections: dict[str, Any] = {}
    for section, cls in SECTIONS.items():
        values = raw.get(section, {})
        if isinstance(values, dict):
            sections[section] = build_section(section, cls, values, errors)
        else:
            errors.append(f"{section}: expected a mapping, got {values!r}")
    if not isinstance(name, str):
        errors.append("name: missing")
    if not isinstance(recipe, str):
        errors.append(f"recipe: expected a name, got {recipe!r}")
    raise_together(errors, f"{path}: not the configuration of a run")
    return RunConfig(name=str(name), recipe=str(recipe), origin=origin, **sections)


def override(run: RunConfig, overrides: Sequence[str], section: str, *keys: str) -> RunConfig:
    """Return the run with ``section.key=value`` overrides of one section, and of ``keys``, applied.

    Raises :class:`UserError` with every override that is wrong or of something else.
    """
    names = (section, *(key.partition(".")[0] for key in keys))
    before = {name: getattr(run, name) for name in names}
    return dataclasses.replace(run, **_overridden(before, overrides, (section, *keys), run.name))


def override_section(name: str, value: T, overrides: Sequence[str], of: str) -> T:
    """Return a section by itself, which is ``of`` something, with overrides as in :func:`override`.

    Raises UserError likewise.
    """
    changed: T = _overridden({name: value}, overrides, (name,), of)[name]
    return changed


def _overridden(
    before: Mapping[str, Any], overrides: Sequence[str], allowed: tuple[str, ...], of: str
) -> dict[str, Any]:
    """Return sections with overrides of the first of ``allowed``, and of the keys after it."""
    section, *keys = allowed
    values = {name: dataclasses.asdict(value) for name, value in before.items()}
    free = (f"{section}.", *(f"{key}=" for key in keys))
    others = [o for o in overrides if not o.startswith(free)]
    words = " and ".join((f"{section}.key=value", *keys))
    errors = [f"{other!r}: only {words} can be changed here" for other in others]
    _merge_overrides(values, [o for o in overrides if o not in others], errors)
    changed = {
        name: build_section(name, SECTIONS[name], fields, errors) for name, fields in values.items()
    }
    raise_together(errors, f"{of}: the overrides have errors")
    return changed


def find_experiment(experiment: str) -> Path:
    """Return the experiment's file; a bare name means ``configs/experiment/NAME.yaml``.

    It is looked for in the working folder, then among the package's own (:func:`.files.locate`).
    """
    path = Path(experiment)
    if path.suffix not in (".yaml", ".yml"):
        path = Path("configs") / "experiment" / f"{experiment}.yaml"
    path = locate(path)
    if path.is_file():
        return path
    known = [p.stem for p in yaml_files(path.parent)]
    near = suggest(path.stem, known)
    raise UserError(
        f"no experiment {experiment!r}: {path} does not exist{near}. "
        f"There are: {', '.join(known) or 'none'}"
    )


def _read_sections(
    path: Path, stage: str | None, overrides: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """Return each section as far as it could be built, and every error."""
    errors: list[str] = []
    raw = _read_mapping(path)
    chosen = _take_choices(raw, path, stage, overrides, errors)
    values = _file_values(path, chosen, errors)
    read = [name for name in SECTIONS if name in values]
    _merge_recipe(values, path, chosen, errors)
    _merge_experiment(values, raw, path, chosen.get("stage", ""), errors)
    _merge_overrides(values, overrides, errors)
    _merge_blend(values.get("data", {}), path, errors)
    sections: dict[str, Any] = {
        name: build_section(name, SECTIONS[name], values[name], errors) for name in read
    }
    return {**sections, _RECIPE: chosen.get(_RECIPE, PAPER)}, errors


def _take_choices(
    raw: dict[str, Any], path: Path, stage: str | None, overrides: Sequence[str], errors: list[str]
) -> dict[str, str]:
    """Return which file each of data, model and stage comes from, and the recipe where named."""
    use = raw.pop("use", {})
    if not isinstance(use, dict):
        errors.append(
            f"{path}: use: expected data: NAME, model: NAME and, if any, recipe: NAME, got {use!r}"
        )
        use = {}
    chosen = {k: str(v) for k, v in use.items()}
    refuse_unknown(chosen, ("data", "model", _RECIPE), f"{path}: use", errors)
    for text in overrides:
        choice, _, value = text.partition("=")
        if choice in (*_CHOICES, _RECIPE):
            chosen[choice] = value
    if stage is not None:
        chosen["stage"] = stage
    for choice in _CHOICES:
        if choice not in chosen:
            errors.append(f"{choice}: not chosen; write {choice}=NAME (a file of configs/{choice})")
    return chosen


def _file_values(
    path: Path, chosen: Mapping[str, str], errors: list[str]
) -> dict[str, dict[str, Any]]:
    """Return the values of each section; one whose file does not exist is left out."""
    values: dict[str, dict[str, Any]] = {n: {} for n in SECTIONS if n not in _CHOICES}
    for key in _CHOICES:
        name = chosen.get(key)
        if name is None:
            continue
        file = _find_named(path, key, name, f"{key}=", errors)
        if file is not None:
            values[key] = _read_mapping(file)
    if "stage" in values and chosen["stage"] in STAGES:
        values["stage"]["name"] = chosen["stage"]
    return values


def _find_named(
    experiment: Path, key: str, name: str, typed: str, errors: list[str]
) -> Path | None:
    """Return the file ``name`` of ``configs/KEY``; record an error where there is none."""
    if Path(name).name != name and not name.endswith((".yaml", ".yml")):
        errors.append(f"{typed}{name}: neither a name of configs/{key} nor a path of a .yaml file")
        return None
    file = _find_choice(experiment, key, name)
    if file.is_file():
        return file
    folders = (experiment.parent.parent / key, Path("configs") / key)
    near = suggest(name, {p.stem for folder in folders for p in yaml_files(folder)})
    errors.append(f"{typed}{name}: {file} does not exist{near}")
    return None


def _merge_recipe(
    values: dict[str, dict[str, Any]], path: Path, chosen: Mapping[str, str], errors: list[str]
) -> None:
    """Add what the chosen recipe sets to the values of the other files, none of which sets it."""
    name = chosen.get(_RECIPE)
    if name is None:
        return
    file = _find_named(path, _RECIPE, name, f"{_RECIPE}=", errors)
    if file is None:
        return
    recipe = _read_mapping(file)
    refuse_unknown(recipe, RECIPE_SECTIONS, f"{file}: section", errors)
    of_recipe: dict[str, dict[str, Any]] = {}
    known = {section: part for section, part in recipe.items() if section in RECIPE_SECTIONS}
    _merge_experiment(of_recipe, known, file, chosen.get("stage", ""), errors)
    for section, part in of_recipe.items():
        own = values.setdefault(section, {})
        errors += [
            f"{file}: {section}.{key} is set by {section}={chosen[section]} too: files do not "
            f"overlap; choose another {section}=NAME, or take it out of one of the two"
            for key in part
            if key in own
        ]
        own.update(part)


def _find_choice(experiment: Path, key: str, name: str) -> Path:
    """Return the file ``name`` of ``configs/KEY``: the experiment's own, or as any other is found.

    The experiment's own lie beside it; those of the package's experiments come last.
    """
    if name.endswith((".yaml", ".yml")):
        return locate(Path(name))
    configs = experiment.parent.parent
    beside, elsewhere = (at / key / f"{name}.yaml" for at in (configs, Path("configs")))
    if beside.is_file() and configs != package_files() / "configs":
        return beside
    elsewhere = locate(elsewhere)
    return elsewhere if elsewhere.is_file() else beside


def _merge_experiment(
    values: dict[str, dict[str, Any]],
    raw: dict[str, Any],
    path: Path,
    stage: str,
    errors: list[str],
) -> None:
    """Let the experiment's sections override; its ``stage`` section has one part a stage."""
    refuse_unknown(raw, SECTIONS, f"{path}: section", errors)
    for name, section in raw.items():
        if name not in SECTIONS:
            continue
        if name == "stage" and isinstance(section, dict):
            refuse_unknown(section, STAGES, f"{path}: stage", errors)
            section = section.get(stage, {})
        if isinstance(section, dict):
            values.setdefault(name, {}).update(section)
        else:
            errors.append(f"{path}: {name}: expected a mapping, got {section!r}")


def _merge_blend(data: dict[str, Any], path: Path, errors: list[str]) -> None:
    """Give each corpus of a blend the keys of its file of ``configs/data``."""
    entries = data.get("blend")
    if not isinstance(entries, list):
        return
    merged = []
    for entry in entries:
        if isinstance(entry, dict) and isinstance(entry.get("corpus"), str):
            file = _find_named(path, "data", entry["corpus"], "data.blend: corpus ", errors)
            own = entry.get("data", {})
            if file is not None and isinstance(own, dict):
                entry = {**entry, "data": {**_read_mapping(file), **own}}
        merged.append(entry)
    data["blend"] = merged


def _merge_overrides(
    values: dict[str, dict[str, Any]], overrides: Iterable[str], errors: list[str]
) -> None:
    for override in overrides:
        left, equals, text = override.partition("=")
        section, dot, name = left.partition(".")
        if not equals or (not dot and left not in (*_CHOICES, _RECIPE)):
            errors.append(
                f"{override!r}: expected section.key=value (or data=, model=, stage=, recipe=NAME)"
            )
        elif dot and section not in SECTIONS:
            errors.append(f"{override!r}: no section {section!r}{suggest(section, SECTIONS)}")
        elif dot:
            of, inner, rest = name.partition(".")
            if section == "stage" and inner and of in STAGES:
                if rest not in _STAGE_KEYS:
                    errors.append(f"{override!r}: no key {rest!r}{suggest(rest, _STAGE_KEYS)}")
                if of != values.get("stage", {}).get("name"):
                    continue
                name = rest
            try:
                values.setdefault(section, {})[name] = parse_yaml(text, repr(shortened(override)))
            except UserError as e:
                errors.append(str(e))


def _read_mapping(path: Path) -> dict[str, Any]:
    raw = read_yaml(path)
    if raw is None:
        return {}
    if not isinstance(raw, dict) or not all(isinstance(name, str) for name in raw):
        raise UserError(f"{path}: expected a mapping of names to values")
    return raw
