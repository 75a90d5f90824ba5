"""All that is looked at before a job starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from signfuse_dist.config import RunConfig, StageName
from signfuse_dist.plan import Plan
from signfuse_dist.preflight import data, launch, llm_files, machine, memory, weights
from signfuse_dist.preflight.finding import Finding, warning
from signfuse_dist.preflight.llm_files import LLMFiles
from signfuse_dist.stage_parts import needs_language_model


def examine(
    runs: Sequence[RunConfig], plans: Sequence[Plan], launch_file: Path | None, world_size: int,
    gigabytes: float | None,
) -> list[Finding]:  # fmt: skip
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
    found = [*data.examine(first), *weights.examine(runs), *machine.examine(first)]
    if any(needs_language_model(run.stage.name) for run in runs):
        found += llm_files.examine(first.model)
    bucket: int | None = 0
    if launch_file is not None:
        settings = launch.read(launch_file)
        bucket = launch.bucket(settings)
        plan = plans[0] if plans else None
        found += launch.examine(launch_file, settings, first, plan, world_size)
    planned = {run.stage.name: plan for run, plan in zip(runs, plans, strict=False)}
    known = gigabytes or machine.gpu_gigabytes()
    return found + _sizes(runs, planned, world_size, bucket, known)


def _sizes(
    runs: Sequence[RunConfig], planned: Mapping[StageName, Plan], world_size: int,
    bucket: int | None, gigabytes: float | None,
) -> list[Finding]:  # fmt: skip
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
        frames = data.worst_frames(run, planned.get(run.stage.name))
        need = memory.estimate(run, llms[run.stage.name], frames, world_size, bucket)
        found.append(memory.judge_gpu(run.stage.name, need, frames, gigabytes))
    if known:
        found.append(memory.judge_disk(known, [llms[run.stage.name] for run in known]))
    return found


def _llm(run: RunConfig) -> LLMFiles | None:
    if not needs_language_model(run.stage.name):
        return None
    try:
        files = llm_files.find(run.model)
        return files if files and files.llm_dim and files.num_layers else None
    except (ValueError, KeyError):
        return None  # named by llm_files.examine
