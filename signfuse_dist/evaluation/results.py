"""``scores.json``: the scores of a split beside those of its controls.

``{"version": 2, "scores": {...}, "controls": {name: {...}}, "inapplicable": {name: reason},
"decoding": {...}}``. Scores have ``preset``, ``num_samples``, ``metrics`` (name -> ``value``,
``signature``), ``unavailable``, ``empty``, ``notes``, and where intervals were asked for
``resampling`` and each metric's ``interval``: low and high of 95%. Values are not rounded.
``decoding`` is the section ``evaluation`` that the sentences were decoded with.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from signfuse_dist.errors import UserError
from signfuse_dist.evaluation.files import write_json
from signfuse_dist.evaluation.metrics import Score, Scores

VERSION = 2


@dataclass(frozen=True)
class Results:
    """Scores, those of each control by name, and why a control that was asked for has none."""

    scores: Scores
    controls: Mapping[str, Scores] = field(default_factory=dict)
    inapplicable: Mapping[str, str] = field(default_factory=dict)
    decoding: Mapping[str, Any] = field(default_factory=dict)


def write_results(path: Path, results: Results) -> None:
    """Write ``scores.json``, whole or not at all; the bytes depend on the results alone."""
    value = {
        "version": VERSION,
        "scores": _to_dict(results.scores),
        "controls": {name: _to_dict(scores) for name, scores in results.controls.items()},
        "inapplicable": dict(results.inapplicable),
        "decoding": dict(results.decoding),
    }
    write_json(path, value)


def read_results(path: Path) -> Results:
    """Read what :func:`write_results` wrote; raise :class:`UserError` when it is not that."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["version"] != VERSION:
            raise UserError(
                f"{path}: version {raw['version']!r}, this program reads {VERSION}: evaluate again"
            )
        return Results(
            scores=_from_dict(raw["scores"]),
            controls={str(name): _from_dict(part) for name, part in raw["controls"].items()},
            inapplicable={str(k): str(v) for k, v in raw["inapplicable"].items()},
            decoding={str(k): v for k, v in raw["decoding"].items()},
        )
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from e
    except UserError:
        raise
    except (KeyError, TypeError, AttributeError, RecursionError, IndexError) as e:
        raise UserError(f"{path}: not a file of scores ({e!r})") from e
    except ValueError as e:
        raise UserError(f"{path}: not a file of scores ({e})") from e


def read_scores(path: Path) -> tuple[Scores, Scores | None]:
    """Return a split's scores and those of its shuffled control, as :func:`read_results` does."""
    results = read_results(path)
    return results.scores, results.controls.get("shuffled")


def _to_dict(scores: Scores) -> dict[str, Any]:
    metrics: dict[str, dict[str, Any]] = {n: s._asdict() for n, s in scores.scores.items()}
    for name, interval in scores.intervals.items():
        metrics[name]["interval"] = list(interval)
    return {
        "preset": scores.preset,
        "num_samples": scores.num_samples,
        "metrics": metrics,
        "resampling": scores.resampling,
        "unavailable": dict(scores.unavailable),
        "empty": list(scores.empty),
        "notes": list(scores.notes),
    }


def _from_dict(raw: dict[str, Any]) -> Scores:
    metrics = {
        str(name): Score(float(s["value"]), str(s["signature"]))
        for name, s in raw["metrics"].items()
    }
    # Files written before there were intervals have none.
    intervals = {
        str(name): (float(s["interval"][0]), float(s["interval"][1]))
        for name, s in raw["metrics"].items()
        if "interval" in s
    }
    numbers = [s.value for s in metrics.values()] + [n for pair in intervals.values() for n in pair]
    if not all(map(math.isfinite, numbers)):
        raise ValueError("a score is not a finite number")
    return Scores(
        preset=str(raw["preset"]),
        num_samples=int(raw["num_samples"]),
        scores=metrics,
        unavailable={str(k): str(v) for k, v in raw["unavailable"].items()},
        empty=tuple(map(str, raw["empty"])),
        notes=tuple(map(str, raw["notes"])),
        intervals=intervals,
        resampling=str(raw.get("resampling", "")),
    )
