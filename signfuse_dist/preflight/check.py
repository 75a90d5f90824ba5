"""`signfuse check`: the resolved run, the plan of each stage, and what would end the job.

The run and its plans are described as text (:func:`describe`); what they need of the data, of the
LLM, of the disk and of the machine is looked at by the modules beside this one, and every finding
is reported together (:func:`check_job`). `signfuse train` and `slurm/pipeline.sh` look in the same
way before they start anything (:func:`refuse_errors`). Imports no torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import yaml

from signfuse_dist import nvidia
from signfuse_dist.config import RunConfig, StageName
from signfuse_dist.data.blended import blend_of, count_clips
from signfuse_dist.errors import UserError, printable, raise_together
from signfuse_dist.experiment import load_stages
from signfuse_dist.plan import Plan, make_plan
from signfuse_dist.preflight import inputs, machine, memory
from signfuse_dist.preflight.finding import Finding, StartedBy, error, ok, warning
from signfuse_dist.preflight.interfaces import check_interfaces, networks
from signfuse_dist.preflight.llm_files import check_llm, find_usable
from signfuse_dist.preflight.vision_files import check_vision
from signfuse_dist.run_folder import RunFolder, price_of_meeting
from signfuse_dist.stages import loss_weights, needs_language_model
from signfuse_dist.system_errors import refuse_machine


@dataclass(frozen=True)
class Target:
    """Where a job will run, as far as its user knows."""

    world_size: int = field(metadata={"help": "number of processes"})
    launch: Path | None = field(
        default=None, metadata={"help": "the file of launch/ that will be used"}
    )
    gpu_memory: float | None = field(
        default=None,
        metadata={
            "metavar": "GB",
            "help": "memory of one GPU where the job will run (default: this machine's, where it "
            "has one)",
        },
    )
    started_by: StartedBy = "accelerate"
    """Whose options the advice names, and whether the job runs on this machine."""

    def __post_init__(self) -> None:
        if self.world_size < 1:
            raise UserError(f"--world-size {self.world_size}: at least one process is needed")

    @property
    def is_here(self) -> bool:
        """Whether the job runs on this machine: a login node's GPUs are not those of the job."""
        return self.started_by != "sbatch" or "SLURM_JOB_ID" in os.environ

    @property
    def gigabytes(self) -> float | None:
        """GB of one GPU, where they are known."""
        return self.gpu_memory or (nvidia.gpu_gigabytes() if self.is_here else None)


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
    runs = load_stages(experiment, overrides)
    lines = [_resolved(runs[0]), *caveats(runs[0], world_size)]
    num_clips = _num_clips(runs[0])
    if num_clips is None:
        return Described("\n".join(lines), runs, [], [])
    try:
        lines += _describe_clips(runs[0])
    except UserError as e:
        return Described("\n".join(lines), runs, [], [str(e)])
    plans, errors = _make_plans(runs, num_clips, world_size)
    for run in runs:
        lines.append(
            f"stage {run.stage.name} -> {run.folder}: learning rate "
            f"{run.stage.learning_rate:g}, {run.stage.epochs} epochs"
        )
        if run.stage.name in plans:
            contrastive = "contrastive" in loss_weights(run.stage.name, run.loss)
            lines.append(plans[run.stage.name].describe(contrastive))
    return Described("\n".join(lines), runs, list(plans.values()), errors)


def refuse_errors(runs: Sequence[RunConfig], target: Target) -> None:
    """Look at a job before it is started, and print warnings on standard error.

    Args:
        runs: the stages to be trained, in order.
        target: where and how.

    Raises UserError with every error that was found.
    """
    num_clips = _num_clips(runs[0])
    plans, errors = _make_plans(runs, num_clips, target.world_size) if num_clips else ({}, [])
    findings = check_job(runs, list(plans.values()), target)
    for finding in findings:
        if finding.level == "warning":
            print(printable(str(finding)), file=sys.stderr, flush=True)
    errors += [finding.said for finding in findings if finding.level == "error"]
    raise_together(
        errors, f"{runs[0].name} on {target.world_size} processes: nothing was started; errors"
    )


def _num_clips(run: RunConfig) -> int | None:
    """Return the clips that are trained on, None where they cannot be read."""
    sizes = _sizes(run)
    return None if sizes is None else sum(sizes)


def _sizes(run: RunConfig) -> list[int] | None:
    """Return the clips of each corpus that are trained on, None where one cannot be read."""
    try:
        return count_clips(run)
    except UserError as e:
        refuse_machine(e, run.shards(run.data.train_split))
        return None  # preflight/inputs.py says why


def _describe_clips(run: RunConfig) -> list[str]:
    """Say in lines what is trained on; raise UserError for a blend that cannot be."""
    sizes = _sizes(run) or []
    places = [part.data.place(part.data.train_split) for part in run.corpora]
    if not run.data.blend:
        return [f"training split: {places[0]}, {sizes[0]} clips"]
    blend = blend_of(run, sizes)
    lines = [f"a blend of {len(sizes)} corpora, an epoch of {blend.num_draws} draws:"]
    for part, place, size, draws in zip(run.corpora, places, sizes, blend.draws, strict=True):
        lines.append(
            f"  {part.corpus}: {place}, {size} clips, {draws} draws ({draws / blend.num_draws:.1%})"
            f", {draws / size:.2f} times each"
        )
    return lines


def _make_plans(
    runs: Sequence[RunConfig], num_clips: int, world_size: int
) -> tuple[dict[StageName, Plan], list[str]]:
    """Return the plan of each stage that can be planned, and why the others cannot."""
    plans: dict[StageName, Plan] = {}
    errors: list[str] = []
    for run in runs:
        try:
            plans[run.stage.name] = make_plan(num_clips, run.stage, run.train, world_size)
        except UserError as e:
            errors.append(str(e))
    return plans, sorted(set(errors))


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


def check_job(runs: Sequence[RunConfig], plans: Sequence[Plan], target: Target) -> list[Finding]:
    """Return what ends the job, what may end it, and what is in order.

    Args:
        runs: the stages to be trained, in order.
        plans: of each; empty where the batch does not divide or nothing is packed.
        target: where the job will run; without a launch file, memory is estimated as under ZeRO-2.

    Raises UserError when the launch file cannot be read.
    """
    first = runs[0]
    planned = {run.stage.name: plan for run, plan in zip(runs, plans, strict=False)}
    findings = [
        *inputs.check_splits(first),
        *inputs.check_weights(runs, planned, target.is_here),
        *inputs.check_held(runs, target.is_here),
        *_check_meeting(runs, planned),
        *machine.check_machine(first, target.is_here),
    ]
    if any(needs_language_model(run.stage.name) for run in runs):
        findings += check_llm(first.model, target.is_here)
    findings += check_vision(first.model, first.data.frame_size, target.is_here)
    bucket: int | None = 0
    several_nodes = False
    if target.launch is not None:
        settings = machine.read_launch(target.launch)
        several_nodes = settings.get("num_machines", 1) != 1
        if target.is_here:
            findings += machine.check_gpus(settings, target.world_size)
        bucket = machine.bucket(settings)
        plan = plans[0] if plans else None
        findings += machine.check_launch(
            target.launch, settings, first, plan, target.world_size, target.started_by
        )
    if target.is_here:
        findings += check_interfaces(os.environ, networks(), several_nodes)
    return findings + _check_sizes(runs, planned, target, bucket)


def _check_meeting(
    runs: Sequence[RunConfig], planned: Mapping[StageName, Plan]
) -> Iterator[Finding]:
    """Say of stages that have not begun with what numbers of processes alone they will go on."""
    prices: dict[str, list[str]] = {}
    for run in runs:
        plan = planned.get(run.stage.name)
        if plan is None or RunFolder.of(run).config.exists():
            continue
        price = price_of_meeting(run, plan)
        if price is not None:
            prices.setdefault(price, []).append(run.stage.name)
    for price, stages in prices.items():
        yield ok(f"number of processes of {' and '.join(stages)}", price)


def _check_sizes(
    runs: Sequence[RunConfig],
    planned: Mapping[StageName, Plan],
    target: Target,
    bucket: int | None,
) -> list[Finding]:
    """Judge memory and disk; a stage whose LLM is not there cannot be judged."""
    llms = {run.stage.name: find_usable(run) for run in runs}
    known = [
        run for run in runs if llms[run.stage.name] or not needs_language_model(run.stage.name)
    ]
    findings = []
    model = runs[0].model
    if not memory.knows(model):
        what = f"parameters of model.fusion={model.fusion}"
        try:
            count = memory.fusion_parameters(model)
        except UserError as e:
            return [error(what, str(e), "Build it in signfuse_dist/model/signfuse.py")]
        findings.append(ok(what, f"{count:,}, counted on the model itself, built without memory"))
    if known != list(runs):
        fix = "Put the LLM where it is looked for and check again"
        findings.append(warning("memory and disk", "not estimated for stages with the LLM", fix))
    gigabytes = target.gigabytes
    for run in known:
        frames = inputs.worst_frames(run, planned.get(run.stage.name))
        given = llms[run.stage.name], frames, target.world_size, bucket
        resolved = memory.resolve_chunk(run, *given, gigabytes)
        how = ""
        if run.model.sees_pictures:
            how = memory.say_chunk(run.model, resolved.model)
        need = memory.estimate(resolved, *given)
        findings.append(memory.judge_gpu(resolved, need, frames, gigabytes, how, target.world_size))
    if known:
        findings.append(memory.judge_disk(known, [llms[run.stage.name] for run in known]))
    return findings
