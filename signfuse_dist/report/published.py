"""Published results beside ours, and where their protocols differ.

``published.yaml`` holds gloss-free results as their own papers print them, and beside them what
Table 3 of the SignFuse paper prints for the same systems, which differs in seven of ten figures.
Here results are compared with the original papers' figures.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from functools import cache, partial
from importlib.resources import files
from typing import Annotated, Any

from pydantic import AfterValidator, PlainValidator
from pydantic.dataclasses import dataclass

from signfuse_dist.errors import raise_together, suggest
from signfuse_dist.evaluation.protocols import PRESETS, Preset, find_preset
from signfuse_dist.evaluation.scores import Scores
from signfuse_dist.files import parse_yaml
from signfuse_dist.records import STRICT_KEYS, Flag, Place, Whole, build, dotted

UNKNOWN_PROTOCOL = "protocol not known: tokens, case, punctuation and ROUGE-L may differ"


def _check_figure(value: object) -> object:
    if not isinstance(value, float):
        raise ValueError("is not a figure as papers print it, with its decimals")
    if not 0 <= value <= 100:
        raise ValueError("is not a score, from 0 to 100")
    return value


def _check_preset(value: str) -> str:
    if value not in PRESETS:
        raise ValueError(f"is no preset{suggest(value, PRESETS)}")
    return value


_Figure = Annotated[float, PlainValidator(_check_figure)]


@dataclass(frozen=True, config=STRICT_KEYS)
class Printed:
    """What Table 3 of the SignFuse paper prints for a system."""

    bleu4: _Figure
    rouge_l: _Figure


@dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class _Paper:
    """What the results of one paper have in common."""

    method: str
    title: str | None
    year: Whole | None
    venue: str | None
    url: str | None
    gloss_free: Flag


@dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class _Result:
    corpus: str
    split: str
    setting: str | None
    bleu4: _Figure
    rouge_l: _Figure | None
    extra_data: str | None
    preset: Annotated[str, AfterValidator(_check_preset)] | None
    printed_in_signfuse: Printed | None


@dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class _PaperRecord(_Paper):
    results: tuple[_Result, ...]


@dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class Published(_Result, _Paper):
    """One result of one paper. None is not known here; ``published.yaml`` says what fields mean."""

    @property
    def name(self) -> str:
        """The method, with what tells two results of one paper apart."""
        return f"{self.method} ({self.setting})" if self.setting else self.method

    @property
    def appeared(self) -> str:
        """Venue and year in words, ``–`` where they are not known."""
        return " ".join(str(part) for part in (self.venue, self.year) if part) or "–"


@dataclass(frozen=True)
class ResultRow:
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

    Raises :class:`UserError` with every record that has other keys, a value of a wrong kind, a
    figure outside 0..100 or an unknown preset, and every result that is there twice.
    """
    raw = parse_yaml(text, "published.yaml")
    errors: list[str] = []
    papers = build(tuple[_PaperRecord, ...], raw, errors, partial(_name_place, raw))
    published = [
        Published(**{f.name: getattr(paper, f.name) for f in dataclasses.fields(_Paper)}, **vars(r))
        for paper in papers or ()
        for r in paper.results
    ]
    times = Counter((row.name, row.corpus, row.split) for row in published)
    errors += [f"{', '.join(key)}: is there twice" for key, count in times.items() if count > 1]
    raise_together(errors, "no file of published results")
    return published


def _name_place(raw: Any, place: Place) -> str:
    """Name a paper by its method, and a result of it by its corpus as well."""
    if not place or not isinstance(raw[place[0]], dict):
        return dotted(place)
    paper, steps = raw[place[0]], place[1:]
    name = str(paper.get("method"))
    if len(steps) > 1 and steps[0] == "results":
        result, steps = paper["results"][steps[1]], steps[2:]
        name += f", {result.get('corpus') if isinstance(result, dict) else result}"
    return ": ".join([name, dotted(steps)] if steps else [name])


@cache
def _all() -> tuple[Published, ...]:
    file = files("signfuse_dist.report") / "published.yaml"
    return tuple(read_published(file.read_text(encoding="utf-8")))


def results(corpus: str, split: str) -> list[Published]:
    """Return the published results of a corpus (``data.corpus``) and split, best BLEU-4 first.

    Empty for a corpus that has none here.
    """
    rows = [row for row in _all() if (row.corpus, row.split) == (corpus, split)]
    return sorted(rows, key=lambda row: -row.bleu4)


def protocol_differences(row: Published, preset: str | Preset) -> list[str]:
    """Say what keeps a result from being compared with one scored by ``preset``; empty if nothing.

    A result whose protocol is not known differs as far as anybody can tell.
    """
    ours = find_preset(preset) if isinstance(preset, str) else preset
    differences = [f"trained with more: {row.extra_data}"] if row.extra_data else []
    if row.preset is None:
        return [*differences, UNKNOWN_PROTOCOL]
    theirs = PRESETS[row.preset]
    for field in dataclasses.fields(Preset):
        if field.name in ("name", "about"):
            continue
        there, here = getattr(theirs, field.name), getattr(ours, field.name)
        if there != here:
            differences.append(f"{field.name} is {there}, ours {here}")
    return differences


def table_for(
    corpus: str,
    split: str,
    ours: Scores | None,
    preset: str | Preset,
    name: str = "this run",
) -> list[ResultRow]:
    """Return the published results of a corpus with ours among them, best BLEU-4 first.

    ``ours`` was scored by ``preset``; None leaves the published ones alone.
    """
    rows = [
        ResultRow(
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
        rows.append(ResultRow(name, "–", bleu4, rouge_l, True, ()))
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
