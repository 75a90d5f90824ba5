"""The packages that trackers need, known without importing Accelerate, and which are missing."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence

# The package that each needs, under the name that pip knows and the one that Python imports.
PACKAGES: Mapping[str, tuple[str, str]] = {
    "aim": ("aim", "aim"),
    "clearml": ("clearml", "clearml"),
    "comet_ml": ("comet-ml", "comet_ml"),
    "dvclive": ("dvclive", "dvclive"),
    "mlflow": ("mlflow", "mlflow"),
    "swanlab": ("swanlab", "swanlab"),
    "tensorboard": ("tensorboard", "tensorboard"),
    "trackio": ("trackio", "trackio"),
    "wandb": ("wandb", "wandb"),
}


def missing_packages(names: Sequence[str]) -> list[str]:
    """Return, for each tracker that is not installed, its name and how to install it."""
    return [
        f"{name} is not installed: pip install {PACKAGES[name][0]}"
        for name in names
        if importlib.util.find_spec(PACKAGES[name][1]) is None
    ]
