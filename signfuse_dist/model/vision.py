"""Vision models of transformers as encoders of frames: DINOv2, CLIP, SigLIP, ViT, ConvNeXt, ...

Networks of torchvision are put into their form by :mod:`signfuse_dist.model.torchvision_models`.

Of a model of pictures and texts the half of the pictures is taken. A frame's vector is what the
model's own pooling makes of it, where its files hold that, else the mean of its tokens or places.
Normalisation and side of the picture are those of the model's image processor. Models that look at
several frames at once (VideoMAE) make feature sets alone: the vector of a frame is that of the
window whose middle is nearest, windows of ``num_frames`` lying half their length apart.

The weights are safetensors, and no code that comes with a model is run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from signfuse_dist.config import ModelConfig
from signfuse_dist.errors import UserError, first_line
from signfuse_dist.model.llm import unloadable, without_bars
from signfuse_dist.model.llm_identity import find_folder, fingerprint
from signfuse_dist.model.read_ahead import read_ahead
from signfuse_dist.records import STRICT_KEYS, Flag, Number, Whole, read_record
from signfuse_dist.vector_source import Dtype, VectorSource

if TYPE_CHECKING:
    from transformers import PreTrainedConfig  # as in model/llm.py: imported where there is one

_POOLER = "pooler."
# What an image processor may ask for beside size and normalisation, and what is done here.
_USUAL = {
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "offset": False,
    "rescale_offset": False,
    "include_top": False,
    "do_flip_channel_order": False,
}
_LARGEST = 4096  # pixels of a side
_KEY_BIAS = re.compile(r"(key|k_proj)\.bias$")
_ROUNDING = 1e-4  # of a vector: what a move of 1 that is seen goes far beyond


@dataclass(frozen=True)
class ShownPicture:
    """How a model's image processor says that a picture is brought to it."""

    side: int
    """Of the square, in pixels."""
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __str__(self) -> str:
        """Return it in words."""
        numbers = ", ".join(f"{m:.3g}" for m in self.mean), ", ".join(f"{s:.3g}" for s in self.std)
        return f"{self.side} x {self.side} pixels, mean ({numbers[0]}), deviation ({numbers[1]})"


class VisionModel(nn.Module):
    """A vision model around its network; what it computes does not depend on other frames.

    Paper: ResNet-50 on every frame, fine-tuned. Here, on request: any vision model, frozen or
    trained. Because: models that were trained on far more pictures see more in a frame.

    It stays in evaluation mode also where it trains, as the LLM does: no dropout of its own.

    Attributes:
        picture: as what it wants to see a frame.
        window: frames that it looks at together; 1 for a model of pictures.
        output_dim: numbers of a vector.
        commit: the revision on the hub; None for a folder.
        fingerprint: of its weights.
    """

    uses_batch = False
    recompute_blocks = False

    def __init__(
        self,
        network: Any,
        picture: ShownPicture,
        pools: bool,
        commit: str | None = None,
        identity: str | None = None,
    ) -> None:
        """``pools``: whether its own pooling is to be used, where it has one."""
        super().__init__()
        self.network, self.picture, self.pools = network.eval(), picture, pools
        self.commit, self.fingerprint = commit, identity
        config = network.config
        is_video = hasattr(config, "num_frames") and hasattr(config, "tubelet_size")
        self.window = int(config.num_frames) if is_video else 1
        with torch.no_grad():  # configurations have many names for it
            self.output_dim = self._vectors(_example(self)).shape[1]

    @property
    def mean(self) -> tuple[float, ...]:
        """Of each colour, taken from a picture whose values are from 0 to 1."""
        return self.picture.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Of each colour, by which it is divided then."""
        return self.picture.std

    @property
    def shown_fingerprint(self) -> str:
        """What tells its vectors from another's: its weights, and as what it sees a picture."""
        shown = json.dumps([self.picture.side, self.picture.mean, self.picture.std])
        return hashlib.sha256(f"{self.fingerprint} {shown}".encode()).hexdigest()

    @property
    def described(self) -> dict[str, Any]:
        """What :func:`without_weights` makes the same model of, but for its weights."""
        return {
            "config": json.loads(self.network.config.to_json_string(use_diff=False)),
            "side": self.picture.side,
            "mean": list(self.picture.mean),
            "std": list(self.picture.std),
            "pools": self.pools,
        }

    def train(self, mode: bool = True) -> VisionModel:
        """Keep the network in evaluation mode whatever ``mode`` says."""
        super().train(mode)
        self.network.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return a vector a picture: normalised ``[n, 3, h, w]`` to ``[n, output_dim]``.

        Larger pictures are made smaller. Of a model of films: ``[n, window, 3, h, w]``.
        """
        return self._vectors(images)

    def _vectors(self, images: Tensor) -> Tensor:
        side = self.picture.side
        if images.shape[-1] != side:
            shape = images.shape
            flat = images.flatten(0, -4).contiguous()
            flat = F.interpolate(flat, size=(side, side), mode="bicubic", antialias=True)
            images = flat.reshape(*shape[:-2], side, side)
        out = self.network(pixel_values=images)
        pooled = getattr(out, "pooler_output", None) if self.pools else None
        if pooled is not None:
            vectors: Tensor = pooled.flatten(1)
            return vectors
        hidden: Tensor = out.last_hidden_state
        return hidden.mean(dim=(2, 3)) if hidden.dim() == 4 else hidden.mean(dim=1)

    def refuse_unfit(self, frame_size: int, setting: str) -> None:
        """Raise UserError where frames of this side, in pixels, cannot be shown to the model."""
        if frame_size < self.picture.side:
            raise UserError(
                f"{setting}: the model sees {self.picture}, and frames are packed at "
                f"data.frame_size {frame_size}: pack them at {self.picture.side} or more, or take "
                "a model of smaller pictures"
            )


def _example(model: VisionModel) -> Tensor:
    """Return what a network is shown of one picture, the same each time: noise."""
    side, like = model.picture.side, next(model.network.parameters())
    shape = (1, *([model.window] if model.window > 1 else []), 3, side, side)
    with torch.device("cpu"):
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return noise.to(like.device, like.dtype)


def load_vision_model(name: str, revision: str | None, setting: str) -> VisionModel:
    """Load a vision model of the hub or of a folder, with weights that do not train.

    ``setting`` is the key or option that named it. Raises UserError when it is not there, is no
    vision model, lacks weights, does not say how a picture is brought to it, or does not take one
    of the size that it says.
    """
    network, missing = _load_network(name, revision, setting)
    folder = find_folder(name, revision)
    if folder is None:
        raise UserError(f"{setting}: {name!r} is not a folder, and not in the hub's cache")
    commit = None if Path(name).is_dir() else folder.name
    picture = _read_picture(name, revision, network.config, setting)
    pools = not any(_POOLER in key for key in missing)
    network = network.requires_grad_(False)
    with _taking(picture, name, setting):
        model = VisionModel(network, picture, pools, commit, fingerprint(folder))
    _refuse_unusable(model, name, setting)
    return model


@contextmanager
def _taking(picture: ShownPicture, name: str, setting: str) -> Iterator[None]:
    """Let a network that cannot be shown its picture be a UserError, before it is trained on."""
    try:
        yield
    except (
        RuntimeError,
        ValueError,
        TypeError,
        AttributeError,
        IndexError,
        AssertionError,
    ) as error:
        raise UserError(
            f"{setting}: {name!r} does not take the {picture} of its own image processor: "
            f"{first_line(error)}"
        ) from error


def load_configured(config: ModelConfig) -> VisionModel:
    """Load the vision model of ``model.visual_backbone``; of no size in memory where nothing has.

    On the meta device, as where parameters are counted, there are no weights. Raises UserError as
    :func:`load_vision_model` does, and for a model of films.
    """
    name, setting = str(config.vision_model), f"model.visual_backbone={config.visual_backbone}"
    if torch.get_default_device().type == "meta":
        _, auto_model = _auto()
        known = _read_config(name, config.visual_revision, setting)
        picture = _read_picture(name, config.visual_revision, known, setting)
        with _taking(picture, name, setting):
            model = VisionModel(auto_model.from_config(known), picture, True)
    else:
        model = load_vision_model(name, config.visual_revision, setting)
    if model.window > 1:
        raise UserError(
            f"{setting}: the model looks at {model.window} frames at a time: put its vectors "
            f"beside the shards, signfuse features SHARDS --model {name}, and train on them, "
            "model.visual_backbone=features:NAME"
        )
    return model


@dataclass(frozen=True, config=STRICT_KEYS)
class _Described:
    """The form of :attr:`VisionModel.described`."""

    config: dict[str, Any]
    side: Whole
    mean: tuple[Number, Number, Number]
    std: tuple[Number, Number, Number]
    pools: Flag


def without_weights(described: object, where: str) -> VisionModel:
    """Return a vision model that was trained, whose weights are to be loaded.

    Raises UserError naming ``where`` for what describes none.
    """
    auto_config, auto_model = _auto()
    headline = f"{where}: does not describe a vision model"
    said = read_record(_Described, described, headline)
    values = dict(said.config)
    try:
        known = auto_config.for_model(values.pop("model_type"), **values)
        network = auto_model.from_config(known, trust_remote_code=False)
        return VisionModel(network, ShownPicture(said.side, said.mean, said.std), said.pools)
    except unloadable() as error:
        raise UserError(f"{headline} that can be built: {first_line(error)}") from error


def unreached(model: VisionModel) -> list[str]:
    """Return the parameters that no vector depends on, in their order; they are not to train.

    In distributed training a parameter that trains must get a gradient, which the token of a masked
    place does not. Biases on keys get one that is rounding alone, since softmax does not see them,
    and Adam would walk them along it: they are found by moving them.
    """
    named = [(name, p) for name, p in model.named_parameters() if not p.is_meta]
    if not named:
        return []
    before = [p.requires_grad for _, p in named]
    for _, parameter in named:
        parameter.requires_grad_(True)
    some = _example(model)
    with torch.enable_grad():
        total = model(some).square().sum()
        grads = torch.autograd.grad(total, [p for _, p in named], allow_unused=True)
    for (_, parameter), trained in zip(named, before, strict=True):
        parameter.requires_grad_(trained)
    return [
        name
        for (name, parameter), grad in zip(named, grads, strict=True)
        if grad is None or (_KEY_BIAS.search(name) and _moves_nothing(model, some, parameter))
    ]


@torch.no_grad()
def _moves_nothing(model: VisionModel, images: Tensor, parameter: nn.Parameter) -> bool:
    """Return whether a parameter can be moved by 1 without a change of the vectors."""
    vectors, kept = model(images), parameter.clone()
    parameter.add_(1.0)
    moved = model(images)
    parameter.copy_(kept)
    return bool((moved - vectors).norm() <= _ROUNDING * vectors.norm())


class FrameVectors:
    """What computes a feature set: a vision model on its device, a clip at a time."""

    def __init__(
        self,
        name: str,
        model: VisionModel,
        device: torch.device,
        *,
        frame_size: int,
        dtype: Dtype = "float32",
        precision: Literal["fp32", "bf16"] = "fp32",
        frames_at_once: int = 64,
    ) -> None:
        """Raise UserError where frames of ``frame_size`` pixels do not fit the model."""
        model.refuse_unfit(frame_size, f"--model {name}")
        self.model, self.device = model.to(device).eval(), device
        self.precision, self.frames_at_once = precision, frames_at_once
        self.source = VectorSource(
            dim=model.output_dim,
            dtype=dtype,
            model=name,
            revision=model.commit,
            fingerprint=model.shown_fingerprint,
            precision=precision,
        )

    @torch.no_grad()
    def __call__(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return ``[n, dim]`` for uint8 RGB ``[n, size, size, 3]``."""
        pictures = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
        places = windows(len(frames), self.model.window)
        parts = []
        at_once = max(1, self.frames_at_once // self.model.window)
        for start in range(0, len(places), at_once):
            some = places[start : start + at_once]
            shown = pictures[some[:, 0] if self.model.window == 1 else some]
            parts.append(self._vectors(shown.to(self.device)).float().cpu())
        vectors = torch.cat(parts).numpy()
        return vectors if self.model.window == 1 else vectors[nearest(places, len(frames))]

    def _vectors(self, shown: Tensor) -> Tensor:
        bf16 = self.precision == "bf16"
        mean, std = (
            torch.tensor(of, device=self.device).view(3, 1, 1)
            for of in (self.model.mean, self.model.std)
        )
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            vectors: Tensor = self.model((shown.float() / 255 - mean) / std)
        return vectors


def windows(count: int, size: int) -> NDArray[np.int64]:
    """Return the frames of each window, ``[windows, size]``: half a window apart, to the last.

    A clip shorter than a window shows its last frame again.
    """
    if size == 1:
        return np.arange(count)[:, None]
    starts = sorted({*range(0, max(1, count - size + 1), max(1, size // 2)), max(0, count - size)})
    shown: NDArray[np.int64] = np.array(starts, np.int64)[:, None] + np.arange(size)
    return np.minimum(shown, count - 1)


def nearest(places: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return of each of ``count`` frames the window whose middle is nearest, the earlier of two."""
    middles = places[:, 0] + (places.shape[1] - 1) / 2
    apart = np.abs(np.arange(count)[:, None] - middles[None])
    return np.asarray(apart.argmin(axis=1))


def _auto() -> tuple[Any, Any]:
    """Return what finds a configuration and a model by its files, torchvision's among them."""
    from transformers import AutoConfig, AutoModel

    import signfuse_dist.model.torchvision_models  # noqa: F401  (it makes itself known to both)

    return AutoConfig, AutoModel


def _load_network(name: str, revision: str | None, setting: str) -> tuple[Any, Sequence[str]]:
    _, auto_model = _auto()
    of_pictures = _read_config(name, revision, setting)
    try:
        folder = find_folder(name, revision)
        if folder is not None:
            read_ahead(folder)
        with without_bars(), _quiet():
            network, said = auto_model.from_pretrained(
                name,
                revision=revision,
                config=of_pictures,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except unloadable() as error:
        raise _not_loaded(name, setting, error) from error
    if getattr(network, "main_input_name", None) != "pixel_values":
        raise UserError(f"{setting}: {name!r} ({type(network).__name__}) sees no pictures")
    lost = sorted(key for key in said["missing_keys"] if _POOLER not in key)
    if lost or said["mismatched_keys"]:
        odd = [*lost, *map(str, said["mismatched_keys"])]
        raise UserError(
            f"{setting}: the files of {name!r} lack {len(odd)} weights of "
            f"{type(network).__name__}, such as {odd[0]}"
        )
    return network, sorted(said["missing_keys"])


def _read_config(name: str, revision: str | None, setting: str) -> PreTrainedConfig:
    """Return the configuration of the half that sees pictures."""
    auto_config, _ = _auto()
    try:
        known = auto_config.from_pretrained(name, revision=revision, trust_remote_code=False)
    except unloadable() as error:
        raise _not_loaded(name, setting, error) from error
    of_pictures: PreTrainedConfig = getattr(known, "vision_config", known)
    return of_pictures


def _not_loaded(name: str, setting: str, error: Exception) -> UserError:
    return UserError(
        f"{setting}: {name!r} cannot be loaded as a vision model of transformers from its "
        f"safetensors: {first_line(error)}"
    )


def _read_picture(
    name: str, revision: str | None, config: PreTrainedConfig, setting: str
) -> ShownPicture:
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        said, _ = ImageProcessingMixin.get_image_processor_dict(name, revision=revision)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{setting}: {name!r} has no preprocessor_config.json that can be read, which says "
            f"how a picture is normalised and how large it is ({first_line(error)})"
        ) from error
    where = f"{setting}: the preprocessor_config.json of {name!r}"
    if not isinstance(said, dict):
        raise UserError(f"{where} holds no object")
    odd = [f"{key} {said[key]!r}" for key, usual in _USUAL.items() if said.get(key, usual) != usual]
    if odd:
        raise UserError(
            f"{where} asks for {', '.join(odd)}: pictures are brought to it as RGB from 0 to 1, "
            "less image_mean, divided by image_std, and in no other way"
        )
    size = said.get("crop_size") if said.get("do_center_crop") else said.get("size")
    side = _side(size) or _side(getattr(config, "image_size", None))
    mean, std = said.get("image_mean"), said.get("image_std")
    if said.get("do_normalize") is False:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if side is None or not 1 <= side <= _LARGEST:
        raise UserError(f"{where} does not say how large its square pictures are: size {size!r}")
    picture = ShownPicture(side, _three(mean), _three(std))
    if not (picture.mean and picture.std):
        raise UserError(
            f"{where} has image_mean {mean!r} and image_std {std!r}, not three numbers each"
        )
    if not all(value > 0 for value in picture.std):
        raise UserError(f"{where} has image_std {std!r}, not above 0")
    return picture


def _three(numbers: Any) -> tuple[float, ...]:
    """Return three finite numbers, one a colour; none where that is not what is said."""
    try:
        said = tuple(map(float, numbers))
    except (TypeError, ValueError):
        return ()
    return said if len(said) == 3 and all(map(math.isfinite, said)) else ()


def _side(size: Any) -> int | None:
    """Return the side of a square that a size names in one of the ways of image processors."""
    sides = [size]
    if isinstance(size, dict):
        sides = [size[key] for key in ("height", "width", "shortest_edge") if key in size]
    elif isinstance(size, (list, tuple)):
        sides = list(size)
    if not sides or any(type(side) is not int or side != sides[0] for side in sides):
        return None
    return int(sides[0])


@torch.no_grad()
def _refuse_unusable(model: VisionModel, name: str, setting: str) -> None:
    """Refuse what makes two vectors of one picture, as masked autoencoders do, or none."""
    once, again = model(_example(model)), model(_example(model))
    if not torch.isfinite(once).all():
        raise UserError(
            f"{setting}: {name!r} makes numbers that are not finite of a picture: its weights are "
            "damaged"
        )
    if not (once - again).norm() <= _ROUNDING * once.norm():
        raise UserError(
            f"{setting}: {name!r} ({type(model.network).__name__}) makes another vector of the "
            "same picture each time: it draws what it looks at. Take a model that sees all of it"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Let transformers not list what it leaves out: the texts' half of a model."""
    logger = logging.getLogger("transformers")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
