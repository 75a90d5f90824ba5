"""Samples in pictures: key frames with skeletons, the gate over time, cross-attention maps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from signfuse_dist.evaluation import plots
from signfuse_dist.evaluation.figures import Figure, Table, plot, thinned
from signfuse_dist.evaluation.key_frames import PackedSplit, Sheet
from signfuse_dist.evaluation.run_folder import RunFolder
from signfuse_dist.evaluation.samples import Sample

TABLE_STEPS = 16  # rows of the tables of what a plot over time draws
_ASKED = {
    "visual_from_skeletal": "pictures ask, joints answer",
    "skeletal_from_visual": "joints ask, pictures answer",
}
Maps = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Detail:
    """One sample with its pictures."""

    sample: Sample
    figures: tuple[Figure, ...]


def sample_details(
    run: RunFolder, chosen: list[Sample], packed: PackedSplit | None
) -> list[Detail]:
    """Return the samples with the pictures that can be drawn; the others are noted in the run."""
    if not chosen:
        return []
    ids = [sample.id for sample in chosen]
    gates, maps = run.gates(ids), run.attention(ids)
    details = []
    for number, sample in enumerate(chosen, start=1):
        sheet = _sheet(run, sample, packed)
        seconds = sheet.seconds if sheet else None
        figures = [_frames_figure(number, sample, sheet)] if sheet else []
        gate = gates.get(sample.id)
        if gate is not None and len(gate):
            figures.append(_gate_figure(number, sample, gate, seconds))
        if sample.id in maps:
            figures.append(_attention_figure(number, sample, maps[sample.id], seconds))
        details.append(Detail(sample, tuple(figures)))
    return details


def _sheet(run: RunFolder, sample: Sample, packed: PackedSplit | None) -> Sheet | None:
    if packed is None:
        return None
    what = f"key frames of {sample.id!r}"
    return run.attempt(what, partial(packed.key_frames, sample.id), None)


def _frames_figure(number: int, sample: Sample, sheet: Sheet) -> Figure:
    caption = f"Key frames with the joints that the model saw, in order of time: {sheet.about}."
    alt = f"A signer in frames of the clip {sample.id}, its skeleton drawn over: {sheet.about}."
    return Figure(f"sample-{number:02d}-frames", sheet.jpeg, None, alt, caption)


def _gate_figure(
    number: int, sample: Sample, gate: NDArray[np.float32], seconds: float | None
) -> Figure:
    span = f"mean {gate.mean():.2f}, from {gate.min():.2f} to {gate.max():.2f}"
    times = plots.step_times(len(gate), seconds)
    rows = [(_time(t), f"{g:.3f}") for t, g in zip(times, gate, strict=True)]
    return plot(
        f"sample-{number:02d}-gate",
        partial(plots.gate_over_time, gate, seconds=seconds),
        f"Mean gate over {len(gate)} steps of the clip {sample.id}: {span}.",
        "Mean gate of the first fusion layer (Eq. 10) over time: 1 takes the picture's queries "
        f"alone, 0 the joints' alone. {span[0].upper()}{span[1:]}.",
        Table(
            f"The gate of {sample.id} over time", (_unit(seconds), "gate"),
            tuple(thinned(rows, TABLE_STEPS)),
        ),
    )  # fmt: skip


def _attention_figure(number: int, sample: Sample, maps: Maps, seconds: float | None) -> Figure:
    named = {_ASKED[way]: weights for way, weights in maps.items()}
    num_steps = len(next(iter(maps.values())))
    times = plots.step_times(num_steps, seconds)
    columns = []
    for weights in named.values():
        columns.append([f"{_time(times[k])} ({w:.2f})" for k, w in _strongest(weights)])
    rows = [(_time(t), *cells) for t, *cells in zip(times, *columns, strict=True)]
    words = "; ".join(f"{name}: {_evenness(weights)}" for name, weights in named.items())
    return plot(
        f"sample-{number:02d}-attention",
        partial(plots.attention_maps, named, seconds),
        f"Cross-attention of the clip {sample.id}, {num_steps} by {num_steps} steps. {words}.",
        "Cross-attention of the first fusion layer (Eq. 8-9), averaged over heads: where each step "
        f"of one stream looks in the other; the page's colour is 0, each row adds up to 1. "
        f"{words}.",
        Table(
            f"Where {sample.id} looks most, with the weight there",
            (f"asked from, {_unit(seconds)}", *named), tuple(thinned(rows, TABLE_STEPS)),
        ),
    )  # fmt: skip


def _strongest(weights: NDArray[np.float32]) -> list[tuple[int, float]]:
    """Return the place and the weight of each query's strongest key."""
    places = weights.argmax(axis=1)
    return [(int(k), float(row[k])) for k, row in zip(places, weights, strict=True)]


def _evenness(weights: NDArray[np.float32]) -> str:
    strongest = weights.max(axis=1)
    return (
        f"strongest weight {strongest.mean():.2f} on average and {strongest.max():.2f} at most, "
        f"{1 / weights.shape[1]:.2f} would be even"
    )


def _time(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _unit(seconds: float | None) -> str:
    return "step of the encoder" if seconds is None else "seconds"
