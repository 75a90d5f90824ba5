"""The report of one split of one run: Markdown, and one HTML page that needs nothing else.

Written into the folder of the evaluation, ``runs/EXPERIMENT/STAGE/evaluation/SPLIT[@NAME]``:
``report.html`` with its pictures inside, ``report.md`` with its pictures in ``figures/``. Ids and
sentences are anybody's text: they are escaped in both. Pieces that are missing are named, with the
reason, and the report is written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from signfuse_dist import __version__
from signfuse_dist.evaluation.translations import rank_samples, spread_samples
from signfuse_dist.files import checksum, write_bytes
from signfuse_dist.locks import held
from signfuse_dist.report.figures import Figure
from signfuse_dist.report.inputs import ReportInputs, read_run
from signfuse_dist.report.markup import LANGUAGE, environment
from signfuse_dist.report.score_sections import (
    Breakdown,
    count_sentences,
    divide_split,
    preset_of,
    score_content,
)
from signfuse_dist.report.sections import (
    data_table,
    open_splits,
    run_tables,
    sample_details,
    training_figures,
)
from signfuse_dist.run_folder import EvaluationFolder

# Rows of the table of translations; the samples in pictures are evaluation.num_samples.
TABLE_ROWS = 24


def write_report(run: Path, split: str, name: str | None = None) -> Path:
    """Write ``report.md`` and ``report.html`` of a stage's run folder; return the HTML file.

    ``run`` is ``runs/EXPERIMENT/STAGE``, evaluated on ``split``, under ``name`` or without. The
    shards are looked for in ``data.shards`` of the run's configuration, relative to the current
    folder. Raises :class:`~signfuse_dist.errors.UserError` only when there are no hypotheses.
    """
    folder = read_run(run, split, name)
    content = _content(folder)
    files = folder.evaluation
    templates = environment()
    with held(files.report_lock, f"the report in {files.path}"):
        _write_figures(files.figures, _figures(content))
        for file in (files.report_markdown, files.report_html):
            text = templates.get_template(f"{file.name}.j2").render(content)
            write_bytes(file, text.encode("utf-8"))
    return files.report_html


def is_older(folder: EvaluationFolder) -> bool:
    """Return whether a report is there that was written before the scores beside it.

    A report says which scores it shows. Those of earlier versions do not: there the times decide.
    """
    report, scores = folder.report_html, folder.scores
    if not (report.is_file() and scores.is_file()):
        return False
    shows = checksum(scores) in report.read_text(encoding="utf-8", errors="replace")
    return not shows and report.stat().st_mtime < scores.stat().st_mtime


def _content(run: ReportInputs) -> dict[str, Any]:
    """Return everything the templates show; reading may still add to ``run.missing``."""
    packed, preset = open_splits(run), preset_of(run)
    evaluated = packed.get(run.split)
    statistics = count_sentences(run, preset)
    parts: list[Breakdown] = []
    plain = None  # counts of the texts as they are
    if preset is not None and statistics is not None:
        parts = divide_split(run, evaluated, preset, statistics)
        plain = None if preset.lowercase or preset.changes else statistics
    ranked = rank_samples(run.hypotheses, run.references, plain)
    language = run.config.data.language if run.config else ""
    names = run.path.resolve().parts[-2:]
    scores = run.evaluation.scores
    return {
        "title": f"Translation report: {' / '.join(names)}, {run.evaluation.path.name}",
        "split": run.split,
        "num_samples": len(ranked),
        "num_empty": sum(not text.strip() for text in run.hypotheses.values()),
        **score_content(run, preset),
        "parts": parts,
        "training": training_figures(run),
        "translations": spread_samples(ranked, TABLE_ROWS),
        "unrecorded": run.unrecorded,
        "details": sample_details(run, spread_samples(ranked, run.num_details), evaluated),
        "data": data_table(packed),
        "run_tables": run_tables(run),
        "config_text": run.config_text,
        "language": language if LANGUAGE.fullmatch(language) else "",
        "missing": list(dict.fromkeys(run.missing)),
        "scores_sha256": checksum(scores) if scores.is_file() else None,
        "version": __version__,
    }


def _figures(content: dict[str, Any]) -> list[Figure]:
    parts = [part.figure for part in content["parts"] if part.figure]
    return [*content["training"], *parts, *(f for d in content["details"] for f in d.figures)]


def _write_figures(folder: Path, figures: list[Figure]) -> None:
    """Write the Markdown report's pictures; those of an earlier report that are not in this go."""
    for figure in figures:
        write_bytes(folder / figure.file_name, figure.light)
    written = {figure.file_name for figure in figures}
    for pattern in ("sample-[0-9]*-*.*", "by_*.png"):
        for old in folder.glob(pattern):
            if old.name not in written:
                old.unlink()
