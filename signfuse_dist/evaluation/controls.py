"""The controls: the scores of the same system when it cannot see what it should translate.

And one, ``moved``, in which it sees the same elsewhere.

``shuffled``: the videos change places. A translation depends on its video alone: decoding is
deterministic and a clip's output does not depend on its neighbours in a batch. So decoding
shuffled videos against unmoved references gives exactly the sentences already decoded, each under
another id, and moving the hypotheses among the ids is the same experiment without decoding again.
What remains of a score is what the system earns without watching: frequent phrases, length, and
sentences that several videos share.

``blank``: every frame is one grey, the joints are kept; what remains came through the joints, or is
earned without watching.

``masked_joints``: no joint is found in any frame, the pictures are kept; what remains came through
the pictures, or is earned without watching. Both are decoded as the videos themselves are. How much
is earned without watching is what the shuffled control tells.

``moved``: pictures and joints are made a tenth smaller about the middle of the picture and moved to
its right by a tenth of its side, as if the signer sat elsewhere and further away; nothing of a
signer who fills seven tenths of it leaves it. What is lost was read off place and size. It is
decoded as well, and scored where it is asked for.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from signfuse_dist.errors import UserError, raise_together, refuse_unknown
from signfuse_dist.evaluation.protocols import Preset
from signfuse_dist.evaluation.scores import Scores, score
from signfuse_dist.plan import Draw

if TYPE_CHECKING:  # the report knows the controls' names and imports no torch
    from signfuse_dist.batch import SignBatch
    from signfuse_dist.config import ModelConfig


USUAL_CONTROLS = ("shuffled", "blank", "masked_joints")
CONTROLS = (*USUAL_CONTROLS, "moved")
NONE = "none"
# The mean colour of ImageNet, which the visual stream normalises to nearly zero.
GREY = (124, 116, 104)
_ZOOM, _SHIFT = 1 / 1.1, 0.1  # of `moved`: in size, and to the right in sides of the picture


def chosen_controls(text: str) -> tuple[str, ...]:
    """Return the controls that ``--controls`` names: some of CONTROLS with commas, or `none`."""
    names = [] if text == NONE else text.split(",")
    errors: list[str] = []
    refuse_unknown(names, CONTROLS, "--controls", errors)
    raise_together(errors, f"--controls takes {','.join(CONTROLS)}, some of them, or {NONE}")
    return tuple(name for name in CONTROLS if name in names)


def why_inapplicable(control: str, model: ModelConfig, num_clips: int) -> str | None:
    """Return why a control says nothing of a model and a split, or None."""
    streams = model.streams
    if control == "shuffled" and num_clips == 1:
        return "there is one clip only, which has no other sentence to go to"
    if control == "blank" and streams == "skeletal":
        return "the model sees no pictures (model.streams: skeletal)"
    if control == "masked_joints" and streams == "visual":
        return "the model sees no joints (model.streams: visual)"
    if control == "moved" and model.feature_sets:
        return "vectors stand in the place of pictures, and cannot be moved"
    return None


def hidden(batch: SignBatch, control: str) -> SignBatch:
    """Return the batch as ``blank``, ``masked_joints`` or ``moved`` shows it to the model.

    Vectors in the place of pictures are blank as 0.
    """
    if control == "blank" and batch.frame_vectors is not None:
        return replace(
            batch, frame_vectors=batch.frame_vectors.new_zeros(batch.frame_vectors.shape)
        )
    if control == "blank":
        grey = batch.frames.new_tensor(GREY).view(1, 3, 1, 1)
        return replace(batch, frames=grey.expand_as(batch.frames).contiguous())
    if control == "masked_joints":
        pose, mask = batch.pose.new_zeros(batch.pose.shape), batch.joint_mask.new_zeros
        return replace(batch, pose=pose, joint_mask=mask(batch.joint_mask.shape))
    if control == "moved":
        return _moved(batch)
    raise ValueError(f"{control} hides nothing of a batch")


def _moved(batch: SignBatch) -> SignBatch:
    one, none = np.ones(len(batch.ids)), np.zeros(len(batch.ids))
    change = Draw(_ZOOM * one, _SHIFT * one, none, one, one, one, one)
    pose, of_all = batch.pose, change.moved(batch.pose.cpu().numpy(), 0)
    return replace(
        batch,
        pose=pose.new_tensor(of_all),
        warp=pose.new_tensor(change.warps()),
        colour=pose.new_tensor(change.colours()),
    ).augmented()


def shuffled(hypotheses: Mapping[str, str], seed: int) -> dict[str, str]:
    """Return the hypotheses with every video moved to the sentence of another.

    Sattolo's shuffle of the sorted ids: one cycle through all of them, so no id keeps its own,
    and the same ids and seed always give the same result. Raises :class:`UserError` with fewer
    than two samples, which leave nothing to exchange.
    """
    if len(hypotheses) < 2:
        raise UserError(
            f"the shuffled control needs at least 2 samples, there is {len(hypotheses)}: "
            "a single video has no other sentence to go to"
        )
    targets = sorted(hypotheses)
    sources = list(targets)
    rng = random.Random(seed)
    for last in range(len(sources) - 1, 0, -1):
        other = rng.randrange(last)
        sources[last], sources[other] = sources[other], sources[last]
    return {target: hypotheses[source] for target, source in zip(targets, sources, strict=True)}


def score_control(
    hypotheses: Mapping[str, str],
    references: Mapping[str, str],
    preset: str | Preset,
    seed: int,
    language: str | None = None,
) -> Scores | None:
    """Return the scores of the shuffled control, or None (not applicable) for a single sample."""
    if len(hypotheses) == 1:
        return None
    return score(shuffled(hypotheses, seed), references, preset, language)
