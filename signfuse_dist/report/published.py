"""Published results beside ours, and where their protocols differ.

``published.yaml`` holds gloss-free results as their own papers print them, and beside them what
Table 3 of the SignFuse paper prints for the same systems, which differs in seven of ten figures.
Here results are compared with the original papers' figures.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache, partial
from importlib.resources import files
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import AfterValidator, PlainValidator
from pydantic.dataclasses import dataclass

from signfuse_dist.config import RunConfig
from signfuse_dist.errors import raise_together, suggest
from signfuse_dist.evaluation.protocols import PRESETS, Preset, find_preset
from signfuse_dist.files import parse_yaml
from signfuse_dist.origin import other_corpora
from signfuse_dist.records import STRICT_KEYS, Flag, NonBlank, Place, Whole, build, dotted

NO_MORE = "none"  # of `extra_data`: the corpus's own train split alone
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


def _check_address(value: str) -> str:
    if not value.startswith("https://"):
        raise ValueError("is no address, which begins with https://")
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
    gloss_free: Flag | None


@dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class _Result:
    corpus: str
    split: str
    setting: str | None
    bleu4: _Figure
    rouge_l: _Figure | None
    extra_data: NonBlank
    preset: Annotated[str, AfterValidator(_check_preset)] | None
    source: Annotated[str, AfterValidator(_check_address)] | None
    why: NonBlank | None
    deviation: _Figure | None = None
    seeds: Whole | None = None
    printed_in_signfuse: Printed | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class _PaperRecord(_Paper):
    unread: NonBlank | None
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
    deviation: float | None = None
    """Of BLEU-4 over trainings, where the figure is a mean of some."""

    @property
    def bleu4_shown(self) -> str:
        """BLEU-4 with its deviation, in words."""
        return shown(self.bleu4, self.deviation)


def read_published(text: str, name: str = "published.yaml") -> list[Published]:
    """Return the results of a file like ``published.yaml``.

    Raises :class:`UserError` with every record that has other keys, a value of a wrong kind, a
    figure outside 0..100, an unknown preset, or neither a source nor why it has none, and every
    result that is there twice.
    """
    raw = parse_yaml(text, name)
    errors: list[str] = []
    papers = build(tuple[_PaperRecord, ...], raw, errors, partial(_name_place, raw))
    published = [
        Published(**{f.name: getattr(paper, f.name) for f in dataclasses.fields(_Paper)}, **vars(r))
        for paper in papers or ()
        for r in paper.results
    ]
    errors += [
        f"{paper.method}: {'both results and' if paper.results else 'neither results nor'} unread"
        for paper in papers or ()
        if bool(paper.results) == bool(paper.unread)
    ]
    errors += [
        f"{row.name}, {row.corpus}: {'both source and' if row.source else 'neither source nor'} why"
        for row in published
        if bool(row.source) == bool(row.why)
    ]
    times = Counter((row.name, row.corpus, row.split) for row in published)
    errors += [f"{', '.join(key)}: is there twice" for key, count in times.items() if count > 1]
    raise_together(errors, f"{name}: no file of published results")
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


def corpora() -> list[str]:
    """Return the corpora that have published results, as ``data.corpus`` names them."""
    return sorted({row.corpus for row in _all()})


def results(corpus: str, split: str, more: Sequence[Published] = ()) -> list[Published]:
    """Return the published results of a corpus (``data.corpus``) and split, best BLEU-4 first.

    ``more`` are results of a file of the user's. Empty for a corpus that has none.
    """
    rows = [row for row in (*_all(), *more) if (row.corpus, row.split) == (corpus, split)]
    return sorted(rows, key=lambda row: -row.bleu4)


def protocol_differences(row: Published, preset: str | Preset) -> list[str]:
    """Say what keeps a result from being compared with one scored by ``preset``; empty if nothing.

    A result whose protocol is not known differs as far as anybody can tell.
    """
    ours = find_preset(preset) if isinstance(preset, str) else preset
    differences = []
    if row.extra_data != NO_MORE:
        differences.append(f"trained with more: {row.extra_data}")
    if not row.gloss_free:
        differences.append(
            "not known to be gloss-free" if row.gloss_free is None else "trained with glosses"
        )
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


def extra_data(run: RunConfig | None, corpus: str) -> list[str]:
    """Return what a run was trained with beside ``corpus``: through its blend or its start."""
    if run is None:
        return []
    names = dict.fromkeys(part.data.corpus for part in run.data.blend)
    more = [f"{name} (data.blend)" for name in names if name != corpus]
    if run.origin is None:
        return more
    if not run.origin.history:
        return [*more, f"{run.origin.start}, which says nothing of its corpora"]
    return [*more, *other_corpora(run.origin.history, corpus)]


def table_for(
    rows: Sequence[Published],
    ours: Mapping[str, Mapping[str, float]],
    preset: str | Preset,
    more: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> list[ResultRow]:
    """Return published results with ours among them, best BLEU-4 first.

    ``ours`` are scores by metric name of each system of ours, by its name; they were scored by
    ``preset``. ``more`` is the extra data that each of them was trained with (:func:`extra_data`).
    """
    table = [
        ResultRow(
            row.name,
            row.appeared,
            row.bleu4,
            row.rouge_l,
            False,
            tuple(protocol_differences(row, preset)),
            row.url,
            row.deviation,
        )
        for row in rows
    ]
    table += [
        ResultRow(
            name,
            "–",
            scores.get("BLEU-4"),
            scores.get("ROUGE-L"),
            True,
            tuple(f"trained with more: {what}" for what in more.get(name, ())),
        )
        for name, scores in ours.items()
    ]
    return sorted(table, key=lambda row: -1.0 if row.bleu4 is None else row.bleu4, reverse=True)


def format_table(rows: Sequence[ResultRow]) -> str:
    """Return a table of results for the terminal; ours are marked."""
    table = [("", "system", "appeared", "BLEU-4", "ROUGE-L", "what differs")]
    for row in rows:
        differences = "; ".join(row.differences) or ("" if row.ours else "nothing that is known")
        mark = ">" if row.ours else ""
        table.append(
            (mark, row.name, row.appeared, row.bleu4_shown, shown(row.rouge_l), differences)
        )
    widths = [max(map(len, column)) for column in list(zip(*table, strict=True))[:-1]]
    lines = []
    for *texts, last in table:
        padded = [f"{text:<{width}}" for text, width in zip(texts, widths, strict=True)]
        lines.append("  ".join([*padded, last]).rstrip())
    return "\n".join(lines)


def results_markdown(corpus: str, split: str) -> str:
    """Return the published results of a corpus as a Markdown table."""
    lines = ["| method | appeared | BLEU-4 | ROUGE-L | trained with more | protocol | read in |"]
    lines.append("|---|---|---|---|---|---|---|")
    for row in results(corpus, split):
        name = f"[{row.name}]({row.url})" if row.url else row.name
        preset = f"`{row.preset}`" if row.preset else "–"
        cells = (
            name,
            row.appeared,
            shown(row.bleu4, row.deviation),
            shown(row.rouge_l),
            row.extra_data,
            preset,
            f"[source]({row.source})" if row.source else "–",
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
        cells = [row.name, shown(printed.bleu4), _differing(printed.bleu4, row.bleu4)]
        cells += [shown(printed.rouge_l), _differing(printed.rouge_l, row.rouge_l)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def shown(value: float | None, deviation: float | None = None) -> str:
    """Return a figure in words, with its standard deviation where it is a mean."""
    if value is None:
        return "–"
    return f"{value:.2f}" if deviation is None else f"{value:.2f} ± {deviation:.2f}"


def _differing(printed: float, original: float | None) -> str:
    return shown(original) if printed == original else f"**{shown(original)}**"
