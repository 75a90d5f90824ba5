"""The vectors of a new clip, for a model that was trained on feature sets: by the same models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from signfuse_dist.errors import UserError
from signfuse_dist.evaluation.new_clips import refuse_published
from signfuse_dist.model.usage import Usage
from signfuse_dist.model.vision import FrameVectors, load_vision_model


def load_vectorisers(usage: Usage, device: torch.device) -> tuple[FrameVectors, ...]:
    """Load the models of the feature sets that a model sees, in their order; none for pictures.

    Raises UserError as :func:`refuse_published` does, and where a model is not here or is another.
    """
    refuse_published(usage)
    loaded = []
    for source in usage.features:
        assert source.model is not None  # what is published was refused
        setting = f"the model's feature set of {source.model}"
        model = load_vision_model(source.model, source.revision, setting)
        if (model.shown_fingerprint, model.output_dim) != (source.fingerprint, source.dim):
            raise UserError(
                f"{setting}: the files of that name are of another model now (fingerprint "
                f"{model.shown_fingerprint[:12]}, it was {str(source.fingerprint)[:12]})"
            )
        loaded.append(
            FrameVectors(
                source.model,
                model,
                device,
                frame_size=usage.frame_size,
                dtype=source.dtype,
                precision=source.precision or "fp32",
            )
        )
    return tuple(loaded)


def vectors_of(
    frames: NDArray[np.uint8], vectorisers: Sequence[FrameVectors]
) -> NDArray[np.float32]:
    """Return ``[frames, dim]`` of a clip's uint8 ``[frames, size, size, 3]``, as a set has them."""
    return np.concatenate(
        [of(frames).astype(of.source.dtype).astype(np.float32) for of in vectorisers], axis=1
    )
