"""What a report reads: a run folder as far as it is there, and packed data.

A piece of the run folder that is missing or damaged is noted with the reason, and the report is
written without it.
"""

from __future__ import annotations

import hashlib
import json
import math
import typing
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass as pydantic_dataclass

from signfuse_dist.config import STAGES, EvaluationConfig, RunConfig
from signfuse_dist.data.look import sheet, spread
from signfuse_dist.data.manifest import Manifest, SampleEntry
from signfuse_dist.data.manifest_files import load_index, load_manifest, manifest_bytes
from signfuse_dist.data.shard import read_clip
from signfuse_dist.data.storage import Folder, open_folder
from signfuse_dist.errors import MachineError, UserError
from signfuse_dist.evaluation.asked import CORPUS, of_corpus
from signfuse_dist.evaluation.scores import SplitScores, read_split_scores
from signfuse_dist.evaluation.translations import read_array, read_pairs
from signfuse_dist.experiment import load_resolved
from signfuse_dist.files import parse_json, read_json, read_text
from signfuse_dist.records import Whole, read_record
from signfuse_dist.run_folder import EvaluationFolder, RunFolder
from signfuse_dist.system_errors import machine_error, machine_fault

_NESTED = 3  # levels of names in versions.json that are joined; deeper ones are shown as JSON
_OF_CORPORA = ("language/", "contrastive/", "alignment/", "dev_language/", "dev_contrastive/")
_T = TypeVar("_T")
# Of a loss that is not finite the log says so.
_Logged = Annotated[float, Field(strict=True)] | None


@pydantic_dataclass(frozen=True)
class LogRow:
    """A line of ``metrics.jsonl``, as far as a report shows it; None was not logged."""

    step: Whole
    total: _Logged = None
    language: _Logged = None
    alignment: _Logged = None
    contrastive: _Logged = None
    dev_language: _Logged = None
    dev_contrastive: _Logged = None
    learning_rate: _Logged = None
    clips_per_second: _Logged = None
    by_corpus: dict[str, _Logged] = field(default_factory=dict)
    """Losses and development scores of the corpora of a blend, as ``LOSS/CORPUS``."""

    def value(self, name: str) -> float | None:
        """Return the value of that name."""
        return typing.cast("float | None", getattr(self, name))


@pydantic_dataclass(frozen=True)
class PlanFacts:
    """``plan.json``: the batch plan that a stage was trained by; None is not in the file."""

    num_clips: Whole | None = None
    world_size: Whole | None = None
    micro_batch_size: Whole | None = None
    accumulation: Whole | None = None
    global_batch_size: Whole | None = None
    steps_per_epoch: Whole | None = None
    total_steps: Whole | None = None
    warmup_steps: Whole | None = None
    num_pairs: Whole | None = None


@pydantic_dataclass(frozen=True)
class ComponentParameters:
    """Numbers of parameters of one component of a model, in ``parameters.json``."""

    all: Whole
    trained: Whole


@dataclass
class ReportInputs:
    """The pieces of ``runs/<experiment>/<stage>`` for one evaluation, and which are ``missing``.

    ``config`` is None when ``config.yaml`` cannot be read; ``curves`` holds the log of every stage
    of the experiment that has one, in the order of training.
    """

    path: Path
    split: str
    hypotheses: dict[str, str]
    references: dict[str, str]
    name: str | None = None
    """That of the evaluation, where it was given one."""
    missing: list[str] = field(default_factory=list)
    config: RunConfig | None = None
    config_text: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    evaluated: dict[str, str] = field(default_factory=dict)
    split_scores: SplitScores | None = None
    plans: dict[str, PlanFacts] = field(default_factory=dict)
    curves: dict[str, list[LogRow]] = field(default_factory=dict)
    unrecorded: list[str] = field(default_factory=list)
    """Files of arrays that the evaluation has not left, as of a fusion without a gate."""

    @property
    def evaluation(self) -> EvaluationFolder:
        """Where this split's results are, and the report goes."""
        return RunFolder(self.path).evaluation(self.split, self.name)

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
        except MachineError:
            raise
        except UserError as e:
            self.note(what, e)
            return otherwise

    def gates(self, ids: list[str]) -> dict[str, NDArray[np.float32]]:
        """Return the mean gate over time, float32 ``[steps]``, of the ids that have one.

        A fusion without a gate leaves no ``gates.npz``; where there is one, an id that it lacks is
        noted.
        """
        with self._open_arrays("gate", self.evaluation.gates) as archive:
            if archive is None:
                return {}
            arrays = {name: self._read_array("gate", archive, name, 1) for name in ids}
        return {name: gate for name, gate in arrays.items() if gate is not None}

    def attention(self, ids: list[str]) -> dict[str, dict[str, NDArray[np.float32]]]:
        """Return the cross-attention maps, float32 ``[query steps, key steps]``, by direction.

        The directions are those that the evaluation recorded: ``DIRECTION/ID`` in
        ``attention.npz``, which a fusion that does not attend does not leave.
        """
        maps: dict[str, dict[str, NDArray[np.float32]]] = {}
        what = "cross-attention"
        with self._open_arrays(what, self.evaluation.attention) as archive:
            if archive is None:
                return {}
            recorded: dict[str, list[str]] = {}
            for member in archive.namelist():
                direction, _, name = member.removesuffix(".npy").partition("/")
                recorded.setdefault(name, []).append(direction)
            for name in ids:
                if name not in recorded:
                    self.note(what, f"attention.npz has none for {name!r}")
                for direction in recorded.get(name, ()):
                    weights = self._read_array(what, archive, f"{direction}/{name}", 2)
                    if weights is not None:
                        maps.setdefault(name, {})[direction] = weights
        return maps

    @contextmanager
    def _open_arrays(self, what: str, path: Path) -> Iterator[zipfile.ZipFile | None]:
        """Open a file of arrays; None where the evaluation left none, or with a note."""
        with ExitStack() as opened:
            archive = None
            try:
                archive = opened.enter_context(zipfile.ZipFile(path))
            except FileNotFoundError:
                self.unrecorded.append(path.name)
            except (OSError, zipfile.BadZipFile) as e:
                if machine_fault(e):
                    raise machine_error(e, path) from e
                self.note(what, f"{path.name} cannot be read ({e})")
            yield archive

    def _read_array(
        self, what: str, archive: zipfile.ZipFile, name: str, ndim: int
    ) -> NDArray[np.float32] | None:
        try:
            return read_array(archive, name, ndim)
        except KeyError:
            self.note(what, f"{Path(str(archive.filename)).name} has none for {name!r}")
        except (UserError, OSError, zipfile.BadZipFile) as e:
            if machine_fault(e):
                raise machine_error(e, archive.filename) from e
            self.note(what, e)
        return None


def read_run(path: Path, split: str, name: str | None = None) -> ReportInputs:
    """Read a run folder; raise :class:`UserError` when it, or its hypotheses, cannot be read."""
    files = RunFolder.open(path)
    evaluation = files.evaluated(split, name)
    file = evaluation.hypotheses
    run = ReportInputs(path, split, *read_pairs(file, None), name)
    apart = sorted(set(run.hypotheses) ^ set(run.references))
    if apart or not run.hypotheses:
        raise UserError(f"{file}: holds no complete pairs")
    run.config = run.attempt("configuration", lambda: load_resolved(files.config), None)
    run.config_text = run.attempt("configuration text", lambda: read_text(files.config), "")
    run.versions = run.attempt("versions", lambda: read_facts(files.versions), {})
    run.split_scores = run.attempt("scores", lambda: read_split_scores(evaluation.scores), None)
    corpus = None if run.split_scores is None else run.split_scores.settings.get(CORPUS)
    if run.config is not None and corpus is not None:
        own = run.config
        run.config = run.attempt("corpus of the blend", lambda: of_corpus(own, str(corpus)), own)
    run.evaluated = run.attempt("how it was evaluated", lambda: read_facts(evaluation.record), {})
    _read_curves(run)
    return run


def _read_curves(run: ReportInputs) -> None:
    """Read the logs of this stage and of its siblings, as far as the run uses them."""
    stages = STAGES if run.config is None else run.config.train.stages
    own = RunFolder(run.path)
    folders: dict[str, RunFolder] = {stage: own.beside(stage) for stage in stages}
    folders.setdefault(run.path.name, own)
    for stage, folder in folders.items():
        if not folder.path.is_dir():
            run.note("curves", f"the stage {stage!r} has no folder beside this run")
            continue
        none: list[LogRow] = []
        note = partial(run.note, "curves")
        rows = run.attempt("curves", partial(read_log, folder.metrics, note), none)
        if rows:
            run.curves[stage] = rows
            run.plans[stage] = run.attempt("plan", partial(read_plan, folder.plan), PlanFacts())


def read_log(path: Path, note: Callable[[str], object]) -> list[LogRow]:
    """Return the log's rows by step; after a resume the later row of a step counts.

    What is wrong with a line is given to ``note``, and the line is left out. Raises
    :class:`UserError` when the file cannot be read.
    """
    rows: dict[int, LogRow] = {}
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        name = f"{path}: line {number} is not a log row, left out"
        try:
            values = read_record(dict[str, Any], parse_json(line, name), name)
            of = {key: value for key, value in values.items() if key.startswith(_OF_CORPORA)}
            row = read_record(LogRow, {**values, "by_corpus": of}, name)
        except UserError as e:
            note(str(e))
            continue
        rows[row.step] = row
    return [rows[step] for step in sorted(rows)]


def read_plan(path: Path) -> PlanFacts:
    """Read ``plan.json``; raise :class:`UserError` when it is none."""
    return read_record(PlanFacts, read_json(path), f"{path}: not a batch plan")


def read_parameters(path: Path) -> dict[str, ComponentParameters]:
    """Read ``parameters.json``, by component; raise :class:`UserError` when it is none."""
    headline = f"{path}: not a file of parameters"
    return read_record(dict[str, ComponentParameters], read_json(path), headline)


def read_facts(path: Path) -> dict[str, str]:
    """Return what a JSON object says, as text: nested names joined by a dot.

    Raises :class:`UserError` when the file holds none.
    """
    return _flat(read_record(dict[str, Any], read_json(path), f"{path}: not a JSON object"))


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested names joined by a dot, and their values as text."""
    facts: dict[str, str] = {}
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, dict) and name.count(".") < _NESTED:
            facts.update(_flat(item, f"{name}."))
        else:
            facts[name] = item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)
    return facts


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
            "crop": settings.crop,
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
