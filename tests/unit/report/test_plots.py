"""A plot is laid out and drawn once, and is on a dark page what drawing it there would give."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from matplotlib.figure import Figure

from signfuse_dist.report import plots
from signfuse_dist.report.inputs import LogRow
from signfuse_dist.report.plots import DARK, LIGHT, Theme

ROWS = [
    LogRow(step, total=3.0 / step, language=2.0 / step, learning_rate=1e-4 * step)
    for step in range(1, 9)
]
SCORED = [*ROWS, LogRow(9, total=0.3, dev_language=0.4, learning_rate=1e-4)]
MAPS = {"a": np.eye(5, dtype=np.float32)}
PLOTS: dict[str, Callable[[Theme], Figure]] = {
    "losses": partial(plots.loss_curves, {"finetune": SCORED}),
    "rates": partial(plots.learning_rates, {"contrastive": ROWS}),
    "gate": partial(plots.gate_over_time, np.linspace(0, 1, 7, dtype=np.float32), seconds=2.0),
    "attention": partial(plots.attention_maps, MAPS, None),
    "bars": partial(plots.bucket_bars, ["1-5", "6-10"], [40.0, 2.5], "chrF"),
}


@pytest.mark.parametrize("name", PLOTS)
def test_the_dark_picture_is_the_one_that_is_drawn_in_its_colours(name: str) -> None:
    drawn: list[Theme] = []

    def draw(theme: Theme) -> Figure:
        drawn.append(theme)
        return PLOTS[name](theme)

    light, dark = plots.in_themes(draw)
    assert drawn == [LIGHT]
    assert light != dark
    assert dark == plots._png(PLOTS[name](DARK))
