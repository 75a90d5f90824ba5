"""Train one stage: the only place that knows data, model and engine.

    accelerate launch --config_file launch/cpu_zero2.yaml -m signfuse_dist.train \\
        EXPERIMENT stage=NAME [section.key=value ...]

Stages are `contrastive`, `alignment` and `finetune`, each starting from the one before. The same
command resumes a stage that was stopped. Exit status: 0 finished; 75 stopped on request or by a
fault of the machine, and to be started again; 2 an error in what was asked.
"""

from __future__ import annotations

from signfuse_dist.garbage import importing, uncollected

with importing():
    import argparse
    import json
    import sys
    from collections.abc import Sequence
    from contextlib import ExitStack
    from dataclasses import asdict, dataclass, replace
    from typing import Any

    import numpy as np
    import torch
    from accelerate import Accelerator

    from signfuse_dist import cached_features, device
    from signfuse_dist.answer import answer
    from signfuse_dist.arrangement import Arrangement
    from signfuse_dist.blend import BlendedMicroBatches, BlendFrames
    from signfuse_dist.config import RunConfig
    from signfuse_dist.data.blended import (
        BlendedSplit,
        blend_of,
        content_of,
        open_training,
        splits_of,
    )
    from signfuse_dist.data.features import FeatureBatches, FeatureSet
    from signfuse_dist.data.loader import BatchSource, ClipBatches, batches, count_workers
    from signfuse_dist.data.split import Split
    from signfuse_dist.data.staging import stage
    from signfuse_dist.development import RISING, DevelopmentScores, open_development
    from signfuse_dist.engine import checkpoint, ds_config, processes, trackers
    from signfuse_dist.engine.average import WeightAverage
    from signfuse_dist.engine.checkpoint_files import (
        Checkpoint,
        find_best,
        refuse_other_position,
        refuse_other_run,
    )
    from signfuse_dist.engine.hang import watched
    from signfuse_dist.engine.loop import Loop, Step, make_optimizer
    from signfuse_dist.engine.rehearsal import rehearse
    from signfuse_dist.engine.selection import Selection
    from signfuse_dist.engine.stopping import REQUEUE
    from signfuse_dist.engine.timing import Marks, Startup
    from signfuse_dist.errors import MachineError, UserError
    from signfuse_dist.experiment import load_run
    from signfuse_dist.files import write_text
    from signfuse_dist.jobs.folder import JobFolder
    from signfuse_dist.languages import fill_prompt
    from signfuse_dist.locks import held
    from signfuse_dist.metering import meter_of, say_what_is_unknown
    from signfuse_dist.model import parts, saved
    from signfuse_dist.model.attention import choose_for
    from signfuse_dist.model.signfuse import SignFuse, count_parameters
    from signfuse_dist.model.text_tokenizer import TextTokenizer
    from signfuse_dist.model.usage import Usage
    from signfuse_dist.model.visual_weights import load_visual_weights
    from signfuse_dist.objective import StageObjective, prepare, set_mode
    from signfuse_dist.origin import TrainedCorpus, TrainedStage
    from signfuse_dist.plan import ClipFrames, MicroBatches, Plan, make_plan
    from signfuse_dist.preflight import memory
    from signfuse_dist.preflight.check import caveats
    from signfuse_dist.preflight.inputs import worst_frames
    from signfuse_dist.preflight.llm_files import find_usable
    from signfuse_dist.progress import print_line
    from signfuse_dist.report.model_card import write_card
    from signfuse_dist.run_folder import (
        TRAINED_ON,
        RunFolder,
        begin,
        identify,
        refuse_other_data,
        refuse_other_meeting,
    )
    from signfuse_dist.stages import (
        loss_weights,
        needs_language_model,
        previous,
        rate_factor,
        trains_llm,
    )
    from signfuse_dist.start import find_start, history_of, with_origin
    from signfuse_dist.system_errors import faults_told
    from signfuse_dist.texts import refuse_long_texts

_EPOCHS_AHEAD = 8  # in which the fullest micro batch is looked for: more find hardly fuller ones


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the stage that the command line names; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m signfuse_dist.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("experiment", help="a YAML file, or a name in configs/experiment")
    parser.add_argument("overrides", nargs="*", help="stage=NAME and section.key=value")
    options = parser.parse_args(arguments)
    return answer(lambda: _run(options.experiment, options.overrides))


def _run(experiment: str, overrides: Sequence[str]) -> int:
    with JobFolder.from_environment().failures_named(), faults_told():
        return train(load_run(experiment, None, overrides))


@dataclass(frozen=True)
class _Job:
    """A stage to be trained, and what was started for it."""

    run: RunConfig
    split: Split | BlendedSplit
    dev: dict[str, Split]
    plan: Plan
    workers: int
    accelerator: Accelerator
    resolved: dict[str, Any] | None
    """The DeepSpeed dictionary; None for plain DDP."""
    marks: Marks
    startup: Startup
    how: str
    """How many frames go through the ResNet at once, in words; empty without a ResNet."""

    @property
    def folder(self) -> RunFolder:
        """The run folder."""
        return RunFolder.of(self.run)

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes."""
        return bool(self.accelerator.is_main_process)

    def print_main(self, text: str) -> None:
        """Print on the main process."""
        if self.is_main:
            print_line(text)


def train(run: RunConfig) -> int:
    """Train one stage to its end or to a requested stop; return the exit status."""
    startup = Startup()
    trackers.refuse_missing(run.train.trackers)
    run = with_origin(run)
    split = open_training(run)
    dev = open_development(run)  # or say that it is not packed, before a model is loaded
    startup.lap("data")
    plan = make_plan(len(split), run.stage, run.train, processes.launched_world_size())
    workers = count_workers(run.train.num_workers)
    with uncollected():  # DeepSpeed is imported
        accelerator, resolved = processes.start(plan, run.train)
    with watched(run.train.hang_seconds, run.folder) as marks:
        run, how = _resolve_chunk(run, split, plan, accelerator, resolved)
        job = _Job(run, split, dev, plan, workers, accelerator, resolved, marks, startup, how)
        return _train(job)


def _resolve_chunk(
    run: RunConfig,
    split: Split | BlendedSplit,
    plan: Plan,
    accelerator: Accelerator,
    resolved: dict[str, Any] | None,
) -> tuple[RunConfig, str]:
    """Return the run with what ``model.visual_chunk: auto`` means here, and that in words.

    The main process decides for all, by its own GPU.
    """
    if not run.model.sees_pictures:
        return memory.resolve_chunk(run, None, 0, 1, None, None), ""
    blend = blend_of(run, split.sizes) if isinstance(split, BlendedSplit) else None
    frames = worst_frames(run, plan, split.lengths.astype(np.int64), blend)

    def decide() -> tuple[RunConfig, str]:
        gigabytes = None
        if accelerator.device.type == "cuda":
            gigabytes = torch.cuda.get_device_properties(accelerator.device).total_memory / 1e9
        bucket = None
        if resolved is not None:
            bucket = int(resolved["zero_optimization"].get("reduce_bucket_size", 0))
        llm = find_usable(run)
        given = llm, frames, plan.world_size, bucket, gigabytes
        decided = memory.resolve_chunk(run, *given)
        asked = gigabytes is not None and run.model.visual_chunk == "auto"
        why = memory.why_unknown(run) if asked else None
        return decided, memory.say_chunk(run.model, decided.model, why)

    return processes.do_on_main(accelerator, decide)


def _train(job: _Job) -> int:
    """Train the stage of a job that was started; return the exit status."""
    run, accelerator = job.run, job.accelerator
    # Or say why not, at once.
    choose_for(run.model, run.train.precision, accelerator.device, run.data.max_frames)
    refuse_other_data(run, content_of(job.split))
    with ExitStack() as until_end:
        what = f"the run folder {run.folder}"
        processes.do_on_main(
            accelerator, lambda: until_end.enter_context(held(job.folder.lock, what))
        )
        return _train_alone(job)


def _train_alone(job: _Job) -> int:
    """Train the stage in a run folder in which nobody else trains; return the exit status."""
    run, accelerator = job.run, job.accelerator
    begin(run, job.plan, job.resolved, job.is_main)
    notes = JobFolder.from_environment()
    if job.is_main:
        notes.begin(run.folder)
    accelerator.wait_for_everyone()
    if job.folder.is_finished:
        job.print_main(f"{run.folder}: stage {run.stage.name} is already trained; nothing to do")
        return 0
    job.startup.lap("processes")
    model, tokenizer = _make_model(job)
    identity = identify(run, job.plan)
    if isinstance(job.split, BlendedSplit):
        drawn = asdict(blend_of(run, job.split.sizes))
        identity["blend"] = {key: list(drawn[key]) for key in ("sizes", "draws")}
    resumed = _resume(job, model, identity)
    with memory.told_with_advice(run, job.plan.world_size):
        finished, steps = _run_loop(job, model, tokenizer, identity, resumed)
    job.marks.at("ending", job.plan.total_steps)
    if finished:
        processes.do_on_main(accelerator, lambda: _write_model(job, model, steps))
    if job.is_main:
        notes.end(finished=finished)
    accelerator.wait_for_everyone()
    how = "finished" if finished else "stopped; run the same command again"
    job.print_main(f"{run.folder}: {how}")
    accelerator.end_training()
    return 0 if finished else REQUEUE


def _make_model(job: _Job) -> tuple[SignFuse, TextTokenizer | None]:
    """Build the stage's model, look at the texts, and say what will be trained and how."""
    torch.manual_seed(job.run.train.seed)
    model, tokenizer = _build(job)
    _set_prompts(job.run, model, tokenizer)

    def look_at_texts() -> None:
        for split in (*splits_of(job.split), *job.dev.values()):
            refuse_long_texts(model, tokenizer, split, job.print_main)

    processes.do_on_main(job.accelerator, look_at_texts)
    _describe(job, model)
    for warning in caveats(job.run, job.plan.world_size):
        job.print_main(warning)
    job.startup.lap("texts")
    return model, tokenizer


def _set_prompts(run: RunConfig, model: SignFuse, tokenizer: TextTokenizer | None) -> None:
    """Let the clips of each corpus of a blend be asked by its own prompt, or in its language."""
    if tokenizer is None:
        return
    assert model.language_model is not None
    prompts = [
        fill_prompt(part.prompt or run.model.prompt, part.data.language) for part in run.data.blend
    ]
    if set(prompts) - {model.built_from.prompt}:
        model.language_model.set_prompts([tokenizer.ask(prompt) for prompt in prompts])


def _resume(job: _Job, model: SignFuse, identity: dict[str, Any]) -> Checkpoint | None:
    """Load the weights of the newest whole checkpoint; return it, None where there is none.

    Raises UserError when it is of another run, or there are some and none is whole.
    """

    def fits(found: Checkpoint) -> None:
        refuse_other_meeting(job.run, job.plan, found.state["run"].get("meeting"))
        refuse_other_run(found, {"run": identity})
        refuse_other_position(found, job.plan, job.run.train.seed)
        checkpoint.refuse_other_tensors(found, model, job.run.train.weight_average is not None)

    folder = job.folder.checkpoints
    newest = checkpoint.agree_on_latest(folder, job.accelerator, job.print_main, fits)
    if newest is not None:
        checkpoint.load_weights(newest.path, model)
        job.print_main(f"resuming after step {newest.step} of {job.plan.total_steps}")
    job.startup.lap("resume")
    return newest


def _run_loop(
    job: _Job,
    model: SignFuse,
    tokenizer: TextTokenizer | None,
    identity: dict[str, Any],
    resumed: Checkpoint | None,
) -> tuple[bool, int]:
    """Train from the checkpoint ``resumed``, or from the start.

    Return whether the stage is finished, when the model has the weights that are to be written,
    and how many steps are done.
    """
    job = _stage_shards(job)
    run, accelerator, startup = job.run, job.accelerator, job.startup
    start_step, broken = (resumed.step, resumed.broken_clips) if resumed else (0, 0)
    features = None
    if run.train.features == "cached":
        assert isinstance(job.split, Split)  # what contradicts it was refused
        features = cached_features.find_or_compute(
            model, run, job.split, accelerator, job.workers, job.print_main
        )
        startup.lap("features")
    prepared, optimizer = _prepare(job, model, resumed)
    trackers.start(accelerator, run.train.trackers, run.folder, run.to_dict(), start_step)
    development = None
    if job.dev:
        development = DevelopmentScores(run, model, job.dev, tokenizer, accelerator)
    average = None
    if run.train.weight_average is not None:
        average = WeightAverage(model, run.train.weight_average)
        if resumed is not None:
            average.load(checkpoint.read_average(resumed.path))
    objective = StageObjective(run.stage.name, run.loss, [p.corpus for p in run.data.blend])
    meter = meter_of(model, objective, run, accelerator.device)
    say_what_is_unknown(meter, accelerator.device, job.print_main)
    step = Step(
        accelerator=accelerator,
        model=prepared,
        optimizer=optimizer,
        objective=objective,
        plan=job.plan,
        stage=run.stage,
        train=run.train,
        average=average,
    )
    dataset, order = _clips(job, tokenizer, start_step, features)
    if accelerator.device.type == "cuda" and start_step < job.plan.total_steps:
        set_mode(model, run.stage.name)
        fullest = dataset.load(order.fullest(_EPOCHS_AHEAD), map, pin_memory=False)
        rehearse(model, objective, fullest, accelerator.device, run.train.precision == "bf16")
        startup.lap("fullest batch")
    loop = Loop(
        step=step,
        folder=run.folder,
        marks=job.marks,
        identity={**identity, TRAINED_ON: content_of(job.split)},
        development=development,
        rising=RISING,
        selection=Selection(run.train.patience, **(resumed.selection if resumed else {})),
        meter=meter,
        startup=startup,
    )
    source = batches(dataset, job.workers, device.has_gpu(), window=job.plan.accumulation)
    if job.is_main:
        JobFolder.from_environment().take_steps()
    finished = loop.run(source, start_step, lambda: set_mode(model, run.stage.name), broken)
    if finished and average is not None:
        average.apply()
    return finished, loop.done


def _stage_shards(job: _Job) -> _Job:
    """Let the clips be read from this node's disk, where ``data.stage_to`` asks for it.

    Every process raises what any does. Where features are cached, the training split is read once
    at most, and stays where it is.
    """
    to, cached = job.run.data.stage_to, job.run.train.features == "cached"
    if to is None:
        return job
    split, dev = job.split, job.dev
    refusal: UserError | None = None

    def beat() -> None:
        job.marks.at("copying shards", 0)

    try:
        if isinstance(split, BlendedSplit):
            split = split.each(lambda one: stage(one, to, beat))
        else:
            split = split if cached else stage(split, to, beat)
        dev = {name: stage(one, to, beat) for name, one in dev.items()}
    except UserError as e:
        refusal = e
    refusals = processes.gather_patiently("shards copied", str(refusal or ""), beat)
    if refusal is not None:
        raise refusal
    if any(refusals):
        raise MachineError(next(filter(None, refusals)))
    there = (*splits_of(job.split), *job.dev.values())
    for read, packed in zip((*splits_of(split), *dev.values()), there, strict=True):
        if read is not packed:
            job.print_main(f"shards are read from {read.folder}")
    job.startup.lap("shards copied")
    job.marks.at("starting", 0)
    return replace(job, split=split, dev=dev)


def _prepare(job: _Job, model: SignFuse, resumed: Checkpoint | None) -> tuple[Any, Any]:
    """Hand model and optimizer to the engine, and give it the moments of a checkpoint."""
    run = job.run
    # ZeRO has one flat partition, for which nothing is to be gained.
    fused = job.resolved is None and job.accelerator.device.type == "cuda"
    with uncollected():  # torch's compiler and the rest of DeepSpeed are imported
        optimizer = make_optimizer(
            model,
            run.stage.learning_rate,
            run.train.weight_decay,
            fused,
            lambda parameter: rate_factor(parameter, run.stage),
        )
        prepared, wrapped = job.accelerator.prepare(model, optimizer)
    if job.resolved is not None:
        ds_config.verify_live(prepared, job.resolved, job.plan.world_size)
    job.startup.lap("prepare")
    if resumed is not None:
        checkpoint.load_optimizer(resumed.path, job.accelerator, prepared, wrapped, resumed.step)
    job.startup.lap("resume")
    return prepared, wrapped


def _write_model(job: _Job, model: SignFuse, steps: int) -> None:
    """Write ``model/`` from the weights that ``train.select`` asks for; it has those of the end."""
    run = job.run
    if run.train.select == "best":
        best = find_best(job.folder.checkpoints, job.print_main)
        if best is None:
            raise UserError(
                f"{job.folder.path}: train.select=best, and no checkpoint has a development score; "
                "the same command with train.select=last takes the last"
            )
        checkpoint.load_weights(best.path, model, run.train.weight_average is not None)
        name, value = next(iter(best.state["development"].items()))
        job.print_main(f"model of step {best.step}: its {name} of {value:.4g} is best")
        steps = best.step
    features = tuple(of.source for of in job.split.vectors)
    model.usage = Usage.of(run, *job.split.extraction, _history(job, steps), features)
    is_last = run.stage.name == run.train.stages[-1] and model.language_model is not None
    with_llm = is_last and saved.is_nowhere_else(run.model.llm)
    saved.save(model, job.folder.model, {TRAINED_ON: content_of(job.split)}, with_llm)
    write_card(job.folder.path)


def _history(job: _Job, steps: int) -> tuple[TrainedStage, ...]:
    """Return every training that went into the stage's model, this one the last."""
    run, before = job.run, job.folder.before(job.run)
    earlier = () if run.origin is None else run.origin.history
    if before is not None:
        earlier = history_of(before.model)
    sizes = job.split.sizes if isinstance(job.split, BlendedSplit) else (len(job.split),)
    corpora = tuple(
        TrainedCorpus(name=part.data.corpus, language=part.data.language, clips=size)
        for part, size in zip(run.corpora, sizes, strict=True)
    )
    name = f"{run.name}/{run.stage.name}"
    own = TrainedStage(run=name, corpora=corpora, steps=steps)
    return (*earlier, own)


def _build(job: _Job) -> tuple[SignFuse, TextTokenizer | None]:
    """Build the stage's model from the stage before it, ``train.start`` or ImageNet weights."""
    run, stage = job.run, job.run.stage.name
    config = replace(run.model, prompt=fill_prompt(run.model.prompt, run.data.language))
    model, tokenizer = saved.build(
        config,
        needs_language_model(stage),
        run.data.max_frames,
        trains_llm(stage, run.model),
        job.split.vector_dim or None,
    )
    if model.vision is not None:
        setting = f"model.visual_backbone={run.model.visual_backbone}"
        model.vision.refuse_unfit(run.data.frame_size, setting)
        job.print_main(f"{setting}: of {model.vision.picture}")
    job.startup.lap("model")
    before, chosen = previous(stage, run.train.stages), None
    start = find_start(run)
    if before is not None:
        folder = job.folder.beside(before)
        if not folder.is_finished:
            raise UserError(
                f"stage {stage} starts from stage {before}, and {folder.model} does not exist: "
                f"train it first (stage={before})"
            )
        # The contrastive stage has no LLM, so no adapter either.
        may_miss = () if needs_language_model(before) else ("adapter.",)
        saved.load_into(folder.model, model, may_miss)
    elif start is None:
        load_visual_weights(model, run.model)
    else:
        llm = model.llm_reference
        of_llm = None if llm is None else llm.fingerprint
        chosen = parts.choose(start.folder, run, saved.own_state(model), of_llm)
        if chosen.needs_visual_weights:
            load_visual_weights(model, run.model)
        parts.load(chosen, model)
        for line in chosen.describe():
            job.print_main(line)
    prepare(model, stage, run.loss)
    if chosen is not None:
        parts.load_lora(chosen, model)
    job.startup.lap("weights")
    return model, tokenizer


def _clips(
    job: _Job, tokenizer: TextTokenizer | None, start_step: int, features: FeatureSet | None
) -> tuple[BatchSource, MicroBatches]:
    """Return this process's micro batches from a step on, and their order."""
    run, split = job.run, job.split
    rank, encode = job.accelerator.process_index, tokenizer.encode if tokenizer else None
    of_clips = split.lengths, run.data.max_frames, run.augment, run.train.seed
    arrangement = Arrangement.of(run)
    if isinstance(split, BlendedSplit):
        frames: ClipFrames = BlendFrames(*of_clips)
        blend, loads = blend_of(run, split.sizes), split.loads(frames)
        order: MicroBatches = BlendedMicroBatches(
            job.plan, blend, loads, rank, start_step, arrangement
        )
        return ClipBatches(split, order, frames, encode), order
    frames = ClipFrames(*of_clips)
    seed = run.train.seed
    order = MicroBatches(job.plan, seed, frames.counts, rank, start_step, arrangement)
    if features is not None:
        assert tokenizer is not None  # the alignment stage has an LLM
        stride = run.model.visual_stride
        return FeatureBatches(features, split, order, frames, tokenizer.encode, stride), order
    return ClipBatches(split, order, frames, encode), order


def _describe(job: _Job, model: SignFuse) -> None:
    """Print what will be trained and how; write parameters and attention kernels of this start."""
    run = job.run
    parameters = {}
    for name, count in count_parameters(model).items():
        trained = (p.numel() for p in getattr(model, name).parameters() if p.requires_grad)
        parameters[name] = {"all": count, "trained": sum(trained)}
    attention = {
        "asked": run.model.attention,
        "encoders": choose_for(
            run.model, run.train.precision, job.accelerator.device, run.data.max_frames
        ),
        "llm": model.language_model.attention if model.language_model else None,
    }
    where = device.describe()
    job.print_main(f"{run.name}, stage {run.stage.name} -> {run.folder}, on {where}")
    contrastive = "contrastive" in loss_weights(run.stage.name, run.loss)
    job.print_main(job.plan.describe(contrastive))
    for how in filter(None, (Arrangement.of(run).describe(), job.how)):
        job.print_main(f"  {how}")
    for name, counts in parameters.items():
        job.print_main(
            f"  {name:15s} {counts['all']:>13,} parameters, {counts['trained']:>12,} train"
            f"{_rate_of(run, name) if counts['trained'] else ''}"
        )
    job.print_main(
        f"attention: {attention['encoders']} in CMFA and HTA, {attention['llm'] or 'none'} in the "
        f"LLM (model.attention: {attention['asked']})"
    )
    if job.is_main:
        write_text(job.folder.parameters, json.dumps(parameters, indent=1))
        write_text(job.folder.attention, json.dumps(attention, indent=1))


def _rate_of(run: RunConfig, component: str) -> str:
    """Say a component's rate where it has one of its own."""
    factor = rate_factor(component, run.stage)
    highest = factor * run.stage.learning_rate
    return "" if factor == 1 else f" at {factor:g} of the rate, {highest:.3g} at most"


if __name__ == "__main__":
    sys.exit(main())
