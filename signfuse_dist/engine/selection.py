"""Which development score is best so far, and whether a stage goes on to look for a better one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class Selection:
    """Follows the scores by which checkpoints are compared; lower is better.

    It is part of every checkpoint, so that a run that goes on ends where it would have ended.

    Attributes:
        patience: scores in a row that may be no better than the best; None: any number.
        best: the lowest score so far; None before the first.
        waited: scores since then.
    """

    patience: int | None = None
    best: float | None = None
    waited: int = 0

    def note(self, score: float) -> None:
        """Take notice of a score; one that equals the best is no better."""
        if self.best is None or score < self.best:
            self.best, self.waited = score, 0
        else:
            self.waited += 1

    @property
    def is_over(self) -> bool:
        """Whether the stage ends here."""
        return self.patience is not None and self.waited >= self.patience

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint says of it."""
        return {"best": self.best, "waited": self.waited}
