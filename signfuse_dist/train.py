"""Train one stage: the only place that knows data, model and engine.

    accelerate launch --config_file launch/cpu_zero2.yaml -m signfuse_dist.train \\
        EXPERIMENT stage=NAME [section.key=value ...]

Stages are `contrastive`, `alignment` and `finetune`, each starting from the one before. The same
command resumes a stage that was stopped. Exit status: 0 finished, 75 stopped on request and to be
started again, 2 an error in what was asked.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import platform
import sys
from collections.abc import Sequence
from typing import Any

import torch
import yaml
from accelerate import Accelerator

from signfuse_dist import stages
from signfuse_dist.augment import ClipFrames
from signfuse_dist.check import caveats
from signfuse_dist.cluster.folder import JobFolder
from signfuse_dist.config import RunConfig
from signfuse_dist.config_load import load_run
from signfuse_dist.data.loader import ClipBatches, batches, count_workers
from signfuse_dist.data.split import Split, open_split
from signfuse_dist.engine import checkpoint, ds_config, process
from signfuse_dist.engine.loop import Loop
from signfuse_dist.engine.marks import Marks
from signfuse_dist.engine.optim import make_optimizer
from signfuse_dist.engine.signals import REQUEUE
from signfuse_dist.engine.watch import watched
from signfuse_dist.errors import UserError, raise_together
from signfuse_dist.evaluation.card import write_card
from signfuse_dist.files import write_text
from signfuse_dist.model import saved
from signfuse_dist.model.attention_choice import choose_for
from signfuse_dist.model.llm import TextTokenizer
from signfuse_dist.model.signfuse import SignFuse, count_parameters
from signfuse_dist.model.visual_weights import load_visual_weights
from signfuse_dist.plan import MicroBatches, Plan, make_plan
from signfuse_dist.run_settings import refuse_other

_PACKAGES = ("signfuse_dist", "torch", "accelerate", "deepspeed", "transformers", "peft")


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
    try:
        with JobFolder.from_environment().failures_named():
            return train(load_run(options.experiment, None, options.overrides))
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2


def train(run: RunConfig) -> int:
    """Train one stage to its end or to a requested stop; return the exit status."""
    split = open_split(run.shards(run.data.train_split), run.data)
    plan = make_plan(len(split), run.stage, run.train, process.launched_world_size())
    workers = count_workers(run.train.num_workers)
    accelerator, resolved = process.start(plan, run.train)
    with watched(run.train.hang_seconds, run.folder) as marks:
        return _train(run, split, plan, workers, accelerator, resolved, marks)


def _train(
    run: RunConfig, split: Split, plan: Plan, workers: int, accelerator: Accelerator,
    resolved: dict[str, Any] | None, marks: Marks,
) -> int:  # fmt: skip
    say = accelerator.print
    choose_for(run.model, run.train.precision, accelerator.device)  # or say why not, at once
    open_folder(run, plan, resolved, accelerator.is_main_process)
    job = JobFolder.from_environment()
    if accelerator.is_main_process:
        job.begin(run.folder)
    accelerator.wait_for_everyone()
    if (run.folder / "model").is_dir():
        say(f"{run.folder}: stage {run.stage.name} is already trained; nothing to do")
        return 0
    torch.manual_seed(run.train.seed)
    model, tokenizer = _build(run)
    _refuse_long_texts(model, tokenizer, split, say)
    _describe(model, run, plan, say)
    _record_attention(model, run, accelerator, say)
    if accelerator.is_main_process:
        write_text(run.folder / "parameters.json", json.dumps(_count(model), indent=1))
    for warning in caveats(run, plan.world_size):
        say(warning)
    found = checkpoint.latest(run.folder / "checkpoints", say)
    start_step = 0
    if found is not None:
        checkpoint.load_weights(found[0], model)
        start_step = found[1]
        say(f"resuming after step {start_step} of {plan.total_steps}")
    optimizer = make_optimizer(model, run.stage.learning_rate, run.train.weight_decay)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    if resolved is not None:
        ds_config.verify_live(prepared, resolved, plan.world_size)
    if found is not None:
        checkpoint.load_optimizer(found[0], accelerator, prepared, optimizer, start_step)
    loop = Loop(
        accelerator, prepared, optimizer, stages.StageObjective(run.stage.name, run.loss), plan,
        run.stage, run.train, run.folder, marks,
    )  # fmt: skip
    dataset = _clips(run, split, plan, tokenizer, accelerator.process_index, start_step)
    source = batches(dataset, workers, torch.cuda.is_available())
    finished = loop.run(source, start_step, lambda: stages.set_mode(model, run.stage.name))
    marks.at("ending", plan.total_steps)
    if finished and accelerator.is_main_process:
        model.save_pretrained(run.folder / "model")
        write_card(run.folder)
    if accelerator.is_main_process:
        job.end(finished=finished)
    accelerator.wait_for_everyone()
    say(f"{run.folder}: " + ("finished" if finished else "stopped; run the same command again"))
    accelerator.end_training()
    return 0 if finished else REQUEUE


def _build(run: RunConfig) -> tuple[SignFuse, TextTokenizer | None]:
    """Build the stage's model from the stage before it, or from ImageNet weights."""
    stage = run.stage.name
    language = stages.needs_language_model(stage)
    model, tokenizer = saved.build(run.model, language, run.data.max_frames)
    before = stages.previous(stage, run.train.stages)
    if before is None:
        load_visual_weights(model, run.model)
    else:
        folder = run.folder.with_name(before) / "model"
        if not folder.is_dir():
            raise UserError(
                f"stage {stage} starts from stage {before}, and {folder} does not exist: "
                f"train it first (stage={before})"
            )
        # The contrastive stage has no LLM, so no adapter either.
        may_miss = () if stages.needs_language_model(before) else ("adapter.",)
        saved.load_into(folder, model, may_miss)
    stages.prepare(model, stage, run.loss)
    return model, tokenizer


def _refuse_long_texts(
    model: SignFuse, tokenizer: TextTokenizer | None, split: Split, say: Any
) -> None:
    """Raise UserError naming texts that the LLM's context has no room for; name unknown letters."""
    if model.language_model is None or tokenizer is None:
        return
    texts = {entry.id: entry.text for entry in split.entries()}
    room = model.language_model.room(model.built_from.num_sign_tokens)
    too_long, unknown = tokenizer.find_unfit(texts, room)
    if unknown:
        say(f"{len(unknown)} of {len(texts)} texts hold letters that the LLM's tokenizer does not "
            f"know, and are learned without them: {', '.join(unknown[:10])}")  # fmt: skip
    raise_together(
        too_long[:10],
        f"{split.folder}: {len(too_long)} texts are too long for the LLM's context; take them out "
        "of the corpus, or another LLM. The first",
    )


def _clips(
    run: RunConfig, split: Split, plan: Plan, tokenizer: TextTokenizer | None, rank: int,
    start_step: int,
) -> ClipBatches:  # fmt: skip
    seed = run.train.seed
    frames = ClipFrames(split.lengths, run.data.max_frames, run.augment, seed)
    order = MicroBatches(plan, seed, frames.counts, rank, start_step)
    return ClipBatches(split, order, frames, tokenizer.encode if tokenizer else None)


def open_folder(run: RunConfig, plan: Plan, resolved: dict[str, Any] | None, main: bool) -> None:
    """Write the run folder's description once; refuse a folder of another configuration."""
    refuse_other(run)
    path = run.folder / "config.yaml"
    if not main:
        return
    run.folder.mkdir(parents=True, exist_ok=True)
    write_text(run.folder / "plan.json", json.dumps(dataclasses.asdict(plan), indent=1))
    write_text(run.folder / "ds_config.json", json.dumps(resolved, indent=1))
    write_text(run.folder / "versions.json", json.dumps(_versions(), indent=1))
    if not path.exists():
        write_text(path, yaml.safe_dump(run.to_dict(), sort_keys=False, allow_unicode=True))


def _versions() -> dict[str, str]:
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), **versions}


def _record_attention(model: SignFuse, run: RunConfig, accelerator: Any, say: Any) -> None:
    """Write which kernels were asked for and are used, of this start of the run."""
    used = {
        "asked": run.model.attention,
        "encoders": choose_for(run.model, run.train.precision, accelerator.device),
        "llm": model.language_model.attention if model.language_model else None,
    }
    say(f"attention: {used['encoders']} in CMFA and HTA, {used['llm'] or 'none'} in the LLM "
        f"(model.attention: {used['asked']})")  # fmt: skip
    if accelerator.is_main_process:
        write_text(run.folder / "attention.json", json.dumps(used, indent=1))


def _describe(model: SignFuse, run: RunConfig, plan: Plan, say: Any) -> None:
    say(f"{run.name}, stage {run.stage.name} -> {run.folder}")
    say(plan.describe())
    for name, count in _count(model).items():
        say(f"  {name:15s} {count['all']:>13,} parameters, {count['trained']:>12,} train")


def _count(model: SignFuse) -> dict[str, dict[str, int]]:
    """Return the parameters of each component, all and those that this stage trains."""
    found = {}
    for name, count in count_parameters(model).items():
        trained = (p.numel() for p in getattr(model, name).parameters() if p.requires_grad)
        found[name] = {"all": count, "trained": sum(trained)}
    return found


if __name__ == "__main__":
    sys.exit(main())
