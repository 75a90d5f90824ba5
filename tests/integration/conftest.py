"""The small project of the integration tests, as fixtures."""

from __future__ import annotations

from helpers.project import one_thread, project

__all__ = ["one_thread", "project"]
