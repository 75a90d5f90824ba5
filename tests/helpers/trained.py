"""What a trained run folder holds, for comparisons."""

from __future__ import annotations

import json
import math
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor


def weights(output: Path, stage: str) -> dict[str, Tensor]:
    folder = output / "small" / stage / "model"
    found = load_file(folder / "model.safetensors")
    if (folder / "adapter").is_dir():
        found |= load_file(folder / "adapter" / "adapter_model.safetensors")
    return found


def log(output: Path, stage: str) -> list[dict[str, float]]:
    text = (output / "small" / stage / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def furthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[n].double() - other[n].double()).abs().max()) for n in one)


def mean_apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Return the root of the mean square of all differences.

    For clips in which most joints are missing, and so lie together: a ReLU whose input is within
    rounding of zero passes the gradient of one run and not of the other now and then, which moves
    a few weights by some 1e-5, the mean by 1e-7 (it is 1e-9 otherwise). A wrong clip moves all.
    """
    assert one.keys() == other.keys()
    squares = [(one[n].double() - other[n].double()).square() for n in one]
    total = sum(float(each.sum()) for each in squares)
    return math.sqrt(total / sum(each.numel() for each in squares))


# The rates are Table 2's, so 5 steps move a weight by up to 5e-4 (contrastive), 2.5e-4 and 1e-4. A
# wrong average, order or clip shows at a tenth of that and more; rounding stays below this.
TOLERANCE = 1e-6
MEAN_TOLERANCE = 3e-7
