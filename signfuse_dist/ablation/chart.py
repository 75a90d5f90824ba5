"""A table's chart: BLEU-4 of each row, with each seed and the deviation over seeds."""

from __future__ import annotations

import math
from io import BytesIO

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from signfuse_dist.ablation.collect import Results, mean_and_deviation
from signfuse_dist.ablation.findings import METRIC
from signfuse_dist.evaluation.plots import DPI, LIGHT, Theme


def draw(results: Results, theme: Theme = LIGHT) -> bytes:
    """Return a PNG: one bar a row from the top, the full row in another colour.

    A missing row has no bar and says so; the same results give the same bytes.
    """
    figure = Figure(figsize=(6.4, 1.0 + 0.38 * len(results.rows)), facecolor=theme.background,
                    layout="constrained")  # fmt: skip
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
        axes.barh(place, mean, height=0.62, color=colour, xerr=deviation, ecolor=theme.ink,
                  capsize=3)  # fmt: skip
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
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()
