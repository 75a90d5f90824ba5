"""Choices that contradict each other are refused, by the keys to change."""

from __future__ import annotations

import re

import pytest

from helpers.repository import ROOT
from signfuse_dist.config import STAGES
from signfuse_dist.errors import UserError
from signfuse_dist.experiment import load_run, load_stages

DEMO = str(ROOT / "configs/experiment/demo.yaml")
PHOENIX = str(ROOT / "configs/experiment/phoenix14t.yaml")
ONE_STREAM = ("model.streams=visual", "loss.contrastive_weight=0",
              "train.stages=[alignment,finetune]")  # fmt: skip


def refused(*words: str, stage: str = "finetune") -> str:
    with pytest.raises(UserError) as error:
        load_run(DEMO, stage, words)
    return str(error.value)


def stages_of(*words: str) -> list[str]:
    return [run.stage.name for run in load_stages(DEMO, words)]


def test_the_stages_that_are_used_are_read_in_order() -> None:
    assert stages_of() == list(STAGES)
    assert stages_of("train.stages=[finetune]") == ["finetune"]
    assert stages_of("train.stages=[contrastive,finetune]") == ["contrastive", "finetune"]
    assert stages_of("train.stages=[alignment, finetune]", "stage=alignment") == ["alignment"]


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ("[]", "at least one"),
        ("[finetune,alignment]", "in the order"),
        ("[finetune,finetune]", "each at most once"),
        ("[fine]", "'fine' is not one of contrastive"),
    ],
)
def test_stages_that_cannot_follow_each_other_are_refused(stages: str, said: str) -> None:
    message = refused(f"train.stages={stages}")
    assert "train.stages" in message
    assert said in message
    with pytest.raises(UserError, match=r"train\.stages"):
        load_stages(DEMO, [f"train.stages={stages}"])


def test_a_stage_that_is_not_used_cannot_be_trained() -> None:
    message = refused("train.stages=[finetune]", stage="alignment")
    assert "stage alignment is not among train.stages ['finetune']" in message
    with pytest.raises(UserError, match="stage contrastive is not among"):
        load_stages(DEMO, ["train.stages=[finetune]", "stage=contrastive"])


def test_one_stream_is_refused_a_contrastive_loss_and_stage_by_their_keys() -> None:
    message = refused("model.streams=visual")
    assert "write train.stages=[alignment,finetune]" in message
    assert "write loss.contrastive_weight=0" in message
    assert load_run(DEMO, "finetune", ONE_STREAM).model.streams == "visual"
    for left in ONE_STREAM[1:]:
        assert "without pairs" in refused(*(word for word in ONE_STREAM if word != left))


@pytest.mark.parametrize(
    "word",
    [
        "model.fusion=concat",
        "model.fusion=sum",
        "model.fusion=visual_from_skeletal",
        "model.fusion_layers=0",
    ],
)
def test_attended_features_need_attention_in_both_directions(word: str) -> None:
    key = word.partition("=")[0]
    message = refused("loss.contrastive_features=attended", word)
    assert "loss.contrastive_features=attended" in message
    assert key in message
    load_run(DEMO, "finetune", ["loss.contrastive_features=attended"])
    load_run(DEMO, "finetune", [word])


@pytest.mark.parametrize("scales", ["[sequence,frame]", "[frame,frame]", "[minute]", "frame"])
def test_scales_are_a_subset_in_order(scales: str) -> None:
    assert "model.scales" in refused(f"model.scales={scales}")


def test_there_are_as_many_kernels_as_named_scales() -> None:
    words = ("model.scale_kernels=[1,5]", "model.scale_strides=[1,2]", "model.scales=[frame]")
    assert "model.scale_kernels has 2 entries for the 3 scales" in refused(*words)


@pytest.mark.parametrize("norm", ["sync", "local"])
@pytest.mark.parametrize("word", ["model.visual_chunk=4", "model.visual_checkpoint=true"])
def test_frames_are_not_computed_twice_with_statistics_of_the_batch(norm: str, word: str) -> None:
    message = refused(word, f"model.visual_norm={norm}")
    assert word.replace("true", "True") in message
    assert "model.visual_norm=frozen or group" in message
    for exact in ("frozen", "group"):
        load_run(DEMO, "finetune", [word, f"model.visual_norm={exact}"])


def test_channels_last_is_refused_where_torch_is_unsound() -> None:
    message = refused("model.visual_channels_last=true", "model.visual_width=4")
    assert "model.visual_width of 8 or more, not 4" in message
    load_run(DEMO, "finetune", ["model.visual_channels_last=true", "model.visual_width=8"])


@pytest.mark.parametrize("backend", ["flash_attention_2", "varlen"])
def test_positions_by_distance_are_refused_with_a_kernel_that_takes_no_bias(backend: str) -> None:
    message = refused("model.positions=distance", f"model.attention={backend}")
    assert f"model.attention={backend}" in message
    assert "write model.attention=auto" in message
    load_run(DEMO, "finetune", [f"model.attention={backend}", "model.positions=rotary"])
    for other in ("auto", "sdpa", "eager"):
        load_run(DEMO, "finetune", [f"model.attention={other}", "model.positions=distance"])


def test_rotary_positions_need_an_even_number_of_channels_in_a_head() -> None:
    odd = ("model.dim=33", "model.num_heads=11", "model.skeletal_channels=[8,8,8,33]")
    assert "a head has 3" in refused("model.positions=rotary", *odd)
    assert "model.dim is 33" in refused("model.positions=sinusoidal", *odd)
    load_run(DEMO, "finetune", ["model.positions=distance", *odd])


def test_all_contradictions_are_reported_together() -> None:
    message = refused(
        "model.streams=visual",
        "model.scales=[sequence,frame]",
        "model.visual_chunk=2",
        "model.visual_norm=sync",
    )
    assert "(4)" in message


def test_cached_features_are_refused_where_they_would_change() -> None:
    assert load_run(DEMO, "alignment", ["train.features=cached"]).train.features == "cached"
    assert "in stage finetune they train" in refused("train.features=cached")
    said = refused("train.features=cached", "augment.crop=0.1", stage="alignment")
    assert "set augment.* to 0" in said


def test_a_tracker_that_accelerate_does_not_know_is_refused() -> None:
    assert load_run(DEMO, "alignment", ["train.trackers=[wandb]"]).train.trackers == ("wandb",)
    assert "'tensorbord' is not one of" in refused("train.trackers=[tensorbord]")


def test_fewer_epochs_than_the_shipped_warmup_are_refused_with_both_keys_to_give() -> None:
    with pytest.raises(UserError) as raised:
        load_run(PHOENIX, "contrastive", ["stage.epochs=3"])
    said = "stage.warmup_epochs 3 is not below stage.epochs 3: give both, such as "
    assert f"{said}stage.epochs=3 stage.warmup_epochs=1" in str(raised.value)
    both = ["stage.epochs=3", "stage.warmup_epochs=1"]
    assert load_run(PHOENIX, "contrastive", both).stage.epochs == 3


def test_augmentation_of_pictures_is_refused_with_feature_sets_and_no_other() -> None:
    sets = ("model.visual_backbone=features:a+b",)
    message = refused(*sets, "augment.crop=0.1", "augment.colour=0.2", "model.visual_compile=true")
    assert "write augment.crop=0 augment.colour=0" in message
    assert "model.visual_compile=true" in message
    words = ("augment.speed=0.2", "augment.drop_stream=0.1", "augment.joint_noise=0.01")
    run = load_run(DEMO, "finetune", [*sets, *words])
    assert run.model.feature_sets == ("a", "b")
    assert not run.model.sees_pictures
    alone = [*ONE_STREAM, "model.streams=skeletal", *sets, "augment.crop=0.1"]
    assert load_run(DEMO, "finetune", alone).model.feature_sets == ()  # are not read


def test_what_is_of_resnets_is_refused_with_a_vision_model() -> None:
    message = refused("model.visual_backbone=hf:a/b", "model.visual_checkpoint=true")
    assert "model.visual_checkpoint=true is of ResNets" in message
    assert "write model.visual_norm=frozen" in message
    words = ["model.visual_backbone=hf:a/b", "model.visual_norm=frozen"]
    model = load_run(DEMO, "finetune", words).model
    assert (model.vision_model, model.trains_backbone) == ("a/b", False)
    assert load_run(DEMO, "finetune").model.trains_backbone


def test_no_layer_for_lora_is_refused_where_lora_trains() -> None:
    assert "model.lora_targets=[] leaves LoRA no layer" in refused("model.lora_targets=[]")
    assert "`all` stands alone" in refused("model.lora_targets=[all]")
    run = load_run(DEMO, "finetune", ["model.lora_targets=[]", "model.llm_training=frozen"])
    assert run.model.lora_targets == ()


@pytest.mark.parametrize("name", ["resnet34", "features:../a", "features:a++b"])
def test_an_encoder_of_frames_that_cannot_be_meant_is_refused(name: str) -> None:
    message = refused(f"model.visual_backbone={name}")
    assert "is not one of resnet10, resnet18, resnet50, hf:NAME" in message


@pytest.mark.parametrize(
    ("joints", "said"),
    [
        ("[nose,left_hnad]", "model.joints: 'left_hnad' is neither .* did you mean 'left_hand'"),
        ("[]", r"model\.joints=\[\] leaves no joint"),
    ],
)
def test_joints_that_are_unknown_or_none_are_refused(joints: str, said: str) -> None:
    assert re.search(said, refused(f"model.joints={joints}"))
