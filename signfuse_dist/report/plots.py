"""The plots of a report, for light and for dark pages.

Each is laid out and drawn once, in the colours of a light page; then its colours are changed, and
it is written again. A plot's function returns the figure, :func:`in_themes` its two pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, to_hex, to_rgba
from matplotlib.figure import Figure as MatplotlibFigure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from numpy.typing import NDArray

from signfuse_dist.garbage import uncollected
from signfuse_dist.report.figures import Figure, Table

if TYPE_CHECKING:
    from signfuse_dist.report.inputs import LogRow

DPI = 110


@dataclass(frozen=True)
class Theme:
    """Colours of a page; ``lines`` stay apart for colour-blind eyes and without colour by dash."""

    background: str
    ink: str
    grid: str
    lines: tuple[str, ...]

    @property
    def colours(self) -> tuple[str, ...]:
        """All of them, in an order that is the same for each theme."""
        return (self.background, self.ink, self.grid, *self.lines)


LIGHT = Theme("#ffffff", "#1b1b1f", "#c9c9d1", ("#0b5cad", "#b3470b", "#4b7a14", "#8a2a8f"))
DARK = Theme("#17171b", "#ececf1", "#44444d", ("#7db8f5", "#f2a06b", "#a9d36c", "#dd97e0"))
_DASHES = ("-", "--", "-.", ":")
# The names of the losses in the logs, in the order of Eq. 23.
LOSSES = ("total", "language", "alignment", "contrastive")
# The scores of the development split, and the loss that each is beside.
DEV_SCORES = {"dev_language": "language", "dev_contrastive": "contrastive"}

Rows = Sequence["LogRow"]
T = TypeVar("T")


def plot(
    name: str,
    draw: Callable[[Theme], MatplotlibFigure],
    alt: str,
    caption: str,
    table: Table | None,
) -> Figure:
    """Return a figure of a report, as :func:`in_themes` makes its pictures."""
    return Figure(name, *in_themes(draw), alt, caption, table)


def in_themes(draw: Callable[[Theme], MatplotlibFigure]) -> tuple[bytes, bytes]:
    """Return a plot as PNG, for light and for dark pages."""
    with uncollected():  # parts of a figure know each other, and are looked through in vain
        figure = draw(LIGHT)
        light = _png(figure)
        figure.set_layout_engine("none")  # where everything stands is known, and stays
        _recolour(figure, LIGHT, DARK)
        return light, _png(figure)


def _recolour(figure: MatplotlibFigure, before: Theme, after: Theme) -> None:
    """Give everything in a figure that has a colour of one theme that of another."""
    other = dict(zip(before.colours, after.colours, strict=True))

    def change(artist: Artist, *names: str) -> None:
        for name in names:
            colour = getattr(artist, f"get_{name}")()
            if to_rgba(colour)[3] and to_hex(colour) in other:  # 0: it is not drawn
                getattr(artist, f"set_{name}")(other[to_hex(colour)])

    for artist in figure.findobj():
        if isinstance(artist, Line2D):
            change(artist, "color", "markerfacecolor", "markeredgecolor")
        elif isinstance(artist, Text):
            change(artist, "color")
        elif isinstance(artist, Patch):
            change(artist, "facecolor", "edgecolor")
        elif isinstance(artist, AxesImage):
            artist.set_cmap(_shades(after))


def thinned(rows: Sequence[T], most: int) -> list[T]:
    """Return at most ``most`` rows, evenly spread, the first and the last among them."""
    if len(rows) <= most:
        return list(rows)
    return [rows[round(i * (len(rows) - 1) / (most - 1))] for i in range(most)]


def loss_curves(stages: Mapping[str, Rows], theme: Theme) -> MatplotlibFigure:
    """Draw one panel a stage: each loss that its log holds against the optimizer step.

    Scores of the development split are diamonds in the colour of their loss.
    """
    figure, panels = _panels(stages, theme)
    for axes, rows in zip(panels, stages.values(), strict=True):
        for i, name in enumerate(LOSSES):
            if any(row.value(name) is not None for row in rows):
                _line(axes, rows, name, theme, i)
        for name, loss in DEV_SCORES.items():
            if scored := [row for row in rows if row.value(name) is not None]:
                _diamonds(axes, scored, name, theme.lines[LOSSES.index(loss)])
        axes.set_ylabel("loss", color=theme.ink)
        axes.set_xlabel("optimizer step", color=theme.ink)
        _legend(axes, theme)
    return figure


def learning_rates(stages: Mapping[str, Rows], theme: Theme) -> MatplotlibFigure:
    """Draw one panel a stage: the learning rate against the optimizer step."""
    figure, panels = _panels(stages, theme)
    for axes, rows in zip(panels, stages.values(), strict=True):
        _line(axes, rows, "learning_rate", theme, 0)
        axes.set_ylabel("learning rate", color=theme.ink)
        axes.set_xlabel("optimizer step", color=theme.ink)
        axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    return figure


def gate_over_time(
    gate: NDArray[np.float32], theme: Theme, seconds: float | None = None
) -> MatplotlibFigure:
    """Draw the mean gate of Eq. 10, float ``[steps]`` in 0..1, over the steps of a clip.

    ``seconds`` is the clip's length, None where it is not known.
    """
    figure, (axes,) = _panels({"": ()}, theme, height=1.7)
    axes.axhline(0.5, color=theme.grid, linewidth=1)
    marker = "o" if len(gate) < 3 else ""
    times = step_times(len(gate), seconds)
    axes.plot(times, gate, color=theme.lines[0], linewidth=1.8, marker=marker)
    axes.set_ylim(0.0, 1.0)
    axes.set_yticks([0.0, 0.5, 1.0], labels=["0 joints", "0.5", "1 picture"])
    axes.set_xlabel(_time_label(seconds), color=theme.ink)
    return figure


def attention_maps(
    maps: Mapping[str, NDArray[np.float32]], seconds: float | None, theme: Theme
) -> MatplotlibFigure:
    """Draw one panel a direction: weights ``[query steps, key steps]`` over the clip's time.

    A panel's title is its key in ``maps``. Colours go from the page's own at 0
    to a line's at the panel's strongest weight.
    """
    figure, panels = _panels(maps, theme, height=3.6)
    for axes, weights in zip(panels, maps.values(), strict=True):
        end = step_times(len(weights) + 1, seconds and seconds * (1 + 1 / len(weights)))[-1]
        axes.imshow(
            weights,
            cmap=_shades(theme),
            vmin=0.0,
            origin="lower",
            aspect="auto",
            extent=(0.0, float(end), 0.0, float(end)),
            interpolation="nearest",
        )
        axes.grid(False)
        axes.set_xlabel(f"attended to: {_time_label(seconds)}", color=theme.ink)
        axes.set_ylabel(f"asked from: {_time_label(seconds)}", color=theme.ink)
    return figure


def bucket_bars(
    names: Sequence[str], values: Sequence[float], axis: str, theme: Theme
) -> MatplotlibFigure:
    """Draw a bar a bucket, its value written above it."""
    figure, (axes,) = _panels({"": ()}, theme, height=2.4)
    bars = axes.bar(range(len(names)), values, color=theme.lines[0], width=0.6)
    axes.bar_label(bars, labels=[f"{value:.1f}" for value in values], color=theme.ink, fontsize=9)
    axes.set_xticks(range(len(names)), labels=list(names))
    axes.set_ylim(0.0, max([*values, 1.0]) * 1.15)
    axes.set_ylabel(axis, color=theme.ink)
    axes.grid(False, axis="x")
    axes.set_axisbelow(True)
    return figure


def _shades(theme: Theme) -> LinearSegmentedColormap:
    return LinearSegmentedColormap.from_list("page", [theme.background, theme.lines[0]])


def step_times(num_steps: int, seconds: float | None) -> NDArray[np.float64]:
    """Return where each step begins, in seconds, or its number where the time is not known."""
    return np.arange(num_steps) * (1.0 if seconds is None else seconds / num_steps)


def _time_label(seconds: float | None) -> str:
    return "step of the encoder" if seconds is None else "seconds"


def _panels(
    titles: Mapping[str, object], theme: Theme, height: float = 2.9
) -> tuple[MatplotlibFigure, list[Axes]]:
    count = len(titles)
    width = 6.4 if count == 1 else 4.2 * count
    figure = MatplotlibFigure(
        figsize=(width, height), dpi=DPI, facecolor=theme.background, layout="constrained"
    )
    panels = [figure.add_subplot(1, count, i + 1) for i in range(count)]
    for axes, title in zip(panels, titles, strict=True):
        axes.set_facecolor(theme.background)
        axes.set_title(title, color=theme.ink, fontsize=11, parse_math=False)  # a name, no formula
        axes.tick_params(colors=theme.ink, labelsize=9)
        axes.yaxis.offsetText.set_color(theme.ink)
        axes.grid(True, color=theme.grid, linewidth=0.5)
        for spine in axes.spines.values():
            spine.set_color(theme.grid)
    return figure, panels


def _line(axes: Axes, rows: Rows, name: str, theme: Theme, order: int) -> None:
    """Draw one value of the log; a step whose value is missing or not finite leaves a gap."""
    steps = [row.step for row in rows]
    values = [_finite(row.value(name)) for row in rows]
    marker = "o" if len(steps) < 3 else ""
    axes.plot(
        steps,
        values,
        label=name,
        color=theme.lines[order],
        linestyle=_DASHES[order],
        linewidth=1.8,
        marker=marker,
        markersize=4,
    )


def _diamonds(axes: Axes, rows: Rows, name: str, colour: str) -> None:
    """Draw one value where it was taken; one that is not finite is left out."""
    axes.plot(
        [row.step for row in rows],
        [_finite(row.value(name)) for row in rows],
        label=name,
        color=colour,
        linestyle="none",
        marker="D",
        markersize=5,
    )


def _finite(value: float | None) -> float:
    return math.nan if value is None or not math.isfinite(value) else value


def _legend(axes: Axes, theme: Theme) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(
            facecolor=theme.background, edgecolor=theme.grid, labelcolor=theme.ink, fontsize=9
        )


def _png(figure: MatplotlibFigure) -> bytes:
    """Draw a figure, once: `savefig` would first draw it into nothing."""
    buffer = BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()
