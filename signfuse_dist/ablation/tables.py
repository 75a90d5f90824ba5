"""A table's files: ``table.md``, ``table.csv``, ``results.json`` and ``chart.png``.

Every row of the ablation is there, what is missing of it named. Values are means over the seeds,
with the deviation where there are several.
"""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from io import BytesIO
from operator import add
from pathlib import Path
from typing import Any, Literal

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from signfuse_dist.ablation.rows import Ablation, Row
from signfuse_dist.ablation.runs import Plan, PlannedAblation, PlannedRow, StageRun
from signfuse_dist.ablation.workers import scores_file
from signfuse_dist.errors import UserError
from signfuse_dist.evaluation.metrics import build_measures
from signfuse_dist.evaluation.protocols import BLEU_NAMES, Preset, find_preset, normalize
from signfuse_dist.evaluation.scores import Scores, read_split_scores
from signfuse_dist.evaluation.significance import Resampling, resample
from signfuse_dist.evaluation.translations import read_pairs
from signfuse_dist.files import write_bytes, write_json
from signfuse_dist.report.markup import escape_markdown
from signfuse_dist.report.plots import DPI, LIGHT, Theme
from signfuse_dist.run_folder import RunFolder
from signfuse_dist.synthetic.language import JOINTS_ONLY, PICTURE_ONLY, VERBS


@dataclass(frozen=True)
class SeedResult:
    """One seed of a row: ``step_seconds`` of the last stage, ``trained`` parameters in it."""

    seed: int
    folder: Path
    scores: Scores
    hypotheses: Mapping[str, str]
    references: Mapping[str, str]
    trained: int
    step_seconds: float
    world_size: int
    contrasts: Mapping[Channel, Contrast] = field(default_factory=dict)


@dataclass(frozen=True)
class RowResult:
    """A row: its finished seeds, and why each other seed is missing."""

    row: Row
    seeds: tuple[SeedResult, ...]
    missing: Mapping[int, str]

    def values(self, metric: str) -> list[float]:
        """Return a metric's value of each finished seed that has it."""
        return [s.scores[metric].value for s in self.seeds if metric in s.scores.scores]

    def contrast(self, channel: Channel) -> Contrast | None:
        """Return the counts of all seeds together; None for another corpus."""
        found = [seed.contrasts[channel] for seed in self.seeds if channel in seed.contrasts]
        return reduce(add, found) if found else None


@dataclass(frozen=True)
class Results:
    """A table's rows with their results."""

    ablation: Ablation
    experiment: str
    words: tuple[str, ...]
    split: str
    rows: tuple[RowResult, ...]
    preset: Preset

    def row(self, name: str) -> RowResult:
        """Return the row of that name."""
        return next(row for row in self.rows if row.row.name == name)

    @property
    def full(self) -> RowResult:
        """The row that the others are compared with."""
        return self.row(self.ablation.full)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Return mean and sample deviation; of one value there is no deviation, of none no mean."""
    if not values:
        return math.nan, None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def collect(plan: Plan) -> list[Results]:
    """Read the results of every table of a plan."""
    return [_collect(plan, planned) for planned in plan.ablations]


def _collect(plan: Plan, planned: PlannedAblation) -> Results:
    data = next(iter(planned.rows[0].runs.values())).run.data
    rows = tuple(_collect_row(plan, row) for row in planned.rows)
    preset = find_preset(data.metric_preset, data.bleu_tokenizer)
    return Results(planned.ablation, plan.experiment, plan.words, plan.split, rows, preset)


def _collect_row(plan: Plan, planned: PlannedRow) -> RowResult:
    seeds, missing = [], {}
    for seed, run in planned.runs.items():
        try:
            seeds.append(read_seed(run, seed, plan.split))
        except UserError as e:
            missing[seed] = str(e)
    return RowResult(planned.row, tuple(seeds), missing)


def read_seed(run: StageRun, seed: int, split: str) -> SeedResult:
    """Read what one last stage's run has left; raise :class:`UserError` saying what is missing."""
    for stage in run.chain():
        if not stage.is_done:
            raise UserError(f"stage {stage.run.stage.name} is not trained")
    folder = RunFolder(run.folder)
    path = scores_file(run, split)
    if not path.is_file():
        raise UserError(f"not evaluated on {split}")
    scores = read_split_scores(path).scores
    hypotheses, references = read_pairs(folder.evaluation(split).hypotheses, None)
    if len(hypotheses) != scores.num_samples:
        raise UserError(f"{path} is of other translations than those beside it: evaluate again")
    plan = _read_json(folder.plan)
    parts = _read_json(folder.parameters)
    is_drawn = run.run.data.corpus == CORPUS
    try:
        trained = sum(int(part["trained"]) for part in parts.values())
        batch, world = int(plan["global_batch_size"]), int(plan["world_size"])
    except (KeyError, TypeError, ValueError) as e:
        raise UserError(f"{run.folder}: plan.json or parameters.json is not a run's ({e!r})") from e
    return SeedResult(
        seed,
        run.folder,
        scores,
        hypotheses,
        references,
        trained,
        _step_seconds(folder.metrics, batch),
        world,
        measure(hypotheses, references) if is_drawn else {},
    )


def _step_seconds(log: Path, global_batch_size: int) -> float:
    """Return the median seconds of a step over the log's lines; the first holds the warming up."""
    try:
        lines = log.read_text(encoding="utf-8").splitlines()
        rates = [float(json.loads(line)["clips_per_second"]) for line in lines]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"{log}: cannot be read ({e!r})") from e
    rates = rates[1:] or rates
    if not rates or min(rates) <= 0:
        raise UserError(f"{log}: holds no speed")
    return global_batch_size / statistics.median(rates)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise UserError(f"{path}: cannot be read ({e})") from e
    if not isinstance(found, dict):
        raise UserError(f"{path}: not a JSON object")
    return found


CORPUS = "synthetic"
Channel = Literal["picture", "joints"]
CHANNELS: tuple[Channel, ...] = ("picture", "joints")
_GROUPS: Mapping[Channel, tuple[tuple[str, ...], ...]] = {
    "picture": PICTURE_ONLY,
    "joints": JOINTS_ONLY,
}
SIGNIFICANT_CONTRAST = 0.05


@dataclass(frozen=True)
class Contrast:
    """Counts over the references that hold a member of a group of one channel.

    ``num`` references, ``named`` of them translated with one member, ``right`` with the right one;
    ``chance`` is what guessing gets right of ``named``.
    """

    num: int
    named: int
    right: int
    chance: float

    @property
    def accuracy(self) -> float:
        """Share of right ones among those named; not a number when none is."""
        return self.right / self.named if self.named else math.nan

    @property
    def p_value(self) -> float:
        """Chance that guessing gets at least as many right: the binomial test, one-sided."""
        n, p = self.named, self.chance
        return sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(self.right, n + 1))

    @property
    def is_told(self) -> bool:
        """Whether guessing does not explain it."""
        return self.p_value < SIGNIFICANT_CONTRAST

    def __add__(self, other: Contrast) -> Contrast:
        """Join the counts of two sets of translations."""
        return Contrast(
            self.num + other.num, self.named + other.named, self.right + other.right, self.chance
        )


def measure(
    hypotheses: Mapping[str, str], references: Mapping[str, str]
) -> dict[Channel, Contrast]:
    """Return the contrast of each channel over translations and references of the same ids."""
    return {channel: _of_channel(channel, hypotheses, references) for channel in CHANNELS}


def _of_channel(
    channel: Channel, hypotheses: Mapping[str, str], references: Mapping[str, str]
) -> Contrast:
    num = named = right = 0
    groups = _GROUPS[channel]
    for name, reference in references.items():
        for group in groups:
            wanted = _members(reference, group)
            if not wanted:
                continue
            num += 1
            found = _members(hypotheses[name], group)
            named += len(found) == 1
            right += found == wanted
    return Contrast(num, named, right, 1 / len(groups[0]))


def _members(text: str, group: tuple[str, ...]) -> set[str]:
    """Return the members of a group that a text names, in any form."""
    words = set(text.split())
    return {
        member
        for member in group
        if words & set(VERBS[member].forms() if member in VERBS else (member,))
    }


METRIC = "BLEU-4"
SIGNIFICANT = 0.05
Verdict = Literal["agrees", "contradicts", "within noise", "not known"]


@dataclass(frozen=True)
class Difference:
    """BLEU-4 of one row less that of another, over the seeds of both; p is two-sided."""

    value: float
    p_value: float
    seeds: tuple[int, ...]

    @property
    def is_noise(self) -> bool:
        """Whether another choice of sentences may turn it round."""
        return self.p_value >= SIGNIFICANT


@dataclass(frozen=True)
class Finding:
    """A row against the full one (None for that itself), and against the paper's expectation."""

    against_full: Difference | None
    expected: str
    verdict: Verdict | None
    against_expected: Difference | None


def find(results: Results) -> dict[str, Finding]:
    """Return the finding of each row by its name."""
    return {row.row.name: _find(results, row) for row in results.rows}


def _find(results: Results, row: RowResult) -> Finding:
    full = None if row is results.full else difference(row, results.full, results.preset)
    expectation = row.row.expectation
    if expectation is None:
        return Finding(full, "", None, None)
    other = difference(row, results.row(expectation.other), results.preset)
    return Finding(full, str(expectation), _verdict(other, expectation.side), other)


def difference(ours: RowResult, others: RowResult, preset: Preset) -> Difference | None:
    """Compare two rows over the seeds that both have finished; None when there is none."""
    first = {seed.seed: seed for seed in ours.seeds}
    second = {seed.seed: seed for seed in others.seeds}
    both = tuple(seed for seed in first if seed in second)
    if not both:
        return None
    texts: tuple[list[str], list[str], list[str]] = ([], [], [])
    for seed in both:
        for name, reference in sorted(first[seed].references.items()):
            texts[0].append(first[seed].hypotheses[name])
            texts[1].append(second[seed].hypotheses[name])
            texts[2].append(reference)
    values = [
        mean_and_deviation([found[seed].scores[METRIC].value for seed in both])[0]
        for found in (first, second)
    ]
    value = values[0] - values[1]
    return Difference(value, p_value(*texts, preset), both)


def p_value(
    ours: Sequence[str], others: Sequence[str], references: Sequence[str], preset: Preset
) -> float:
    """Return p of a difference in BLEU-4: sacrebleu's paired bootstrap, two-sided."""
    theirs, mine, yours = (
        [normalize(text, preset) for text in texts] for texts in (references, ours, others)
    )
    (_, found), _ = resample(
        build_measures(preset, None)[METRIC], [yours, mine], theirs, Resampling()
    )
    assert found.p_value is not None
    return found.p_value


def _verdict(found: Difference | None, side: str) -> Verdict:
    if found is None or math.isnan(found.value):
        return "not known"
    if found.is_noise:
        return "within noise"
    return "agrees" if (found.value > 0) == (side == "above") else "contradicts"


def draw(results: Results, theme: Theme = LIGHT) -> bytes:
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
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


VERSION = 1
METRICS = (*BLEU_NAMES, "ROUGE-L", "METEOR")
_NOTHING = "–"


def write_table(results: Results, folder: Path) -> str:
    """Write a table's files into ``folder``; return the Markdown, which is also printed."""
    findings = find(results)
    header = _header(results)
    rows = [_cells(results, row, findings[row.row.name]) for row in results.rows]
    text = _markdown(results, header, rows, findings)
    write_bytes(folder / "table.md", text.encode("utf-8"))
    write_bytes(folder / "table.csv", _csv(header, rows))
    write_json(folder / "results.json", _json(results, findings))
    write_bytes(folder / "chart.png", draw(results))
    return text


def _header(results: Results) -> list[str]:
    header = [
        "row",
        *METRICS,
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
    return header


def _has_contrasts(results: Results) -> bool:
    return any(row.contrast("joints") is not None for row in results.rows)


def _cells(results: Results, row: RowResult, finding: Finding) -> list[str]:
    full = finding.against_full
    found: str = finding.verdict or _NOTHING
    if (other := finding.against_expected) is not None:
        found += f" ({other.value:+.2f}, p {other.p_value:.3f})"
    cells = [
        row.row.name,
        *(_spread(row.values(metric)) for metric in METRICS),
        f"{full.value:+.2f}" if full else _NOTHING,
        f"{full.p_value:.3f}" if full else _NOTHING,
        _once(f"{seed.trained:,}" for seed in row.seeds),
        _step(row),
        _seeds(row),
        finding.expected or _NOTHING,
        found,
    ]
    if _has_contrasts(results):
        cells += [_contrast(row.contrast(channel)) for channel in CHANNELS]
    return cells


def _spread(values: Sequence[float]) -> str:
    mean, deviation = mean_and_deviation(values)
    if math.isnan(mean):
        return _NOTHING
    return f"{mean:.2f}" if deviation is None else f"{mean:.2f} ± {deviation:.2f}"


def _once(values: Any) -> str:
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
    results: Results,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    findings: dict[str, Finding],
) -> str:
    lines = [f"# {escape_markdown(results.ablation.title)}", "", *_about(results), ""]
    lines += [_line(header), _line("---" for _ in header)]
    lines += [_line(map(escape_markdown, row)) for row in rows]
    lines += ["", f"![{escape_markdown(describe(results))}](chart.png)", ""]
    lines += _notes(results, findings)
    return "\n".join(lines) + "\n"


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def _about(results: Results) -> list[str]:
    words = " ".join(results.words)
    return [
        f"{escape_markdown(results.experiment)} {escape_markdown(words)}".rstrip()
        + f", split {escape_markdown(results.split)}. {escape_markdown(results.ablation.paper)}"
    ]


def describe(results: Results) -> str:
    """Return what the chart shows, for those who do not see it."""
    bars = [f"{row.row.name} {_spread(row.values(METRIC))}" for row in results.rows]
    return f"{METRIC} of each row on {results.split}: {'; '.join(bars)}"


def _notes(results: Results, findings: dict[str, Finding]) -> list[str]:
    signatures = {
        name: found.signature
        for row in results.rows
        for seed in row.seeds
        for name, found in seed.scores.scores.items()
        if name in METRICS
    }
    notes = [f"{name}: {signature}" for name, signature in signatures.items()]
    notes.append(
        f"p: sacrebleu's paired bootstrap of {METRIC}, two-sided, over the sentences of "
        "the seeds that both rows have finished; from 0.05 a difference is noise. With "
        "one seed it says nothing about other seeds."
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


def _json(results: Results, findings: dict[str, Finding]) -> dict[str, Any]:
    return {
        "version": VERSION,
        "ablation": results.ablation.name,
        "title": results.ablation.title,
        "paper": results.ablation.paper,
        "full": results.ablation.full,
        "experiment": results.experiment,
        "words": list(results.words),
        "split": results.split,
        "preset": results.preset.name,
        "rows": [_json_row(row, findings[row.row.name]) for row in results.rows],
    }


def _json_row(row: RowResult, finding: Finding) -> dict[str, Any]:
    full, expected = finding.against_full, finding.against_expected
    return {
        "name": row.row.name,
        "words": list(row.row.words),
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
