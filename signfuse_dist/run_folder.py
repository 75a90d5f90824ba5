"""The run folder ``runs/EXPERIMENT/STAGE``: what lies in it, what identifies it, what may change.

No other module knows the name of a file in it; ``docs/run-folder.md`` describes each. Inside
``model/`` the names are those of :mod:`signfuse_dist.model.saved`, inside a checkpoint those of
:mod:`signfuse_dist.engine.checkpoint_files`. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from signfuse_dist.arrangement import batch_norms, norms_see_clips
from signfuse_dist.config import RunConfig
from signfuse_dist.engine.checkpoint_files import list_checkpoints
from signfuse_dist.errors import UserError, suggest
from signfuse_dist.experiment import load_resolved
from signfuse_dist.files import STATE, checksum, peek_state, write_text
from signfuse_dist.plan import Plan, divisors_that_fit
from signfuse_dist.sections import keys_with
from signfuse_dist.stages import loss_weights, previous

_PACKAGES = ("signfuse_dist", "torch", "accelerate", "deepspeed", "transformers", "peft")
# Keys that all stages of an experiment have alike.
_SHARED = ("data.", "model.", "train.start", "origin.")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # of a split, or of an evaluation of it


@dataclass(frozen=True)
class RunFolder:
    """Where the files of a run lie; that there are any is not said by this."""

    path: Path

    @classmethod
    def of(cls, run: RunConfig) -> RunFolder:
        """Return the run folder of a stage, ``OUTPUT/EXPERIMENT/STAGE``."""
        return cls(run.folder)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Return the run folder that a user names; raise :class:`UserError` when it is none."""
        folder = cls(path)
        if not path.is_dir():
            raise UserError(f"{path}: no such run folder; give runs/EXPERIMENT/STAGE")
        if not (folder.config.is_file() or folder.model.is_dir() or folder.evaluations.is_dir()):
            stages = [str(p) for p in sorted(path.iterdir()) if cls(p).config.is_file()]
            instead = " or ".join(stages) or "runs/EXPERIMENT/STAGE"
            raise UserError(
                f"{path}: is no run folder, it has no {folder.config.name}; give {instead}"
            )
        return folder

    def beside(self, stage: str) -> RunFolder:
        """Return the folder of another stage of the same experiment."""
        return RunFolder(self.path.with_name(stage))

    def before(self, run: RunConfig) -> RunFolder | None:
        """Return the folder of the stage that ``run``, of this folder, starts from."""
        stage = previous(run.stage.name, run.train.stages)
        return None if stage is None else self.beside(stage)

    @property
    def is_finished(self) -> bool:
        """Whether the stage is trained: its model is written last, whole or not at all."""
        return self.model.is_dir()

    @property
    def config(self) -> Path:
        """The resolved run, every key with its value."""
        return self.path / "config.yaml"

    @property
    def plan(self) -> Path:
        """Clips, processes, batch, accumulation and steps of the latest start."""
        return self.path / "plan.json"

    @property
    def lock(self) -> Path:
        """The lock of the one run that trains here, see :mod:`signfuse_dist.locks`."""
        return self.path / ".lock"

    @property
    def card_lock(self) -> Path:
        """The lock of whoever renews the model card: training, and each evaluation."""
        return self.path / ".card.lock"

    @property
    def ds_config(self) -> Path:
        """The DeepSpeed dictionary of the latest start; null under plain DDP."""
        return self.path / "ds_config.json"

    @property
    def versions(self) -> Path:
        """Versions of Python and the packages at the latest start."""
        return self.path / "versions.json"

    @property
    def parameters(self) -> Path:
        """Parameters of each component, all and those that the stage trains."""
        return self.path / "parameters.json"

    @property
    def attention(self) -> Path:
        """The attention kernels that were asked for, and those in use."""
        return self.path / "attention.json"

    @property
    def startup(self) -> Path:
        """Seconds from the start of the process to the end of the first step, in parts."""
        return self.path / "startup.json"

    @property
    def metrics(self) -> Path:
        """The log of training, one JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The folder of the trained model."""
        return self.path / "model"

    @property
    def model_state(self) -> Path:
        """The checksums of the trained model's files: its own checksum identifies the model."""
        return self.model / STATE

    @property
    def evaluations(self) -> Path:
        """The folder of the evaluations, one folder a split and name."""
        return self.path / "evaluation"

    @property
    def trackers(self) -> Path:
        """What trackers keep on the disk."""
        return self.path / "trackers"

    @property
    def job_logs(self) -> Path:
        """The folder in which the logs of Slurm jobs have a name."""
        return self.path / "slurm"

    @property
    def wandb_run_id(self) -> Path:
        """The name of the run at Weights & Biases."""
        return self.path / "wandb_run_id"

    def stacks(self, rank: int | str) -> Path:
        """What the threads of a process did when the job was ended; ``*`` for those of all."""
        return self.path / f"stacks_{rank}.txt"

    def evaluation(self, split: str, name: str | None = None) -> EvaluationFolder:
        """Return where a split's evaluation lies, ``SPLIT`` or, of one with a name, ``SPLIT@NAME``.

        Raises UserError for what is no name.
        """
        for what, word in (("split", split), ("--name", name)):
            if word is not None and not _NAME.fullmatch(word):
                raise UserError(f"{what} {word!r} is not a name (letters, digits, '.', '_', '-')")
        return EvaluationFolder(self.evaluations / (split if name is None else f"{split}@{name}"))

    def evaluated(self, split: str, name: str | None = None) -> EvaluationFolder:
        """Return an evaluation that is there; raise UserError naming those that are."""
        folder = self.evaluation(split, name)
        if not folder.hypotheses.is_file():
            files = sorted(self.evaluations.glob(f"*/{folder.hypotheses.name}"))
            there = [file.parent.name for file in files]
            raise UserError(
                f"{folder.hypotheses}: does not exist; evaluate the run on {split!r} first"
                f"{suggest(folder.path.name, there)}. There are: {', '.join(there) or 'none'}"
            )
        return folder

    def scored(self) -> dict[str, EvaluationFolder]:
        """Return each evaluation that has scores, by ``SPLIT`` or ``SPLIT@NAME``."""
        folders = map(EvaluationFolder, sorted(self.evaluations.glob("*")))
        return {folder.path.name: folder for folder in folders if folder.scores.is_file()}

    def features(self, split: str, key: str) -> Path:
        """Return the folder of cached features, which the stages of an experiment share."""
        return self.path.parent / "features" / f"{split}-{key}"


@dataclass(frozen=True)
class EvaluationFolder:
    """Where the files of ``RUN/evaluation/SPLIT``, or ``SPLIT@NAME``, lie."""

    path: Path

    @classmethod
    def open(cls, path: Path, split: str | None) -> EvaluationFolder:
        """Return the evaluation that a user names: its own folder, or a run folder and a split.

        Raises UserError when it is none.
        """
        if cls(path).hypotheses.is_file():
            return cls(path)
        if split is None:
            raise UserError(f"{path} is a run folder: say which split of it, such as --split test")
        return RunFolder.open(path).evaluated(split)

    @property
    def run(self) -> RunFolder:
        """The run folder that it lies in."""
        return RunFolder(self.path.parent.parent)

    @property
    def hypotheses(self) -> Path:
        """Translations and references by id."""
        return self.path / "hypotheses.jsonl"

    @property
    def lock(self) -> Path:
        """The lock of the one evaluation that writes here."""
        return self.path / ".lock"

    @property
    def report_lock(self) -> Path:
        """The lock of the one report that is written here."""
        return self.path / ".report.lock"

    @property
    def scores(self) -> Path:
        """Scores, controls, settings of decoding: the last of the files of an evaluation."""
        return self.path / "scores.json"

    @property
    def gates(self) -> Path:
        """The gate of Eq. 10 over time, by clip."""
        return self.path / "gates.npz"

    @property
    def attention(self) -> Path:
        """Cross-attention of the samples that the report shows."""
        return self.path / "attention.npz"

    @property
    def record(self) -> Path:
        """How it was computed, which no score depends on."""
        return self.path / "evaluation.json"

    @property
    def report_markdown(self) -> Path:
        """The report as text."""
        return self.path / "report.md"

    @property
    def report_html(self) -> Path:
        """The report as one page."""
        return self.path / "report.html"

    @property
    def figures(self) -> Path:
        """The folder of the pictures of the Markdown report."""
        return self.path / "figures"

    @property
    def parts(self) -> Path:
        """The folder of what an unfinished evaluation has decoded, a folder for each key."""
        return self.path / "parts"


def begin(run: RunConfig, plan: Plan, ds_config: dict[str, Any] | None, main: bool) -> None:
    """Write what describes this start of a run, and its configuration at the first start.

    Every process calls this, and the ``main`` one writes. Raises UserError when the folder holds a
    run of another configuration, or does not go on from the stages before it.
    """
    refuse_other_before(run)
    refuse_other(run)
    if not main:
        return
    folder = RunFolder.of(run)
    folder.path.mkdir(parents=True, exist_ok=True)
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    versions = {"python": platform.python_version(), **versions}
    write_text(folder.plan, json.dumps(dataclasses.asdict(plan), indent=1))
    write_text(folder.ds_config, json.dumps(ds_config, indent=1))
    write_text(folder.versions, json.dumps(versions, indent=1))
    if not folder.config.exists():
        text = yaml.safe_dump(run.to_dict(), sort_keys=False, allow_unicode=True)
        write_text(folder.config, text)


def refuse_other(run: RunConfig) -> None:
    """Raise UserError when the run folder holds a run of another configuration."""
    _refuse_differences(run, run.stage.name, fixed(run))


def refuse_other_before(run: RunConfig) -> None:
    """Raise UserError when a stage before had other data, another model or other stages before it.

    Their other keys may have been their own, and of the contrastive stage what it does not read.
    """
    shared = {key: value for key, value in fixed(run).items() if key.startswith(_SHARED)}
    shared["train.stages"] = list(run.train.stages)
    for stage in run.train.stages[: run.train.stages.index(run.stage.name)]:
        unread = keys_with("unread by contrastive") if stage == "contrastive" else ()
        read = {key: value for key, value in shared.items() if key not in unread}
        _refuse_differences(run, stage, read)


def _refuse_differences(run: RunConfig, stage: str, now: dict[str, Any]) -> None:
    folder = RunFolder.of(run).beside(stage)
    if not folder.config.exists():
        return
    before = fixed(load_resolved(folder.config))
    if stage != run.stage.name:  # an earlier stage depends on what came before it alone
        now, before = _up_to(stage, now), _up_to(stage, before)
    changed = [f"{k} was {before.get(k)!r}, is {now[k]!r}" for k in now if now[k] != before.get(k)]
    if changed:
        raise UserError(
            f"{folder.path} holds stage {stage} of another configuration ({'; '.join(changed)}): "
            "a run folder is never overwritten, and a stage goes on from what the one before it "
            "was; give what it was, or train.output=FOLDER for new runs, or remove it"
        )


def _up_to(stage: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return the values with ``train.stages`` cut off after ``stage``."""
    stages = list(values["train.stages"])
    return {**values, "train.stages": stages[: stages.index(stage) + 1]}


def fixed(run: RunConfig) -> dict[str, Any]:
    """Return what must not change between the parts of a run, by ``section.key``.

    What may touches no number of a step, beyond rounding where memory makes it necessary. Where
    the micro batch may, :func:`identify` holds what it decides.
    """
    free = keys_with("resume")
    values = {key: value for key, value in run.flat().items() if key not in free}
    for part in values["data.blend"]:
        part["data"] = {k: v for k, v in part["data"].items() if f"data.{k}" not in free}
    return values


def identify(run: RunConfig, plan: Plan) -> dict[str, Any]:
    """Return what checkpoints say of a run; each entry must be the same when it goes on.

    ``config`` is what may not change, key by key: a hash of it would refuse every checkpoint of a
    version with other keys. ``starts_from`` is the checksum of the checksums of the stage before,
    or of what ``train.start`` names (``origin`` of the run), ``meeting`` how many clips see each
    other in a step. What it was trained on stands beside these (:func:`refuse_other_data`).
    """
    before = RunFolder.of(run).before(run)
    start = None if run.origin is None else run.origin.fingerprint
    return {
        "stage": run.stage.name,
        "config": fixed(run),
        "starts_from": start if before is None else checksum(before.model_state),
        "meeting": _num_meeting(run, plan),
    }


TRAINED_ON = "trained_on"
"""Entry of a checkpoint and of a model: the checksums of the data, a ``SplitContent``."""


def refuse_other_data(run: RunConfig, content: Mapping[str, Any]) -> None:
    """Raise UserError when this stage, or one before it, was trained on other clips than these.

    ``content`` are the fields of the training split's ``SplitContent``; of a blend, those of each
    corpus by its name. Compared are the entries
    that both have: a checkpoint of an earlier version knows ids and lengths alone, a model of one
    nothing, and shards of one have no checksums of pictures and joints but those of their tars.
    """
    for stage in run.train.stages[: run.train.stages.index(run.stage.name) + 1]:
        folder = RunFolder.of(run).beside(stage)
        before = trained_on(folder)
        for part in run.corpora:
            then, now = before, content
            if run.data.blend:
                then, now = before.get(part.corpus) or {}, content[part.corpus]
            odd = _other_data(then, now)
            if not odd:
                continue
            place = part.data.place(part.data.train_split)
            if part.data.poses is not None and odd == ["joints"]:
                place = f"pose set {part.data.poses} of {place}"
            raise UserError(
                f"{folder.path}: stage {stage} was trained on other {' and '.join(odd)} than "
                f"{place} has now. A run goes on with the data that it began with: put those "
                "shards back (packed again to the bit they are the same), or give "
                "train.output=FOLDER for new runs, from the first stage on"
            )


def trained_on(folder: RunFolder) -> dict[str, Any]:
    """Return what a stage says it was trained on: its model, else its newest readable checkpoint.

    Empty where neither says it.
    """
    for path in [folder.model, *reversed(list_checkpoints(folder.checkpoints))]:
        state = peek_state(path)
        if not state:
            continue  # not there, or damaged: the one before it says the same
        said = state.get("run", state)  # a checkpoint has more to say than a model
        try:
            # Earlier versions have ids and lengths alone, beside the run's other entries.
            return dict(said.get(TRAINED_ON) or {"clips": said.get("clips_sha256")})
        except (TypeError, ValueError, AttributeError):
            continue
    return {}


def _other_data(before: Mapping[str, Any], now: Mapping[str, str | None]) -> list[str]:
    """Name what of the data differs, of what both know."""
    known = {name for name in now if None not in (before.get(name), now[name])}
    differ = {name for name in known if before[name] != now[name]}
    named: tuple[str, ...] = ("clips", "texts", "pictures", "joints")
    odd = [name for name in named if name in differ]
    if "joints" not in known and "pose_set" in differ:
        odd.append("joints")
    if not odd and "shards" in differ:
        # A tar holds both, and what training does not see: it decides where nothing else can.
        own = ("pictures", "joints") if now.get("pose_set") is None else ("pictures",)
        unknown = [name for name in own if name not in known]
        odd += [" or ".join(unknown)] if unknown else []
    return odd


def refuse_other_meeting(run: RunConfig, plan: Plan, before: Any) -> None:
    """Raise UserError when other numbers of clips met in a step before; say what would keep them.

    ``before`` is ``meeting`` of what :func:`identify` returned for the checkpoint.
    """
    now = _num_meeting(run, plan)
    if before is None or before == now:
        return
    each, left = divmod(before, plan.world_size)
    advice = f"give train.micro_batch_size={each}, which keeps every number"
    if left or each not in divisors_that_fit(plan.global_batch_size, plan.world_size):
        advice = (
            f"give a number of processes that divides {before} evenly, with train.micro_batch_size "
            f"so that both make {before}"
        )
    raise UserError(
        f"{run.folder} was trained with {before} clips that see each other at a time, and "
        f"{plan.world_size} processes x train.micro_batch_size={plan.micro_batch_size} make {now}: "
        f"{_why_they_meet(run)}. To go on, {advice}. A new run with model.norm=layer and "
        "model.visual_norm=group depends on no such number where Eq. 21 caches its gradients"
    )


def price_of_meeting(run: RunConfig, plan: Plan) -> str | None:
    """Say what another number of processes costs a run that has begun, and what frees it of that.

    None where any number of processes goes on with any micro batch.
    """
    together = _num_meeting(run, plan)
    if together is None or not (batch_norms(run) or not run.train.gradient_caching):
        return None
    possible = [
        f"{n} x {together // n}"
        for n in range(1, together + 1)
        if together % n == 0 and together // n in divisors_that_fit(plan.global_batch_size, n)
    ]
    keys = [*batch_norms(run), *([] if run.train.gradient_caching else ["gradient_caching"])]
    free = " and ".join(_FREE[key] for key in keys)
    return (
        f"{_why_they_meet(run)}, {together} at a time. Once begun, the run goes on with as many "
        f"alone: {', '.join(possible)} (processes x train.micro_batch_size), so on fewer GPUs each "
        f"needs the memory of more clips. {free} depends on no such number, and is chosen before "
        "the run begins"
    )


_FREE = {
    "norm": "model.norm=layer (with which a small probe learned more slowly: docs/log.md)",
    "visual_norm": "model.visual_norm=group or frozen",
    "gradient_caching": "train.gradient_caching=true",
}


def _why_they_meet(run: RunConfig) -> str:
    norms = batch_norms(run)
    if norms:
        return " and ".join(f"model.{key}={getattr(run.model, key)}" for key in norms) + (
            " takes statistics over them"
        )
    return "Eq. 21 compares them with each other (train.gradient_caching=false)"


def _num_meeting(run: RunConfig, plan: Plan) -> int | None:
    """Return how many clips see each other in a step, which must stay what it was; None: none do.

    Through the statistics of a norm in training mode those of one pass over all processes, and
    through Eq. 21 its pairs, which gradient caching makes those of the whole step.
    """
    if norms_see_clips(run):
        return plan.num_together
    if "contrastive" in loss_weights(run.stage.name, run.loss):
        return plan.num_pairs
    return None
