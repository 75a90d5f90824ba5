"""Published results beside ours, and where their protocols differ.

``published.yaml`` holds gloss-free results as their own papers print them, and beside them what
Table 3 of the SignFuse paper prints for the same systems, which differs in seven of ten figures.
Here results are compared with the original papers' figures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from signfuse_dist.evaluation.protocols import PRESETS, Preset, find_preset
from signfuse_dist.evaluation.scores import Scores

UNKNOWN_PROTOCOL = "protocol not known: tokens, case, punctuation and ROUGE-L may differ"
_PAPER = {
    "method": str, "title": str, "year": int, "venue": str, "url": str, "gloss_free": bool,
}  # fmt: skip
_RESULT = {
    "corpus": str, "split": str, "setting": str, "bleu4": float, "rouge_l": float,
    "extra_data": str, "preset": str, "printed_in_signfuse": dict,
}  # fmt: skip
_NEVER_NULL = {"method", "gloss_free", "corpus", "split", "bleu4"}


@dataclass(frozen=True)
class Printed:
    """What Table 3 of the SignFuse paper prints for a system."""

    bleu4: float
    rouge_l: float


@dataclass(frozen=True)
class Published:
    """One result of one paper. None is not known here; ``published.yaml`` says what fields mean."""

    method: str
    title: str | None
    year: int | None
    venue: str | None
    url: str | None
    gloss_free: bool
    corpus: str
    split: str
    setting: str | None
    bleu4: float
    rouge_l: float | None
    extra_data: str | None
    preset: str | None
    printed_in_signfuse: Printed | None

    @property
    def name(self) -> str:
        """The method, with what tells two results of one paper apart."""
        return f"{self.method} ({self.setting})" if self.setting else self.method

    @property
    def appeared(self) -> str:
        """Venue and year in words, ``–`` where they are not known."""
        return " ".join(str(part) for part in (self.venue, self.year) if part) or "–"


@dataclass(frozen=True)
class Row:
    """A line of a table of results; ``differences`` says why it cannot be compared as it is."""

    name: str
    appeared: str
    bleu4: float | None
    rouge_l: float | None
    ours: bool
    differences: tuple[str, ...]
    url: str | None = None


def read_published(text: str) -> list[Published]:
    """Return the results of a file like ``published.yaml``.

    Raises ValueError naming the record with another set of keys, a value of a wrong kind, a figure
    outside 0..100, an unknown preset, or a result that is there twice.
    """
    found: list[Published] = []
    for paper in yaml.safe_load(text):
        facts = {key: value for key, value in paper.items() if key != "results"}
        _check(facts, _PAPER, str(paper.get("method")))
        for result in paper["results"]:
            _check(result, _RESULT, f"{paper['method']}, {result.get('corpus')}")
            printed = result["printed_in_signfuse"]
            found.append(
                Published(
                    **facts,
                    **{**result, "printed_in_signfuse": printed and Printed(**printed)},
                )
            )
    keys = [(row.name, row.corpus, row.split) for row in found]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"{key} is there twice")
    return found


def _check(record: Mapping[str, Any], kinds: Mapping[str, type], where: str) -> None:
    if set(record) != set(kinds):
        raise ValueError(f"{where}: its keys are not {sorted(kinds)}")
    for key, kind in kinds.items():
        value = record[key]
        if value is None and key not in _NEVER_NULL:
            continue
        if not isinstance(value, kind):
            raise ValueError(f"{where}: {key} is {value!r}")
        if isinstance(value, float) and not 0 <= value <= 100:
            raise ValueError(f"{where}: {key} is {value}, not a score")
    if record.get("preset") is not None and record["preset"] not in PRESETS:
        raise ValueError(f"{where}: there is no preset {record['preset']!r}")


@cache
def _all() -> tuple[Published, ...]:
    file = files("signfuse_dist.report") / "published.yaml"
    return tuple(read_published(file.read_text(encoding="utf-8")))


def results(corpus: str, split: str) -> list[Published]:
    """Return the published results of a corpus (``data.corpus``) and split, best BLEU-4 first.

    Empty for a corpus that has none here.
    """
    found = [row for row in _all() if (row.corpus, row.split) == (corpus, split)]
    return sorted(found, key=lambda row: -row.bleu4)


def protocol_differences(row: Published, preset: str | Preset) -> list[str]:
    """Say what keeps a result from being compared with one scored by ``preset``; empty if nothing.

    A result whose protocol is not known differs as far as anybody can tell.
    """
    ours = find_preset(preset) if isinstance(preset, str) else preset
    found = [f"trained with more: {row.extra_data}"] if row.extra_data else []
    if row.preset is None:
        return [*found, UNKNOWN_PROTOCOL]
    theirs = PRESETS[row.preset]
    for field in dataclasses.fields(Preset):
        if field.name in ("name", "about"):
            continue
        there, here = getattr(theirs, field.name), getattr(ours, field.name)
        if there != here:
            found.append(f"{field.name} is {there}, ours {here}")
    return found


def table_for(
    corpus: str,
    split: str,
    ours: Scores | None,
    preset: str | Preset,
    name: str = "this run",
) -> list[Row]:
    """Return the published results of a corpus with ours among them, best BLEU-4 first.

    ``ours`` was scored by ``preset``; None leaves the published ones alone.
    """
    rows = [
        Row(
            row.name,
            row.appeared,
            row.bleu4,
            row.rouge_l,
            False,
            tuple(protocol_differences(row, preset)),
            row.url,
        )
        for row in results(corpus, split)
    ]
    if ours is not None:
        bleu4, rouge_l = (
            ours.scores[m].value if m in ours.scores else None for m in ("BLEU-4", "ROUGE-L")
        )
        rows.append(Row(name, "–", bleu4, rouge_l, True, ()))
    return sorted(rows, key=lambda row: -1.0 if row.bleu4 is None else row.bleu4, reverse=True)


def results_markdown(corpus: str, split: str) -> str:
    """Return the published results of a corpus as a Markdown table."""
    lines = ["| method | appeared | BLEU-4 | ROUGE-L | trained with more | protocol |"]
    lines.append("|---|---|---|---|---|---|")
    for row in results(corpus, split):
        name = f"[{row.name}]({row.url})" if row.url else row.name
        preset = f"`{row.preset}`" if row.preset else "–"
        cells = (
            name,
            row.appeared,
            _shown(row.bleu4),
            _shown(row.rouge_l),
            row.extra_data or "–",
            preset,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def table3_markdown() -> str:
    """Return Table 3 of the SignFuse paper beside the original papers' figures, as Markdown."""
    lines = ["| method | BLEU-4 printed | BLEU-4 original | ROUGE-L printed | ROUGE-L original |"]
    lines.append("|---|---|---|---|---|")
    for row in _all():
        printed = row.printed_in_signfuse
        if printed is None:
            continue
        cells = [row.name, _shown(printed.bleu4), _differing(printed.bleu4, row.bleu4)]
        cells += [_shown(printed.rouge_l), _differing(printed.rouge_l, row.rouge_l)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _differing(printed: float, original: float | None) -> str:
    return _shown(original) if printed == original else f"**{_shown(original)}**"
