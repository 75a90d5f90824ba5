"""What finds the joints of a new clip: what found those that the model was trained with."""

from __future__ import annotations

from pathlib import Path

from signfuse_dist.data.joints import JointsFile, NoJoints, PoseExtractor
from signfuse_dist.data.mediapipe import choose_extractor
from signfuse_dist.errors import UserError
from signfuse_dist.model.usage import Usage


def extractor_for(usage: Usage, pose_model: Path | None) -> PoseExtractor:
    """Return what finds joints in a clip: nothing for a model that has seen none, else MediaPipe.

    Raises UserError where that is not there as :func:`.choose_extractor` does, and for a
    ``pose_model`` that nothing would read.
    """
    if usage.extractor != NoJoints.name:
        return choose_extractor(pose_model)
    if pose_model is not None:
        raise UserError(f"pose model {pose_model}: the model was trained without joints")
    return NoJoints()


def difference(usage: Usage, extractor: PoseExtractor | None) -> str | None:
    """Return in words what else found the joints of new clips than those of training, else None.

    ``extractor`` None: each clip comes with a file of joints. Nothing is said where it is not known
    what found them in training.
    """
    source = JointsFile if extractor is None else extractor
    now = f"{source.name} {source.version}"
    if usage.joints_from in (None, now):
        return None
    where = "from the files that are given" if extractor is None else f"from {now}"
    theirs = usage.joints_from
    if usage.extractor == JointsFile.name:
        theirs = "files beside its clips"
    return (
        f"the joints come {where}, and those that the model was trained with came from {theirs}: "
        "it may translate worse"
    )
