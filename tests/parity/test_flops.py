"""The operations of a step: against a table of arithmetic, and against what torch counts in one."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    BartForConditionalGeneration,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedConfig,
)

from helpers.model_factory import (
    VOCABULARY,
    draw_clips,
    join,
    small_config,
    tiny_gpt2,
    tiny_llama,
    tiny_qwen,
    tiny_t5,
)
from helpers.repository import ROOT
from signfuse_dist.batch import SignBatch
from signfuse_dist.config import LossConfig, ModelConfig, StageName
from signfuse_dist.experiment import load_run
from signfuse_dist.metering import meter_of, say_what_is_unknown
from signfuse_dist.model.flops import COMPONENTS, Flops, StepFlops
from signfuse_dist.model.llm import LanguageModel
from signfuse_dist.model.signfuse import SignFuse
from signfuse_dist.objective import StageObjective, prepare, set_mode
from signfuse_dist.stages import needs_language_model
from signfuse_dist.synthetic.llm_shapes import ShapeName, llm_shape

EXACT = 1e-9


# The shapes of the LLMs of configs/model; vicuna_7b has that of llama2_7b, narrow that of tiny.
SHIPPED: tuple[ShapeName, ...] = (
    "llama2_7b",
    "llama2_13b",
    "smollm2_135m",
    "qwen2_5_7b",
    "flan_t5_xl",
    "mt5_xl",
    "tiny",
)
LONG = {"llama2_13b", "smollm2_135m", "qwen2_5_7b", "mt5_xl"}


def _first_decoder_layer(stage: StageName) -> float:
    """What the arithmetic counted too much of T5 XL: gradients that no step computes.

    The first layer of the decoder reads frozen embeddings, so nothing before LoRA needs a gradient:
    without LoRA four projections, all of self-attention, and the queries of cross-attention; with
    it the inputs of queries, keys and values, and of their LoRA matrices.
    """
    dim = width = 2048
    rank, tokens, pairs, encoder = 16, 12 + 30, 12**2 + 30**2, 32 + 15
    if stage == "finetune":
        return 3 * 2 * dim * (width + rank) * tokens
    attention = 2 * 4 * width * pairs + 2 * width * encoder * tokens
    return 5 * 2 * dim * width * tokens + attention


def _pooling(config: ModelConfig) -> float:
    """What the arithmetic counted too little: Eq. 18 was torch's pooling, and is a product now."""
    return 2.0 * 2 * config.num_sign_tokens * config.pooled_length * config.dim


def _rows() -> Iterator[Any]:
    """What arithmetic over the layers' sizes gave for clips of 64 and 37 frames, 12 and 30 tokens.

    It knew the layers of every component by name, and is no more.
    """
    with (ROOT / "tests/parity/flops_by_arithmetic.tsv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            figures = {
                name: Flops(float(row[f"{name}_forward"]), float(row[f"{name}_backward"]))
                for name in COMPONENTS
                if row[f"{name}_forward"] != "-"
            }
            yield pytest.param(
                row["model"],
                row["stage"],
                figures,
                id=f"{row['model']} {row['stage']}",
                marks=[pytest.mark.long] if row["model"] in LONG else [],
            )


def _without_memory(config: ModelConfig, llm: PreTrainedConfig | None) -> SignFuse:
    with torch.device("meta"):
        language = None
        if llm is not None:
            auto = AutoModelForSeq2SeqLM if llm.is_encoder_decoder else AutoModelForCausalLM
            language = LanguageModel(auto.from_config(llm), list(range(15)))
        return SignFuse(config, language)


def _batch(size: int) -> SignBatch:
    frames, tokens = torch.tensor([64, 37]), torch.tensor([12, 30])
    return SignBatch(
        ids=("a", "b"),
        frames=torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(101, 3, size, size),
        pose=torch.zeros(2, 64, 75, 2),
        joint_mask=torch.ones(2, 64, 75, dtype=torch.bool),
        frame_lengths=frames,
        weight=torch.ones(2),
        tokens=torch.zeros(2, 30, dtype=torch.long),
        text_lengths=tokens,
    )


@pytest.mark.parametrize(("model", "stage", "expected"), _rows())
def test_the_shipped_models_cost_what_arithmetic_said(
    model: str, stage: StageName, expected: dict[str, Flops], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LanguageModel, "embedding_rms", 1.0)  # no values without memory
    name, _, change = model.partition("/")
    values = yaml.safe_load((ROOT / f"configs/model/{name}.yaml").read_text())
    loss = LossConfig()
    if change == "attended":
        loss = replace(loss, contrastive_features="attended")
    elif change:
        key, _, value = change.partition("=")
        values[key] = yaml.safe_load(value)
        if key == "streams":
            loss = replace(loss, contrastive_weight=0.0)
    llm = llm_shape(name) if needs_language_model(stage) else None
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    built = _without_memory(ModelConfig(**values), llm)
    prepare(built, stage, loss)
    set_mode(built, stage)
    objective = StageObjective(stage, loss)
    costs = StepFlops(built, objective.contrastive_features, objective.language)
    found = costs(_batch(64 if name == "tiny" else 224))
    assert list(found) == list(expected)
    for part, cost in expected.items():
        forward, backward = cost.forward, cost.backward
        if part == "fusion" and objective.language:
            forward += _pooling(built.config)
            backward += _pooling(built.config)  # the gradient of its input alone
        if part == "language_model" and name in ("flan_t5_xl", "mt5_xl"):
            backward -= _first_decoder_layer(stage)
        assert found[part].forward == pytest.approx(forward, rel=EXACT), part
        assert found[part].backward == pytest.approx(backward, rel=EXACT), part


def _tiny_mistral() -> Any:
    return MistralForCausalLM(
        MistralConfig(
            vocab_size=VOCABULARY,
            hidden_size=12,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
    )


def _tiny_bart() -> Any:
    return BartForConditionalGeneration(
        BartConfig(
            vocab_size=VOCABULARY,
            d_model=12,
            encoder_layers=1,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=24,
            decoder_ffn_dim=24,
            decoder_start_token_id=1,
            forced_eos_token_id=None,
        )
    )


LLMS: dict[str, Callable[[], Any]] = {
    "llama": tiny_llama,
    "mistral": _tiny_mistral,
    "qwen": tiny_qwen,
    "gpt2": tiny_gpt2,
    "t5": tiny_t5,
    "bart": _tiny_bart,
}


def build(stage: StageName, llm: Any = "llama", **changes: Any) -> SignFuse:
    """A model in which attention is products of matrices, which the counter sees on a CPU."""
    torch.manual_seed(0)
    language = None
    if needs_language_model(stage):
        model = LLMS[llm]() if isinstance(llm, str) else llm
        model.set_attn_implementation("eager")
        language = LanguageModel(model, [0, 2, 3, 4])
    values = {"attention": "eager", "lora_targets": None, **changes}
    built = SignFuse(small_config(**values), language)
    prepare(built, stage, LossConfig())
    set_mode(built, stage)
    return built


def even_batch(frames: int = 9, tokens: int = 5) -> SignBatch:
    """Clips of one length: with padding the counter would count what is not real as well."""
    clips = draw_clips([frames] * 3)
    batch: SignBatch = join([replace(clip, tokens=torch.arange(2, 2 + tokens)) for clip in clips])
    return batch


def costs_of(model: SignFuse, stage: StageName, batch: SignBatch) -> dict[str, Flops]:
    features = "unimodal" if stage != "alignment" else None
    return StepFlops(model, features, needs_language_model(stage))(batch)


@pytest.mark.parametrize("stage", ["contrastive", "alignment", "finetune"])
def test_each_component_has_the_operations_that_torch_counts_in_it(stage: StageName) -> None:
    model, batch = build(stage), even_batch()
    with FlopCounterMode(display=False) as counter:
        StageObjective(stage, LossConfig())(model, batch)
    counted = {
        name.partition(".")[2]: sum(operations.values())
        for name, operations in counter.get_flop_counts().items()
        if name.count(".") == 1
    }
    found = costs_of(model, stage, batch)
    parts = ("fusion", "temporal", "adapter")
    assert found["visual"].forward == pytest.approx(counted["visual"], rel=EXACT)
    assert found["skeletal"].forward == pytest.approx(counted["skeletal"], rel=EXACT)
    assert found["fusion"].forward == pytest.approx(
        sum(counted.get(name, 0) for name in parts), rel=EXACT
    )


@pytest.mark.parametrize("stage", ["contrastive", "alignment", "finetune"])
def test_a_step_has_the_operations_that_torch_counts_forward_and_backward(
    stage: StageName,
) -> None:
    """But for a depthwise convolution's weights, of which torch counts each channel's for all."""
    model, batch = build(stage), even_batch()
    with FlopCounterMode(display=False) as counter:
        sums = StageObjective(stage, LossConfig())(model, batch)
        torch.stack(list(sums.values())).sum().backward()
    ours = sum(cost.total for cost in costs_of(model, stage, batch).values())
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.005)


@pytest.mark.parametrize("llm", LLMS)
@pytest.mark.parametrize("stage", ["alignment", "finetune"])
def test_llms_of_any_architecture_are_counted_as_torch_does(llm: str, stage: StageName) -> None:
    """With LoRA on every projection in the last stage, and frozen in the one before."""
    model, batch = build(stage, llm), even_batch()
    assert model.language_model is not None
    assert batch.tokens is not None
    assert batch.text_lengths is not None
    sign = torch.randn(3, 3, 12, requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        nll = model.language_model.negative_log_likelihood(sign, batch.tokens, batch.text_lengths)
    with FlopCounterMode(display=False) as backward:
        nll.sum().backward()
    found = costs_of(model, stage, batch)["language_model"]
    assert found.forward == pytest.approx(forward.get_total_flops(), rel=EXACT)
    assert found.backward == pytest.approx(backward.get_total_flops(), rel=EXACT)


class Packed(nn.Linear):
    """A layer as quantization leaves it: two weights a byte, read by a kernel of its own."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None)
        packed = torch.zeros(self.weight.numel() // 2, 1, dtype=torch.uint8)
        self.weight = nn.Parameter(packed, requires_grad=False)

    def forward(self, input: Tensor) -> Tensor:
        raise AssertionError("this kernel needs a GPU")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_quantized_llm_costs_what_it_costs_unquantized(dtype: str) -> None:
    values = {"llm_dtype": dtype}
    cast = getattr(torch, dtype)
    plain = costs_of(build("alignment", tiny_llama().to(cast), **values), "alignment", even_batch())
    llm = tiny_llama().to(cast)
    for layer in list(llm.model.layers.modules()):
        for name, child in list(layer.named_children()):
            if isinstance(child, nn.Linear):
                setattr(layer, name, Packed(child))
    found = costs_of(build("alignment", llm, **values), "alignment", even_batch())
    assert found == plain


@pytest.mark.parametrize(
    "changes",
    [
        {"visual_chunk": 2},
        {"visual_checkpoint": True},
        {"attention": "sdpa"},
        {"attention": "auto"},
        {"visual_norm": "sync", "norm": "sync"},
    ],
    ids=str,
)
def test_how_a_model_is_run_does_not_change_what_it_costs(changes: dict[str, Any]) -> None:
    batch = even_batch()
    found = costs_of(build("finetune", **changes), "finetune", batch)
    assert found == costs_of(build("finetune"), "finetune", batch)


def test_frozen_encoders_cost_their_forward_pass_alone_and_a_frozen_llm_no_weight_gradient() -> (
    None
):
    found = costs_of(build("alignment"), "alignment", even_batch())
    assert found["visual"].backward == found["skeletal"].backward == 0
    llm = found["language_model"]
    assert 1.0 <= llm.backward / llm.forward < 1.3  # attention's two inputs both need one


def test_padding_and_clips_of_weight_zero_cost_nothing() -> None:
    costs = StepFlops(build("contrastive"), "unimodal", False)
    long, short = draw_clips([9, 3])
    alone, other = costs(join([long])), costs(join([short]))
    both = costs(join([long, short]))
    assert both == {
        name: Flops(cost.forward + other[name].forward, cost.backward + other[name].backward)
        for name, cost in alone.items()
    }
    assert costs(join([long, replace(short, counted=False)])) == alone


def test_features_that_were_computed_before_cost_no_encoder() -> None:
    model, batch = build("alignment"), even_batch()
    streams = model.encode(batch)
    cached = batch.with_features(streams.visual.detach(), streams.skeletal.detach())
    found, whole = costs_of(model, "alignment", cached), costs_of(model, "alignment", batch)
    assert found == {name: whole[name] for name in ("fusion", "language_model")}


def test_lengths_between_those_that_were_counted_cost_the_same_as_counted() -> None:
    """A few lengths are counted; the rest follow from them, and agree with counting to the one."""
    costs = StepFlops(build("finetune"), "unimodal", True)
    for part in (costs._skeletal, costs._fusion, costs._text):
        part.sum([40, 1, 2, 3, 4, 5, 7, 11])
        counted = set(part._counted)
        found = {n: part.sum([n]) for n in (6, 9, 17, 30, 39)}
        assert set(part._counted) == counted
        assert {n: part._count(n) for n in found} == found


class Windowed(nn.Module):
    """A fusion whose cost is no polynomial of the length: steps see their eight neighbours."""

    def forward(self, visual: Tensor, skeletal: Tensor, mask: Tensor) -> tuple[Tensor, None]:
        windows = [visual[:, i : i + 8] for i in range(0, visual.shape[1], 8)]
        return torch.cat([(w @ w.transpose(1, 2)) @ w for w in windows], dim=1) + skeletal, None


def test_a_cost_that_is_no_polynomial_is_counted_for_every_length() -> None:
    model = build("contrastive")
    model.fusion = Windowed()  # type: ignore[assignment]
    fusion = StepFlops(model, "unimodal", False)._fusion
    lengths = [40, 1, 2, 3, 4, 5, 7, 9, 11, 14, 20, 27, 38]
    assert {n: fusion.sum([n]) for n in lengths} == {n: fusion._count(n) for n in lengths}


class Peeking(nn.Module):
    """A fusion whose code looks into values."""

    def forward(self, visual: Tensor, skeletal: Tensor, mask: Tensor) -> tuple[Tensor, None]:
        return (visual if float(visual.sum()) > 0 else skeletal), None


def test_what_cannot_be_counted_is_said_by_name() -> None:
    model = build("contrastive")
    model.fusion = Peeking()  # type: ignore[assignment]
    run = load_run(str(ROOT / "configs/experiment/demo.yaml"), "contrastive")
    meter = meter_of(model, StageObjective("contrastive", LossConfig()), run, torch.device("cpu"))
    said: list[str] = []
    say_what_is_unknown(meter, torch.device("cpu"), said.append)
    assert any("fusion" in line and "item()" in line for line in said)
    assert meter.cost is not None
    assert list(meter.cost(even_batch())) == ["visual", "skeletal"]
