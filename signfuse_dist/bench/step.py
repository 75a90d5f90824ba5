"""A training step of the engine against the same modules in a bare PyTorch loop.

Both loops take the same batch in turn, so that what slows the machine slows both. First neither the
bare loop nor its modules are watched, and the engine is as in training; then both are, for the time
of each component.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from signfuse_dist.batch import SignBatch
from signfuse_dist.bench.step_case import Case, StepBench, build_model, copy_of, make_case
from signfuse_dist.bench.step_loops import BareLoop, EngineLoop, Taken
from signfuse_dist.engine.hardware import device_name
from signfuse_dist.engine.meter import Meter
from signfuse_dist.engine.timeline import OPTIMIZER, OTHER
from signfuse_dist.errors import UserError
from signfuse_dist.model.signfuse import SignFuse

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
        raise UserError("bench step: every number must be at least 1")
    if bench.cached and bench.stage != "alignment":
        raise UserError(
            f"--cached: the encoders train in stage {bench.stage}, so their features cannot be "
            "computed before; give --stage alignment"
        )
    case = make_case(bench)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model(bench, case, device)
    bare = BareLoop(case, copy_of(model), device)
    engine = EngineLoop(case, model, bench.template)
    whole = _in_turn(bench, case.batch, bare, engine)
    bare.divide()
    parts = _in_turn(bench, case.batch, bare, engine)
    lines = [*_headline(bench, case, device), "", *_totals(bench, whole), ""]
    lines += _components(case, parts, engine.meter)
    if bench.cached:
        lines += ["", _cached(bench, case, model, engine, whole)]
    if bench.profile:
        lines += ["", *_profile(lambda: engine.take(case.batch), device)]
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


def _headline(bench: StepBench, case: Case, device: torch.device) -> list[str]:
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    model = case.run.model
    return [
        f"stage {bench.stage}, {bench.clips} clips of {bench.frames} frames of "
        f"{case.run.data.frame_size} pixels and {bench.tokens} tokens, {model.visual_backbone} of "
        f"width {model.visual_width}, LLM {bench.llm_shape}, {case.run.train.precision}",
        f"{'ZeRO-2' if bench.template else 'plain'} engine, {device_name(device)}{threads}, torch "
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


def _components(case: Case, figures: StepFigures, meter: Meter) -> list[str]:
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
    bench: StepBench, case: Case, model: SignFuse, engine: EngineLoop, whole: StepFigures
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


def _profile(step: Callable[[], object], device: torch.device) -> list[str]:
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
    return [f"the {_TOP} largest costs of an engine step (time of their own)"] + [
        f"  {time / total:6.1%}{time / 1000:10.2f} ms  {event.key}, {event.count} calls"
        for time, event in largest
    ]
