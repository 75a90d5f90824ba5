"""The report of one split of one run: Markdown, and one HTML page that needs nothing else.

Written into ``runs/<experiment>/<stage>/evaluation/<split>/``: ``report.html`` with its pictures
inside, ``report.md`` with its pictures in ``figures/``. Ids and sentences are anybody's text: they
are escaped in both. Pieces that are missing are named, with the reason, and the report is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from signfuse_dist import __version__
from signfuse_dist.evaluation import plots
from signfuse_dist.evaluation.figures import Figure, plot
from signfuse_dist.evaluation.files import write_atomically
from signfuse_dist.evaluation.key_frames import PackedSplit, open_packed
from signfuse_dist.evaluation.markup import LANGUAGE, environment
from signfuse_dist.evaluation.presets import in_order
from signfuse_dist.evaluation.run_folder import RunFolder, read_run
from signfuse_dist.evaluation.samples import Sample, rank_samples, spread

# Rows of the table of translations; the samples in pictures are evaluation.num_samples.
TABLE_ROWS = 24


@dataclass(frozen=True)
class Table:
    """A table of text with its caption."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Detail:
    """One sample with its pictures."""

    sample: Sample
    figures: tuple[Figure, ...]


def write_report(run: Path, split: str) -> Path:
    """Write ``report.md`` and ``report.html`` of a stage's run folder; return the HTML file.

    ``run`` is ``runs/<experiment>/<stage>``, evaluated on ``split``. The shards are looked for in
    ``data.shards`` of the run's configuration, relative to the current folder. Raises
    :class:`~signfuse_dist.errors.UserError` only when there are no hypotheses to report on.
    """
    folder = read_run(run, split)
    content = _content(folder)
    figures = [*content["training"], *(f for d in content["details"] for f in d.figures)]
    _write_figures(folder.evaluation / "figures", figures)
    templates = environment()
    for name in ("report.md", "report.html"):
        text = templates.get_template(f"{name}.j2").render(content)
        write_atomically(folder.evaluation / name, text.encode("utf-8"))
    return folder.evaluation / "report.html"


def _content(run: RunFolder) -> dict[str, Any]:
    """Return everything the templates show; reading may still add to ``run.missing``."""
    ranked = rank_samples(run.hypotheses, run.references)
    packed = _open_splits(run)
    details = _details(run, spread(ranked, run.num_details), packed.get(run.split))
    language = run.config.data.language if run.config else ""
    names = run.path.resolve().parts[-2:]
    return {
        "title": f"Translation report: {' / '.join(names)}, {run.split}",
        "split": run.split,
        "num_samples": len(ranked),
        "num_empty": sum(not text.strip() for text in run.hypotheses.values()),
        **_score_content(run),
        "training": _training_figures(run),
        "translations": spread(ranked, TABLE_ROWS),
        "details": details,
        "data": _data_table(packed),
        "versions": _versions_table(run),
        "config_text": run.config_text,
        "language": language if LANGUAGE.fullmatch(language) else "",
        "missing": list(dict.fromkeys(run.missing)),
        "version": __version__,
    }


def _score_content(run: RunFolder) -> dict[str, Any]:
    """Return the rows of the scores, each beside the control's."""
    scores, control = run.scores, run.control
    if scores is None:
        return {"metrics": [], "preset": "", "control_note": "", "score_notes": []}
    if scores.num_samples != len(run.hypotheses):
        run.note(
            "scores",
            f"scores.json is of {scores.num_samples} sentences, hypotheses.jsonl has "
            f"{len(run.hypotheses)}: score again",
        )
    rows = []
    for name in in_order(scores.scores):
        value, signature = scores[name]
        other = control.scores.get(name) if control else None
        shown = "–" if other is None else f"{other.value:.2f}"
        rows.append(
            {"name": name, "value": f"{value:.2f}", "control": shown, "signature": signature}
        )
    return {
        "metrics": rows,
        "preset": scores.preset,
        "control_note": _control_note(run),
        "score_notes": [
            *(f"{name} is not scored: {why}" for name, why in scores.unavailable.items()),
            *scores.notes,
        ],
    }


def _control_note(run: RunFolder) -> str:
    if run.control is not None:
        return (
            "The shuffled column is the control: each video's translation is scored against the "
            "sentence of another video. What remains there is earned without watching."
        )
    if len(run.hypotheses) == 1:
        return "The shuffled control is not applicable: there is one sentence only."
    run.note("shuffled control", "scores.json holds none")
    return "There is no shuffled control."


def _training_figures(run: RunFolder) -> list[Figure]:
    if not run.curves:
        return []
    stages = ", ".join(run.curves)
    ends = "; ".join(filter(None, (_loss_change(s, rows) for s, rows in run.curves.items())))
    losses = plot(
        "losses",
        partial(plots.loss_curves, run.curves),
        f"Losses against the optimizer step for {stages}. {ends}.",
        f"Losses of the stages ({stages}), as logged. {ends}.",
    )
    rates = plot(
        "learning_rate",
        partial(plots.learning_rates, run.curves),
        f"Learning rate against the optimizer step for {stages}.",
        "Learning rate: warmup, then cosine.",
    )
    return [losses, rates]


def _loss_change(stage: str, rows: list[dict[str, Any]]) -> str:
    """Say in words what the curve shows, for those who do not see it."""
    totals = [v for row in rows if isinstance(v := row.get("total"), (int, float))]
    if not totals:
        return ""
    return f"{stage}: total from {totals[0]:.3g} to {totals[-1]:.3g} in {rows[-1]['step']} steps"


def _open_splits(run: RunFolder) -> dict[str, PackedSplit]:
    """Open the packed split that was evaluated, and the one trained on."""
    if run.config is None:
        run.note("packed data", "without the configuration its folder is not known")
        return {}
    found = {}
    for split in dict.fromkeys((run.split, run.config.data.train_split)):
        opened = run.attempt(
            f"packed data of {split!r}", partial(open_packed, run.config.shards(split)), None
        )
        if opened is not None:
            found[split] = opened
    return found


def _details(run: RunFolder, chosen: list[Sample], packed: PackedSplit | None) -> list[Detail]:
    gates = run.gates([sample.id for sample in chosen]) if chosen else {}
    details = []
    for number, sample in enumerate(chosen, start=1):
        figures = []
        if packed is not None:
            frames = run.attempt(
                f"key frames of {sample.id!r}", partial(_frames_figure, number, sample, packed),
                None,
            )  # fmt: skip
            figures += [frames] if frames else []
        gate = gates.get(sample.id)
        if gate is not None and len(gate):
            figures.append(_gate_figure(number, sample, gate))
        details.append(Detail(sample, tuple(figures)))
    return details


def _frames_figure(number: int, sample: Sample, packed: PackedSplit) -> Figure:
    sheet = packed.key_frames(sample.id)
    caption = f"Key frames with the joints that the model saw, in order of time: {sheet.about}."
    alt = f"A signer in frames of the clip {sample.id}, its skeleton drawn over: {sheet.about}."
    return Figure(f"sample-{number:02d}-frames", sheet.jpeg, None, alt, caption)


def _gate_figure(number: int, sample: Sample, gate: NDArray[np.float32]) -> Figure:
    span = f"mean {gate.mean():.2f}, from {gate.min():.2f} to {gate.max():.2f}"
    return plot(
        f"sample-{number:02d}-gate",
        partial(plots.gate_over_time, gate),
        f"Mean gate over {len(gate)} steps of the clip {sample.id}: {span}.",
        "Mean gate of the first fusion layer (Eq. 10) over time: 1 takes the picture's queries "
        f"alone, 0 the joints' alone. {span[0].upper()}{span[1:]}.",
    )


def _data_table(packed: dict[str, PackedSplit]) -> Table:
    facts = {split: opened.facts() for split, opened in packed.items()}
    names = list(dict.fromkeys(name for split in facts.values() for name in split))
    rows = tuple((n, *(facts[s].get(n, "–") for s in facts)) for n in names)
    return Table("Where the data comes from, by split", ("", *facts), rows)


def _versions_table(run: RunFolder) -> Table:
    return Table(
        "What the run was made with (versions.json)", ("name", "value"),
        tuple(sorted(run.versions.items())),
    )  # fmt: skip


def _write_figures(folder: Path, figures: list[Figure]) -> None:
    """Write the Markdown report's pictures; those of an earlier report that are not in this go."""
    for figure in figures:
        write_atomically(folder / figure.file_name, figure.light)
    written = {figure.file_name for figure in figures}
    for old in folder.glob("sample-[0-9]*-*.*"):
        if old.name not in written:
            old.unlink()
