"""What a run must have in common with the checkpoint it goes on from, and what it starts from."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from signfuse_dist.config import RunConfig, keys_with, load_resolved
from signfuse_dist.data.split import Split
from signfuse_dist.errors import UserError
from signfuse_dist.files import STATE, checksum
from signfuse_dist.plan import Plan
from signfuse_dist.stages import TRAINABLE, loss_weights, previous


def refuse_other(run: RunConfig) -> None:
    """Raise UserError when the run folder holds a run of another configuration."""
    path = run.folder / "config.yaml"
    if not path.exists():
        return
    before, now = fixed(load_resolved(path)), fixed(run)
    changed = [k for k in now if now[k] != before.get(k)]
    if changed:
        lines = [f"{k} was {before.get(k)!r}, is {now[k]!r}" for k in changed]
        raise UserError(
            f"{run.folder} holds a run of another configuration ({'; '.join(lines)}): "
            f"a run folder is never overwritten; give train.output=FOLDER or remove it"
        )


def fixed(run: RunConfig) -> dict[str, Any]:
    """Return what must not change between the parts of a run, by ``section.key``."""
    free = keys_with("resume")
    return {key: value for key, value in run.flat().items() if key not in free}


def identify(run: RunConfig, fixed: dict[str, Any], split: Split, plan: Plan) -> dict[str, Any]:
    """Return what checkpoints say of a run; each entry must be the same when it goes on.

    ``config`` is what may not change (``fixed``) and ``config_sha256`` its hash, ``clips_sha256``
    is over ids and lengths of the training clips in their order, ``starts_from`` the checksums of
    the stage before, ``meeting`` how many clips see each other in a step.
    """
    before = previous(run.stage.name, run.train.stages)
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
    trains = set(TRAINABLE[run.stage.name]) & {"visual", "skeletal"}
    if trains and {run.model.norm, run.model.visual_norm} & {"sync", "local"}:
        return plan.num_together
    if "contrastive" in loss_weights(run.stage.name, run.loss):
        return plan.num_pairs
    return None


def _digest(text: str, more: bytes = b"") -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass") + b"\0" + more).hexdigest()
