"""A table's files: ``table.md``, ``table.csv``, ``results.json`` and ``chart.png``.

Every row of the ablation is there, what is missing of it named. Values are means over the seeds,
with the deviation where there are several.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from signfuse_dist.ablation.chart import draw
from signfuse_dist.ablation.collect import Results, RowResult, mean_and_deviation
from signfuse_dist.ablation.contrasts import CHANNELS, Contrast
from signfuse_dist.ablation.findings import METRIC, Finding, find
from signfuse_dist.evaluation.files import write_atomically, write_json
from signfuse_dist.evaluation.markup import escape_markdown
from signfuse_dist.evaluation.presets import BLEU_NAMES

VERSION = 1
METRICS = (*BLEU_NAMES, "ROUGE-L", "METEOR")
_NOTHING = "–"


def write_table(results: Results, folder: Path) -> str:
    """Write a table's files into ``folder``; return the Markdown, which is also printed."""
    findings = find(results)
    header = _header(results)
    rows = [_cells(results, row, findings[row.row.name]) for row in results.rows]
    text = _markdown(results, header, rows, findings)
    write_atomically(folder / "table.md", text.encode("utf-8"))
    write_atomically(folder / "table.csv", _csv(header, rows))
    write_json(folder / "results.json", _json(results, findings))
    write_atomically(folder / "chart.png", draw(results))
    return text


def _header(results: Results) -> list[str]:
    header = ["row", *METRICS, f"{METRIC} less {results.ablation.full}", "p", "trained parameters",
              "seconds a step", "seeds", "the paper expects", "found"]  # fmt: skip
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
    results: Results, header: Sequence[str], rows: Sequence[Sequence[str]],
    findings: dict[str, Finding],
) -> str:  # fmt: skip
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
    signatures = {name: found.signature for row in results.rows for seed in row.seeds
                  for name, found in seed.scores.scores.items() if name in METRICS}  # fmt: skip
    notes = [f"{name}: {signature}" for name, signature in signatures.items()]
    notes.append(f"p: sacrebleu's paired bootstrap of {METRIC}, two-sided, over the sentences of "
                 "the seeds that both rows have finished; from 0.05 a difference is noise. With "
                 "one seed it says nothing about other seeds.")  # fmt: skip
    if _has_contrasts(results):
        notes.append("Words one stream shows: right ones among the translations that name exactly "
                     "one of the words that look alike to the other stream (binomial test against "
                     "guessing, below 0.05 is told).")  # fmt: skip
    notes += [f"{row.row.name}, seed {seed}: missing: {why}"
              for row in results.rows for seed, why in row.missing.items()]  # fmt: skip
    worlds = {seed.world_size for row in results.rows for seed in row.seeds}
    if len(worlds) > 1:
        notes.append(f"rows were trained on different numbers of processes: {sorted(worlds)}; step "
                     "times, and pairs of Eq. 21, do not compare")  # fmt: skip
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
