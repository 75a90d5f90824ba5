# ruff: noqa: F722
"""Shapes of the public tensor functions, checked by jaxtyping on every call of real passes.

The axes are named as in the docstrings. One name is one size within a call; ``{...}`` is a number
of the arguments. The shapes stand here and not in the sources: a table can be complete, and what a
test alone needs is no dependency of a user's.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import re
import types
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import torch
from beartype import beartype
from jaxtyping import Bool, Float, Float64, Int, Shaped, TypeCheckError, UInt8, jaxtyped
from torch import Tensor

import signfuse_dist.batch
import signfuse_dist.model
import signfuse_dist.model.attention
import signfuse_dist.model.losses
import signfuse_dist.model.positions
import signfuse_dist.model.vision
import signfuse_dist.model.visual
from helpers.attention_reference import loop_kernel
from helpers.model_factory import draw_clips, join, small_model, tiny_tokenizer
from helpers.vision_models import FAMILIES, MEAN, SIDE, STD
from signfuse_dist.config import EvaluationConfig, LossConfig
from signfuse_dist.errors import UserError
from signfuse_dist.model.text_tokenizer import TextTokenizer
from signfuse_dist.model.torchvision_models import TorchvisionConfig, TorchvisionModel
from signfuse_dist.objective import StageObjective, prepare, set_mode
from signfuse_dist.synthetic import tiny_llm
from signfuse_dist.synthetic.tiny_llm import IGNORED, TinyLLM, train_tokenizer

_Fused = Float[Tensor, "batch steps dim"]
_StepMask = Bool[Tensor, "batch steps"]
_Counted = Bool[Tensor, "batch *places"]  # steps, or channels and joints of them too
_Lengths = Int[Tensor, "batch"]
_Weight = Float[Tensor, "batch"]
_Features = Float[Tensor, "batch channels steps *rest"]
_Frames = UInt8[Tensor, "frames 3 height width"]
_Attention = {
    "query": Float[Tensor, "batch queries dim"], "key": Float[Tensor, "batch keys dim"],
    "value": Float[Tensor, "batch keys dim"], "key_mask": Bool[Tensor, "batch keys"] | None,
    "query_mask": Bool[Tensor, "batch queries"] | None,
}  # fmt: skip
_TwoStreams = {"visual": _Fused, "skeletal": _Fused, "mask": _StepMask}
_RETURN = "return"
_JointsPooled = {
    "x": Float[Tensor, "batch channels steps joints"],
    "there": Bool[Tensor, "batch steps joints"] | None,
    _RETURN: Float[Tensor, "batch channels steps"],
}

SHAPES: dict[str, dict[str, Any]] = {
    "batch.length_mask": {"lengths": _Lengths, _RETURN: Bool[Tensor, "batch {size}"]},
    "batch.pooling_weights": {
        "lengths": _Lengths, _RETURN: Float64[Tensor, "batch {pooled_length} {size}"],
    },
    "batch.SignBatch.__init__": {
        "frames": _Frames, "pose": Float[Tensor, "batch longest joints 2"],
        "joint_mask": Bool[Tensor, "batch longest joints"], "frame_lengths": _Lengths,
        "weight": _Weight, "tokens": Int[Tensor, "batch tokens"] | None,
        "text_lengths": _Lengths | None, "visual": _Fused | None, "skeletal": _Fused | None,
    },
    "batch.SignBatch.with_features": {"visual": _Fused | None, "skeletal": _Fused | None},
    "model.losses.contrastive": {
        "visual_summary": Float[Tensor, "batch dim"],
        "skeletal_summary": Float[Tensor, "batch dim"],
        "weight": _Weight, _RETURN: Float[Tensor, "batch"],
    },
    "model.losses.distance": {
        "sign_embeddings": Float[Tensor, "batch sign_tokens llm_dim"],
        "text_embeddings": Float[Tensor, "batch tokens llm_dim"],
        "text_lengths": _Lengths, _RETURN: Float[Tensor, "batch"],
    },
    "model.losses.gather_rows": {
        "x": Shaped[Tensor, "batch *rest"], _RETURN: Shaped[Tensor, "all *rest"],
    },
    "model.attention.attend": {**_Attention, _RETURN: Float[Tensor, "batch queries dim"]},
    "model.attention.Attention.forward": {
        **_Attention, _RETURN: Float[Tensor, "batch queries dim"],
    },
    "model.attention.attend_eagerly": {
        **_Attention,
        _RETURN: tuple[
            Float[Tensor, "batch queries dim"], Float[Tensor, "batch {num_heads} queries keys"]
        ],
    },
    "model.attention.attend_packed": {
        **_Attention, _RETURN: Float[Tensor, "batch queries dim"],
    },
    "model.attention.find_tokens": {"mask": _StepMask | None},
    "batch.lay_out": {"lengths": _Lengths},
    "batch.TokenLayout.pack": {
        "x": Float[Tensor, "batch steps *rest"], _RETURN: Float[Tensor, "tokens *rest"],
    },
    "batch.TokenLayout.unpack": {
        "packed": Float[Tensor, "tokens *rest"],
        _RETURN: Float[Tensor, "{self.shape[0]} {self.shape[1]} *rest"],
    },
    "model.cmfa.CrossAttention.forward": {
        "queries_from": _Fused, "keys_from": _Fused, "key_mask": _StepMask, _RETURN: _Fused,
    },
    "model.cmfa.FusionLayer.forward": {**_TwoStreams, _RETURN: tuple[_Fused, _Fused | None]},
    "model.cmfa.FusionLayer.attend_across": {**_TwoStreams, _RETURN: tuple[_Fused, _Fused]},
    "model.cmfa.CrossModalFusion.forward": {
        **_TwoStreams, _RETURN: tuple[_Fused, Float[Tensor, "batch steps"] | None],
    },
    "model.cmfa.CrossModalFusion.attend_across": {**_TwoStreams, _RETURN: tuple[_Fused, _Fused]},
    "model.cmfa.FusionLayer.mix": {**_TwoStreams, _RETURN: tuple[_Fused, _Fused | None]},
    "model.hta.TimeScale.forward": {
        "fused": _Fused, "step_lengths": _Lengths,
        _RETURN: tuple[Float[Tensor, "batch {-(-fused.shape[1]//self.stride)} dim"], _Lengths],
    },
    "model.hta.TemporalPooling.forward": {
        "fused": _Fused, "step_lengths": _Lengths,
        _RETURN: Float[Tensor, "batch {self.pooled_length} dim"],
    },
    "model.hta.TemporalAggregation.forward": {
        "fused": _Fused, "step_lengths": _Lengths,
        _RETURN: Float[Tensor, "batch {self.pooled_length} dim"],
    },
    "model.hta.TemporalAggregation.multi_scale": {
        "fused": _Fused, "step_lengths": _Lengths,
        _RETURN: Float[Tensor, "batch {self.pooled_length} {len(self.scales)*fused.shape[2]}"],
    },
    "model.llm.LanguageModel.embed": {
        "tokens": Int[Tensor, "*shape"], _RETURN: Float[Tensor, "*shape {self.llm_dim}"],
    },
    "model.llm.LanguageModel.negative_log_likelihood": {
        "sign_embeddings": Float[Tensor, "batch sign_tokens {self.llm_dim}"],
        "tokens": Int[Tensor, "batch tokens"], "text_lengths": _Lengths,
        _RETURN: Float[Tensor, "batch"],
    },
    "model.llm.LanguageModel.candidates": {
        "sign_embeddings": Float[Tensor, "batch sign_tokens {self.llm_dim}"],
    },
    "model.llm.LanguageModel.generate": {
        "sign_embeddings": Float[Tensor, "batch sign_tokens {self.llm_dim}"],
    },
    "model.norm.StepNorm.forward": {"x": _Features, "counted": _Counted, _RETURN: _Features},
    "model.norm.BatchNorm.forward": {"x": _Features, "counted": _Counted, _RETURN: _Features},
    "model.norm.ImageBatchNorm.forward": {
        "x": Float[Tensor, "frames channels height width"],
        _RETURN: Float[Tensor, "frames channels height width"],
    },
    "model.norm.sum_over_processes": {
        "x": Float[Tensor, "*shape"], _RETURN: Float[Tensor, "*shape"],
    },
    "model.signfuse.SignFuse.generate": {_RETURN: Int[Tensor, "batch tokens"]},
    "model.signfuse.SignFuse.summarise": {
        _RETURN: tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch dim"]],
    },
    "model.signfuse.SignFuse.embed_signs": {
        _RETURN: tuple[
            Float[Tensor, "batch sign_tokens llm_dim"], Float[Tensor, "batch steps"] | None
        ],
    },
    "model.signfuse.SignFuseOutput.__init__": {
        "summaries": tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch dim"]] | None,
        "sign_embeddings": Float[Tensor, "batch sign_tokens llm_dim"] | None,
        "text_embeddings": Float[Tensor, "batch tokens llm_dim"] | None,
        "negative_log_likelihood": Float[Tensor, "batch"] | None,
    },
    "model.signfuse.Streams.__init__": {
        "visual": _Fused, "skeletal": _Fused, "step_lengths": _Lengths,
    },
    "model.skeletal.SpatialGraphConv.forward": {
        "x": Float[Tensor, "batch in_channels frames joints"],
        _RETURN: Float[Tensor, "batch out_channels frames joints"],
    },
    "model.skeletal.SpatialTemporalBlock.forward": {
        "x": Float[Tensor, "batch in_channels frames joints"], "lengths": _Lengths,
        "weight": _Weight,
        _RETURN: tuple[
            Float[Tensor, "batch out_channels {-(-x.shape[2]//self.stride)} joints"], _Lengths
        ],
    },
    "model.skeletal.MeanOverJoints.forward": _JointsPooled,
    "model.skeletal.MeansOfGroups.forward": _JointsPooled,
    "model.skeletal.SkeletalStream.forward": {
        "pose": Float[Tensor, "batch longest 75 2"],
        "joint_mask": Bool[Tensor, "batch longest 75"], "frame_lengths": _Lengths,
        "weight": _Weight, _RETURN: _Fused,
    },
    "model.skeletal.shortened": {
        "there": Bool[Tensor, "batch longest joints"] | None,
        _RETURN: Bool[Tensor, "batch steps joints"] | None,
    },
    "model.joint_channels.JointChannels.coordinates": {
        "pose": Float[Tensor, "batch longest joints 2"],
        "real": Bool[Tensor, "batch longest joints"],
        _RETURN: tuple[
            Float[Tensor, "batch longest joints {self.num_coordinates}"],
            Bool[Tensor, "batch longest joints {self.num_coordinates}"],
        ],
    },
    "model.joint_channels.in_body": {
        "pose": Float[Tensor, "batch longest joints 2"],
        "real": Bool[Tensor, "batch longest joints"],
        _RETURN: Float[Tensor, "batch longest joints 2"],
    },
    "model.positions.step_times": {_RETURN: Float[Tensor, "1 {count}"]},
    "model.positions.pooled_times": {
        "step_lengths": _Lengths, _RETURN: Float64[Tensor, "batch {pooled_length}"],
    },
    "model.positions.sinusoidal": {
        "times": Float[Tensor, "*rest"], _RETURN: Float[Tensor, "*rest {dim}"],
    },
    "model.positions.rotated": {
        "x": _Fused, "times": Float[Tensor, "rows steps"], _RETURN: _Fused,
    },
    "model.positions.slopes": {_RETURN: Float[Tensor, "{num_heads}"]},
    "model.positions.distance_bias": {
        "times": Float[Tensor, "rows steps"],
        _RETURN: Float[Tensor, "rows {num_heads} steps steps"],
    },
    "model.positions.near_diagonal": {"weights": Float[Tensor, "*rest queries keys"]},
    "model.attention.Attention.placed": {
        "x": _Fused, "times": Float[Tensor, "rows steps"] | None, _RETURN: _Fused,
    },
    "model.dropout.ClipDropout.forward": {
        "x": Float[Tensor, "batch *rest"], _RETURN: Float[Tensor, "batch *rest"],
    },
    "model.dropout.drawn": {"keys": Int[Tensor, "batch"] | None},
    "model.sla.SignLanguageAdapter.forward": {
        "temporal": Float[Tensor, "batch pooled dim"],
        _RETURN: Float[Tensor, "batch {self.num_sign_tokens} llm_dim"],
    },
    "synthetic.tiny_llm.mean_loss": {_RETURN: tuple[Float[Tensor, ""], int]},
    "model.visual.ResNet.forward": {
        "images": Float[Tensor, "frames 3 height width"],
        _RETURN: Float[Tensor, "frames {self.output_dim}"],
    },
    "model.visual.GivenVectors.forward": {"images": Float[Tensor, "frames 3 height width"]},
    "model.torchvision_models.TorchvisionModel.forward": {
        "pixel_values": Float[Tensor, "pictures 3 height width"],
    },
    "model.vision.VisionModel.forward": {
        "images": Float[Tensor, "*pictures 3 height width"],
        _RETURN: Float[Tensor, "frames {self.output_dim}"],
    },
    "model.visual.VisualStream.forward": {
        "frames": _Frames, "frame_lengths": _Lengths, "step_lengths": _Lengths,
        "weight": _Weight, _RETURN: _Fused,
    },
    "model.visual.VisualStream.frame_features": {
        "frames": _Frames, "frame_lengths": _Lengths, "weight": _Weight,
        _RETURN: Float[Tensor, "frames visual_dim"],
    },
    "model.losses.replay": {
        "summaries": tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch dim"]],
        _RETURN: Float[Tensor, ""],
    },
    "objective.StageObjective.summarise": {
        _RETURN: tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch dim"]],
    },
    "model.visual.VisualStream.shorten": {
        "frame_features": Float[Tensor, "batch longest visual_dim"], "step_lengths": _Lengths,
        "weight": _Weight, _RETURN: _Fused,
    },
}  # fmt: skip

Call = tuple[tuple[Any, ...], dict[str, Any]]


def home(name: str) -> tuple[Any, str]:
    """The module or class that holds a function of the table."""
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        try:
            owner: Any = importlib.import_module(".".join(["signfuse_dist", *parts[:end]]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:-1]:
            owner = getattr(owner, part)
        return owner, parts[-1]
    raise AssertionError(name)


def checked(function: Callable[..., Any], shapes: dict[str, Any]) -> Callable[..., Any]:
    """The function with the shapes in place of its own annotations, checked on every call."""
    copy = types.FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__, copy.__annotations__ = function.__kwdefaults__, dict(shapes)
    return jaxtyped(typechecker=beartype)(copy)  # type: ignore[no-any-return]


def spy(function: Callable[..., Any], calls: list[Call]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not calls:
            calls.append((args, kwargs))
        return function(*args, **kwargs)

    return call


@pytest.fixture(scope="module")
def calls() -> Iterator[dict[str, list[Call]]]:
    """Real passes of every kind with every shape checked; the first call of each function."""
    seen: dict[str, list[Call]] = {name: [] for name in SHAPES}
    with pytest.MonkeyPatch.context() as patch:
        for name, shapes in SHAPES.items():
            owner, attribute = home(name)
            original = inspect.getattr_static(owner, attribute)
            wrapped = spy(checked(original, shapes), seen[name])
            patch.setattr(owner, attribute, wrapped)
            for module in _modules():  # who has imported the function by name
                if getattr(module, attribute, None) is original:
                    patch.setattr(module, attribute, wrapped)
        _run_everything()
        yield seen


def _run_everything() -> None:
    changes: list[dict[str, Any]] = [
        {"norm": "sync", "visual_norm": "sync"},
        {"visual_chunk": 2},
        {"visual_norm": "frozen", "norm": "local"},
        {"scales": (), "fusion": "concat"},
        {"streams": "visual"},
        {"fusion_layers": 0, "norm": "frozen"},
        {"attention": "eager"},
        {"positions": "sinusoidal", "joint_frame": "body", "joint_statistics": "present"},
        {"positions": "rotary", "joints": ("body", "left_hand"), "joint_pooling": "groups"},
        {"positions": "distance"},
    ]
    near_diagonal = signfuse_dist.model.positions.near_diagonal
    near_diagonal(torch.full((2, 5, 5), 0.2))
    query, key = torch.randn(3, 2, 12), torch.randn(3, 5, 12)
    mask = torch.arange(5)[None] < torch.tensor([5, 1, 3])[:, None]
    signfuse_dist.model.attention.attend_packed(query, key, key, 2, mask, None, loop_kernel)
    tokenizer = train_tokenizer(["a text"], "say", 300)
    llm = tiny_llm.build(TinyLLM(hidden_size=8, num_layers=1), tokenizer)
    tiny_llm.mean_loss(llm, [([0, 5, 6], [IGNORED, 5, 6]), ([0, 7], [IGNORED, 7])])
    shown = signfuse_dist.model.vision.ShownPicture(SIDE, tuple(MEAN), tuple(STD))
    sees = signfuse_dist.model.vision.VisionModel(FAMILIES["classifier"]().vit, shown, False)
    sees(torch.randn(2, 3, SIDE, SIDE))
    described = TorchvisionConfig(architecture="shufflenet_v2_x0_5")
    TorchvisionModel(described).eval()(pixel_values=torch.randn(2, 3, SIDE, SIDE))
    with suppress(UserError):
        signfuse_dist.model.visual.GivenVectors(4)(torch.randn(2, 3, 4, 4))
    batch = join(draw_clips([5, 1, 3]))
    for change in changes:
        model = small_model(**change)
        features = None if model.skeletal is None else "attended"
        config = LossConfig(contrastive_weight=0.0 if features is None else 0.1)
        prepare(model, "finetune", config)
        set_mode(model, "finetune")
        objective = StageObjective("finetune", config)
        compared = None
        if objective.compares:
            compared = objective.compare([batch], [objective.summarise(model, batch)])[0]
        sums = objective(model, batch, compared)
        torch.stack(list(sums.values())).sum().backward()
        objective(model, batch)
        if model.built_from.fusion == "cmfa" and model.built_from.fusion_layers and features:
            streams = model.encode(batch)
            model.summarise(streams, features)
            model.encode(batch.with_features(streams.visual, streams.skeletal))
        model.tokenizer = TextTokenizer(tiny_tokenizer(), "translate the sign")
        model.eval().generate(batch, num_beams=1, max_new_tokens=2)
        sign_embeddings, _ = model.embed_signs(model.encode(batch))
        assert model.language_model is not None
        decoding = EvaluationConfig(num_beams=1, max_new_tokens=2)
        model.language_model.generate(sign_embeddings, decoding, model.tokenizer.end)


def _modules() -> list[Any]:
    names = [
        f"signfuse_dist.model.{found.name}"
        for found in pkgutil.iter_modules(signfuse_dist.model.__path__)
    ]
    return [
        signfuse_dist.batch,
        signfuse_dist.objective,
        tiny_llm,
        *map(importlib.import_module, names),
    ]


@pytest.mark.parametrize("name", SHAPES)
def test_the_shapes_hold_on_real_passes_and_another_rank_is_refused(
    name: str, calls: dict[str, list[Call]]
) -> None:
    assert calls[name], "never called: the row checks nothing"
    args, kwargs = calls[name][0]
    owner, attribute = home(name)
    bound = inspect.signature(getattr(owner, attribute)).bind(*args, **kwargs)
    tensors = [n for n, value in bound.arguments.items() if isinstance(value, Tensor)]
    for argument in tensors:
        if argument not in SHAPES[name] or "*" in str(SHAPES[name][argument]):
            continue
        wrong = inspect.signature(getattr(owner, attribute)).bind(*args, **kwargs)
        wrong.arguments[argument] = bound.arguments[argument][None]
        with pytest.raises(TypeCheckError):
            getattr(owner, attribute)(*wrong.args, **wrong.kwargs)


def _takes_tensors(function: Any) -> bool:
    """Whether an annotation is a tensor, or a tuple of them, or one of them or None."""
    hints = inspect.get_annotations(function).values()
    return any(re.match(r"(tuple\[)?Tensor\b", str(hint)) for hint in hints)


def _public() -> set[str]:
    """The public functions and methods of tensors in the modules of the model."""
    found = set()
    for module in _modules():
        for name, value in vars(module).items():
            if getattr(value, "__module__", None) != module.__name__ or name.startswith("_"):
                continue
            if inspect.isfunction(value) and _takes_tensors(value):
                found.add(f"{module.__name__}.{name}")
            elif inspect.isclass(value):
                found |= {
                    f"{module.__name__}.{name}.{method}"
                    for method, function in vars(value).items()
                    if inspect.isfunction(function)
                    and not method.startswith("_")
                    and _takes_tensors(function)
                }
    return found


PUBLIC = _public()  # before any is replaced by one that is checked


def test_every_public_tensor_function_has_its_shapes_in_the_table() -> None:
    known = {f"signfuse_dist.{name}" for name in SHAPES}
    assert PUBLIC - known == set()
    without_tensors_of_their_own = {n for n in known if n.endswith("__init__")}
    assert known - PUBLIC == without_tensors_of_their_own


def test_one_name_is_one_size() -> None:
    function = checked(signfuse_dist.model.losses.contrastive, SHAPES["model.losses.contrastive"])
    with pytest.raises(TypeCheckError):
        function(torch.randn(3, 4), torch.randn(3, 5), torch.ones(3), 0.07)
