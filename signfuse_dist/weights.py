"""Loading weights by name: all of them, or an error that says which configuration differs."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from signfuse_dist.errors import UserError


def load_exactly(
    found: dict[str, Tensor],
    expected: dict[str, Tensor],
    model: nn.Module,
    path: Path,
    may_miss: tuple[str, ...] = (),
) -> None:
    """Load ``found`` when it has the names and shapes of ``expected``, else raise UserError."""
    refuse_difference(found, expected, path, may_miss)
    model.load_state_dict(found, strict=False)


def refuse_difference(
    found: dict[str, Tensor],
    expected: dict[str, Tensor],
    path: Path,
    may_miss: tuple[str, ...] = (),
) -> None:
    """Raise UserError when names or shapes differ; names that begin with ``may_miss`` may miss."""
    missing = [n for n in expected.keys() - found if not n.startswith(may_miss or ("\0",))]
    unknown = sorted(found.keys() - expected)
    other = [n for n in found if n in expected and found[n].shape != expected[n].shape]
    if missing or unknown or other:
        raise UserError(
            f"{path} is of another model configuration: {len(missing)} tensors missing "
            f"{sorted(missing)[:3]}, {len(unknown)} unknown {unknown[:3]}, "
            f"{len(other)} of another shape {other[:3]}"
        )
