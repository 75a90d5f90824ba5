"""What a run must have in common with the checkpoint it goes on from, and what it starts from."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from signfuse_dist import stages
from signfuse_dist.config import RunConfig
from signfuse_dist.data.split import Split
from signfuse_dist.files import STATE, checksum
from signfuse_dist.plan import Plan


def identify(run: RunConfig, fixed: dict[str, Any], split: Split, plan: Plan) -> dict[str, Any]:
    """Return what checkpoints say of a run; each entry must be the same when it goes on.

    ``config`` is what may not change (``fixed``) and ``config_sha256`` its hash, ``clips_sha256``
    is over ids and lengths of the training clips in their order, ``starts_from`` the checksums of
    the stage before, ``meeting`` how many clips see each other in a step.
    """
    before = stages.previous(run.stage.name, run.train.stages)
    state = None if before is None else run.folder.with_name(before) / "model" / STATE
    return {
        "stage": run.stage.name,
        "config": fixed,
        "config_sha256": _digest(json.dumps(fixed, sort_keys=True)),
        "clips_sha256": _digest("\n".join(split.ids), split.lengths.astype("<i8").tobytes()),
        "starts_from": None if state is None else checksum(state),
        "meeting": _num_meeting(run, plan),
    }


def _num_meeting(run: RunConfig, plan: Plan) -> int | None:
    """Return how many clips see each other in a step, which must stay what it was; None: none do.

    Through the statistics of a norm in training mode those of one pass over all processes, and
    through Eq. 21 its pairs, which gradient caching makes those of the whole step.
    """
    trains = set(stages.TRAINABLE[run.stage.name]) & {"visual", "skeletal"}
    if trains and {run.model.norm, run.model.visual_norm} & {"sync", "local"}:
        return plan.num_together
    if "contrastive" in stages.loss_weights(run.stage.name, run.loss):
        return plan.num_pairs
    return None


def _digest(text: str, more: bytes = b"") -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass") + b"\0" + more).hexdigest()
