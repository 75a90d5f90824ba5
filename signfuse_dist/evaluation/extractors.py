"""What finds the joints of a new clip: what found those that the model was trained with."""

from __future__ import annotations

from pathlib import Path

from signfuse_dist.data.joints import JointsFile, NoJoints, PoseExtractor
from signfuse_dist.data.mediapipe import choose_extractor, visibility_of
from signfuse_dist.errors import UserError
from signfuse_dist.model.usage import Usage


def extractor_for(usage: Usage, pose_model: Path | None) -> PoseExtractor:
    """Return what finds joints in a clip: nothing for a model that has seen none, else MediaPipe.

    It leaves out what training left out as hardly seen.

    Raises UserError where that is not there as :func:`.choose_extractor` does, and for a
    ``pose_model`` that nothing would read.
    """
    if usage.extractor != NoJoints.name:
        return choose_extractor(pose_model, visibility_of(usage.extractor_version or ""))
    if pose_model is not None:
        raise UserError(f"pose model {pose_model}: the model was trained without joints")
    return NoJoints()


def difference(
    usage: Usage, extractor: PoseExtractor | None, form: str = JointsFile.name
) -> str | None:
    """Return in words what else found the joints of new clips than those of training, else None.

    ``extractor`` None: clips come with files of joints, written in the ``form`` that is named.
    Nothing is said where it is not known what found them in training.
    """
    now = f"{form} {JointsFile.version}" if extractor is None else _name(extractor)
    if usage.joints_from in (None, now):
        return None
    where = f"from {now}"
    if extractor is None:
        published = "" if form == JointsFile.name else f" ({form})"
        where = f"from the files that are given{published}"
    theirs = usage.joints_from
    if usage.extractor == JointsFile.name:
        theirs = "files beside its clips"
    return (
        f"the joints come {where}, and those that the model was trained with came from {theirs}: "
        "it may translate worse"
    )


def _name(extractor: PoseExtractor) -> str:
    return f"{extractor.name} {extractor.version}"
