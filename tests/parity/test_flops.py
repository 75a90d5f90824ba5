"""The analytic operations of a step against torch's counter, by component, stage and LLM."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from helpers.model_factory import draw_clips, join, small_config, tiny_gpt2, tiny_llama, tiny_t5
from signfuse_dist.batch import SignBatch
from signfuse_dist.config import LossConfig, StageName
from signfuse_dist.model.attention import set_backend
from signfuse_dist.model.flops import COMPONENTS, StepFlops
from signfuse_dist.model.llm import LanguageModel
from signfuse_dist.model.signfuse import SignFuse
from signfuse_dist.objective import StageObjective, prepare, set_mode
from signfuse_dist.stages import TRAINABLE, needs_language_model

LLMS = {"llama": tiny_llama, "gpt2": tiny_gpt2, "t5": tiny_t5}
EXACT = 1e-9


def build(stage: StageName, llm: str = "llama", **changes: Any) -> SignFuse:
    """A model in which attention is products of matrices, which the counter sees on a CPU."""
    torch.manual_seed(0)
    language = None
    if needs_language_model(stage):
        model = LLMS[llm]()
        model.set_attn_implementation("eager")
        language = LanguageModel(model, [0, 2, 3, 4])
    built = SignFuse(small_config(attention="eager", lora_targets=None, **changes), language)
    prepare(built, stage, LossConfig())
    set_mode(built, stage)
    set_backend(built, "eager")
    return built


def even_batch(frames: int = 9, tokens: int = 5) -> SignBatch:
    """Clips of one length: with padding the counter would count what is not real as well."""
    clips = draw_clips([frames] * 3)
    made = [
        type(c)(c.name, c.frames, c.pose, c.joint_mask, torch.arange(2, 2 + tokens)) for c in clips
    ]
    return join(made)


def counted(model: SignFuse, stage: StageName, batch: SignBatch, backward: bool) -> dict[str, int]:
    """Operations that the counter sees in a step, without its losses, by component of SignFuse."""
    objective = StageObjective(stage, LossConfig())
    with FlopCounterMode(display=False, depth=None) as counter:
        sums = objective(model, batch)
        if backward:
            torch.stack(list(sums.values())).sum().backward()
    found = {
        name: sum(per_op.values())
        for name, per_op in counter.get_flop_counts().items()
        if name.count(".") == 1
    }
    return {name.partition(".")[2]: count for name, count in found.items()} | {
        "total": counter.get_total_flops()
    }


def analytic(model: SignFuse, stage: StageName, batch: SignBatch) -> dict[str, Any]:
    features = "unimodal" if stage != "alignment" else None
    return StepFlops(model, features, needs_language_model(stage))(batch)


@pytest.mark.parametrize("stage", list(TRAINABLE))
@pytest.mark.parametrize("backward", [False, True])
def test_the_operations_of_a_step_are_those_that_torch_counts(
    stage: StageName, backward: bool
) -> None:
    model, batch = build(stage), even_batch()
    found = analytic(model, stage, batch)
    ours = sum(f.total if backward else f.forward for f in found.values())
    assert ours == pytest.approx(counted(model, stage, batch, backward)["total"], rel=0.02)


def test_each_component_has_the_operations_that_torch_counts_in_it() -> None:
    model, batch = build("finetune"), even_batch()
    theirs = counted(model, "finetune", batch, backward=False)
    ours = analytic(model, "finetune", batch)
    assert tuple(ours) == COMPONENTS
    fusion = sum(theirs[name] for name in ("fusion", "temporal", "adapter"))
    assert ours["visual"].forward == pytest.approx(theirs["visual"], rel=EXACT)
    assert ours["skeletal"].forward == pytest.approx(theirs["skeletal"], rel=EXACT)
    assert ours["fusion"].forward == pytest.approx(fusion, rel=EXACT)


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_every_backbone_is_followed_through_its_sizes(backbone: str) -> None:
    model, batch = build("contrastive", visual_backbone=backbone), even_batch()
    theirs = counted(model, "contrastive", batch, backward=False)
    ours = analytic(model, "contrastive", batch)
    assert ours["visual"].forward == pytest.approx(theirs["visual"], rel=EXACT)


@pytest.mark.parametrize("llm", list(LLMS))
@pytest.mark.parametrize("backward", [False, True])
def test_causal_and_encoder_decoder_llms_are_counted_with_lora(llm: str, backward: bool) -> None:
    model, batch = build("finetune", llm), even_batch()
    assert model.language_model is not None
    assert batch.tokens is not None
    sign = torch.randn(3, 3, 12, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        nll = model.language_model.negative_log_likelihood(sign, batch.tokens, batch.text_lengths)
        if backward:
            nll.sum().backward()
    ours = analytic(model, "finetune", batch)["language_model"]
    found = ours.total if backward else ours.forward
    # The first layer of T5's decoder sees frozen embeddings alone and passes no gradient on: 2% of
    # two layers, 0.2% of Flan-T5 XL's twenty-four.
    assert found == pytest.approx(counter.get_total_flops(), rel=0.025)


def test_frozen_encoders_cost_their_forward_pass_alone_and_a_frozen_llm_no_weight_gradient() -> (
    None
):
    found = analytic(build("alignment"), "alignment", even_batch())
    assert found["visual"].backward == found["skeletal"].backward == 0
    llm = found["language_model"]
    assert 1.0 <= llm.backward / llm.forward < 1.3  # attention's two inputs both need one


def test_padding_and_clips_of_weight_zero_cost_nothing() -> None:
    model = build("contrastive")
    long, short = draw_clips([9, 3])
    alone = analytic(model, "contrastive", join([long]))
    both = analytic(model, "contrastive", join([long, short]))
    skipped = analytic(
        model, "contrastive", join([long, short.__class__(**{**vars(short), "counted": False})])
    )
    assert both["visual"].total == pytest.approx(alone["visual"].total * 12 / 9, rel=0.1)
    assert skipped == alone
