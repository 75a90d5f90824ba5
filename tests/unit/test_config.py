"""Configuration: what is combined, what overrides, and what is refused, all errors together."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from helpers.repository import ROOT
from signfuse_dist.config import STAGES, StageName
from signfuse_dist.data.manifest import MANIFEST_NAME, Manifest, PackConfig, Packing, ShardEntry
from signfuse_dist.data.manifest_files import manifest_bytes
from signfuse_dist.errors import UserError
from signfuse_dist.experiment import load_resolved, load_run, load_stages
from signfuse_dist.skeleton import JOINT_LAYOUT

DEMO = str(ROOT / "configs/experiment/demo.yaml")


def _experiment(folder: Path, text: str, **files: str) -> str:
    """Write an experiment beside the shipped files; ``files`` replace e.g. ``data_synthetic``."""
    for kind in ("data", "model", "stage"):
        (folder / kind).mkdir()
        for source in (ROOT / "configs" / kind).glob("*.yaml"):
            replaced = files.get(f"{kind}_{source.stem}", source.read_text())
            (folder / kind / source.name).write_text(replaced)
    path = folder / "experiment" / "mine.yaml"
    path.parent.mkdir()
    path.write_text(text)
    return str(path)


USUAL = """
use: {data: synthetic, model: tiny}
train: {micro_batch_size: 8, precision: fp32, gradient_clipping: 1.0}
"""


def _errors(*words: str, experiment: str = DEMO, stage: str | None = "alignment") -> str:
    with pytest.raises(UserError) as error:
        load_run(experiment, stage, words)
    return str(error.value)


def test_files_combine_and_the_command_line_has_the_last_word(tmp_path: Path) -> None:
    path = _experiment(tmp_path, USUAL + "loss: {temperature: 0.1}\n")
    run = load_run(path, "alignment", ["loss.temperature=0.2", "model.dim=96"])
    assert run.name == "mine"
    assert run.stage.name == "alignment"
    assert run.stage.learning_rate == 5e-5  # configs/stage
    assert run.data.frame_size == 48  # configs/data
    assert run.model.pooled_length == 16  # configs/model
    assert run.train.global_batch_size == 32  # the paper's default
    assert run.loss.temperature == 0.2
    assert load_run(path, "alignment").loss.temperature == 0.1
    assert run.folder == Path("runs/mine/alignment")


def test_an_experiments_stage_section_has_one_part_a_stage() -> None:
    assert [load_run(DEMO, stage).stage.epochs for stage in STAGES] == [2, 2, 14]
    assert load_run(DEMO, "finetune", ["stage.epochs=3"]).stage.epochs == 3


def test_a_word_for_one_stage_holds_in_that_stage_alone() -> None:
    words = ["stage.alignment.epochs=7", "stage.contrastive.learning_rate=3e-4"]
    runs = [load_run(DEMO, stage, words).stage for stage in STAGES]
    assert [(run.epochs, run.learning_rate) for run in runs] == [(2, 3e-4), (7, 5e-5), (14, 1.5e-3)]
    with pytest.raises(UserError, match="no key 'epoch'; did you mean 'epochs'"):
        load_run(DEMO, "finetune", ["stage.alignment.epoch=7"])


def test_the_stage_can_be_named_on_the_command_line() -> None:
    assert load_run(DEMO, None, ["stage=finetune"]).stage.name == "finetune"
    assert "stage: not chosen" in _errors(stage=None)


def test_another_model_can_be_chosen_by_name() -> None:
    run = load_run(DEMO, "alignment", ["model=smollm2_135m"])
    assert run.model.llm == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert run.model.dim == 512


def test_a_file_that_is_not_there_is_refused_with_a_suggestion() -> None:
    message = _errors("model=smollm2_135")
    assert "did you mean 'smollm2_135m'" in message


@pytest.mark.parametrize(
    ("word", "suggested"),
    [
        ("train.micro_batch_sise=4", "micro_batch_size"),
        ("los.temperature=1", "loss"),
        ("model.num_head=4", "num_heads"),
    ],
)
def test_an_unknown_key_is_refused_with_a_suggestion(word: str, suggested: str) -> None:
    message = _errors(word)
    assert word.split("=")[0].split(".")[-1] in message or word in message
    assert f"did you mean {suggested!r}" in message


def test_an_unknown_key_of_a_file_is_refused_with_a_suggestion(tmp_path: Path) -> None:
    path = _experiment(tmp_path, USUAL + "trian: {}\nloss: {temprature: 1}\n")
    message = _errors(experiment=path)
    assert "'trian'; did you mean 'train'" in message
    assert "'temprature'; did you mean 'temperature'" in message


def test_files_are_disjoint(tmp_path: Path) -> None:
    """A file of configs/data cannot set the model, nor a stage's file the batch."""
    data = (ROOT / "configs/data/synthetic.yaml").read_text()
    stage = (ROOT / "configs/stage/alignment.yaml").read_text()
    path = _experiment(
        tmp_path,
        USUAL,
        data_synthetic=data + "dim: 7\n",
        stage_alignment=stage + "micro_batch_size: 4\n",
    )
    message = _errors(experiment=path)
    assert "data: unknown key 'dim'" in message
    assert "stage: unknown key 'micro_batch_size'" in message


def test_all_errors_are_reported_together() -> None:
    message = _errors(
        "model.dim=zero",
        "train.precision=fp8",
        "nonsense",
        "loss.temprature=1",
        "train.seed=-1",
        "data.fps=[1]",
    )
    for part in (
        "model.dim: 'zero' is not an int",
        "train.precision: 'fp8' is not one of",
        "'nonsense': expected section.key=value",
        "'temprature'",
        "train.seed: -1 is not at least 0",
        "data.fps: [1] is not a number",
    ):
        assert part in message
    assert "(6)" in message


def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path: Path) -> None:
    assert yaml.safe_load("1e-4") == "1e-4"  # the trap
    path = _experiment(tmp_path, USUAL + "stage: {alignment: {learning_rate: 1e-4}}\n")
    assert load_run(path, "alignment").stage.learning_rate == 1e-4
    assert load_run(DEMO, "alignment", ["stage.learning_rate=3e-5"]).stage.learning_rate == 3e-5
    assert load_run(DEMO, "alignment", ["loss.temperature=1"]).loss.temperature == 1.0


@pytest.mark.parametrize(
    "word",
    [
        "train.micro_batch_size=2.5",
        "train.micro_batch_size=true",
        "train.micro_batch_size='2'",
        "stage.learning_rate=fast",
        "stage.learning_rate=true",
        "model.llm=3",
        "data.fps=true",
        "model.lora_targets=q_proj",
        "model.skeletal_channels=[16, wide, 64, 96]",
        "train.micro_batch_size=null",
    ],
)
def test_a_value_of_another_type_is_refused_by_name(word: str) -> None:
    assert word.split("=")[0] in _errors(word)


@pytest.mark.parametrize(
    "word",
    [
        "train.micro_batch_size=0",
        "stage.epochs=0",
        "loss.temperature=0",
        "loss.contrastive_weight=-0.1",
        "stage.learning_rate=-1e-3",
        "stage.learning_rate=.nan",
        "model.num_heads=0",
    ],
)
def test_a_value_out_of_range_is_refused_by_name(word: str) -> None:
    assert word.split("=")[0] in _errors(word)


def test_a_choice_is_refused_with_what_there_is() -> None:
    message = _errors("loss.contrastive_features=unimodel")
    assert "unimodal, streams, attended" in message
    assert "did you mean 'unimodal'" in message


@pytest.mark.parametrize(
    ("word", "part"),
    [
        ("model.num_heads=5", "does not divide"),
        ("model.skeletal_strides=[1, 2]", "2 entries for 4"),
        ("model.scale_kernels=[1]", "3 entries for 1"),
        ("model.skeletal_channels=[16, 32, 64, 95]", "ends with 95"),
        ("model.visual_stride=4", "would not align"),
        ("model.visual_kernel=4", "must be odd"),
        ("model.scale_kernels=[1, 5, 10]", "must be odd"),
        ("model.scale_strides=[1, 2, 0]", "at least 1"),
        ("stage.warmup_epochs=2", "not below stage.epochs 2"),
    ],
)
def test_values_that_do_not_fit_each_other_are_refused(word: str, part: str) -> None:
    assert part in _errors(word)


@pytest.mark.parametrize(
    "text",
    [
        "use: synthetic\n",
        "use: [data]\n",
        "- a\n- b\n",
        "a: [\n",
        "train: 3\n",
        "stage: {alignment: 3}\n",
        "stage: 3\n",
        "1: 2\n",
        "use: {dat: synthetic}\n",
        "",
    ],
)
def test_a_malformed_experiment_is_refused_without_a_traceback(tmp_path: Path, text: str) -> None:
    path = _experiment(tmp_path, text)
    assert "mine.yaml" in _errors(experiment=path)


def test_an_experiment_that_is_not_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "did you mean 'demo'" in _errors(experiment=str(Path(DEMO).with_name("dem.yaml")))
    monkeypatch.chdir(ROOT)
    assert load_run("demo", "alignment").name == "demo"
    assert "did you mean 'demo'" in _errors(experiment="demi")
    monkeypatch.chdir(tmp_path)
    assert "There are: ablation_demo, boston104, csl_daily, demo" in _errors(experiment="demi")


def test_files_of_the_working_folder_come_before_those_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_run("demo", "alignment") == load_run(DEMO, "alignment")
    data = Path("configs/data/synthetic.yaml")
    data.parent.mkdir(parents=True)
    data.write_text((ROOT / data).read_text().replace("max_frames: 64", "max_frames: 63"))
    assert load_run("demo", "alignment").data.max_frames == 63
    own = Path("configs/experiment/demo.yaml")
    own.parent.mkdir()
    own.write_text((ROOT / own).read_text().replace("epochs: 14", "epochs: 8"))
    run, packaged = load_run("demo", "finetune"), load_run(DEMO, "finetune")
    assert (run.stage.epochs, packaged.stage.epochs) == (8, 14)
    assert run.model == packaged.model, "configs/model of the package"
    assert "did you mean 'synthetic'" in _errors("data=synthetik", experiment="demo")


def test_an_experiment_outside_takes_the_files_beside_it_before_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _experiment(tmp_path, Path(DEMO).read_text())
    beside = tmp_path / "data" / "synthetic.yaml"
    beside.write_text(beside.read_text().replace("max_frames: 64", "max_frames: 63"))
    monkeypatch.chdir(ROOT)
    assert load_run(path, "alignment").data.max_frames == 63
    beside.unlink()
    assert load_run(path, "alignment").data.max_frames == 64


def test_the_resolved_configuration_reads_back_as_it_was(tmp_path: Path) -> None:
    for stage in STAGES:
        run = load_run(DEMO, stage, ["loss.temperature=0.3", "data.fps=null"])
        path = tmp_path / f"{stage}.yaml"
        path.write_text(yaml.safe_dump(run.to_dict(), sort_keys=False))
        assert load_resolved(path) == run


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"name": None}, "name"),
        ({"extra": {}}, "extra"),
        ({"loss": {"tau": 1}}, "tau"),
        ({"model": {}}, "model.llm"),
        ({"model": 3}, "model"),
    ],
)
def test_a_resolved_configuration_that_does_not_fit_is_refused(
    tmp_path: Path, change: dict[str, Any], part: str
) -> None:
    values = {**load_run(DEMO, "alignment").to_dict(), **change}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=part):
        load_resolved(path)


def _shipped(kind: str) -> list[str]:
    found = sorted(p.stem for p in (ROOT / "configs" / kind).glob("*.yaml"))
    assert found, kind
    return found


@pytest.mark.parametrize("experiment", _shipped("experiment"))
def test_every_stage_of_every_shipped_experiment_loads(experiment: str) -> None:
    runs = load_stages(str(ROOT / f"configs/experiment/{experiment}.yaml"))
    assert tuple(run.stage.name for run in runs) == runs[-1].train.stages


@pytest.mark.parametrize("model", _shipped("model"))
@pytest.mark.parametrize("data", _shipped("data"))
def test_every_shipped_file_loads_with_every_other(data: str, model: str) -> None:
    run = load_run(DEMO, "alignment", [f"data={data}", f"model={model}"])
    assert run.data.corpus
    assert run.model.llm


def test_there_is_a_file_for_every_stage() -> None:
    assert set(_shipped("stage")) == set(STAGES) == set(get_args(StageName))


def _packed(folder: Path) -> None:
    """Write a split of 40 clips as far as the plan looks at it."""
    folder.mkdir(parents=True)
    tar = b"x" * 512
    (folder / "shard-000000.tar").write_bytes(tar)
    packing = Packing(
        "synthetic",
        "corpus",
        "train",
        JOINT_LAYOUT,
        "synthetic",
        "1",
        PackConfig(frame_size=64, fps=10.0),
        "0" * 64,
    )
    shard = ShardEntry("shard-000000.tar", hashlib.sha256(tar).hexdigest(), len(tar), 40, 400)
    manifest = Manifest(packing, (shard,), 40, 40, 400, 0, 0, "0")
    (folder / MANIFEST_NAME).write_bytes(manifest_bytes(manifest))


def test_check_answers_without_torch(tmp_path: Path) -> None:
    _packed(tmp_path / "train")
    program = (
        "import sys; from signfuse_dist.cli import main; status = main(sys.argv[1:]);"
        "heavy = {'torch', 'torchvision', 'transformers', 'accelerate', 'deepspeed', 'peft'};"
        "print('status', status, 'heavy', sorted(heavy & set(sys.modules)))"
    )
    words = ["check", DEMO, "train.micro_batch_size=2", "train.global_batch_size=16"]
    done = subprocess.run(
        [sys.executable, "-c", program, *words, f"data.shards={tmp_path}", "--world-size", "4"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "status 1 heavy []" in done.stdout, done.stderr  # the LLM is not made yet
    assert "4 processes x 2 clips x 2 accumulated = 16 a step" in done.stdout
    assert "temperature: 0.07" in done.stdout
    for stage in STAGES:
        assert f"stage {stage}" in done.stdout


def test_check_refuses_what_cannot_run_and_says_what_can(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from signfuse_dist.cli import main

    _packed(tmp_path / "train")
    words = ["check", DEMO, f"data.shards={tmp_path}", "train.global_batch_size=16"]
    words += ["train.micro_batch_size=8"]
    assert main([*words, "--world-size", "4"]) == 2
    assert "train.micro_batch_size of 1, 2, 4 divides" in capsys.readouterr().err
    assert main([*words, "train.sed=1", "--world-size", "2"]) == 2
    assert "did you mean 'seed'" in capsys.readouterr().err
