"""All that is looked at before a job starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from signfuse_dist.config import RunConfig, StageName, load_stages
from signfuse_dist.data.manifest import load_manifest
from signfuse_dist.data.storage import open_folder
from signfuse_dist.errors import UserError
from signfuse_dist.plan import Plan, make_plan
from signfuse_dist.preflight import inputs, machine, memory
from signfuse_dist.preflight.finding import Finding, warning
from signfuse_dist.preflight.inputs import LLMFiles
from signfuse_dist.stages import needs_language_model


class Described(NamedTuple):
    """A resolved experiment: as text, its stages, their plans, and what cannot be planned."""

    text: str
    runs: list[RunConfig]
    plans: list[Plan]
    errors: list[str]


def describe(experiment: str, overrides: Sequence[str], world_size: int) -> Described:
    """Return the resolved run, and the plan of each stage (or of the one that is overridden).

    Imports no torch. Raises UserError with every error of the configuration; a plan that cannot be
    is among ``errors``, and without a training split there is none.
    """
    if world_size < 1:
        raise UserError(f"--world-size {world_size}: at least one process is needed")
    runs = load_stages(experiment, overrides)
    lines = [_resolved(runs[0]), *caveats(runs[0], world_size)]
    plans: list[Plan] = []
    errors: list[str] = []
    folder = open_folder(runs[0].shards(runs[0].data.train_split))
    try:
        num_clips = load_manifest(folder).num_samples
    except UserError:
        return Described("\n".join(lines), runs, [], [])  # preflight/inputs.py says why
    lines.append(f"training split: {folder}, {num_clips} clips")
    for run in runs:
        lines.append(
            f"stage {run.stage.name} -> {run.folder}: learning rate "
            f"{run.stage.learning_rate:g}, {run.stage.epochs} epochs"
        )
        try:
            plans.append(make_plan(num_clips, run.stage, run.train, world_size))
            lines.append(plans[-1].describe())
        except UserError as e:
            errors.append(str(e))
    return Described("\n".join(lines), runs, plans, sorted(set(errors)))


def caveats(run: RunConfig, world_size: int) -> list[str]:
    """Return what is allowed and yet makes a run on several processes depend on their number."""
    if world_size == 1:
        return []
    return [
        f"warning: {key}=local: each of the {world_size} processes takes batch statistics from "
        f"its own clips, so the result depends on the number of processes; those of the first are "
        f"saved ({key}=sync has those of all)"
        for key in ("model.norm", "model.visual_norm")
        if getattr(run.model, key.partition(".")[2]) == "local"
    ]


def _resolved(run: RunConfig) -> str:
    values = run.to_dict()
    values.pop("stage")
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True).rstrip()


def examine(
    runs: Sequence[RunConfig],
    plans: Sequence[Plan],
    launch_file: Path | None,
    world_size: int,
    gigabytes: float | None,
) -> list[Finding]:
    """Return what ends the job, what may end it, and what is in order.

    Args:
        runs: the stages to be trained, in order.
        plans: of each; empty where the batch does not divide or nothing is packed.
        launch_file: a file of ``launch/``, or None: then nothing is said of it, and memory is
            estimated as under ZeRO-2.
        world_size: processes.
        gigabytes: a GPU's memory; None asks this machine.

    Raises UserError when the launch file cannot be read.
    """
    first = runs[0]
    found = [
        *inputs.check_splits(first),
        *inputs.check_weights(runs),
        *machine.check_machine(first),
    ]
    if any(needs_language_model(run.stage.name) for run in runs):
        found += inputs.check_llm(first.model)
    bucket: int | None = 0
    if launch_file is not None:
        settings = machine.read(launch_file)
        bucket = machine.bucket(settings)
        plan = plans[0] if plans else None
        found += machine.check_launch(launch_file, settings, first, plan, world_size)
    planned = {run.stage.name: plan for run, plan in zip(runs, plans, strict=False)}
    known = gigabytes or machine.gpu_gigabytes()
    return found + _sizes(runs, planned, world_size, bucket, known)


def _sizes(
    runs: Sequence[RunConfig],
    planned: Mapping[StageName, Plan],
    world_size: int,
    bucket: int | None,
    gigabytes: float | None,
) -> list[Finding]:
    """Judge memory and disk; a stage whose LLM is not there cannot be judged."""
    llms = {run.stage.name: _llm(run) for run in runs}
    known = [
        run for run in runs if llms[run.stage.name] or not needs_language_model(run.stage.name)
    ]
    found = []
    if known != list(runs):
        fix = "Put the LLM where it is looked for and check again"
        found.append(warning("memory and disk", "not estimated for stages with the LLM", fix))
    for run in known:
        frames = inputs.worst_frames(run, planned.get(run.stage.name))
        need = memory.estimate(run, llms[run.stage.name], frames, world_size, bucket)
        found.append(memory.judge_gpu(run.stage.name, need, frames, gigabytes))
    if known:
        found.append(memory.judge_disk(known, [llms[run.stage.name] for run in known]))
    return found


def _llm(run: RunConfig) -> LLMFiles | None:
    if not needs_language_model(run.stage.name):
        return None
    try:
        files = inputs.find_llm_files(run.model)
        return files if files and files.llm_dim and files.num_layers else None
    except (ValueError, KeyError):
        return None  # named by inputs.check_llm
