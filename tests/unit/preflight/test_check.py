"""What the check before a job finds, each by making it so."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import shlex
import shutil
import socket
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import yaml

from helpers.checked_job import DEMO, Job
from helpers.little_clips import write_corpus
from helpers.repository import ROOT
from signfuse_dist import nvidia
from signfuse_dist.cli import main
from signfuse_dist.data import stamp
from signfuse_dist.data.joints import Joints, NoJoints, PoseExtractor
from signfuse_dist.data.manifest import PackConfig
from signfuse_dist.data.pack import pack
from signfuse_dist.data.picture import VideoFrame
from signfuse_dist.preflight import inputs, machine, memory, network
from signfuse_dist.preflight.check import Target, check_job, describe


class Blind(PoseExtractor):
    """Finds somebody in every so many frames, or never."""

    name, version = "blind", "1"

    def __init__(self, every: int | None = None) -> None:
        self.every = every

    def extract(self, frames: Iterable[VideoFrame]) -> Joints:
        count = sum(1 for _ in frames)
        mask = np.zeros((count, 75), bool)
        if self.every:
            mask[:: self.every] = True
        return Joints(np.zeros((count, 75, 2), np.float32), mask)


def test_a_job_in_order_has_no_error_and_no_warning(job: Job) -> None:
    lines = job.check(0)
    assert lines[-1].startswith("0 errors, 0 warnings, ")
    said = "\n".join(lines)
    assert "4 clips in 2 shards, 0 rows dropped, whole pictures" in said
    assert "0 M weights, d_LLM 64" in said
    assert "ds_configs/zero2.json, ZeRO stage 2" in said
    assert "no GPU here to compare with" in said


def test_all_that_is_wrong_is_said_at_once(job: Job) -> None:
    shutil.rmtree(job.split("train"))
    shutil.rmtree(job.llm)
    job.words = ["model.visual_weights=nothing.pth"]
    lines = job.check(1)
    assert sum(line.startswith("error") for line in lines) == 3
    assert lines[-1].startswith("3 errors")


@pytest.mark.parametrize(("driver", "said"), [("535.183.01", "needs driver"), ("999.1", "init")])
def test_a_gpu_that_torch_cannot_use_is_an_error(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, driver: str, said: str
) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(nvidia, "torch_sees_gpu", lambda: False)
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "4")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        f"#!/bin/sh\ncase $1 in --query-gpu=driver*) echo {driver};;"
        " *) echo 81920; echo 81920;; esac\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    job.finds("error", "device: Slurm grants 4 GPUs", "torch cannot use a GPU", driver, said)


@pytest.mark.parametrize("name", ["dev", "test"])
def test_a_split_that_is_scored_later_may_be_packed_later(job: Job, name: str) -> None:
    shutil.rmtree(job.split(name))
    job.finds("warning", str(job.split(name)), "manifest.json", f"--split {name}")


def test_a_shard_that_vanished_is_an_error(job: Job) -> None:
    (job.split("train") / "shard-000001.tar").unlink()
    job.finds("error", "shard-000001.tar: the shard is missing", "signfuse pack")


def test_an_index_that_is_damaged_is_an_error(job: Job) -> None:
    (job.split("train") / "shard-000001.index.json").write_text("{")
    job.finds("error", "shard-000001.index.json", "cannot be read")


def test_shards_that_were_not_verified_are_a_warning(job: Job) -> None:
    (job.split("train") / "verified.json").unlink()
    job.finds("warning", "not verified", f"signfuse verify {job.split('train')}")


def test_shards_that_were_packed_again_are_not_verified(job: Job) -> None:
    manifest = job.split("dev") / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"root": "', '"root": "/elsewhere'))
    job.finds("warning", "development split", "not verified since it was packed")


def repack(job: Job, split: str, *changes: tuple[str, str], **options: object) -> None:
    """Pack a split of the job again, from rows that are changed."""
    table = write_corpus(job.folder / f"new_{split}", clips=4)
    written = table.read_text().replace("clip.", f"{split}.").replace("sentence", split)
    for before, after in changes:
        assert before in written
        written = written.replace(before, after)
    table.write_text(written)
    shutil.rmtree(job.split(split))
    config = PackConfig(frame_size=48, fps=10, clips_per_shard=2)
    pack("table", table, split, job.split(split), config, workers=0, **options)
    assert main(["verify", str(job.split(split)), "--workers", "0"]) == 0


def test_a_clip_that_is_trained_and_tested_on_is_an_error(job: Job) -> None:
    repack(job, "test", ("test.1\t", "train.1\t"), ("test 1\t", "train 1\t"))
    job.finds("error", "training and test split: 1 clips", "same id and text", "'train.1'")


def test_a_clip_in_both_splits_that_are_scored_is_a_warning(job: Job) -> None:
    repack(job, "test", ("test.1\t", "dev.1\t"), ("test 1\t", "dev 1\t"))
    job.finds("warning", "development and test split: 1 clips", "same id and text")


def test_an_id_of_two_splits_with_other_texts_is_a_warning(job: Job) -> None:
    repack(job, "test", ("test.1\t", "train.1\t"))
    job.finds("warning", "training and test split: 1 ids", "with other texts", "'train.1'")


def test_texts_of_two_splits_are_a_warning_with_their_share(job: Job) -> None:
    repack(job, "test", ("test 1\t", "train 1\t"), ("test 2\t", "train 1\t"))
    job.finds("warning", "2 of 4 texts of test (50.0%) are also in training, such as 'train 1'")


@pytest.mark.parametrize(
    "words",
    [["train.select=best"], ["train.patience=2"], ["train.select=best", "train.patience=2"]],
)
def test_a_step_that_few_sentences_choose_is_a_warning(
    job: Job, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    job.words = words
    job.finds("warning", "development split: 4 sentences", " and ".join(words), "select=last")
    monkeypatch.setattr(inputs, "_FEW_SENTENCES", 4)
    assert not any("tell no step" in line for line in job.check(0))


def test_sentences_of_a_split_that_is_not_there_are_not_called_few(job: Job) -> None:
    job.words = ["train.select=best"]
    shutil.rmtree(job.split("dev"))
    job.finds("warning", str(job.split("dev")), "manifest.json")


def test_one_split_for_development_and_test_is_compared_with_training_alone(job: Job) -> None:
    job.words = ["data.test_split=dev"]
    lines = job.check(0)
    assert lines[-1].startswith("0 errors, 0 warnings, ")


def test_a_split_without_joints_is_an_error_where_the_model_has_a_skeletal_stream(
    job: Job,
) -> None:
    repack(job, "dev", extractor=NoJoints())
    job.finds("error", "development split", "holds no joints", "signfuse pose")
    stages = "train.stages=[alignment,finetune]"
    job.words = ["model.streams=visual", stages, "loss.contrastive_weight=0"]
    assert not any("holds no joints" in line for line in job.check(0))


def test_a_split_whose_joints_are_all_masked_is_an_error(job: Job) -> None:
    repack(job, "train", extractor=Blind())
    job.finds("error", "training split", "no joint in any frame")


def test_a_split_with_joints_in_few_frames_is_a_warning(job: Job) -> None:
    for split in ("train", "dev", "test"):
        repack(job, split, extractor=Blind(every=4))
    found = [line for line in job.check(0) if "has joints in" in line]
    assert found[0].startswith("warning  training split ")
    assert "has joints in 29.6% of its frames" in found[0]
    assert [line.split()[1] for line in found] == ["training", "development", "test"]


def test_what_is_scored_with_joints_of_another_extractor_is_a_warning(job: Job) -> None:
    again = Blind(every=1)
    again.version = "1+visibility0.5"
    repack(job, "test", extractor=again)
    said = job.finds("warning", "test split: joints by blind 1+visibility0.5")
    assert "those of training by synthetic 1. Pack it again in the same way" in said
    stages = "train.stages=[alignment,finetune]"
    job.words = ["model.streams=visual", stages, "loss.contrastive_weight=0"]
    assert not any("joints by" in line for line in job.check(0))


def test_verify_takes_its_word_back_when_it_finds_a_fault(job: Job) -> None:
    shard = job.split("train") / "shard-000000.tar"
    content = bytearray(shard.read_bytes())
    content[600] ^= 1
    shard.write_bytes(content)
    assert main(["verify", str(job.split("train")), "--workers", "0"]) == 1
    job.finds("warning", "not verified")


def test_verify_says_where_it_cannot_leave_its_word(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, text: str) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(stamp, "write_text", refuse)
    assert main(["verify", str(job.split("train")), "--workers", "0"]) == 0
    assert "`signfuse check` will not know of this" in job.capsys.readouterr().out


def test_another_packing_than_the_run_asks_is_an_error(job: Job) -> None:
    for name in ("dev", "test"):
        shutil.rmtree(job.split(name))
    job.words = ["data.fps=25", "data.crop=signer"]
    lines = job.check(1)
    for difference in (
        "packed at fps 10.0, the run asks 25.0",
        "packed at crop none, the run asks signer",
    ):
        assert any(difference in line for line in lines)


def test_how_pictures_were_cut_is_said_beside_the_clips(job: Job) -> None:
    for name in ("train", "dev", "test"):
        file = job.split(name) / "manifest.json"
        manifest = json.loads(file.read_text(encoding="utf-8"))
        manifest["settings"]["crop"] = "box"
        file.write_text(json.dumps(manifest), encoding="utf-8")
    job.words = ["data.crop=box"]
    assert sum("rows dropped, pictures cut by box" in line for line in job.check(0)) == 3


def test_a_pose_set_that_is_not_there_is_an_error(job: Job) -> None:
    job.words = ["data.poses=new"]
    lines = [line for line in job.check(1) if line.startswith("error")]
    assert len(lines) == 1
    assert "pose set new" in lines[0]
    assert "signfuse pose" in lines[0]


def test_a_text_that_the_tokenizer_cannot_write_is_a_warning(job: Job) -> None:
    file = job.llm / "tokenizer.json"
    raw = json.loads(file.read_text(encoding="utf-8"))
    raw["normalizer"] = {"type": "Replace", "pattern": {"String": "t"}, "content": "d"}
    file.write_text(json.dumps(raw), encoding="utf-8")
    job.finds("warning", "cannot write 't'", "which 4 of 4 test texts hold", "Take another LLM")


def test_a_protocol_that_is_none_is_an_error_before_the_training(job: Job) -> None:
    job.words = ["data.metric_preset=sltbaseline"]
    job.finds("error", "no metric preset 'sltbaseline'; did you mean 'sltbaselines'")


@pytest.mark.parametrize("file", ["tokenizer.json", "model.safetensors"])
def test_an_llm_without_one_of_its_files_is_an_error(job: Job, file: str) -> None:
    (job.llm / file).unlink()
    kind = "a tokenizer" if file == "tokenizer.json" else "weights"
    job.finds("error", f"lacks {kind}")


def test_a_download_that_was_stopped_is_an_error(job: Job) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (job.llm / "model.safetensors.index.json").write_text(json.dumps(index))
    job.finds("error", "lacks model-00002-of-00002.safetensors")


def test_an_llm_that_is_not_in_the_cache_is_named_with_its_download(job: Job) -> None:
    job.words = ["model.llm=nobody/has-this", "model.llm_revision=abc"]
    lines = [line for line in job.check(1) if line.startswith("error")]
    assert len(lines) == 1
    assert "LLM nobody/has-this at abc: neither a folder nor in the cache" in lines[0]
    assert "hf download nobody/has-this --revision abc" in lines[0]


@pytest.mark.parametrize(
    ("words", "address"),
    [
        (
            ["model.llm=nobody/has-this"],
            "https://huggingface.co/nobody/has-this/resolve/main/config.json",
        ),
        (
            ["model.visual_weights=imagenet", "model.visual_backbone=resnet18"],
            "https://download.pytorch.org/models/resnet18-f37072fd.pth",
        ),
    ],
)
def test_what_the_job_would_download_is_a_warning_with_a_network_and_an_error_without(
    job: Job, monkeypatch: pytest.MonkeyPatch, words: list[str], address: str
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(job.folder / "torch"))
    job.words = words
    job.finds("error", f"{address} cannot be reached")
    asked: list[str] = []
    monkeypatch.setattr(network, "why_unreachable", asked.append)
    lines = [line for line in job.check(0) if line.startswith("warning")]
    assert any("the job downloads it when it starts" in line for line in lines)
    assert asked == [address]
    target = Target(2, job.launch(), started_by="sbatch")
    found = describe(DEMO, job.overrides, 2)
    errors = [f for f in check_job(found.runs, found.plans, target) if f.level == "error"]
    assert len(errors) == 1, "a login node's network says nothing of the others"
    assert asked == [address]


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_a_hub_that_must_not_be_asked_is_an_error(
    job: Job, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "1")
    monkeypatch.setattr(network, "why_unreachable", lambda _: pytest.fail("the hub was asked"))
    job.words = ["model.llm=nobody/has-this"]
    job.finds("error", "nobody/has-this", f"and {name}=1")


def test_a_tracker_that_is_not_installed_is_an_error(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    job.words = ["train.trackers=[tensorboard, wandb]"]
    present = importlib.util.find_spec("json")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "wandb" else present
    )
    job.finds("error", "train.trackers=", "wandb is not installed: pip install wandb. Or take")


def test_wandb_without_a_key_is_a_warning(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    job.words = ["train.trackers=[wandb]"]
    present = importlib.util.find_spec("json")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: present)
    monkeypatch.setenv("NETRC", str(job.folder / "netrc"))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    job.finds("warning", "nobody is logged in to Weights & Biases")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert not [line for line in job.check(0) if line.startswith("warning")]


def test_a_launch_file_that_would_start_one_process_is_an_error(job: Job) -> None:
    job.options = ["--launch", str(job.launch(distributed_type="NO"))]
    job.finds(
        "error", "distributed_type is NO: Accelerate would start one process of 2", "MULTI_GPU"
    )


def test_a_command_that_is_advised_can_be_typed(job: Job) -> None:
    shards = job.folder / "my shards"
    (job.folder / "shards").rename(shards)
    (shards / "train" / "verified.json").unlink()
    job.words = [f"data.shards={shards}"]
    advice = job.finds("warning", "not verified").partition("since it was packed. ")[2]
    assert shlex.split(advice)[:3] == ["signfuse", "verify", str(shards / "train")]


def test_the_plan_says_which_stages_compare_clips_and_how_many(job: Job) -> None:
    few = "  4 pairs in each contrastive loss (B of Eq. 21): all that the split has, not 8"
    none = "  no contrastive loss in this run"
    lines = job.check(0)
    assert (lines.count(few), lines.count(none)) == (2, 1)
    job.words = ["loss.contrastive_weight=0"]
    lines = job.check(0)
    assert (lines.count(few), lines.count(none)) == (1, 2)


def test_an_llm_in_the_cache_is_found_by_its_revision(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = job.folder / "hub"
    snapshot = hub / "models--some--llm" / "snapshots" / ("a" * 40)
    snapshot.parent.mkdir(parents=True)
    shutil.copytree(job.llm, snapshot)
    (hub / "models--some--llm" / "refs").mkdir()
    (hub / "models--some--llm" / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(hub))
    job.words = ["model.llm=some/llm"]
    assert any(str(snapshot) in line for line in job.check(0) if line.startswith("ok"))
    job.words.append("model.llm_revision=other")
    assert any("LLM some/llm at other: neither" in line for line in job.check(1))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model.visual_weights=imagenet"], "there are none of ImageNet"),
        (["model.visual_weights=imagenet", "model.visual_backbone=resnet18"], "curl"),
        (["model.visual_weights=none.pth"], "no such file"),
    ],
)
def test_weights_to_start_from_that_are_not_there_are_an_error(
    job: Job, words: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(job.folder / "torch"))
    job.words = words
    job.finds("error", said)


def test_weights_in_torchs_cache_are_found(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(job.folder / "torch"))
    path = job.folder / "torch" / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    path.parent.mkdir(parents=True)
    path.touch()
    job.words = ["model.visual_weights=imagenet", "model.visual_backbone=resnet18"]
    assert any(str(path) in line for line in job.check(0))


Settings = dict[str, object]


@pytest.mark.parametrize(
    ("settings", "level", "said"),
    [
        ({"use_cpu": True}, "error", "without DeepSpeed, or with one process"),
        ({"num_processes": 4}, "warning", "accelerate launch --num_processes 2"),
        ({"mixed_precision": "fp16"}, "error", "train.precision decides"),
        ({"num_machines": 2}, "error", "pdsh does not run under Slurm"),
        ({"deepspeed_config": {}}, "error", "names no DeepSpeed template"),
        (
            {"deepspeed_config": {"deepspeed_config_file": "no.json"}},
            "error",
            "DeepSpeed template no.json",
        ),
    ],
)
def test_a_launch_file_that_would_train_something_else_is_named(
    job: Job, settings: Settings, level: str, said: str
) -> None:
    port = yaml.safe_load(Path(job.options[1]).read_text("utf-8"))["main_process_port"]
    job.launch(main_process_port=port, **settings)
    job.finds(level, said)


def test_a_template_without_the_gradients_norm_is_an_error(job: Job) -> None:
    template = json.loads((ROOT / "ds_configs" / "zero2.json").read_text("utf-8"))
    template["zero_optimization"]["compute_grad_norm"] = False
    path = job.folder / "zero2.json"
    path.write_text(json.dumps(template))
    port = yaml.safe_load(Path(job.options[1]).read_text("utf-8"))["main_process_port"]
    job.launch(main_process_port=port, deepspeed_config={"deepspeed_config_file": str(path)})
    job.finds("error", "compute_grad_norm is false")


def test_a_launch_file_that_is_none_is_the_users_mistake(job: Job) -> None:
    assert main(["check", DEMO, "--world-size", "2", "--launch", "none.yaml"]) == 2
    assert "--launch none.yaml: cannot be read" in job.capsys.readouterr().err


def test_a_port_that_is_taken_is_an_error(job: Job) -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        job.launch(main_process_port=port)
        job.finds("error", f"port {port}: cannot be taken", f"--main_process_port {port + 1}")


def test_port_0_is_any_that_is_free_on_one_node_and_none_on_several(job: Job) -> None:
    job.launch(main_process_port=0)
    assert "ok       port 0: any that is free" in job.check(0)
    job.launch(main_process_port=0, num_machines=2, machine_rank=0, main_process_ip="127.0.0.1")
    said = "error    port 0: is any that is free, which other nodes cannot know"
    assert any(line.startswith(said) for line in job.check(1))


def test_memory_of_a_gpu_is_judged_where_it_is_named(job: Job) -> None:
    job.words = ["stage=contrastive"]
    job.options += ["--gpu-memory", "1"]
    job.finds("error", "memory of a GPU in stage contrastive", "of 1 GB", "micro_batch_size")
    job.options[-1] = "80"
    job.check(0)


@pytest.mark.parametrize(
    ("longest", "frames"),
    # Four clips of 6, 7, 8 and 6 frames in a step, two to a process, with 5 % for what is uneven.
    [(64, 15), (7, 14), (6, 13)],
)
def test_the_fullest_micro_batch_is_that_of_the_plan(job: Job, longest: int, frames: int) -> None:
    job.words = [
        "stage=contrastive",
        "train.micro_batch_size=2",
        "train.global_batch_size=4",
        f"data.max_frames={longest}",
    ]
    (line,) = [line for line in job.check(0) if "memory of a GPU" in line]
    assert f"; {frames} frames at most)" in line


def test_what_batch_norms_cost_another_number_of_processes_is_said_before_the_run_begins(
    job: Job,
) -> None:
    job.words = ["stage=contrastive", "train.micro_batch_size=2", "train.global_batch_size=4"]
    words = [line for line in job.check(0) if "number of processes of contrastive" in line]
    assert len(words) == 1
    for part in (
        "model.norm=sync takes statistics over them, 4 at a time",
        "goes on with as many alone: 1 x 4, 2 x 2, 4 x 1 (processes x train.micro_batch_size)",
        "model.norm=layer",
    ):
        assert part in words[0]
    job.words.append("model.norm=layer")
    assert not any("number of processes of" in line for line in job.check(0))
    job.words.append("train.gradient_caching=false")
    (line,) = [line for line in job.check(0) if "number of processes of" in line]
    assert "Eq. 21 compares them" in line
    assert "train.gradient_caching=true depends on no such number" in line


def test_without_a_plan_every_clip_is_as_long_as_it_may_be(job: Job) -> None:
    shutil.rmtree(job.split("train"))
    job.words = ["stage=contrastive", "data.max_frames=40"]
    (line,) = [line for line in job.check(1) if "memory of a GPU" in line]
    assert "; 160 frames at most)" in line


def test_a_disk_that_is_too_small_is_an_error(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(job.folder)
    monkeypatch.setattr(memory.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    job.finds("error", "0.0 GB free", "Make room")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model.attention=flash_attention_2", "train.precision=bf16"], "pip install flash-attn"),
        (["model.attention=varlen"], "needs train.precision=bf16"),
        (["model.attention=varlen", "train.precision=bf16", "model.num_heads=16"], "not 4"),
        (["model.llm_quantization=4bit"], "pip install bitsandbytes"),
    ],
)
def test_what_a_choice_needs_of_the_machine_is_named(
    job: Job, words: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: None)
    job.words = words
    job.finds("error", said)


def test_what_auto_is_with_positions_by_distance_is_said(job: Job) -> None:
    job.words = ["model.positions=distance"]
    (line,) = [line for line in job.check(0) if "model.attention" in line]
    assert "sdpa in CMFA and HTA, as model.positions=distance needs" in line


def test_versions_out_of_their_ranges_are_an_error(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["torch<2", "numpy>=1", "not-a-package>=1", 'pytest>=99; extra == "dev"']
    monkeypatch.setattr(machine.importlib.metadata, "requires", lambda name: asked)
    found = job.finds("error", "torch is ", "not <2", "not-a-package is not installed")
    assert "numpy" not in found
    assert "pytest" not in found


def test_a_batch_that_does_not_divide_is_the_users_mistake_and_hides_nothing(job: Job) -> None:
    (job.llm / "tokenizer.json").unlink()
    job.words = ["train.micro_batch_size=3"]
    lines = job.check(2)
    assert any("lacks a tokenizer" in line for line in lines)


@pytest.mark.parametrize(
    ("gpus", "settings", "level"),
    [
        (4, {}, "ok"),
        (8, {}, "warning"),
        (2, {}, "error"),
        (0, {}, None),
        (8, {"num_machines": 2}, None),
    ],
)
def test_processes_are_compared_with_the_gpus_of_a_run_on_this_machine_alone(
    monkeypatch: pytest.MonkeyPatch, gpus: int, settings: dict[str, int], level: str | None
) -> None:
    monkeypatch.setattr(nvidia, "count_gpus", lambda _: gpus)
    found = machine.check_gpus(settings, 4)
    assert [finding.level for finding in found] == ([] if level is None else [level])
