"""signfuse_dist: gloss-free sign language translation with SignFuse, trained at scale."""

__version__ = "0.1.0"
