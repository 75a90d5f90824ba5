"""Features of the alignment stage's frozen encoders, computed once by all processes and kept.

Frames of a clip are chosen without chance when nothing augments them, so a clip has one set of
features. They are kept beside the stages of a run, under a hash of everything they follow from:
the encoders with their weights, the precision, the split, and how frames are taken from it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from signfuse_dist.config import ModelConfig, RunConfig, names_with
from signfuse_dist.data.features import (
    CLIPS_A_PART,
    FeatureSet,
    Part,
    part_path,
    read_part,
    write_part,
)
from signfuse_dist.data.loader import ClipBatches, batches
from signfuse_dist.data.manifest_files import manifest_bytes
from signfuse_dist.data.split import Split
from signfuse_dist.errors import UserError
from signfuse_dist.files import write_text
from signfuse_dist.model.signfuse import SignFuse
from signfuse_dist.objective import set_mode
from signfuse_dist.plan import ClipFrames, MicroBatch
from signfuse_dist.progress import Progress
from signfuse_dist.run_folder import RunFolder

_WHAT = "features.json"
# Of the model, what decides how the encoders are computed; their numbers show in their weights.
_ENCODERS = names_with(ModelConfig, "encoders")


def find_or_compute(
    model: SignFuse,
    run: RunConfig,
    split: Split,
    accelerator: Accelerator,
    num_workers: int,
    say: Callable[[str], None],
) -> FeatureSet:
    """Return the training split's features; what is missing or damaged is computed.

    Every process calls this, with the model of the stage before it is prepared, and computes a
    share of the parts; a part that is there and whole is kept, so an interrupted computation goes
    on. Features of other encoders, clips or settings are named and left alone.
    """
    described = describe(model, run, split)
    key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]
    folder = RunFolder.of(run).features(run.data.train_split, key)
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        for line in stale(folder, run.data.train_split, described):
            say(line)
        write_text(folder / _WHAT, json.dumps(described, indent=1, sort_keys=True))
    accelerator.wait_for_everyone()
    count = -(-len(split) // CLIPS_A_PART)
    mine = range(accelerator.process_index, count, accelerator.num_processes)
    missing = [number for number in mine if not _is_whole(part_path(folder, number))]
    say(f"features: {folder}, {count} parts; this process computes {len(missing)}")
    if missing:
        with Progress(
            f"features of {run.data.train_split}",
            sum(len(_places(number, split)) for number in missing),
            "clip",
            active=accelerator.is_main_process,
        ) as progress:
            _compute(model, run, split, folder, missing, accelerator.device, num_workers, progress)
    accelerator.wait_for_everyone()
    return FeatureSet(folder, split)


def describe(model: SignFuse, run: RunConfig, split: Split) -> dict[str, Any]:
    """Return everything that the features follow from; hashes where it is large."""
    manifests = [manifest_bytes(manifest) for manifest in split.manifests]
    return {
        "encoder weights": _hash_of_weights(model),
        "encoders": {name: _plain(getattr(run.model, name)) for name in _ENCODERS},
        "precision": run.train.precision,
        "split": hashlib.sha256(b"".join(manifests)).hexdigest(),
        "data": {"max_frames": run.data.max_frames, "poses": run.data.poses},
    }


def stale(folder: Path, split: str, described: dict[str, Any]) -> list[str]:
    """Return a line for each set of features beside ``folder`` that is of something else."""
    lines = []
    for other in sorted(folder.parent.glob(f"{split}-*")):
        if other != folder:
            try:
                theirs = json.loads((other / _WHAT).read_text(encoding="utf-8"))
                differ = [k for k in described if theirs.get(k) != described[k]]
            except (OSError, ValueError, AttributeError):
                differ = [f"{_WHAT} cannot be read"]
            lines.append(f"features: {other} is not used: of other {', '.join(differ)}")
    return lines


def _is_whole(path: Path) -> bool:
    try:
        read_part(path, verify=True)
    except UserError:
        return False
    return True


def _compute(
    model: SignFuse,
    run: RunConfig,
    split: Split,
    folder: Path,
    parts: list[int],
    device: torch.device,
    num_workers: int,
    progress: Progress,
) -> None:
    model.to(device)
    set_mode(model, "alignment")
    frames = ClipFrames(split.lengths, run.data.max_frames, run.augment, run.train.seed)
    size = run.train.micro_batch_size
    for number in parts:
        places = _places(number, split)
        order = [MicroBatch(places[i : i + size], 0) for i in range(0, len(places), size)]
        source = batches(
            ClipBatches(split, order, frames, None), num_workers, device.type == "cuda"
        )
        rows: list[dict[str, Tensor]] = []
        faults: list[str] = []
        for batch in source:
            faults += batch.faults
            rows += _encode(model, run, batch.to(device))
            progress.advance(len(batch.ids))
        names = [split.ids[place] for place in places]
        _write(part_path(folder, number), names, rows, faults)


def _places(number: int, split: Split) -> list[int]:
    """Return the places in the split of a part's clips."""
    first = number * CLIPS_A_PART
    return list(range(first, min(first + CLIPS_A_PART, len(split))))


def _write(path: Path, names: list[str], rows: list[dict[str, Tensor]], faults: list[str]) -> None:
    """Write a part; a clip that could not be read has no steps there, and the reason."""
    broken = {
        name: fault.removeprefix(f"{name}: ")
        for fault in faults
        for name in names
        if fault.startswith(f"{name}: ")
    }
    nothing = {stream: features[:0] for stream, features in rows[0].items()}
    kept = [nothing if n in broken else row for n, row in zip(names, rows, strict=True)]
    tensors = {stream: torch.cat([row[stream] for row in kept]) for stream in nothing}
    steps = tuple(len(next(iter(row.values()))) for row in kept)
    write_part(path, tensors, Part(tuple(names), steps, tuple(tensors), broken))


@torch.no_grad()
def _encode(model: SignFuse, run: RunConfig, batch: Any) -> list[dict[str, Tensor]]:
    """Return each clip's real steps of each stream, as the stage would compute them."""
    bf16 = run.train.precision == "bf16"
    with torch.autocast(batch.frames.device.type, torch.bfloat16, enabled=bf16):
        streams = model.encode(batch)
    there = {
        name: getattr(streams, name).cpu()
        for name in ("visual", "skeletal")
        if getattr(model, name) is not None
    }
    return [
        {name: features[i, :length].clone() for name, features in there.items()}
        for i, length in enumerate(streams.step_lengths.tolist())
    ]


def _hash_of_weights(model: SignFuse) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name.startswith(("visual.", "skeletal.")):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
