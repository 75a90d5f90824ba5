"""The vision model of ``model.visual_backbone: hf:NAME`` as its files say it, without torch.

What a frame takes in it no file says: its own code is run on tensors without memory, in a process
of its own (:mod:`signfuse_dist.preflight.frame_memory`).
"""

from __future__ import annotations

import functools
import json
import math
import shlex
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from signfuse_dist.config import ModelConfig, RunConfig
from signfuse_dist.errors import MachineError, UserError, on_one_line
from signfuse_dist.files import read_json
from signfuse_dist.model.llm_identity import find_folder
from signfuse_dist.preflight.aside import ask_aside
from signfuse_dist.preflight.finding import Finding, error, ok
from signfuse_dist.preflight.network import hub_file, missing_file
from signfuse_dist.tensor_files import read_infos

_TEXTS = ("text_model.", "text_projection", "logit_", "visual_projection", "decoder.")


@dataclass(frozen=True)
class VisionFiles:
    """A vision model in its folder.

    Attributes:
        config: of the half that sees pictures.
        side: of the picture that its image processor makes, in pixels.
        num_weights: of that half.
    """

    folder: Path
    config: dict[str, Any]
    side: int
    num_weights: int

    @property
    def dim(self) -> int | None:
        """Numbers of a frame's vector; None where the configuration has another name for them."""
        sizes = self.config.get("hidden_sizes")
        size = sizes[-1] if sizes else self.config.get("hidden_size")
        return None if size is None else int(size)


class FrameMemory(NamedTuple):
    """What a frame takes in a vision model, in bytes, and how many numbers its vector has.

    Where the model trains: ``kept`` for the backward pass, and ``most`` at once. Else ``frozen``.
    """

    dim: int
    kept: float
    most: float
    frozen: float


def find_vision_files(model: ModelConfig) -> VisionFiles | None:
    """Return the vision model that a run names; None without one, and where it is not here."""
    if model.vision_model is None:
        return None
    return _find(model.vision_model, model.visual_revision)


def usable_vision_files(model: ModelConfig) -> VisionFiles | None:
    """Return them; None also where they cannot be read, which :func:`check_vision` says."""
    try:
        return find_vision_files(model)
    except (UserError, ValueError, KeyError, TypeError, OverflowError):
        return None


def vision_bytes(run: RunConfig, frames: int, pictures: float) -> tuple[float, float]:
    """Return the bytes of a vision model for the backward pass, and those computed again in it.

    Beside those of the ``pictures``. Of a model that is frozen nothing is kept. Of one whose memory
    is not known nothing is counted.
    """
    each, bf16 = frame_memory(run), run.train.precision == "bf16"
    if isinstance(each, str):
        return pictures, 0.0
    files, asked = usable_vision_files(run.model), run.model.visual_chunk
    assert files is not None
    casts = 2.0 * files.num_weights if bf16 else 0.0
    chunk = frames if asked in (None, "auto") else min(frames, int(asked))
    vectors = frames * each.dim * 4.0
    if not run.model.trains_backbone or run.stage.name == "alignment":
        return pictures + vectors, casts + chunk * each.frozen
    if chunk == frames:
        return pictures + casts + frames * each.kept, frames * (each.most - each.kept)
    return pictures + vectors + casts, casts + chunk * each.most


def frame_memory(run: RunConfig) -> FrameMemory | str:
    """Return what a frame takes in the vision model of a run, or why that is not known.

    Its files may not be usable, and its code may not run without values.
    """
    model = run.model
    if usable_vision_files(model) is None:
        return "its files are not there or cannot be read"
    # Of one chunk as of another, and frozen or not: the same answer.
    section = asdict(replace(model, visual_chunk=None, visual_training=None))
    size, bf16 = run.data.frame_size, run.train.precision == "bf16"
    return _measured(json.dumps({"model": section, "frame_size": size, "bf16": bf16}))


@functools.cache
def _measured(question: str) -> FrameMemory | str:
    try:
        return FrameMemory(*ask_aside("frame_memory", json.loads(question)))
    except MachineError:
        raise
    except UserError as e:
        return on_one_line(e)


@functools.lru_cache(maxsize=4)
def _find(name: str, revision: str | None) -> VisionFiles | None:
    folder = find_folder(name, revision)
    if folder is None:
        return None
    read = read_json(folder / "config.json")
    said = read_json(folder / "preprocessor_config.json")
    if not isinstance(read, dict) or not isinstance(said, dict):
        raise ValueError(f"{folder}: its JSON files hold no objects")
    config = read.get("vision_config", read)
    if not isinstance(config, dict):
        raise ValueError(f"{folder / 'config.json'}: vision_config is no object")
    size = said.get("crop_size") if said.get("do_center_crop") else said.get("size")
    if isinstance(size, dict):
        size = size.get("height", size.get("shortest_edge"))
    elif isinstance(size, list):
        size = size[0] if size else None
    infos = [
        (key, info.shape)
        for path in sorted(folder.glob("*.safetensors"))
        for key, info in read_infos(path).items()
    ]
    if not infos:
        raise ValueError(f"{folder} holds no safetensors")
    count = sum(math.prod(shape) for key, shape in infos if not key.startswith(_TEXTS))
    return VisionFiles(folder, config, int(size or config.get("image_size") or 0), count)


def check_vision(model: ModelConfig, frame_size: int, is_here: bool) -> list[Finding]:
    """Say whether the vision model can be loaded, and whether frames of this side fit it."""
    name = model.vision_model
    if name is None:
        return []
    revision = f" --revision {model.visual_revision}" if model.visual_revision else ""
    what = f"vision model {name}"
    fetch = f"hf download {shlex.quote(name)}{revision}, or model.visual_backbone=hf:FOLDER"
    on_hub = not Path(name).is_absolute() and name.count("/") == 1 and not Path(name).is_dir()
    address = hub_file(name, model.visual_revision, "config.json") if on_hub else None
    try:
        files = find_vision_files(model)
        if files is None:
            value = "neither a folder nor in the cache of the model hub"
            return [missing_file(what, value, fetch, address, is_here)]
        wide = "" if files.dim is None else f", {files.dim} numbers a frame"
        size = f"{files.num_weights / 1e6:,.1f} M weights{wide}"
    except MachineError:
        raise
    except (UserError, ValueError, KeyError, TypeError, OverflowError) as e:
        return [error(what, f"its files cannot be read ({e})", fetch)]
    if frame_size < files.side:
        fix = f"Pack at --frame-size {files.side} or more, or take a model of smaller pictures"
        return [error(what, f"sees {files.side} pixels, data.frame_size is {frame_size}", fix)]
    trains = "trains" if model.trains_backbone else "frozen"
    return [ok(what, f"{files.folder}, {size}, {files.side} pixels, {trains}")]
