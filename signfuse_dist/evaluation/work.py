"""The work of an evaluation: which batches there are, and what their sentences depend on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from signfuse_dist import __version__
from signfuse_dist.augment import ClipFrames
from signfuse_dist.config import AugmentConfig, RunConfig
from signfuse_dist.data.manifest import manifest_bytes
from signfuse_dist.data.split import Split
from signfuse_dist.evaluation.journal import Unit
from signfuse_dist.files import checksum
from signfuse_dist.plan import MicroBatch


@dataclass
class Work:
    """What is to be decoded: a function of run, split and controls, never of the processes."""

    run: RunConfig
    split: Split
    shown: tuple[str, ...]

    @cached_property
    def frames(self) -> ClipFrames:
        """How many frames of each clip the model sees."""
        return ClipFrames(self.split.lengths, self.run.data.max_frames, AugmentConfig(), 0)

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Frames of each clip, ``[clips]``."""
        return self.frames.counts(0, np.arange(len(self.split)))

    @cached_property
    def places(self) -> list[MicroBatch]:
        """The clips of each batch, longest first."""
        size = self.run.evaluation.batch_size
        order = np.argsort(-self.counts, kind="stable").tolist()
        return [MicroBatch(order[i : i + size], 0) for i in range(0, len(order), size)]

    @cached_property
    def ids(self) -> list[tuple[str, ...]]:
        """The names of the clips of each batch."""
        return [tuple(self.split.ids[place] for place in batch.clips) for batch in self.places]

    def size(self, unit: Unit) -> int:
        """Frames of a unit: what its time goes by, nearly."""
        return int(self.counts[self.places[unit[1]].clips].sum())

    def units(self) -> list[Unit]:
        """Return every unit, batch by batch, each in all the ways that it is shown."""
        return [(shown, batch) for batch in range(len(self.places)) for shown in self.shown]

    def key(self, run_folder: Path, device: torch.device) -> str:
        """Return a name for everything that the sentences depend on."""
        run, split = self.run, self.split
        manifests = [split.manifest, *([split.poses.manifest] if split.poses else [])]
        decoding = asdict(run.evaluation)
        del decoding["num_samples"]
        parts = {
            "model": checksum(run_folder / "model" / "state.json"),
            "numbers": asdict(run.model),
            "precision": run.train.precision,
            "decoding": decoding,
            "max_frames": run.data.max_frames,
            "data": [hashlib.sha256(manifest_bytes(m)).hexdigest() for m in manifests],
            "versions": [__version__, torch.__version__, transformers.__version__],
            "device": device.type if device.type == "cpu" else torch.cuda.get_device_name(device),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
