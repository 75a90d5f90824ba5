"""Reading a run: files combined by disjoint union, overridden by the experiment and by words.

An experiment file names one file of ``configs/data`` and one of ``configs/model`` (``use:``); the
stage brings one of ``configs/stage``. Those files do not overlap. Only the experiment's own
sections and ``section.key=value`` words on the command line override. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from signfuse_dist.config import STAGES, ModelConfig, RunConfig, StageConfig
from signfuse_dist.config_choices import contradictions
from signfuse_dist.config_fields import build, refuse_unknown, suggest
from signfuse_dist.errors import UserError, raise_together

SECTIONS: dict[str, type] = {
    f.name: typing.get_type_hints(RunConfig)[f.name]
    for f in dataclasses.fields(RunConfig)
    if f.name != "name"
}
_CHOICES = ("data", "model", "stage")


def load_run(experiment: str, stage: str | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read one stage of an experiment.

    ``experiment`` is a YAML file or the name of one in ``configs/experiment``; ``stage`` a name of
    :data:`STAGES`, or None when ``stage=NAME`` is among the ``overrides``. Raises
    :class:`UserError` with every error of every file and word together.
    """
    path = find_experiment(experiment)
    sections, errors = _read_sections(path, stage, overrides)
    if not errors:
        errors += [*_across_fields(sections), *contradictions(sections)]
    raise_together(errors, f"{path}: the configuration has errors")
    return RunConfig(name=path.stem, **sections)


def load_stages(experiment: str, overrides: Sequence[str] = ()) -> list[RunConfig]:
    """Read the stages of ``train.stages`` in order, or the one that is named in ``overrides``.

    Raises :class:`UserError` with every error of every stage.
    """
    named = [word.partition("=")[2] for word in overrides if word.startswith("stage=")]
    others = [word for word in overrides if not word.startswith("stage=")]
    train = _read_sections(find_experiment(experiment), STAGES[-1], others)[0].get("train")
    runs, errors = [], []
    for stage in named or (train and train.stages) or STAGES:
        try:
            runs.append(load_run(experiment, stage, others))
        except UserError as e:
            errors.append(str(e))
    if errors:
        raise UserError("\n".join(dict.fromkeys(errors)))
    return runs


def _read_sections(
    path: Path, stage: str | None, overrides: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """Return each section as far as it could be built, and every error."""
    errors: list[str] = []
    raw = _read_mapping(path)
    chosen = _take_choices(raw, path, stage, overrides, errors)
    values = _file_values(path, chosen, errors)
    read = [name for name in SECTIONS if name in values]
    _merge_experiment(values, raw, path, chosen.get("stage", ""), errors)
    _merge_dotlist(values, overrides, errors)
    return {name: build(name, SECTIONS[name], values[name], errors) for name in read}, errors


def load_resolved(path: Path) -> RunConfig:
    """Read the ``config.yaml`` of a run folder; raise :class:`UserError` when it does not fit."""
    raw = _read_mapping(path)
    errors: list[str] = []
    name = raw.pop("name", None)
    refuse_unknown(raw, SECTIONS, f"{path}: section", errors)
    sections = {}
    for key, cls in SECTIONS.items():
        values = raw.get(key, {})
        if isinstance(values, dict):
            sections[key] = build(key, cls, values, errors)
        else:
            errors.append(f"{key}: expected a mapping, got {values!r}")
    if not isinstance(name, str):
        errors.append("name: missing")
    raise_together(errors, f"{path}: not the configuration of a run")
    return RunConfig(name=str(name), **sections)


def override(run: RunConfig, words: Sequence[str], section: str) -> RunConfig:
    """Return the run with ``section.key=value`` words of one section applied.

    Raises :class:`UserError` with every word that is wrong or of another section.
    """
    values: dict[str, dict[str, Any]] = {section: dataclasses.asdict(getattr(run, section))}
    others = [word for word in words if not word.startswith(f"{section}.")]
    errors = [f"{word!r}: only {section}.key=value can be changed here" for word in others]
    _merge_dotlist(values, [word for word in words if word not in others], errors)
    changed = build(section, SECTIONS[section], values[section], errors)
    raise_together(errors, f"{run.name}: the words on the command line have errors")
    return dataclasses.replace(run, **{section: changed})


def find_experiment(experiment: str) -> Path:
    """Return the experiment's file; a bare name means ``configs/experiment/NAME.yaml``."""
    path = Path(experiment)
    if path.suffix not in (".yaml", ".yml"):
        path = Path("configs") / "experiment" / f"{experiment}.yaml"
    if path.is_file():
        return path
    known = sorted(p.stem for p in path.parent.glob("*.yaml"))
    near = suggest(path.stem, known)
    raise UserError(
        f"no experiment {experiment!r}: {path} does not exist{near}. "
        f"There are: {', '.join(known) or 'none (run from the folder that holds configs/)'}"
    )


def _take_choices(
    raw: dict[str, Any], path: Path, stage: str | None, words: Sequence[str], errors: list[str]
) -> dict[str, str]:
    """Return which file each of data, model and stage comes from."""
    use = raw.pop("use", {})
    if not isinstance(use, dict):
        errors.append(f"{path}: use: expected data: NAME and model: NAME, got {use!r}")
        use = {}
    chosen = {k: str(v) for k, v in use.items()}
    refuse_unknown(chosen, ("data", "model"), f"{path}: use", errors)
    for word in words:
        key, _, value = word.partition("=")
        if key in _CHOICES:
            chosen[key] = value
    if stage is not None:
        chosen["stage"] = stage
    for key in _CHOICES:
        if key not in chosen:
            errors.append(f"{key}: not chosen; write {key}=NAME (a file of configs/{key})")
    return chosen


def _file_values(
    path: Path, chosen: Mapping[str, str], errors: list[str]
) -> dict[str, dict[str, Any]]:
    """Return the values of each section; one whose file was not found is left out."""
    values: dict[str, dict[str, Any]] = {n: {} for n in SECTIONS if n not in _CHOICES}
    for key in _CHOICES:
        name = chosen.get(key)
        if name is None:
            continue
        folder = path.parent.parent / key
        file = Path(name) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
        if not file.is_file():
            near = suggest(name, [p.stem for p in folder.glob("*.yaml")])
            errors.append(f"{key}={name}: {file} does not exist{near}")
            continue
        values[key] = _read_mapping(file)
    if "stage" in values and chosen["stage"] in STAGES:
        values["stage"]["name"] = chosen["stage"]
    return values


def _merge_experiment(
    values: dict[str, dict[str, Any]], raw: dict[str, Any], path: Path, stage: str,
    errors: list[str],
) -> None:  # fmt: skip
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


def _merge_dotlist(
    values: dict[str, dict[str, Any]], words: Iterable[str], errors: list[str]
) -> None:
    for word in words:
        key, equals, text = word.partition("=")
        section, dot, name = key.partition(".")
        if not equals or (not dot and key not in _CHOICES):
            errors.append(f"{word!r}: expected section.key=value (or data=, model=, stage=NAME)")
        elif dot and section not in SECTIONS:
            errors.append(f"{word!r}: no section {section!r}{suggest(section, SECTIONS)}")
        elif dot:
            try:
                values.setdefault(section, {})[name] = yaml.safe_load(text)
            except yaml.YAMLError as e:
                errors.append(f"{word!r}: not a YAML value ({e.__class__.__name__})")


def _across_fields(sections: Mapping[str, Any]) -> list[str]:
    """Return what no single field can say."""
    model: ModelConfig = sections["model"]
    stage: StageConfig = sections["stage"]
    errors = []
    if model.dim % model.num_heads:
        errors.append(f"model.dim {model.dim} does not divide by model.num_heads {model.num_heads}")
    for key in ("skeletal", "scale"):
        widths = model.skeletal_channels if key == "skeletal" else model.scale_kernels
        strides = model.skeletal_strides if key == "skeletal" else model.scale_strides
        if len(widths) != len(strides) or not widths:
            errors.append(f"model.{key}_strides has {len(strides)} entries for {len(widths)}")
    if model.skeletal_channels and model.skeletal_channels[-1] != model.dim:
        errors.append(
            f"model.skeletal_channels ends with {model.skeletal_channels[-1]}, "
            f"not model.dim {model.dim}"
        )
    kernels = (model.visual_kernel, model.skeletal_kernel, *model.scale_kernels)
    if any(kernel < 1 or kernel % 2 == 0 for kernel in kernels):
        errors.append(
            f"model.visual_kernel, model.skeletal_kernel and model.scale_kernels must be odd, "
            f"so that a step is centred on its frames: {', '.join(map(str, kernels))}"
        )
    if any(n < 1 for n in (*model.skeletal_channels, *model.scale_strides)):
        errors.append("model.skeletal_channels and model.scale_strides must be at least 1")
    total_stride = 1
    for stride in model.skeletal_strides:
        total_stride *= stride
    if total_stride != model.visual_stride:
        errors.append(
            f"model.skeletal_strides shorten time {total_stride} times, "
            f"model.visual_stride {model.visual_stride} times: the streams would not align"
        )
    if stage.warmup_epochs >= stage.epochs:
        errors.append(
            f"stage.warmup_epochs {stage.warmup_epochs} is not below stage.epochs {stage.epochs}"
        )
    return errors


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from e
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: not YAML: {e}") from e
    if raw is None:
        return {}
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        raise UserError(f"{path}: expected a mapping of names to values")
    return raw
