"""The one place where a report reads packed data: a split's facts, and key frames of a clip."""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from signfuse_dist.config import STAGES, EvaluationConfig, RunConfig, load_resolved
from signfuse_dist.data.look import sheet, spread
from signfuse_dist.data.manifest import (
    Manifest,
    SampleEntry,
    load_index,
    load_manifest,
    manifest_bytes,
)
from signfuse_dist.data.shard import read_clip
from signfuse_dist.data.storage import Folder, open_folder
from signfuse_dist.errors import UserError
from signfuse_dist.evaluation.scores import SplitScores, read_split_scores
from signfuse_dist.evaluation.translations import read_array, read_pairs
from signfuse_dist.evaluation.translator import DIRECTIONS
from signfuse_dist.run_folder import EvaluationFolder
from signfuse_dist.run_folder import RunFolder as RunPaths

_NESTED = 3  # levels of names in versions.json that are joined; deeper ones are shown as JSON
_T = TypeVar("_T")


@dataclass
class RunFolder:
    """The pieces of ``runs/<experiment>/<stage>`` for one split, and which are ``missing``.

    ``config`` is None when ``config.yaml`` cannot be read; ``curves`` holds the log of every stage
    of the experiment that has one, in the order of training.
    """

    path: Path
    split: str
    hypotheses: dict[str, str]
    references: dict[str, str]
    missing: list[str] = field(default_factory=list)
    config: RunConfig | None = None
    config_text: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    evaluated: dict[str, str] = field(default_factory=dict)
    results: SplitScores | None = None
    plans: dict[str, dict[str, Any]] = field(default_factory=dict)
    curves: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def evaluation(self) -> EvaluationFolder:
        """Where this split's results are, and the report goes."""
        return RunPaths(self.path).evaluation(self.split)

    @property
    def num_details(self) -> int:
        """How many samples are shown with pictures."""
        if self.config is None:
            return int(EvaluationConfig().num_samples)
        return self.config.evaluation.num_samples

    def note(self, what: str, error: Exception | str) -> None:
        """Record that a piece is missing, and why."""
        self.missing.append(f"{what}: {error}")

    def attempt(self, what: str, read: Callable[[], _T], otherwise: _T) -> _T:
        """Return ``read()``, or note its :class:`UserError` and return ``otherwise``."""
        try:
            return read()
        except UserError as e:
            self.note(what, e)
            return otherwise

    def gates(self, ids: list[str]) -> dict[str, NDArray[np.float32]]:
        """Return the mean gate over time, float32 ``[steps]``, of those ids that have one."""
        if self.config is not None and self.config.model.fusion != "cmfa":
            return {}  # other fusions have no gate
        found = self._arrays(self.evaluation.gates, "gate", ids, 1)
        return {name: found[name] for name in ids if name in found}

    def attention(self, ids: list[str]) -> dict[str, dict[str, NDArray[np.float32]]]:
        """Return the cross-attention maps, float32 ``[query steps, key steps]``, by direction."""
        if self.config is not None and self.config.model.fusion in ("concat", "sum"):
            return {}  # these do not attend
        fusion = self.config.model.fusion if self.config else "cmfa"
        ways = [fusion] if fusion in DIRECTIONS else list(DIRECTIONS)
        names = [f"{way}/{name}" for name in ids for way in ways]
        found = self._arrays(self.evaluation.attention, "cross-attention", names, 2)
        maps = {n: {w: found[f"{w}/{n}"] for w in ways if f"{w}/{n}" in found} for n in ids}
        return {name: by_way for name, by_way in maps.items() if by_way}

    def _arrays(
        self, path: Path, what: str, names: list[str], ndim: int
    ) -> dict[str, NDArray[np.float32]]:
        file, found = path.name, {}
        try:
            with zipfile.ZipFile(path) as archive:
                for name in names:
                    try:
                        found[name] = read_array(archive, name, ndim)
                    except KeyError:
                        self.note(what, f"{file} has none for {name!r}")
                    except UserError as e:
                        self.note(what, e)
        except FileNotFoundError:
            self.note(what, f"there is no {file} beside the hypotheses")
        except (OSError, zipfile.BadZipFile) as e:
            self.note(what, f"{file} cannot be read ({e})")
        return found


def read_run(path: Path, split: str) -> RunFolder:
    """Read a run folder; raise :class:`UserError` when it, or its hypotheses, cannot be read."""
    files = RunPaths.open(path)
    evaluation = files.evaluation(split)
    file = evaluation.hypotheses
    if not file.is_file():
        raise UserError(
            f"{file}: does not exist; evaluate the run on {split!r} before its report is written"
        )
    run = RunFolder(path, split, *read_pairs(file, None))
    apart = sorted(set(run.hypotheses) ^ set(run.references))
    if apart or not run.hypotheses:
        raise UserError(f"{file}: holds no complete pairs")
    run.config = run.attempt("configuration", lambda: load_resolved(files.config), None)
    run.config_text = run.attempt("configuration text", lambda: _read_text(files.config), "")
    run.versions = run.attempt("versions", lambda: _flat(_read_json(files.versions)), {})
    run.results = run.attempt("scores", lambda: read_split_scores(evaluation.scores), None)
    run.evaluated = run.attempt(
        "how it was evaluated", lambda: _flat(_read_json(evaluation.record)), {}
    )
    _read_curves(run)
    return run


def _read_curves(run: RunFolder) -> None:
    """Read the logs of this stage and of its siblings, as far as the run uses them."""
    stages = STAGES if run.config is None else run.config.train.stages
    own = RunPaths(run.path)
    folders: dict[str, RunPaths] = {stage: own.beside(stage) for stage in stages}
    folders.setdefault(run.path.name, own)
    for stage, folder in folders.items():
        if not folder.path.is_dir():
            run.note("curves", f"the stage {stage!r} has no folder beside this run")
            continue
        none: list[dict[str, Any]] = []
        rows = run.attempt("curves", partial(_read_log, run, folder.metrics), none)
        if rows:
            run.curves[stage] = rows
            run.plans[stage] = run.attempt("plan", partial(_read_json, folder.plan), {})


def _read_log(run: RunFolder, path: Path) -> list[dict[str, Any]]:
    """Return the log's rows by step; after a resume the later row of a step counts."""
    rows: dict[float, dict[str, Any]] = {}
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        step = row.get("step") if isinstance(row, dict) else None
        if not isinstance(step, int) or isinstance(step, bool):
            run.note("curves", f"{path}: line {number} is not a log row, left out")
            continue
        rows[step] = dict(row)
    return [rows[step] for step in sorted(rows)]


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from e
    except UnicodeDecodeError as e:
        raise UserError(f"{path}: not UTF-8 text") from e


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_read_text(path))
    except (ValueError, RecursionError) as e:
        raise e if isinstance(e, UserError) else UserError(f"{path}: not JSON ({e})") from e
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object")
    return value


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested names joined by a dot, and their values as text."""
    found: dict[str, str] = {}
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, dict) and name.count(".") < _NESTED:
            found.update(_flat(item, f"{name}."))
        else:
            found[name] = item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)
    return found


NUM_KEY_FRAMES = 6
_COLUMNS = 3
_QUALITY = 85


@dataclass(frozen=True)
class Sheet:
    """Key frames side by side as one JPEG; ``about`` says which they are."""

    jpeg: bytes
    about: str
    seconds: float | None
    """Length of the clip, None where its record does not say its rate."""


class PackedSplit:
    """A packed split on the disk."""

    def __init__(self, folder: Folder, manifest: Manifest) -> None:
        self._folder, self._manifest = folder, manifest

    def facts(self) -> dict[str, str]:
        """Return where the data comes from, in words for people."""
        manifest, packing = self._manifest, self._manifest.packing
        settings = packing.settings
        rate = "that of the videos" if settings.fps is None else f"{settings.fps:g} a second"
        return {
            "corpus": packing.corpus,
            "split": packing.split,
            "clips packed": f"{manifest.num_samples:,} of {manifest.num_rows:,} rows",
            "clips dropped": f"{manifest.num_dropped:,} (named in dropped.tsv)",
            "clips flagged": f"{manifest.num_flagged:,}",
            "frames": f"{manifest.num_frames:,}",
            "frame rate": rate,
            "frame size": f"{settings.frame_size} x {settings.frame_size}",
            "extractor": f"{packing.extractor} {packing.extractor_version}",
            "joint layout": packing.joint_layout,
            "packed by": f"signfuse_dist {manifest.signfuse_version}",
            "fingerprint of the rows": packing.rows_sha256,
            "fingerprint of the manifest": hashlib.sha256(manifest_bytes(manifest)).hexdigest(),
        }

    def signers(self) -> dict[str, str | None]:
        """Return the signer of each clip by id, None where the corpus names none."""
        return {name: entry.signer for name, (_, entry) in self._places.items()}

    def seconds(self) -> dict[str, float]:
        """Return the length of each clip by id; empty where clips have rates of their own."""
        fps = self._manifest.packing.settings.fps
        if fps is None:
            return {}
        return {name: entry.num_frames / fps for name, (_, entry) in self._places.items()}

    def key_frames(self, clip_id: str) -> Sheet:
        """Return evenly spaced frames of a clip with the skeleton drawn over them.

        Raises :class:`UserError` when the split has no such clip, or its shard is damaged.
        """
        if clip_id not in self._places:
            raise UserError(f"{self._folder} holds no clip of this id")
        shard, entry = self._places[clip_id]
        chosen = spread(entry.num_frames, NUM_KEY_FRAMES)
        clip = read_clip(self._folder, shard, entry.members, chosen)
        numbers = ", ".join(str(i + 1) for i in chosen)
        buffer = BytesIO()
        sheet(clip, _COLUMNS).save(buffer, format="JPEG", quality=_QUALITY)
        seconds = _seconds(entry.num_frames, clip.record.get("fps"))
        return Sheet(buffer.getvalue(), f"frames {numbers} of {entry.num_frames}", seconds)

    @cached_property
    def _places(self) -> dict[str, tuple[str, SampleEntry]]:
        """The shard and entry of each clip, from the indexes, read when first asked for."""
        indexes = [load_index(self._folder, shard) for shard in self._manifest.shards]
        return {entry.id: (index.shard, entry) for index in indexes for entry in index.samples}


def _seconds(num_frames: int, rate: object) -> float | None:
    """Return a clip's length; None where its record, anybody's, holds no rate."""
    if not isinstance(rate, (int, float)) or not math.isfinite(rate) or rate <= 0:
        return None
    return num_frames / rate


def open_packed(location: str) -> PackedSplit:
    """Open a packed split; raise :class:`UserError` when it is not there or not whole."""
    folder = open_folder(location)
    return PackedSplit(folder, load_manifest(folder))
