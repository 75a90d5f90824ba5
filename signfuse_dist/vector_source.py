"""What makes a feature set, one vector a frame: a vision model, or files that others publish.

It is written beside the set's shards (``source.json``), which name it by its checksum, and into
models that were trained on the set, so that new clips are brought to them alike. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from signfuse_dist.errors import UserError
from signfuse_dist.records import STRICT_KEYS, NonBlank, Number, Whole, read_record

SOURCE_NAME = "source.json"
Dtype = Literal["float32", "float16"]


@dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class VectorSource:
    """What the vectors of a feature set are.

    Attributes:
        model: the name of a vision model of transformers (of the hub, or a folder) that computes
            them; None for published vectors.
        revision: of the hub; None for a folder.
        fingerprint: of the model's weights and of the picture that it is shown
            (:attr:`signfuse_dist.model.vision.VisionModel.shown_fingerprint`).
        precision: in which the model computed.
        published: what others call their vectors; None where a model computes them.
        rate: vectors a second, where it is not a vector for each frame.
        window: seconds that each of those vectors is of.
        dim: numbers of a vector.
        dtype: as which they are stored.
    """

    dim: Whole
    dtype: Dtype
    model: NonBlank | None = None
    revision: NonBlank | None = None
    fingerprint: NonBlank | None = None
    precision: Literal["fp32", "bf16"] | None = None
    published: NonBlank | None = None
    rate: Number | None = None
    window: Number | None = None

    @property
    def extractor(self) -> str:
        """What made the vectors, as the shards of the set name it."""
        return "published" if self.model is None else f"hf:{self.model}"

    @property
    def digest(self) -> str:
        """A checksum of all of it, as the shards of the set have it."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @property
    def values(self) -> dict[str, Any]:
        """Plain values, without those that are None."""
        given = dataclasses.asdict(self)
        return {name: value for name, value in given.items() if value is not None}

    def to_json(self) -> str:
        """Return the text of the file."""
        return json.dumps(self.values, indent=1, sort_keys=True, ensure_ascii=False)

    def __str__(self) -> str:
        """Return in words what it is."""
        if self.model is not None:
            at = "" if self.revision is None else f" at {self.revision[:12]}"
            return f"{self.dim} numbers a frame by {self.model}{at}"
        every = "" if self.rate is None else f", {self.rate:g} a second"
        return f"{self.dim} numbers a frame of the published {self.published}{every}"


def parse_source(content: bytes | str, where: str) -> VectorSource:
    """Read a source that :meth:`VectorSource.to_json` wrote; raise UserError naming ``where``."""
    headline = f"{where}: does not say what a feature set is"
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{headline} ({error})") from error
    source = read_record(VectorSource, values, headline)
    if source.dim < 1 or (source.model is None) == (source.published is None):
        raise UserError(
            f"{headline}: dim {source.dim}, model {source.model!r}, published "
            f"{source.published!r}: either a model or published vectors"
        )
    return source
