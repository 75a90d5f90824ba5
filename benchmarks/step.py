"""A training step of the engine against the same modules in a bare PyTorch loop.

Both loops take the same batch in turn, so that what slows the machine slows both. First neither the
bare loop nor its modules are watched, and the engine is as in training; then both are, for the time
of each component.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM

from signfuse_dist.answer import answer
from signfuse_dist.batch import SignBatch
from signfuse_dist.cli import add_options, from_options, parse
from signfuse_dist.cli.training import add_run
from signfuse_dist.config import STAGES, RunConfig, StageName
from signfuse_dist.engine import processes
from signfuse_dist.engine.loop import Step, make_optimizer
from signfuse_dist.engine.metrics import Interval, device_name
from signfuse_dist.engine.objective import Meter
from signfuse_dist.engine.timing import OPTIMIZER, OTHER, Timeline
from signfuse_dist.errors import UserError
from signfuse_dist.experiment import load_run
from signfuse_dist.files import write_text
from signfuse_dist.metering import meter_of
from signfuse_dist.model.attention import choose_for
from signfuse_dist.model.flops import components
from signfuse_dist.model.llm import LanguageModel
from signfuse_dist.model.signfuse import SignFuse
from signfuse_dist.objective import StageObjective, prepare, set_mode
from signfuse_dist.plan import Plan, make_plan
from signfuse_dist.skeleton import NUM_JOINTS
from signfuse_dist.synthetic.llm_shapes import llm_shape

_PROMPT_TOKENS = 12  # of the default prompt in LLaMA's tokens
_STEPS = 1000  # of the schedule; the bench takes fewer


@dataclass(frozen=True)
class StepBench:
    """What is measured."""

    experiment: str
    overrides: Sequence[str] = ()
    stage: StageName = field(
        default=STAGES[-1], metadata={"help": "of training (default: %(default)s)"}
    )
    llm_shape: Literal["tiny", "smollm2_135m", "llama2_7b"] = field(
        default="tiny",
        metadata={"help": "architecture of the LLM (default: %(default)s, for a CPU)"},
    )
    clips: int = field(default=2, metadata={"help": "in the batch (default: %(default)s)"})
    frames: int = field(default=16, metadata={"help": "of each clip (default: %(default)s)"})
    tokens: int = field(default=24, metadata={"help": "of each text (default: %(default)s)"})
    repeats: int = field(default=9, metadata={"help": "steps of each loop (default: %(default)s)"})
    ds_config: Path | None = field(
        default=None,
        metadata={
            "metavar": "TEMPLATE",
            "help": "run the engine under DeepSpeed with this template, ZeRO-2 on one process "
            "(default: plain)",
        },
    )
    cached: bool = field(
        default=False,
        metadata={"help": "also take steps from cached features; with --stage alignment"},
    )
    profile: bool = field(
        default=False, metadata={"help": "also list the five largest costs of a step"}
    )
    record: Path | None = field(
        default=None, metadata={"metavar": "FILE", "help": "also write the figures as JSON"}
    )


@dataclass(frozen=True)
class StepCase:
    """A prepared stage with a plan for one process, and one batch on the host."""

    run: RunConfig
    plan: Plan
    objective: StageObjective
    batch: SignBatch


def make_case(bench: StepBench) -> StepCase:
    """Return the experiment's stage with the bench's batch size; draws the batch."""
    run = load_run(bench.experiment, bench.stage, bench.overrides)
    train = dataclasses.replace(
        run.train, micro_batch_size=bench.clips, global_batch_size=bench.clips
    )
    run = dataclasses.replace(run, train=train)
    plan = make_plan(bench.clips * _STEPS, run.stage, train, 1)
    objective = StageObjective(bench.stage, run.loss)
    return StepCase(
        run, plan, objective, draw_batch(bench, run.data.frame_size, objective.language)
    )


def draw_batch(bench: StepBench, frame_size: int, language: bool) -> SignBatch:
    """Return clips of noise, all of one length: padding would cost both loops alike."""
    generator = torch.Generator().manual_seed(0)
    clips, frames = bench.clips, bench.frames
    size = (clips * frames, 3, frame_size, frame_size)
    vocabulary = llm_shape(bench.llm_shape).vocab_size
    shape = (clips, bench.tokens)
    tokens = torch.randint(3, vocabulary, shape, generator=generator)
    batch = SignBatch(
        ids=tuple(str(i) for i in range(clips)),
        frames=torch.randint(0, 256, size, dtype=torch.uint8, generator=generator),
        pose=torch.rand(clips, frames, NUM_JOINTS, 2, generator=generator),
        joint_mask=torch.ones(clips, frames, NUM_JOINTS, dtype=torch.bool),
        frame_lengths=torch.full((clips,), frames),
        weight=torch.ones(clips),
        tokens=tokens if language else None,
        text_lengths=torch.full((clips,), bench.tokens) if language else None,
    )
    return batch.pin_memory() if torch.cuda.is_available() else batch


def build_model(bench: StepBench, case: StepCase, device: torch.device) -> SignFuse:
    """Return the stage's model on ``device``, prepared as for training, of random weights."""
    torch.manual_seed(case.run.train.seed)
    config, language = case.run.model, None
    # Or say why not, at once.
    choose_for(config, case.run.train.precision, device, case.run.data.max_frames)
    if case.objective.language:
        with device:
            llm = _random_llm(bench, config.attention, getattr(torch, config.llm_dtype))
        language = LanguageModel(llm, list(range(3, 3 + _PROMPT_TOKENS)))
    model = SignFuse(config, language).to(device)
    prepare(model, bench.stage, case.run.loss)
    set_mode(model, bench.stage)
    return model.to(device)


def _random_llm(bench: StepBench, attention: str, dtype: torch.dtype) -> Any:
    config = llm_shape(bench.llm_shape)
    known = attention if attention in ("eager", "flash_attention_2") else "sdpa"
    return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=known).eval()


def copy_of(model: SignFuse) -> SignFuse:
    """Return the same modules with the same weights; what is frozen is shared, not copied.

    Two 7B models would not fit beside each other.
    """
    frozen = {id(p): p for p in model.parameters() if not p.requires_grad}
    copied: SignFuse = copy.deepcopy(model, frozen)
    return copied


@dataclass(frozen=True)
class Taken:
    """One step: its seconds of wall and of processor time, and those of each of its parts."""

    seconds: float
    processor: float
    parts: dict[str, float]
    peak_bytes: float


class BareLoop:
    """Forward, backward, clip, AdamW: what anybody would write, on the same modules."""

    def __init__(self, case: StepCase, model: SignFuse, device: torch.device) -> None:
        self._case, self._model, self._device = case, model, device
        train = case.run.train
        self._trained = [p for p in model.parameters() if p.requires_grad]
        self._optimizer = make_optimizer(model, case.run.stage.learning_rate, train.weight_decay)
        self._counts = case.objective.counts(case.batch)
        self._timeline: Timeline | None = None

    def divide(self) -> None:
        """From now on note the time of each component as well."""
        self._timeline = Timeline(self._device, components(self._model))

    def take(self, batch: SignBatch) -> Taken:
        """Take one step."""
        return timed(lambda: self._step(batch), self._timeline, self._device)

    def _step(self, batch: SignBatch) -> None:
        case, counts = self._case, self._counts
        bf16 = case.run.train.precision == "bf16"
        with torch.autocast(self._device.type, torch.bfloat16, enabled=bf16):
            sums = case.objective(self._model, batch.to(self._device))
        weights = case.objective.weights
        total = torch.stack([weights[n] * sums[n] / counts[n] for n in sums]).sum()
        torch.autograd.backward(total)
        if self._timeline is not None:
            self._timeline.mark(OPTIMIZER)
        torch.nn.utils.clip_grad_norm_(self._trained, case.run.train.gradient_clipping)
        self._optimizer.step()
        self._optimizer.zero_grad()


class EngineLoop:
    """A step of the engine as training takes it, its share of a log line included."""

    def __init__(self, case: StepCase, model: SignFuse, template: Path | None) -> None:
        _launch_alone(template)
        self._case, run = case, case.run
        self.accelerator, _ = processes.start(case.plan, run.train)
        optimizer = make_optimizer(model, run.stage.learning_rate, run.train.weight_decay)
        self.meter = meter_of(model, case.objective, run, self.accelerator.device)
        prepared, optimizer = self.accelerator.prepare(model, optimizer)
        self._step = Step(
            accelerator=self.accelerator,
            model=prepared,
            optimizer=optimizer,
            objective=case.objective,
            plan=case.plan,
            stage=run.stage,
            train=run.train,
        )
        self._timeline = Timeline(self.accelerator.device, self.meter.components)
        self._done = 0

    def take(self, batch: SignBatch) -> Taken:
        """Take one step; a log line's time is counted for as much as one of its steps."""
        names, device = tuple(self._case.objective.weights), self.accelerator.device
        interval = Interval(names, device, self.meter, self._timeline)
        taken = timed(lambda: self._take(batch, interval), self._timeline, device)
        line = timed(lambda: self._log(interval), None, device)
        share = 1 / self._case.run.train.log_steps
        return Taken(
            taken.seconds + share * line.seconds,
            taken.processor + share * line.processor,
            taken.parts,
            max(taken.peak_bytes, line.peak_bytes),
        )

    def _log(self, interval: Interval) -> None:
        means, _ = interval.close(1)
        self._case.objective.report(means)

    def _take(self, batch: SignBatch, interval: Interval) -> None:
        agreed = self._step.agreement.exchange([batch], False)
        interval.count(agreed, [batch])
        self._step.take(self._done, [batch], agreed.counts, interval)
        self._done += 1


def timed(step: Callable[[], None], timeline: Timeline | None, device: torch.device) -> Taken:
    """Run a step from an idle device to an idle device."""
    gpu = device.type == "cuda"
    if gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    if timeline is not None:
        timeline.restart()
    began, cpu = time.perf_counter(), time.process_time()
    step()
    if gpu:
        torch.cuda.synchronize(device)
    seconds, processor = time.perf_counter() - began, time.process_time() - cpu
    parts = {} if timeline is None else timeline.take()
    return Taken(seconds, processor, parts, torch.cuda.max_memory_allocated(device) if gpu else 0.0)


def _launch_alone(template: Path | None) -> None:
    """Set what a launcher sets for the only process of a run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ.update(
        {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "1",
            "LOCAL_WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "ACCELERATE_USE_DEEPSPEED": "false" if template is None else "true",
            "ACCELERATE_DEEPSPEED_CONFIG_FILE": "none" if template is None else str(template),
        }
    )


RATIO_GOAL = 1.05
_WARMUP = 2
_TOP = 5  # costs that a profile lists


@dataclass(frozen=True)
class StepFigures:
    """Steps of both loops, in pairs."""

    bare: Sequence[Taken]
    engine: Sequence[Taken]


def bench_step(bench: StepBench) -> str:
    """Measure and return the tables. Raises UserError for what cannot be measured."""
    if min(bench.clips, bench.frames, bench.tokens, bench.repeats) < 1:
        raise UserError("--clips, --frames, --tokens and --repeats must be at least 1")
    if bench.cached and bench.stage != "alignment":
        raise UserError(
            f"--cached: the encoders train in stage {bench.stage}, so their features cannot be "
            "computed before; give --stage alignment"
        )
    case = make_case(bench)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model(bench, case, device)
    bare = BareLoop(case, copy_of(model), device)
    engine = EngineLoop(case, model, bench.ds_config)
    whole = _in_turn(bench, case.batch, bare, engine)
    bare.divide()
    parts = _in_turn(bench, case.batch, bare, engine)
    lines = [*_headline(bench, case, device), "", *_totals(bench, whole), ""]
    lines += _components(case, parts, engine.meter)
    if bench.cached:
        lines += ["", _cached(bench, case, model, engine, whole)]
    costs = _profile(lambda: engine.take(case.batch), device) if bench.profile else []
    if bench.profile:
        lines += ["", f"the {_TOP} largest costs of an engine step (time of their own)"]
        lines += [str(cost) for cost in costs]
    if bench.record:
        write_text(bench.record, json.dumps(_record(bench, case, whole, parts, engine, costs)))
    engine.accelerator.end_training()
    return "\n".join(lines)


def _in_turn(bench: StepBench, batch: SignBatch, bare: BareLoop, engine: EngineLoop) -> StepFigures:
    for _ in range(_WARMUP):
        bare.take(batch)
        engine.take(batch)
    taken: list[tuple[Taken, Taken]] = []
    for number in range(bench.repeats):
        if number % 2:  # which goes first alternates
            second = engine.take(batch)
            taken.append((bare.take(batch), second))
        else:
            first = bare.take(batch)
            taken.append((first, engine.take(batch)))
    return StepFigures([b for b, _ in taken], [e for _, e in taken])


def _median(steps: Sequence[Taken]) -> float:
    return statistics.median(step.seconds for step in steps)


def _headline(bench: StepBench, case: StepCase, device: torch.device) -> list[str]:
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    model = case.run.model
    return [
        f"stage {bench.stage}, {bench.clips} clips of {bench.frames} frames of "
        f"{case.run.data.frame_size} pixels and {bench.tokens} tokens, {model.visual_backbone} of "
        f"width {model.visual_width}, LLM {bench.llm_shape}, {case.run.train.precision}",
        f"{'ZeRO-2' if bench.ds_config else 'plain'} engine, {device_name(device)}{threads}, torch "
        f"{torch.__version__}; medians of {bench.repeats} steps in turn",
    ]


def _totals(bench: StepBench, figures: StepFigures) -> list[str]:
    lines = [f"{'a step':24}{'bare':>12}{'engine':>12}{'ratio':>8}"]
    bare, engine = _median(figures.bare), _median(figures.engine)
    by_processor = not any(step.peak_bytes for step in figures.bare)
    lines.append(_compared("milliseconds", bare, engine, judged=not by_processor))
    if by_processor:
        own = statistics.median(step.processor for step in figures.bare)
        ours = statistics.median(step.processor for step in figures.engine)
        lines.append(_compared("milliseconds, processor", own, ours, judged=True))
    pairs = [e.seconds / b.seconds for b, e in zip(figures.bare, figures.engine, strict=True)]
    lines.append(f"{'ratios of pairs, median':24}{'':24}{statistics.median(pairs):8.3f}")
    frames = bench.clips * bench.frames
    lines.append(f"{'frames/s':24}{frames / bare:12.1f}{frames / engine:12.1f}")
    memory = [max(t.peak_bytes for t in steps) / 1e9 for steps in (figures.bare, figures.engine)]
    if memory[0]:
        lines.append(
            f"{'peak GB, both models held':24}{memory[0]:12.2f}{memory[1]:12.2f}"
            f"{memory[1] / memory[0]:8.3f}"
        )
    return lines


def _compared(name: str, bare: float, engine: float, judged: bool) -> str:
    """Return a row. On a CPU processor time is judged: it does not count other work there."""
    line = f"{name:24}{1000 * bare:12.1f}{1000 * engine:12.1f}{engine / bare:8.3f}"
    if not judged:
        return line
    met = "met" if engine / bare <= RATIO_GOAL else "missed"
    return f"{line}   goal {RATIO_GOAL}: {met}"


def _components(case: StepCase, figures: StepFigures, meter: Meter) -> list[str]:
    """Return a row for each component's forward and backward pass, with the engine's rates."""
    lines = [
        f"{'milliseconds of':24}{'bare':>12}{'engine':>12}{'ratio':>8}{'TFLOP/s':>10}{'MFU':>7}"
    ]
    cost = meter.cost(case.batch) if meter.cost is not None else {}
    for name in meter.components:
        for way in ("forward", "backward"):
            operations = getattr(cost[name], way) if name in cost else 0.0
            lines += _part(f"{name} {way}", figures, operations, meter.peak)
    return [*lines, *_part(OPTIMIZER, figures, 0.0, None), *_part(OTHER, figures, 0.0, None)]


def _part(name: str, figures: StepFigures, operations: float, peak: float | None) -> list[str]:
    bare, engine = (
        statistics.median(step.parts[name] for step in steps)
        for steps in (figures.bare, figures.engine)
    )
    if not bare or not engine:
        return []  # a backward pass of what is frozen
    line = f"{name:24}{1000 * bare:12.2f}{1000 * engine:12.2f}{engine / bare:8.3f}"
    if operations:
        line += f"{operations / engine / 1e12:10.3f}"
        line += f"{operations / engine / peak:7.1%}" if peak else f"{'-':>7}"
    return [line]


def _cached(
    bench: StepBench, case: StepCase, model: SignFuse, engine: EngineLoop, whole: StepFigures
) -> str:
    """Return how many times faster steps from the encoders' features are."""
    device = engine.accelerator.device
    bf16 = case.run.train.precision == "bf16"
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        streams = model.encode(case.batch.to(device))
    visual = None if model.visual is None else streams.visual.cpu()
    skeletal = None if model.skeletal is None else streams.skeletal.cpu()
    batch = case.batch.with_features(visual, skeletal)
    for _ in range(_WARMUP):
        engine.take(batch)
    cached = _median([engine.take(batch) for _ in range(bench.repeats)])
    computed = _median(whole.engine)
    return (
        f"from cached features: {1000 * cached:.1f} ms a step, "
        f"{computed / cached:.1f} times faster than from frames"
    )


@dataclass(frozen=True)
class Cost:
    """An operator's time of its own in one step, on the device that computes."""

    name: str
    share: float
    milliseconds: float
    calls: int

    def __str__(self) -> str:
        return f"  {self.share:6.1%}{self.milliseconds:10.2f} ms  {self.name}, {self.calls} calls"


def _profile(step: Callable[[], object], device: torch.device) -> list[Cost]:
    """Return the operators with the most time of their own, on the device that computes."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it reports that there is no GPU
    activities = [torch.profiler.ProfilerActivity.CPU]
    on_gpu = device.type == "cuda"
    if on_gpu:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        step()
    events = profile.key_averages()
    own = [(e.self_device_time_total if on_gpu else e.self_cpu_time_total, e) for e in events]
    total = sum(time for time, _ in own)
    largest = sorted(own, key=lambda pair: -pair[0])[:_TOP]
    return [Cost(event.key, time / total, time / 1000, event.count) for time, event in largest]


def _record(
    bench: StepBench,
    case: StepCase,
    whole: StepFigures,
    parts: StepFigures,
    engine: EngineLoop,
    costs: Sequence[Cost],
) -> dict[str, Any]:
    """Return the figures of the tables by name, times in seconds."""
    frames, meter = bench.clips * bench.frames, engine.meter
    loops = {
        name: {
            "seconds": _median(steps),
            "frames_per_second": frames / _median(steps),
            "peak_gb": max(step.peak_bytes for step in steps) / 1e9 or None,
        }
        for name, steps in (("bare", whole.bare), ("engine", whole.engine))
    }
    cost = meter.cost(case.batch) if meter.cost is not None else {}
    components: dict[str, dict[str, float]] = {}
    for name in meter.components:
        ways = ("forward", "backward")
        seconds = sum(
            statistics.median(step.parts[f"{name} {way}"] for step in parts.engine) for way in ways
        )
        components[name] = {"seconds": seconds}
        if name in cost and meter.peak and seconds:
            operations = sum(getattr(cost[name], way) for way in ways)
            components[name]["mfu"] = operations / seconds / meter.peak
    return {**loops, "parts": components, "largest": [dataclasses.asdict(c) for c in costs]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for, print the figures, return the exit status."""
    command = argparse.ArgumentParser(
        prog="python benchmarks/step.py",
        description="Take steps of the engine and of a bare loop in turn, over the same drawn "
        "batch, and say how they compare (goal: 1.05 at most), by component. The LLM has random "
        "weights; no data and no weights are read. How the model runs is said as in training: "
        "model.visual_chunk=16, model.visual_checkpoint=true, model.visual_compile=true, "
        "model.attention=sdpa, train.precision=bf16.",
        epilog="Example: OMP_NUM_THREADS=1 python benchmarks/step.py demo --stage alignment "
        "--cached. Figures: docs/benchmarks.md.",
    )
    add_run(command)
    add_options(command, StepBench)
    command.set_defaults(run=_step)
    options = parse(command, arguments)
    return answer(lambda: options.run(options))


def _step(options: argparse.Namespace) -> int:
    run_of = {"experiment": options.experiment, "overrides": options.overrides}
    print(bench_step(from_options(StepBench, options, **run_of)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
