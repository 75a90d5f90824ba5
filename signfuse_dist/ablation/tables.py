"""A table's files: ``table.md``, ``table.csv``, ``results.json`` and ``chart.png``.

Every row of the ablation is there, what is missing of it named. Values are means over the seeds,
with the deviation where there are several; rows are compared with the full one, and with what the
paper expects.

A verdict is about trainings, so seeds are what is drawn: two trainings whose first weights differ
by rounding are different trainings after a few hundred steps, and other sentences of one of them
say nothing of that. With fewer than :data:`MIN_SEEDS` seeds there is no verdict. Sentences are
drawn again where two given systems are compared (:mod:`signfuse_dist.evaluation.compare`).
"""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from signfuse_dist.ablation.results import (
    CHANNELS,
    Contrast,
    RowResult,
    TableResults,
)
from signfuse_dist.evaluation.protocols import BLEU_NAMES, WER
from signfuse_dist.files import write_bytes, write_json
from signfuse_dist.locks import held
from signfuse_dist.report.markup import escape_markdown
from signfuse_dist.report.plots import DPI, LIGHT, Theme

METRIC = "BLEU-4"
SIGNIFICANT = 0.05
MIN_SEEDS = 3
VERSION = 2  # 1 drew sentences, and had a p for one seed
METRICS = (*BLEU_NAMES, "ROUGE-L", "METEOR")
Verdict = Literal["agrees", "contradicts", "within noise", "no verdict", "not known"]
_NOTHING = "–"
_PATIENCE = 60.0  # seconds for another task that writes the table


def write_table(results: TableResults, folder: Path) -> str:
    """Write a table's files into ``folder``; return the Markdown, which is also printed."""
    findings = compare_rows(results)
    header = _header(results)
    rows = [_cells(results, row, findings[row.row.name]) for row in results.rows]
    text = _markdown(results, header, rows, findings)
    chart = draw(results)
    # Tasks that end together each write it, and its files belong together.
    with held(folder / ".table.lock", f"the table in {folder}", patience=_PATIENCE):
        write_bytes(folder / "table.md", text.encode("utf-8"))
        write_bytes(folder / "table.csv", _csv(header, rows))
        write_json(folder / "results.json", _json(results, findings))
        write_bytes(folder / "chart.png", chart)
    return text


@dataclass(frozen=True)
class Difference:
    """Mean BLEU-4 of one row less that of another, over the seeds of both.

    ``deviation`` is that of the difference between one training of each, None for one seed. ``p``
    is Welch's, two-sided, None for fewer than :data:`MIN_SEEDS` seeds.
    """

    value: float
    deviation: float | None
    p_value: float | None
    seeds: tuple[int, ...]

    @property
    def is_noise(self) -> bool:
        """Whether other seeds may turn it round; where that is not known, they may."""
        return self.p_value is None or self.p_value >= SIGNIFICANT

    @property
    def without_verdict(self) -> str | None:
        """Say why there is no verdict; None where there is one."""
        if self.p_value is not None:
            return None
        if len(self.seeds) == 1:
            return "one seed: no verdict"
        return f"{len(self.seeds)} seeds: no verdict below {MIN_SEEDS}"


@dataclass(frozen=True)
class RowFinding:
    """A row against the full one (None for that itself), and against the paper's expectation."""

    against_full: Difference | None
    expected: str
    verdict: Verdict | None
    against_expected: Difference | None


def compare_rows(results: TableResults) -> dict[str, RowFinding]:
    """Return the finding of each row by its name."""
    return {row.row.name: _compare_row(results, row) for row in results.rows}


def compare_two_rows(ours: RowResult, others: RowResult) -> Difference | None:
    """Compare two rows over the seeds that both have finished; None when there is none."""
    first, second = (
        {seed.seed: seed.scores[METRIC].value for seed in row.seeds} for row in (ours, others)
    )
    both = tuple(seed for seed in first if seed in second)
    if not both:
        return None
    mine, theirs = [first[seed] for seed in both], [second[seed] for seed in both]
    deviation = None
    if len(both) > 1:
        deviation = math.hypot(statistics.stdev(mine), statistics.stdev(theirs))
    p = welch_p(mine, theirs) if len(both) >= MIN_SEEDS else None
    return Difference(statistics.fmean(mine) - statistics.fmean(theirs), deviation, p, both)


def welch_p(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the two-sided p of Welch's t-test between two samples of two values or more.

    Not paired: rows of one seed share the order of the clips and, where the model is the same,
    its first weights, and both are without effect after some hundred steps. Samples that do not
    vary at all differ for certain, or not at all.
    """
    parts = [statistics.variance(values) / len(values) for values in (first, second)]
    apart = abs(statistics.fmean(first) - statistics.fmean(second))
    if not sum(parts):
        return float(apart == 0)
    freedom = sum(parts) ** 2 / sum(
        part**2 / (len(values) - 1) for part, values in zip(parts, (first, second), strict=True)
    )
    # Student's distribution in t = sqrt(freedom) tan(angle) is cos(angle)^(freedom - 1).
    angle = math.atan(apart / math.sqrt(sum(parts) * freedom))
    density = lambda x: np.cos(x) ** (freedom - 1)  # noqa: E731
    beyond, whole = np.linspace(angle, math.pi / 2, 4097), np.linspace(0, math.pi / 2, 4097)
    return float(_simpson(density(beyond), beyond) / _simpson(density(whole), whole))


def _simpson(values: NDArray[np.float64], at: NDArray[np.float64]) -> float:
    """Return the integral of values at an odd number of even places."""
    weights = np.full(len(at), 2.0)
    weights[1::2], weights[0], weights[-1] = 4.0, 1.0, 1.0
    return float((values * weights).sum() * (at[1] - at[0]) / 3)


def draw(results: TableResults, theme: Theme = LIGHT) -> bytes:
    """Return a PNG: one bar a row from the top, the full row in another colour.

    A missing row has no bar and says so; the same results give the same bytes.
    """
    figure = Figure(
        figsize=(6.4, 1.0 + 0.38 * len(results.rows)),
        facecolor=theme.background,
        layout="constrained",
    )
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_facecolor(theme.background)
    for place, row in enumerate(results.rows):
        values = row.values(METRIC)
        mean, deviation = mean_and_deviation(values)
        if math.isnan(mean):
            axes.text(0, place, " missing", color=theme.ink, va="center", fontsize=9)
            continue
        colour = theme.lines[1] if row is results.full else theme.lines[0]
        axes.barh(
            place, mean, height=0.62, color=colour, xerr=deviation, ecolor=theme.ink, capsize=3
        )
        if len(values) > 1:
            axes.plot(values, [place] * len(values), "o", color=theme.ink, markersize=3)
    axes.set_yticks(range(len(results.rows)))
    for label, row in zip(
        axes.set_yticklabels([row.row.name for row in results.rows]), results.rows, strict=True
    ):
        label.set_parse_math(False)
        label.set_fontweight("bold" if row is results.full else "normal")
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel(f"{METRIC} on {results.split}", color=theme.ink, parse_math=False)
    axes.set_title(results.ablation.title, color=theme.ink, fontsize=11, parse_math=False)
    axes.tick_params(colors=theme.ink, labelsize=9)
    axes.grid(True, axis="x", color=theme.grid, linewidth=0.5)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_color(theme.grid)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def describe(results: TableResults) -> str:
    """Return what the chart shows, for those who do not see it."""
    bars = [f"{row.row.name} {_spread(row.values(METRIC))}" for row in results.rows]
    return f"{METRIC} of each row on {results.split}: {'; '.join(bars)}"


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Return mean and sample deviation; of one value there is no deviation, of none no mean."""
    if not values:
        return math.nan, None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def _compare_row(results: TableResults, row: RowResult) -> RowFinding:
    full = None if row is results.full else compare_two_rows(row, results.full)
    expectation = row.row.expectation
    if expectation is None:
        return RowFinding(full, "", None, None)
    other = compare_two_rows(row, results.row(expectation.other))
    return RowFinding(full, str(expectation), _verdict(other, expectation.side), other)


def _verdict(difference: Difference | None, side: str) -> Verdict:
    if difference is None or math.isnan(difference.value):
        return "not known"
    if difference.p_value is None:
        return "no verdict"
    if difference.is_noise:
        return "within noise"
    return "agrees" if (difference.value > 0) == (side == "above") else "contradicts"


def _header(results: TableResults) -> list[str]:
    header = [
        "row",
        *_metrics(results),
        f"{METRIC} less {results.ablation.full}",
        "p",
        "trained parameters",
        "seconds a step",
        "seeds",
        "the paper expects",
        "found",
    ]
    if _has_contrasts(results):
        header += ["words only the picture shows", "words only the joints show"]
    if _has_near(results):
        header.append("attention within a step (by chance)")
    return header


def _metrics(results: TableResults) -> tuple[str, ...]:
    """Return the columns of scores; WER, where the preset has it, is what its corpus goes by."""
    scored = {name for row in results.rows for seed in row.seeds for name in seed.scores.scores}
    return (WER, *METRICS) if WER in scored else METRICS


def _has_near(results: TableResults) -> bool:
    return any(seed.near for row in results.rows for seed in row.seeds)


def _has_contrasts(results: TableResults) -> bool:
    return any(row.contrast("joints") is not None for row in results.rows)


def _cells(results: TableResults, row: RowResult, finding: RowFinding) -> list[str]:
    full = finding.against_full
    cells = [
        row.row.name,
        *(_spread(row.values(metric)) for metric in _metrics(results)),
        _apart(full),
        _p(full),
        _once(f"{seed.trained:,}" for seed in row.seeds),
        _step(row),
        _seeds(row),
        finding.expected or _NOTHING,
        _found(finding),
    ]
    if _has_contrasts(results):
        cells += [_contrast(row.contrast(channel)) for channel in CHANNELS]
    if _has_near(results):
        cells.append(_near(row))
    return cells


def _near(row: RowResult) -> str:
    """Return the mean over directions and seeds, beside what attention without an aim has."""
    found = [seed.near for seed in row.seeds if seed.near]
    if not found:
        return _NOTHING
    share = statistics.fmean(share for near in found for share in near.shares.values())
    return f"{share:.2f} ({statistics.fmean(near.chance for near in found):.2f})"


def _apart(difference: Difference | None) -> str:
    if difference is None:
        return _NOTHING
    value = f"{difference.value:+.2f}"
    return value if difference.deviation is None else f"{value} ± {difference.deviation:.2f}"


def _p(difference: Difference | None) -> str:
    if difference is None:
        return _NOTHING
    return difference.without_verdict or f"{difference.p_value:.3f}"


def _found(finding: RowFinding) -> str:
    """Say what was found of what the paper expects, with the difference that says it."""
    other = finding.against_expected
    if other is None:
        return finding.verdict or _NOTHING
    why = other.without_verdict
    verdict = why or f"{finding.verdict}"
    return f"{verdict} ({_apart(other)})" if why else f"{verdict} ({_apart(other)}, p {_p(other)})"


def _spread(values: Sequence[float]) -> str:
    mean, deviation = mean_and_deviation(values)
    if math.isnan(mean):
        return _NOTHING
    return f"{mean:.2f}" if deviation is None else f"{mean:.2f} ± {deviation:.2f}"


def _once(values: Iterable[str]) -> str:
    return " / ".join(dict.fromkeys(values)) or _NOTHING


def _step(row: RowResult) -> str:
    mean, _ = mean_and_deviation([seed.step_seconds for seed in row.seeds])
    return _NOTHING if math.isnan(mean) else f"{mean:.3g}"


def _seeds(row: RowResult) -> str:
    finished = ", ".join(str(seed.seed) for seed in row.seeds)
    if not row.missing:
        return finished
    missing = ", ".join(map(str, row.missing))
    return f"{finished}; missing {missing}" if finished else f"missing {missing}"


def _contrast(contrast: Contrast | None) -> str:
    if contrast is None or not contrast.named:
        return _NOTHING if contrast is None else f"none of {contrast.num} named"
    said = f"{contrast.right} of {contrast.named} named ({contrast.num} asked)"
    verdict = "told" if contrast.is_told else "guessed"
    return f"{verdict}: {said}, chance {contrast.chance:.0%}, p {contrast.p_value:.3f}"


def _markdown(
    results: TableResults,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    findings: dict[str, RowFinding],
) -> str:
    lines = [f"# {escape_markdown(results.ablation.title)}", "", *_about(results), ""]
    lines += [_line(header), _line("---" for _ in header)]
    lines += [_line(map(escape_markdown, row)) for row in rows]
    lines += ["", f"![{escape_markdown(describe(results))}](chart.png)", ""]
    lines += _notes(results, findings)
    return "\n".join(lines) + "\n"


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def _about(results: TableResults) -> list[str]:
    overrides = " ".join(results.overrides)
    return [
        f"{escape_markdown(results.experiment)} {escape_markdown(overrides)}".rstrip()
        + f", split {escape_markdown(results.split)}. {escape_markdown(results.ablation.paper)}"
    ]


def _notes(results: TableResults, findings: dict[str, RowFinding]) -> list[str]:
    shown = _metrics(results)
    signatures = {
        name: value.signature
        for row in results.rows
        for seed in row.seeds
        for name, value in seed.scores.scores.items()
        if name in shown
    }
    notes = [f"{name}: {signature}" for name, signature in signatures.items()]
    notes.append(
        f"p: Welch's t-test of {METRIC} over the seeds that both rows have finished, two-sided, "
        f"{MIN_SEEDS} seeds or more; from {SIGNIFICANT} a difference is noise between trainings. "
        "The deviation of a difference is that between one training of each row."
    )
    if _has_contrasts(results):
        notes.append(
            "Words one stream shows: right ones among the translations that name exactly "
            "one of the words that look alike to the other stream (binomial test against "
            "guessing, below 0.05 is told)."
        )
    notes += [
        f"{row.row.name}, seed {seed}: missing: {why}"
        for row in results.rows
        for seed, why in row.missing.items()
    ]
    worlds = {seed.world_size for row in results.rows for seed in row.seeds}
    if len(worlds) > 1:
        notes.append(
            f"rows were trained on different numbers of processes: {sorted(worlds)}; step "
            "times, and pairs of Eq. 21, do not compare"
        )
    against = [f'"{n}"' for n, finding in findings.items() if finding.verdict == "contradicts"]
    if against:
        notes.append(f"against the paper's expectation: {', '.join(against)}")
    return [f"- {escape_markdown(note)}" for note in notes]


def _csv(header: Sequence[str], rows: Sequence[Sequence[str]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode("utf-8")


def _json(results: TableResults, findings: dict[str, RowFinding]) -> dict[str, Any]:
    return {
        "version": VERSION,
        "ablation": results.ablation.name,
        "title": results.ablation.title,
        "paper": results.ablation.paper,
        "full": results.ablation.full,
        "experiment": results.experiment,
        "words": list(results.overrides),
        "split": results.split,
        "preset": results.preset.name,
        "rows": [_json_row(row, findings[row.row.name]) for row in results.rows],
    }


def _json_row(row: RowResult, finding: RowFinding) -> dict[str, Any]:
    full, expected = finding.against_full, finding.against_expected
    return {
        "name": row.row.name,
        "words": list(row.row.overrides),
        "seeds": [
            {
                "seed": seed.seed,
                "folder": str(seed.folder),
                "scores": {name: s._asdict() for name, s in seed.scores.scores.items()},
                "trained_parameters": seed.trained,
                "step_seconds": seed.step_seconds,
                "num_processes": seed.world_size,
                "contrasts": {name: vars(c) for name, c in seed.contrasts.items()},
            }
            for seed in row.seeds
        ],
        "missing": {str(seed): why for seed, why in row.missing.items()},
        "against_full": None if full is None else vars(full),
        "expected": finding.expected or None,
        "found": finding.verdict,
        "against_expected": None if expected is None else vars(expected),
    }
