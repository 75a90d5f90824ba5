"""What a saved model says of its use, ``usage.json``: how a clip is brought to it and decoded.

With it the folder stands alone: who has it needs neither the run nor its shards. Which LLM it has
and how it is asked stand in ``config.json``. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from signfuse_dist.config import Crop, EvaluationConfig, RunConfig
from signfuse_dist.errors import UserError, raise_together
from signfuse_dist.files import read_json
from signfuse_dist.origin import TrainedStage
from signfuse_dist.records import STRICT_KEYS, NonBlank, Number, Whole, read_record
from signfuse_dist.sections import build_section
from signfuse_dist.skeleton import JOINT_LAYOUT
from signfuse_dist.vector_source import VectorSource

USAGE = "usage.json"


@dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class Usage:
    """How clips were made that the model was trained on, and how it is asked.

    Attributes:
        corpus: on which it was trained.
        language: of its sentences, a code such as ``de``.
        fps: frames a second; None: the rate of each video.
        frame_size: side of the square that it sees, in pixels.
        crop: what of the picture is in the square, as in :class:`~signfuse_dist.config.DataConfig`.
        max_frames: longer clips are sampled down to as many.
        joint_layout: which joints it sees, in which order.
        extractor: what found them; None where an earlier version did not say.
        extractor_version: of the extractor, likewise.
        precision: in which it computes.
        decoding: the run's.
        corpus_licence: under which terms the corpus may be used; None where nobody said.
        llm_licence: of the LLM, likewise.
        history: every training that went into the model, oldest first, its own the last; empty
            where an earlier version did not say.
        features: what the feature sets are whose vectors it sees, in their order; empty for a
            model of pictures.
    """

    corpus: NonBlank
    language: NonBlank
    fps: Number | None
    frame_size: Whole
    crop: Crop
    max_frames: Whole
    joint_layout: NonBlank
    extractor: NonBlank | None
    extractor_version: NonBlank | None
    precision: Literal["fp32", "bf16"]
    decoding: EvaluationConfig
    corpus_licence: str | None
    llm_licence: str | None
    history: tuple[TrainedStage, ...] = ()
    features: tuple[VectorSource, ...] = ()

    @classmethod
    def of(
        cls,
        run: RunConfig,
        extractor: str | None,
        extractor_version: str | None,
        history: tuple[TrainedStage, ...] = (),
        features: tuple[VectorSource, ...] = (),
    ) -> Usage:
        """Return what a run's model is used with, whose joints ``extractor`` found."""
        return cls(
            corpus=run.data.corpus,
            language=run.data.language,
            fps=run.data.fps,
            frame_size=run.data.frame_size,
            crop=run.data.crop,
            max_frames=run.data.max_frames,
            joint_layout=JOINT_LAYOUT,
            extractor=extractor,
            extractor_version=extractor_version,
            precision=run.train.precision,
            decoding=run.evaluation,
            corpus_licence=run.data.licence,
            llm_licence=run.model.llm_licence,
            history=history,
            features=features,
        )

    @property
    def joints_from(self) -> str | None:
        """The extractor with its version, None where it is not known."""
        return self.extractor and f"{self.extractor} {self.extractor_version}"

    def to_json(self) -> str:
        """Return the text of the file."""
        values = dataclasses.asdict(self) | {"features": [of.values for of in self.features]}
        if not self.features:
            del values["features"]
        return json.dumps(values, indent=1, ensure_ascii=False)


def read_usage(folder: Path) -> Usage | None:
    """Return what a model's folder says of its use, None where it says nothing.

    Raises UserError for a file that is no such record, or of joints that this version has not.
    """
    path = folder / USAGE
    if not path.is_file():
        return None
    headline = f"{path}: does not say how the model is used"
    values = read_record(dict[str, Any], read_json(path), headline)
    errors: list[str] = []
    # A section of a run, with the errors of one.
    given = read_record(dict[str, Any], values.get("decoding"), f"{headline}: decoding")
    decoding = build_section("decoding", EvaluationConfig, given, errors)
    raise_together(errors, headline)
    usage = read_record(Usage, {**values, "decoding": decoding}, headline)
    if usage.joint_layout != JOINT_LAYOUT:
        raise UserError(
            f"{path}: the model sees joints of the layout {usage.joint_layout!r}, and this version "
            f"of signfuse_dist finds {JOINT_LAYOUT!r}: use the version that it was trained with"
        )
    return usage
