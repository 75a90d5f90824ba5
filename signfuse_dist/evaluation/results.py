"""``scores.json``: the scores of a split beside those of the shuffled control.

``{"version": 1, "scores": {...}, "control": {...} or null}``, each with ``preset``,
``num_samples``, ``metrics`` (name -> ``value``, ``signature``), ``unavailable``, ``empty``,
``notes``, and where intervals were asked for ``resampling`` and each metric's ``interval``: low and
high of 95%. Values are not rounded. ``control`` is null when it does not apply (one sample).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from signfuse_dist.errors import UserError
from signfuse_dist.evaluation.files import write_json
from signfuse_dist.evaluation.metrics import Score, Scores

VERSION = 1


def write_scores(path: Path, scores: Scores, control: Scores | None) -> None:
    """Write ``scores.json``, whole or not at all; the bytes depend on the scores alone."""
    both = {"scores": _to_dict(scores), "control": None if control is None else _to_dict(control)}
    write_json(path, {"version": VERSION, **both})


def read_scores(path: Path) -> tuple[Scores, Scores | None]:
    """Read what :func:`write_scores` wrote; raise :class:`UserError` when it is not that."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["version"] != VERSION:
            raise UserError(f"{path}: version {raw['version']!r}, this program reads {VERSION}")
        control = raw["control"]
        return _from_dict(raw["scores"]), None if control is None else _from_dict(control)
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from e
    except UserError:
        raise
    except (KeyError, TypeError, AttributeError, RecursionError, IndexError) as e:
        raise UserError(f"{path}: not a file of scores ({e!r})") from e
    except ValueError as e:
        raise UserError(f"{path}: not a file of scores ({e})") from e


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
