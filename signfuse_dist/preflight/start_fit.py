"""What a run would take of its start, from a model without memory: a process of its own.

``signfuse check`` imports no torch; it gives a run as JSON and is told what fits, or what does not.
"""

from __future__ import annotations

from typing import Any

import torch

from signfuse_dist.config import RunConfig
from signfuse_dist.data.blended import find_vector_dim
from signfuse_dist.errors import MachineError, UserError
from signfuse_dist.experiment import resolve
from signfuse_dist.model import parts, saved
from signfuse_dist.model.llm_identity import find_folder, fingerprint
from signfuse_dist.model.signfuse import SignFuse
from signfuse_dist.preflight.aside import answer_aside
from signfuse_dist.preflight.parameters import read_llm_dim
from signfuse_dist.stages import needs_language_model
from signfuse_dist.start import find_start


def choose(run: RunConfig) -> parts.Chosen:
    """Return what would be taken; raise UserError as the trainer would."""
    start = find_start(run)
    assert start is not None
    llm: tuple[int, float] | None = None
    of_llm = None
    if needs_language_model(run.stage.name):
        folder = find_folder(run.model.llm, run.model.llm_revision)
        if folder is None:
            raise UserError(f"model.llm {run.model.llm!r} is not here: nothing can be compared")
        of_llm, llm = fingerprint(folder), (read_llm_dim(run.model), 1.0)
    with torch.device("meta"):
        built = SignFuse(run.model, llm, vector_dim=find_vector_dim(run))
    expected = saved.own_state(built)
    return parts.choose(start.folder, run, expected, of_llm)


def _of_question(run: Any) -> dict[str, Any]:
    try:
        chosen = choose(resolve(run, "the run"))
    except MachineError:
        raise
    except UserError as e:
        return {"error": str(e)}
    return {"taken": chosen.describe(), "needs_visual_weights": chosen.needs_visual_weights}


if __name__ == "__main__":
    answer_aside(_of_question)
