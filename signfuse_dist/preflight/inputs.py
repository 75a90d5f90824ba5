"""What a run reads: packed splits, the files of the LLM, and the weights that a stage starts from.

Each is looked at where it lies, without network and without torch: whether it is there and whole,
and whether it is what the run's configuration asks for. The weights are ImageNet's, or those of
the stage before.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from signfuse_dist.arrangement import Arrangement
from signfuse_dist.blend import Blend, BlendedMicroBatches
from signfuse_dist.config import ModelConfig, RunConfig, StageName
from signfuse_dist.data.blended import BlendedSplit, blend_of, content_of, open_training
from signfuse_dist.data.columns import open_columns
from signfuse_dist.data.manifest import (
    FEW_JOINTS,
    NO_EXTRACTOR,
    Manifest,
    SampleEntry,
    ShardError,
    feature_path,
    pose_path,
)
from signfuse_dist.data.manifest_files import load_index, load_manifest
from signfuse_dist.data.split import read_source
from signfuse_dist.data.stamp import is_verified
from signfuse_dist.data.storage import Folder, is_local, open_folder
from signfuse_dist.engine.checkpoint_files import Checkpoint, find_latest, refuse_other_position
from signfuse_dist.errors import UserError, on_one_line, printable
from signfuse_dist.evaluation.protocols import find_preset
from signfuse_dist.files import read_state
from signfuse_dist.locks import PATIENCE, holder_of
from signfuse_dist.plan import MicroBatches, Plan, Times
from signfuse_dist.preflight.aside import ask_aside
from signfuse_dist.preflight.finding import Finding, error, ok, warning
from signfuse_dist.preflight.llm_files import find_llm_files
from signfuse_dist.preflight.network import TORCH_HUB, missing_file
from signfuse_dist.preflight.writing import check_writing
from signfuse_dist.run_folder import (
    RunFolder,
    refuse_other,
    refuse_other_before,
    refuse_other_data,
    refuse_other_meeting,
    trained_on,
)
from signfuse_dist.stages import needs_language_model, previous
from signfuse_dist.start import find_start, with_origin
from signfuse_dist.system_errors import refuse_machine
from signfuse_dist.tensor_files import refuse_not_finite

_EPOCHS = 8  # are drawn: more find hardly fuller ones
_UNEVEN = 1.05  # another micro batch, of fewer frames, may be shared out less evenly
# Resampled, BLEU-4 of 40 sentences spans 12 points, and of several steps the best of 14 was chance.
_FEW_SENTENCES = 100
_Level = Callable[[str, str, str], Finding]  # finding.error or finding.warning

# torchvision's IMAGENET1K_V1, by the names under which torch keeps them.
_FILES = {"resnet18": "resnet18-f37072fd.pth", "resnet50": "resnet50-0676ba61.pth"}


def check_splits(run: RunConfig) -> list[Finding]:
    """Look at each split, at its pose set where ``data.poses`` names one, and at what they share.

    A split at an address is not compared with the others: its indexes would have to be fetched.
    """
    splits = []
    for part in run.corpora if run.data.blend else ():
        own = dataclasses.replace(run, data=part.data)
        if part.data.place(part.data.dev_split) != run.shards(run.data.dev_split):
            splits += _look_at_scored(own, blended=True, corpus=part.corpus)
        train = part.data.train_split
        splits.append(_look_at(own, train, f"{part.corpus} training", error, blended=True))
    if not run.data.blend:
        splits.append(_look_at(run, run.data.train_split, "training", missing=error))
    splits += _look_at_scored(run, blended=bool(run.data.blend))
    findings = [finding for split in splits for finding in split.findings]
    for one, other in itertools.combinations(splits, 2):
        alike = one.corpus == other.corpus or one.trains != other.trains
        if one.location != other.location and alike and not (one.trains and other.trains):
            findings += _check_shared(one, other)
    findings += _check_extraction(splits)
    findings += _check_selection(run, splits)
    return findings + _check_texts(run, splits)


def _look_at_scored(run: RunConfig, *, blended: bool, corpus: str = "") -> list[_SplitSeen]:
    """Look at what is scored; without it a stage trains, and scores after it or between epochs."""
    named = {"development": run.data.dev_split, "test": run.data.test_split}
    return [
        dataclasses.replace(
            _look_at(run, split, f"{corpus} {role}".strip(), warning, blended=blended),
            corpus=corpus,
        )
        for role, split in named.items()
    ]


def _check_extraction(splits: Sequence[_SplitSeen]) -> Iterator[Finding]:
    """Say where what is scored has joints of another extractor than all that is trained on."""
    trained = {split.joints_by for split in splits if split.trains and split.joints_by}
    for split in splits:
        if trained and split.joints_by and split.joints_by not in trained:
            others = ", ".join(sorted(trained))
            said = f"joints by {split.joints_by}, and those of training by {others}"
            fix = "Pack it again in the same way, or `signfuse pose` both and data.poses=NAME"
            yield warning(f"{split.role} split", printable(said), fix)


def _check_selection(run: RunConfig, splits: Sequence[_SplitSeen]) -> Iterator[Finding]:
    """Say where so few sentences of development choose a step that chance does."""
    keys = []
    if run.train.select == "best":
        keys.append("train.select=best")
    if run.train.patience is not None:
        keys.append(f"train.patience={run.train.patience}")
    sizes = [len(split.texts) for split in splits if split.role.endswith("development")]
    # A split that cannot be read has no texts here: how many there are is not known then.
    if keys and all(sizes) and sum(sizes) < _FEW_SENTENCES:
        by = f"{' and '.join(keys)} go by their scores"
        said = f"{sum(sizes)} sentences tell no step from another, and {by}"
        fix = "Write train.select=last and no train.patience, or pack more of them"
        yield warning("development split", said, fix)


def _check_texts(run: RunConfig, splits: Sequence[_SplitSeen]) -> list[Finding]:
    """Ask the LLM's tokenizer whether it can write the texts; not whether it is there."""
    texts = [text for split in splits for text in split.texts.values()]
    if not texts or not any(map(needs_language_model, run.train.stages)):
        return []
    try:
        preset = find_preset(run.data.metric_preset, run.data.bleu_tokenizer)
    except UserError as e:
        return [error("data.metric_preset", str(e), "It scores the run once it is trained")]
    try:
        files = find_llm_files(run.model)
    except (UserError, ValueError) as e:
        refuse_machine(e, run.model.llm)
        return []  # named by check_llm
    if files is None:
        return []
    return check_writing(files.folder, preset, texts, list(splits[-1].texts.values()))


@dataclass(frozen=True)
class _SplitSeen:
    """A split that was looked at: what was found, and the text of each clip by its id."""

    role: str
    location: str
    findings: list[Finding]
    texts: dict[str, str]
    corpus: str = ""
    """Of a blend, whose it is; "" of the run's own."""
    joints_by: str | None = None
    """What found the joints that are read, with its version; None: not known, or none are."""

    @property
    def trains(self) -> bool:
        """Whether it is trained on."""
        return self.role.endswith("training")


def _check_shared(one: _SplitSeen, other: _SplitSeen) -> Iterator[Finding]:
    """Compare what two splits hold: a clip or a sentence of both makes scores too good."""
    what = f"{one.role} and {other.role} split"
    ids = one.texts.keys() & other.texts.keys()
    same = sorted(clip_id for clip_id in ids if one.texts[clip_id] == other.texts[clip_id])
    if same:
        said = f"{len(same)} clips have the same id and text in both, such as {same[0]!r}"
        level = error if one.trains or other.trains else warning
        yield level(what, printable(said), "Take them out of one table and pack that split again")
    elif ids:
        said = f"{len(ids)} ids are in both, with other texts, such as {min(ids)!r}"
        yield warning(what, printable(said), "See that they are not the same clips")
    common = set(one.texts.values()) & set(other.texts.values())
    repeated = [text for clip_id, text in other.texts.items() if text in common]
    if repeated and len(repeated) > len(same):
        said = (
            f"{len(repeated)} of {len(other.texts)} texts of {other.role} "
            f"({len(repeated) / len(other.texts):.1%}) are also in {one.role}, such as "
            f"{repeated[0]!r}"
        )
        yield warning(what, printable(said), "Report scores of the other sentences, too")


def worst_frames(
    run: RunConfig,
    plan: Plan | None,
    lengths: NDArray[np.int64] | None = None,
    blend: Blend | None = None,
) -> int:
    """Return the frames of the fullest micro batch of a process, as the plan draws them.

    Never less than the longest clip. Without a plan, or where the indexes would have to
    be fetched from an address: nothing but clips of ``data.max_frames``. ``lengths`` are the frames
    of each training clip as packed, where they are known, ``blend`` the draws of a blend.
    """
    if lengths is None:
        lengths, blend = _lengths(run)
    if plan is None or lengths is None:
        return run.train.micro_batch_size * run.data.max_frames
    slowest = np.ceil(lengths * (1 + run.augment.speed)).astype(np.int64)
    frames = np.minimum(slowest, run.data.max_frames)

    def frames_of(times: Times, clips: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.asarray(frames[clips])

    arrangement = Arrangement.of(run)
    if blend is None:
        order = MicroBatches(plan, run.train.seed, frames_of, 0, 0, arrangement)
    else:
        order = BlendedMicroBatches(plan, blend, frames_of, 0, 0, arrangement)
    return max(int(frames.max()), math.ceil(order.most_frames(_EPOCHS) * _UNEVEN))


def _lengths(run: RunConfig) -> tuple[NDArray[np.int64] | None, Blend | None]:
    """Return the frames of each training clip, None where they are not at hand, and the blend."""
    places = [part.data.place(part.data.train_split) for part in run.corpora]
    try:
        folders = [open_folder(place) for place in places]
        if not all(map(is_local, folders)):
            return None, None
        if run.data.blend:
            split = open_training(run)
            assert isinstance(split, BlendedSplit)
            return split.lengths.astype(np.int64), blend_of(run, split.sizes)
        columns = open_columns(folders[0], load_manifest(folders[0]))
        return columns.lengths.astype(np.int64), None
    except UserError:
        return None, None  # named by check_splits


def _look_at(
    run: RunConfig, split: str, role: str, missing: _Level, *, blended: bool = False
) -> _SplitSeen:
    location = run.shards(split)
    what = f"{role} split {location}"
    out = f"--split {shlex.quote(split)} --out {shlex.quote(location)}"
    pack = f"signfuse pack {run.data.corpus} {out} ..., or data.shards="
    samples: list[SampleEntry] = []
    try:
        folder = open_folder(location)
        manifest = load_manifest(folder)
        if is_local(folder):
            for entry in manifest.shards:
                samples += load_index(folder, entry).samples
    except UserError as e:
        refuse_machine(e, location)
        return _SplitSeen(role, location, [missing(what, _fault(e), pack)], {})
    findings = [_check_packing(run, what, manifest), _check_verified(what, folder, location)]
    joints_by = _joints_by(manifest) if run.model.streams != "visual" else None
    if run.data.poses is not None:
        finding, joints_by = _check_poses(run, folder, location, missing)
        findings.append(finding)
    elif manifest.num_samples and run.model.streams != "visual":
        may_lack = blended and run.model.streams == "both"
        findings += _check_joints(what, manifest, samples, may_lack)
    for name in run.model.feature_sets:
        findings.append(_check_features(manifest, folder, location, name, missing))
    if manifest.packing.contents == "clips" and not run.model.feature_sets:
        findings += _check_pictures(run, what, samples)
    texts = {sample.id: sample.text for sample in samples}
    return _SplitSeen(role, location, findings, texts, joints_by=joints_by)


def _joints_by(manifest: Manifest) -> str | None:
    """Return what found the joints, with its version; None where nobody looked."""
    packing = manifest.packing
    if packing.extractor == NO_EXTRACTOR:
        return None
    return f"{packing.extractor} {packing.extractor_version}"


def _check_joints(
    what: str, manifest: Manifest, samples: Sequence[SampleEntry], may_lack: bool
) -> Iterator[Finding]:
    """Say where the skeletal stream would be shown nothing, or little.

    A corpus of a blend ``may_lack`` joints: others have some.
    """
    fix = "signfuse pose ... --name NAME and data.poses=NAME, or model.streams=visual"
    counted = [s.found_frames for s in samples if s.found_frames is not None]
    share = sum(counted) / manifest.num_frames if len(counted) == manifest.num_samples else None
    if manifest.packing.extractor == NO_EXTRACTOR and may_lack:
        yield ok(what, "holds no joints; its pictures stand on both sides of CMFA")
    elif manifest.packing.extractor == NO_EXTRACTOR:
        yield error(what, "holds no joints, and the model has a skeletal stream", fix)
    elif share == 0:
        yield error(what, "has no joint in any frame, and the model has a skeletal stream", fix)
    elif share is not None and share < FEW_JOINTS:
        yield warning(what, f"has joints in {share:.1%} of its frames", f"Look at it, or {fix}")


def _check_pictures(run: RunConfig, what: str, samples: Sequence[SampleEntry]) -> Iterator[Finding]:
    """Say where the visual stream would be shown nothing, or not everything."""
    alone = sum(not sample.has_pictures for sample in samples)
    if not alone or run.model.streams == "skeletal":
        return
    fix = "model.streams=skeletal"
    if run.model.streams == "visual":
        which = f"{alone} of {len(samples)} clips are joints alone"
        yield error(what, f"{which}, and the model has no skeletal stream", fix)
    elif alone == len(samples):
        yield warning(
            what,
            "all clips are joints alone: the visual stream is not run, nothing of it is learned, "
            "and Eq. 21 has no pairs here",
            f"{fix}, or keep it for a later stage of training with pictures",
        )
    else:
        which = f"{alone} of {len(samples)} clips are joints alone"
        yield ok(what, f"{which}; their joints stand on both sides of CMFA")


def _check_packing(run: RunConfig, what: str, manifest: Manifest) -> Finding:
    settings, asked = manifest.packing.settings, run.data
    differences = [
        f"packed at {name} {packed}, the run asks {wanted}"
        for name, packed, wanted in (
            ("fps", settings.fps, asked.fps),
            ("frame_size", settings.frame_size, asked.frame_size),
            ("crop", settings.crop, asked.crop),
        )
        if packed != wanted
    ]
    if differences:
        return error(
            what,
            "; ".join(differences),
            "Change data.fps, data.frame_size and data.crop, or pack again",
        )
    if not manifest.num_samples:
        return error(what, "no clips", "See its dropped.tsv")
    clips = f"{manifest.num_samples} clips in {len(manifest.shards)} shards"
    cut = "whole pictures" if settings.crop == "none" else f"pictures cut by {settings.crop}"
    return ok(what, f"{clips}, {manifest.num_dropped} rows dropped, {cut}")


def _check_verified(what: str, folder: Folder, location: str) -> Finding:
    if is_verified(folder):
        return ok(what, "verified, and not packed again since")
    fix = f"signfuse verify {shlex.quote(location)} --workers 8"
    return warning(what, "not verified since it was packed", fix)


def _check_poses(
    run: RunConfig, clips: Folder, location: str, missing: _Level
) -> tuple[Finding, str | None]:
    """Look at the pose set of a split, and return what found its joints beside what is to say."""
    name = str(run.data.poses)
    what = f"pose set {name} of {location}"
    fix = f"signfuse pose {run.data.corpus} ... --name {shlex.quote(name)}, or data.poses=null"
    try:
        manifest = load_manifest(clips / pose_path(name))
        expected = load_manifest(clips).num_samples
    except UserError as e:
        refuse_machine(e, location)
        return missing(what, _fault(e), fix), None
    joints_by = _joints_by(manifest)
    if manifest.num_samples != expected:
        wrong = f"joints of {manifest.num_samples} clips, not of {expected}"
        return error(what, wrong, fix), joints_by
    if joints_by is None:
        return error(what, "holds no joints", fix), None
    return ok(what, printable(f"joints by {joints_by}")), joints_by


def _check_features(
    clips: Manifest, folder: Folder, location: str, name: str, missing: _Level
) -> Finding:
    """Look at one feature set of a split: whether it is of these clips, and what it is."""
    what = f"feature set {name} of {location}"
    fix = f"signfuse features {shlex.quote(location)} --model NAME, or --from FOLDER, --name {name}"
    try:
        beside = folder / feature_path(name)
        manifest = load_manifest(beside)
        source = read_source(beside, manifest.packing)
    except UserError as e:
        refuse_machine(e, location)
        return missing(what, _fault(e), fix)
    made = manifest.packing.extractor, manifest.packing.extractor_version
    if clips.packing.of("features", *made) != manifest.packing:
        return error(what, "is of other clips", fix)
    without = manifest.num_flagged
    lacking = f"; {without} clips have none, and their joints stand on both sides of CMFA"
    return ok(what, printable(f"{source}{lacking if without else ''}"))


def _fault(error: UserError) -> str:
    """Return what is wrong without the advice: the finding has its own."""
    return f"{error.shard}: {error.what}" if isinstance(error, ShardError) else str(error)


def check_weights(
    runs: Sequence[RunConfig], planned: Mapping[StageName, Plan], is_here: bool
) -> list[Finding]:
    """Look at what the first of these stages starts from, and at the run folder of each.

    Args:
        runs: the stages to be trained, in order.
        planned: the plans by stage, where there are any.
        is_here: whether the job runs on this machine.
    """
    findings = [*_check_start(runs[0], is_here), *_check_data(runs[-1])]
    for run in runs:
        what = f"run folder {run.folder}"
        with suppress(UserError):  # a start that is not there is named above
            run = with_origin(run)
        try:
            if run.stage.name == runs[0].stage.name:
                refuse_other_before(run)
            refuse_other(run)
        except UserError as e:
            findings.append(error(what, str(e), "Or give train.output=FOLDER"))
        else:
            findings += _check_progress(run, planned.get(run.stage.name), what)
    return findings


def check_held(runs: Sequence[RunConfig], is_here: bool) -> Iterator[Finding]:
    """Say where another process trains, which would refuse this one; takes no lock.

    An error of a job that starts here where that process is seen to live. Of a process on another
    machine that cannot be said from here, and a job of another machine may start after it.
    """
    for run in runs:
        folder = RunFolder.of(run)
        holder = holder_of(folder.lock)
        if holder is None:
            continue
        ended = time.monotonic() + PATIENCE  # one that was killed a moment ago is ending
        while holder.writer.lives() and time.monotonic() < ended:
            time.sleep(PATIENCE / 20)
        lives = holder.writer.lives()
        if lives is False:
            continue
        what, who = f"run folder {run.folder}", f"is held by {holder}"
        fix = "Wait until it has finished, or end it"
        if lives:
            yield (error if is_here else warning)(what, who, fix)
        else:
            fix = f"{fix}; if it has ended, the trainer sees that after a minute and goes on"
            yield warning(what, f"{who}, which cannot be looked at from here", fix)


def _check_data(run: RunConfig) -> Iterator[Finding]:
    """Say where the stages up to this one were trained on other data than is there now.

    A split at an address is not looked at: its indexes would have to be fetched.
    """
    places = [part.data.place(part.data.train_split) for part in run.corpora]
    stages = map(RunFolder.of(run).beside, run.train.stages)
    try:
        folders = map(open_folder, places)
        if not any(map(trained_on, stages)) or not all(map(is_local, folders)):
            return
        content = content_of(open_training(run))
    except UserError:
        return  # named by check_splits
    try:
        refuse_other_data(run, content)
    except UserError as e:
        yield error(f"training split {', '.join(places)}", str(e), "Or give train.output=FOLDER")


def _check_progress(run: RunConfig, plan: Plan | None, what: str) -> list[Finding]:
    """Say where a stage stands: trained, new, or from which checkpoint the trainer will go on."""
    folder = RunFolder.of(run)
    if folder.is_finished:
        fault = _model_fault(folder)
        if fault is None:
            return [ok(what, "this stage is trained already")]
        fix = f"Remove {folder.model} and train again: it is written from the last checkpoint"
        return [error(what, f"this stage is trained, and {fault}", fix)]
    said: list[str] = []

    def fits(found: Checkpoint) -> None:
        if plan is not None:
            refuse_other_meeting(run, plan, found.state["run"].get("meeting"))
            refuse_other_position(found, plan, run.train.seed)

    try:
        newest = find_latest(folder.checkpoints, said.append, fits)
    except UserError as e:
        return [error(what, on_one_line(e), "Or give train.output=FOLDER")]
    if newest is None:
        begun = "a run of this configuration, without a checkpoint: it starts at its beginning"
        return [ok(what, begun if folder.config.exists() else "new")]
    steps = f"{newest.step} of {plan.total_steps}" if plan else str(newest.step)
    fix = "Put a copy of it in its place to lose nothing"
    return [
        *(warning(what, line, fix) for line in said),
        ok(what, f"a run of this configuration, goes on after step {steps}"),
    ]


def _model_fault(folder: RunFolder) -> str | None:
    """Return what is wrong with a trained model, by its checksums and numbers; None: nothing."""
    try:
        for name in read_state(folder.model)["files"]:
            if name.endswith(".safetensors"):
                refuse_not_finite(folder.model / name)
    except UserError as e:
        return str(e)
    return None


def _check_start(run: RunConfig, is_here: bool) -> list[Finding]:
    before = previous(run.stage.name, run.train.stages)
    if before is not None:
        folder = RunFolder.of(run).beside(before)
        what, train = f"stage {before}, where {run.stage.name} starts", f"stage={before}"
        if not folder.is_finished:
            return [error(what, f"{folder.model} does not exist", f"Train it first: {train}")]
        fault = _model_fault(folder)
        if fault is not None:
            return [error(what, fault, f"Remove {folder.model} and train again: {train}")]
        return [ok(what, str(folder.model))]
    findings, needed = [], True
    if run.train.start is not None:
        finding, needed = _check_named_start(run)
        findings = [finding]
    if not needed or run.model.visual_weights is None or not run.model.has_resnet:
        return findings
    return [*findings, _check_visual(run.model, run.model.visual_weights, is_here)]


def _check_named_start(run: RunConfig) -> tuple[Finding, bool]:
    """Look at what ``train.start`` names; return also whether the ResNet's own weights are needed.

    What fits is asked of a model without memory, in a process of its own, which imports torch.
    """
    what = f"train.start={run.train.start}"
    try:
        start = find_start(run)
        assert start is not None
        for path in start.folder.rglob("*.safetensors"):
            refuse_not_finite(path)
    except UserError as e:
        refuse_machine(e, str(run.train.start))
        fix = "Give runs/EXPERIMENT/STAGE of a trained stage, a model's folder, or OWNER/NAME"
        return error(what, str(e).removeprefix(f"{what}: "), fix), False
    try:
        said = ask_aside("start_fit", run.to_dict())
    except UserError as e:
        refuse_machine(e, str(run.train.start))
        return warning(what, f"what of it fits was not found out: {e}", "Look at it"), False
    if "error" in said:
        fix = "Or another start"
        return error(what, on_one_line(said["error"]), fix), False
    found = f"{'; '.join(said['taken'])}; {start.origin}"
    return ok(what, printable(found)), bool(said["needs_visual_weights"])


def _check_visual(model: ModelConfig, source: str, is_here: bool) -> Finding:
    what = f"weights of the {model.visual_backbone} ({source})"
    if source != "imagenet":
        if Path(source).is_file():
            return ok(what, "there")
        return error(what, "no such file", "Give model.visual_weights a file, imagenet or null")
    file = _FILES.get(model.visual_backbone)
    if file is None:
        fix = "model.visual_weights=FILE, or null to start from nothing"
        return error(what, "there are none of ImageNet", fix)
    path = _torch_home() / "hub/checkpoints" / file
    if path.is_file():
        return ok(what, str(path))
    fetch = f"curl --create-dirs -o {shlex.quote(str(path))} {TORCH_HUB}/{file}"
    fix = f"On a machine with network: {fetch}; or model.visual_weights=FILE"
    return missing_file(what, f"{path} is not there", fix, f"{TORCH_HUB}/{file}", is_here)


def _torch_home() -> Path:
    """Return where torch keeps what it downloads."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("TORCH_HOME", f"{cache}/torch")).expanduser()
