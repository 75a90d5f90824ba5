"""Shards of the three splits: there, whole, verified, packed as the run asks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

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
from signfuse_dist.preflight.finding import Finding, error, ok, warning

_Says = Callable[[str, str, str], Finding]


def examine(run: RunConfig) -> list[Finding]:
    """Look at each split, and at its pose set where ``data.poses`` names one."""
    found = _split(run, run.data.train_split, "training", missing=error)
    # Without these a stage trains: they are scored, after it or between its epochs.
    found += _split(run, run.data.dev_split, "development", missing=warning)
    return found + _split(run, run.data.test_split, "test", missing=warning)


def longest_clip(run: RunConfig) -> int | None:
    """Return the frames of the longest training clip as the model meets it.

    None when the indexes cannot be read, or lie at an address and would have to be fetched.
    """
    try:
        folder = open_folder(run.shards(run.data.train_split))
        if not is_local(folder):
            return None
        shards = load_manifest(folder).shards
        lengths = [s.num_frames for entry in shards for s in load_index(folder, entry).samples]
    except UserError:
        return None
    return min(int(np.max(lengths)), run.data.max_frames) if lengths else None


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
