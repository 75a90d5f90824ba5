"""Networks of torchvision in the form of transformers, a folder as the model hub has them.

``python -m signfuse_dist.model.torchvision_models efficientnet_b0 FOLDER`` writes it once, where
there is a network or the weights are in torch's cache. ``model.visual_backbone: hf:FOLDER`` and
``signfuse features SHARDS --model FOLDER`` read it as any other, on nodes without a network too.

A frame's vector is what the last linear layer of the classifier reads.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision import models
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from signfuse_dist.answer import answer
from signfuse_dist.errors import UserError, suggest
from signfuse_dist.files import write_folder
from signfuse_dist.weights import load_exactly, read_published, save_tensors

_OLD_NAME = re.compile(r"(\.denselayer\d+\.(?:norm|conv))\.(\d)\.")
# The published weights of the first two want another normalisation within the network, SqueezeNets
# end in a convolution, and MNASNets load no weights without a version, which safetensors lack.
_OTHERS = ("googlenet", "inception_v3", "squeezenet", "mnasnet")


def architectures() -> list[str]:
    """Return the classifiers of torchvision that can be encoders of frames."""
    return [name for name in models.list_models(module=models) if not name.startswith(_OTHERS)]


class TorchvisionConfig(PreTrainedConfig):
    """Which network of torchvision it is.

    Attributes:
        weights: torchvision's name of them.
        image_size: side of the pictures that its weights were trained on, in pixels.
        hidden_size: numbers of a vector.
    """

    model_type = "torchvision"
    architecture: str = ""
    weights: str = ""
    image_size: int = 224
    hidden_size: int = 0


class Pooled(NamedTuple):
    """What the network makes of pictures, by the name that vision models of transformers use."""

    pooler_output: Tensor


class TorchvisionModel(PreTrainedModel):
    """A network of torchvision without the last linear layer of its classifier."""

    config_class = TorchvisionConfig
    main_input_name = "pixel_values"

    def __init__(self, config: TorchvisionConfig) -> None:
        """Raise ValueError for what is no classifier of torchvision."""
        super().__init__(config)
        if config.architecture not in architectures():
            raise ValueError(f"{config.architecture!r} is no classifier of torchvision")
        network = _build(config)
        self.classifier = _classifier(network)
        network.set_submodule(self.classifier, nn.Identity())
        self.network = network.to(torch.get_default_device())
        self.post_init()

    def forward(self, pixel_values: Tensor) -> Pooled:
        """Return a vector a picture: normalised ``[n, 3, h, w]`` to ``[n, hidden_size]``."""
        return Pooled(self.network(pixel_values))

    def _init_weights(self, module: nn.Module) -> None:
        """Leave what torchvision drew."""


def _build(config: TorchvisionConfig) -> nn.Module:
    # The table of places of a ViT is made for one side.
    of_side = config.architecture.startswith("vit_")
    sized = {"image_size": config.image_size} if of_side else {}
    if not config.architecture.startswith("regnet"):
        return models.get_model(config.architecture, weights=None, **sized)  # type: ignore[no-any-return]
    # A RegNet calculates its widths by tensors, which the meta device has none of.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        return models.get_model(config.architecture, weights=None)  # type: ignore[no-any-return]


def _classifier(network: nn.Module) -> str:
    """Return the name of the last linear layer."""
    names = [str(name) for name, part in network.named_modules() if isinstance(part, nn.Linear)]
    return names[-1]


AutoConfig.register(TorchvisionConfig.model_type, TorchvisionConfig)
AutoModel.register(TorchvisionConfig, TorchvisionModel)


def write_torchvision_model(architecture: str, weights: str, folder: Path) -> TorchvisionConfig:
    """Write a network with weights that torchvision publishes, such as ``IMAGENET1K_V1``.

    Raises UserError for a name that there is not, weights that cannot be had, and a folder that
    is there.
    """
    if architecture not in architectures():
        raise UserError(
            f"{architecture!r} is not one of the networks of torchvision that --help lists"
            f"{suggest(architecture, architectures())}"
        )
    if os.path.lexists(folder):
        raise UserError(f"{folder} is there; give the name of a new folder")
    published = models.get_model_weights(architecture)
    if weights not in published.__members__:
        known = ", ".join(published.__members__)
        raise UserError(f"--weights {weights}: torchvision has {known} of {architecture}")
    chosen = published[weights]
    shown = chosen.transforms()
    side = int(shown.crop_size[0])
    config = TorchvisionConfig(architecture=architecture, weights=chosen.name, image_size=side)
    model = TorchvisionModel(config).eval()
    state = read_published(chosen, architecture)
    own = model.network.state_dict()
    load_exactly(_fitted(state, model.classifier), own, model.network, chosen.url)
    with torch.no_grad():
        config.hidden_size = model(torch.zeros(1, 3, side, side)).pooler_output.shape[1]
    processor = {
        "do_normalize": True,
        "image_mean": list(shown.mean),
        "image_std": list(shown.std),
        "size": {"height": side, "width": side},
    }
    writers: dict[str, Callable[[Path], object]] = {
        "config.json": lambda path: config.to_json_file(path),
        "model.safetensors": lambda path: save_tensors(model.state_dict(), path, {"format": "pt"}),
        "preprocessor_config.json": lambda path: path.write_text(json.dumps(processor, indent=2)),
    }
    write_folder(folder, writers, {})
    return config


def _fitted(state: dict[str, Tensor], classifier: str) -> dict[str, Tensor]:
    """Leave out the weights of the last linear layer, and give each of the others its name."""
    kept = {name: t for name, t in state.items() if name.rpartition(".")[0] != classifier}
    # DenseNets were published when a layer had the names `norm.1` and `conv.1`.
    return {_OLD_NAME.sub(r"\1\2.", name): t for name, t in kept.items()}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m signfuse_dist.model.torchvision_models",
        description="Write a network of torchvision, with published weights, into a folder that "
        "model.visual_backbone=hf:FOLDER and `signfuse features --model FOLDER` read.",
    )
    parser.add_argument("architecture", help=f"one of {', '.join(architectures())}")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a new one")
    parser.add_argument(
        "--weights", default="DEFAULT", help="torchvision's name of them (default: its best)"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status (2 for an error of the user's)."""
    given = _parser().parse_args(arguments)
    return answer(lambda: _run(given))


def _run(given: argparse.Namespace) -> int:
    config = write_torchvision_model(given.architecture, given.weights, given.folder)
    print(
        f"{given.folder}: {config.architecture} with {config.weights}, {config.hidden_size} "
        f"numbers a frame of {config.image_size} x {config.image_size} pixels"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
