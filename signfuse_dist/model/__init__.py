"""The model of the paper; imports nothing of data, engine or evaluation."""

from signfuse_dist.model.configuration import SignFuseConfig
from signfuse_dist.model.signfuse import SignFuse

__all__ = ["SignFuse", "SignFuseConfig"]
