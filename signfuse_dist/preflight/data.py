"""Shards of the three splits: there, whole, verified, packed as the run asks."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from signfuse_dist.config import RunConfig
from signfuse_dist.data.manifest import (
    Manifest,
    ShardError,
    load_index,
    load_manifest,
    pose_path,
)
from signfuse_dist.data.stamp import is_verified
from signfuse_dist.data.storage import Folder, is_local, open_folder
from signfuse_dist.errors import UserError
from signfuse_dist.plan import Plan, epoch_order
from signfuse_dist.preflight.finding import Finding, error, ok, warning

_EPOCHS = 8  # are drawn: more find hardly fuller ones
_UNEVEN = 1.05  # clips cannot be cut: what is left between processes
_Says = Callable[[str, str, str], Finding]


def examine(run: RunConfig) -> list[Finding]:
    """Look at each split, and at its pose set where ``data.poses`` names one."""
    found = _split(run, run.data.train_split, "training", missing=error)
    # Without these a stage trains: they are scored, after it or between its epochs.
    found += _split(run, run.data.dev_split, "development", missing=warning)
    return found + _split(run, run.data.test_split, "test", missing=warning)


def worst_frames(run: RunConfig, plan: Plan | None) -> int:
    """Return the frames of the fullest micro batch of a process, as the plan draws them.

    Clips of a micro batch are shared out evenly, so it is the frames of all processes over their
    number, and never less than the longest clip. Without a plan, or where the indexes would have to
    be fetched from an address: nothing but clips of ``data.max_frames``.
    """
    lengths = _lengths(run)
    if plan is None or lengths is None:
        return run.train.micro_batch_size * run.data.max_frames
    slowest = np.ceil(lengths * (1 + run.augment.speed)).astype(np.int64)
    frames = np.minimum(slowest, run.data.max_frames)
    fullest = 0
    for epoch in range(min(run.stage.epochs, _EPOCHS)):
        order = frames[epoch_order(run.train.seed, epoch, len(frames))]
        padded = np.pad(order, (0, -len(order) % plan.global_batch_size))
        fullest = max(fullest, int(padded.reshape(-1, plan.num_pairs).sum(axis=1).max()))
    return max(int(frames.max()), math.ceil(fullest / plan.world_size * _UNEVEN))


def _lengths(run: RunConfig) -> NDArray[np.int64] | None:
    """Return the frames of each training clip, None where they are not at hand."""
    try:
        folder = open_folder(run.shards(run.data.train_split))
        if not is_local(folder):
            return None
        shards = load_manifest(folder).shards
        return np.array([s.num_frames for e in shards for s in load_index(folder, e).samples])
    except UserError:
        return None  # named by examine


def _split(run: RunConfig, split: str, role: str, missing: _Says) -> list[Finding]:
    location = run.shards(split)
    what = f"{role} split {location}"
    pack = f"signfuse pack {run.data.corpus} --split {split} --out {location} ..., or data.shards="
    try:
        folder = open_folder(location)
        manifest = load_manifest(folder)
        if is_local(folder):
            for entry in manifest.shards:
                load_index(folder, entry)
    except UserError as e:
        return [missing(what, _words(e), pack)]
    found = [_packing(run, what, manifest), _verified(what, folder, location)]
    if run.data.poses is not None:
        found.append(_poses(run, folder, location, missing))
    return found


def _packing(run: RunConfig, what: str, manifest: Manifest) -> Finding:
    settings, asked = manifest.packing.settings, run.data
    odd = [
        f"packed at {name} {ours}, the run asks {theirs}"
        for name, ours, theirs in (
            ("fps", settings.fps, asked.fps), ("frame_size", settings.frame_size, asked.frame_size)
        )
        if ours != theirs
    ]  # fmt: skip
    if odd:
        return error(what, "; ".join(odd), "Change data.fps and data.frame_size, or pack again")
    if not manifest.num_samples:
        return error(what, "no clips", "See its dropped.tsv")
    said = f"{manifest.num_samples} clips in {len(manifest.shards)} shards"
    return ok(what, f"{said}, {manifest.num_dropped} rows dropped")


def _verified(what: str, folder: Folder, location: str) -> Finding:
    if is_verified(folder):
        return ok(what, "verified, and not packed again since")
    fix = f"signfuse verify {location} --workers 8"
    return warning(what, "not verified since it was packed", fix)


def _poses(run: RunConfig, clips: Folder, location: str, missing: _Says) -> Finding:
    name = str(run.data.poses)
    what = f"pose set {name} of {location}"
    fix = f"signfuse pose {run.data.corpus} ... --name {name}, or data.poses=null"
    try:
        manifest = load_manifest(clips / pose_path(name))
        expected = load_manifest(clips).num_samples
    except UserError as e:
        return missing(what, _words(e), fix)
    if manifest.num_samples != expected:
        return error(what, f"joints of {manifest.num_samples} clips, not of {expected}", fix)
    return ok(what, f"joints by {manifest.packing.extractor}")


def _words(error: UserError) -> str:
    """Return what is wrong without the advice: the finding has its own."""
    return f"{error.shard}: {error.what}" if isinstance(error, ShardError) else str(error)
