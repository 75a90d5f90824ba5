"""``config.json`` of a saved model, as a configuration of transformers."""

from __future__ import annotations

import dataclasses
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from signfuse_dist import config_fields
from signfuse_dist.config import ModelConfig
from signfuse_dist.errors import UserError, raise_together

_FIELDS = {f.name for f in dataclasses.fields(ModelConfig)}
# Keys that transformers writes beside a model's own, and takes where it reads a configuration.
_OF_TRANSFORMERS = {f.name for f in dataclasses.fields(PreTrainedConfig)}
_OF_TRANSFORMERS |= PreTrainedConfig().to_dict().keys()
_OF_TRANSFORMERS |= {"name_or_path", "output_attentions", "attn_implementation",
                     "experts_implementation", "torch_dtype", "num_labels"}  # fmt: skip


class SignFuseConfig(PreTrainedConfig):
    """The configuration of a SignFuse model, with what transformers expects of one.

    Its values are the fields of :class:`~signfuse_dist.config.ModelConfig`, which alone defines
    them and their defaults, and three of what the model was trained with.

    Attributes:
        llm_commit: revision of the frozen LLM on the model hub; None for a folder, or no LLM.
        llm_fingerprint: of the frozen LLM (:func:`signfuse_dist.model.reference.fingerprint`);
            None for a model without LLM.
        max_frames: the longest clip it takes, in frames; None = any.
    """

    model_type = "signfuse"

    def __init__(
        self, *, llm_commit: str | None = None, llm_fingerprint: str | None = None,
        max_frames: int | None = None, **values: Any,
    ) -> None:  # fmt: skip
        """Raise :class:`UserError` with every value that is missing, unknown or of another type."""
        errors: list[str] = []
        config_fields.refuse_unknown(values, _FIELDS | _OF_TRANSFORMERS, "model", errors)
        own = {name: value for name, value in values.items() if name in _FIELDS}
        model = config_fields.build("model", ModelConfig, own, errors)
        raise_together(errors, "not the configuration of a SignFuse model")
        theirs = _OF_TRANSFORMERS - {"model_type", "transformers_version"}
        super().__init__(**{k: v for k, v in values.items() if k in theirs})
        for name in _FIELDS:
            setattr(self, name, getattr(model, name))
        self.llm_commit, self.llm_fingerprint = llm_commit, llm_fingerprint
        self.max_frames = max_frames

    @classmethod
    def of(cls, model: ModelConfig, **trained_with: Any) -> SignFuseConfig:
        """Return the configuration of a model that is built from ``model``."""
        return cls(**dataclasses.asdict(model), **trained_with)

    @property
    def model(self) -> ModelConfig:
        """The values that a model is built from."""
        return ModelConfig(**{name: getattr(self, name) for name in _FIELDS})

    def __eq__(self, other: object) -> bool:
        """Compare the model's values; what transformers generates compares its own only."""
        return isinstance(other, SignFuseConfig) and self._own() == other._own()

    def _own(self) -> tuple[Any, ...]:
        return self.model, self.llm_commit, self.llm_fingerprint, self.max_frames

    __hash__ = None  # type: ignore[assignment]  # values can be changed


AutoConfig.register(SignFuseConfig.model_type, SignFuseConfig)


def read_config(folder: Any) -> SignFuseConfig:
    """Read ``config.json`` of a folder; raise :class:`UserError` naming it."""
    try:
        return SignFuseConfig.from_pretrained(folder)
    except (OSError, UserError, TypeError) as e:
        raise UserError(f"{folder}: its config.json cannot be read: {e}") from e
