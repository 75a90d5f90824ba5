"""A run folder as a finished last stage leaves it, without the training."""

from __future__ import annotations

from pathlib import Path

import torch

from helpers.project import Project
from signfuse_dist.data.joints import JointsFile
from signfuse_dist.experiment import load_run
from signfuse_dist.model import saved
from signfuse_dist.model.usage import Usage
from signfuse_dist.objective import prepare
from signfuse_dist.plan import make_plan
from signfuse_dist.run_folder import begin


def write_run(project: Project, output: Path, *words: str, seed: int = 6) -> Path:
    """Write the run folder of a last stage whose weights are drawn, not trained."""
    run = load_run(project.experiment, "finetune", [f"train.output={output}", *words])
    torch.manual_seed(seed)
    model, _ = saved.build(run.model, language=True)
    prepare(model, "finetune", run.loss)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Far enough from its start that clips tell apart; biases would make them alike.
            if parameter.requires_grad and parameter.ndim > 1:
                scale = 4.0 if "lora_" in name else 0.5
                parameter.add_(scale * torch.randn_like(parameter))
    begin(run, make_plan(20, run.stage, run.train, 1), None, main=True)
    model.usage = Usage.of(run, JointsFile.name, JointsFile.version)
    model.save_pretrained(run.folder / "model")
    return run.folder
