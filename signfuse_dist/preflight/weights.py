"""What a stage starts from: ImageNet weights, the stage before it, its own run folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from signfuse_dist.config import ModelConfig, RunConfig
from signfuse_dist.errors import UserError
from signfuse_dist.preflight.finding import Finding, error, ok
from signfuse_dist.run_settings import refuse_other
from signfuse_dist.stage_parts import previous

# torchvision's IMAGENET1K_V1, by the names under which torch keeps them.
_FILES = {"resnet18": "resnet18-f37072fd.pth", "resnet50": "resnet50-0676ba61.pth"}
_URL = "https://download.pytorch.org/models"


def examine(runs: Sequence[RunConfig]) -> list[Finding]:
    """Look at what the first of these stages starts from, and at the run folder of each."""
    found = _start(runs[0])
    for run in runs:
        what = f"run folder {run.folder}"
        if (run.folder / "model").is_dir():
            found.append(ok(what, "this stage is trained already"))
            continue
        try:
            refuse_other(run)
        except UserError as e:
            found.append(error(what, str(e), "Give train.output=FOLDER"))
        else:
            there = (run.folder / "config.yaml").exists()
            found.append(ok(what, "a run of this configuration, to go on" if there else "new"))
    return found


def _start(run: RunConfig) -> list[Finding]:
    before = previous(run.stage.name, run.train.stages)
    if before is not None:
        folder = run.folder.with_name(before) / "model"
        what = f"stage {before}, where {run.stage.name} starts"
        if folder.is_dir():
            return [ok(what, str(folder))]
        return [error(what, f"{folder} does not exist", f"Train it first: stage={before}")]
    if run.model.visual_weights is None or run.model.streams == "skeletal":
        return []
    return [_visual(run.model, run.model.visual_weights)]


def _visual(model: ModelConfig, source: str) -> Finding:
    what = f"weights of the {model.visual_backbone} ({source})"
    if source != "imagenet":
        if Path(source).is_file():
            return ok(what, "there")
        return error(what, "no such file", "Give model.visual_weights a file, imagenet or null")
    file = _FILES.get(model.visual_backbone)
    if file is None:
        fix = "model.visual_weights=FILE, or null to start from nothing"
        return error(what, "there are none of ImageNet", fix)
    path = _torch_home() / "hub" / "checkpoints" / file
    if path.is_file():
        return ok(what, str(path))
    fix = f"On a machine with network: curl --create-dirs -o {path} {_URL}/{file}"
    return error(what, f"{path} is not there", f"{fix}; or model.visual_weights=FILE")


def _torch_home() -> Path:
    """Return where torch keeps what it downloads."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("TORCH_HOME", f"{cache}/torch")).expanduser()
