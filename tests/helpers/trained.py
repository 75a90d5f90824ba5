"""What a trained run folder holds, for comparisons."""

from __future__ import annotations

import json
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


# The rates are Table 2's, so 5 steps move a weight by up to 5e-4 (contrastive), 2.5e-4 and 1e-4. A
# wrong average, order or clip shows at a tenth of that and more; rounding stays below this.
TOLERANCE = 1e-6
