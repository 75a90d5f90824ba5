"""What `train.start` names is found, goes on record, and is what identifies a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from helpers.repository import ROOT
from helpers.saved_models import config_of, finetuned
from signfuse_dist.config import ModelConfig, RunConfig
from signfuse_dist.errors import UserError
from signfuse_dist.experiment import load_resolved, load_run
from signfuse_dist.model.usage import Usage
from signfuse_dist.origin import TrainedCorpus, TrainedStage
from signfuse_dist.plan import make_plan
from signfuse_dist.preflight.inputs import check_weights
from signfuse_dist.report.published import extra_data, results, table_for
from signfuse_dist.run_folder import begin, identify, refuse_other
from signfuse_dist.start import find_start, history_of, with_origin

DEMO = str(ROOT / "configs" / "experiment" / "demo.yaml")
LARGE = TrainedCorpus(name="youtube_asl", language="en", clips=600_000)
CHAIN = (
    TrainedStage(run="large/contrastive", corpora=(LARGE,), steps=900),
    TrainedStage(run="large/finetune", corpora=(LARGE,), steps=30_000),
)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    return config_of(tmp_path_factory.mktemp("llm"))


def run_of(output: Path, stage: str, *words: str) -> RunConfig:
    return load_run(DEMO, stage, [f"train.output={output}", *words])


@pytest.fixture
def start(config: ModelConfig, tmp_path: Path) -> Path:
    """The folder of a run that is trained to its end, with what went into it."""
    folder = tmp_path / "large" / "finetune"
    model = finetuned(config)
    model.usage = Usage.of(run_of(tmp_path, "finetune"), "mediapipe", "1", CHAIN)
    folder.mkdir(parents=True)
    model.save_pretrained(folder / "model")
    return folder


def test_a_run_and_its_model_are_the_same_start_with_every_training_of_it(
    start: Path, tmp_path: Path
) -> None:
    found = [
        find_start(run_of(tmp_path, "contrastive", f"train.start={name}"))
        for name in (start, start / "model")
    ]
    assert found[0] is not None
    assert found[1] is not None
    assert found[0].folder == found[1].folder == start / "model"
    assert found[0].origin.fingerprint == found[1].origin.fingerprint
    assert found[0].origin.history == CHAIN
    assert "large/finetune: 30000 steps on youtube_asl (en, 600000 clips)" in str(found[0].origin)


def test_only_the_first_stage_starts_from_it_and_the_others_repeat_it(
    start: Path, tmp_path: Path
) -> None:
    words = (f"train.start={start}", "train.stages=[contrastive,alignment]")
    first, second = (run_of(tmp_path, s, *words) for s in ("contrastive", "alignment"))
    assert find_start(second) is None
    first = with_origin(first)
    begin(first, make_plan(20, first.stage, first.train, 1), None, main=True)
    assert with_origin(second).origin == first.origin
    assert load_resolved(first.folder / "config.yaml") == first


def test_another_start_under_the_same_name_is_refused(
    config: ModelConfig, start: Path, tmp_path: Path
) -> None:
    run = run_of(tmp_path, "finetune", f"train.start={start}", "train.stages=[finetune]")
    plan = make_plan(20, run.stage, run.train, 1)
    begun = with_origin(run)
    begin(begun, plan, None, main=True)
    refuse_other(begun)
    before = identify(begun, plan)["starts_from"]
    (start / "model" / "state.json").unlink()
    other = finetuned(config)
    other.save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "state.json").rename(start / "model" / "state.json")
    now = with_origin(run)
    assert identify(now, plan)["starts_from"] != before
    with pytest.raises(UserError, match=r"origin\.fingerprint was"):
        refuse_other(now)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("runs/nowhere/finetune", "no such folder"),
        ("{start}/..", "is no run folder"),
        ("{start}", "is not trained to its end"),
    ],
)
def test_a_start_that_is_none_is_refused_as_it_was_typed(
    tmp_path: Path, name: str, said: str
) -> None:
    folder = tmp_path / "untrained" / "finetune"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("")
    typed = name.format(start=folder)
    with pytest.raises(UserError, match=said) as refused:
        find_start(run_of(tmp_path, "contrastive", f"train.start={typed}"))
    assert str(refused.value).startswith(f"train.start={typed}: ")


def test_a_run_does_not_start_from_itself(start: Path) -> None:
    run = run_of(start.parent.parent, "finetune", "train.stages=[finetune]", f"train.start={start}")
    with pytest.raises(UserError, match="cannot start from itself"):
        find_start(dataclasses.replace(run, name="large"))


def test_parts_without_a_start_and_both_kinds_of_lora_are_contradictions(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.start_parts .* without train\.start"):
        run_of(tmp_path, "finetune", "train.start_parts=[visual]")
    with pytest.raises(UserError, match="give one of them"):
        run_of(tmp_path, "finetune", "train.start=x", "train.start_parts=[lora,merged_lora]")
    with pytest.raises(UserError, match=r"train\.start_parts=\[\] takes nothing"):
        run_of(tmp_path, "finetune", "train.start=x", "train.start_parts=[]")


def test_a_model_of_an_earlier_version_says_its_corpus_and_no_steps(
    config: ModelConfig, tmp_path: Path
) -> None:
    model = finetuned(config)
    model.usage = Usage.of(run_of(tmp_path, "finetune"), None, None)
    model.save_pretrained(tmp_path / "model")
    (told,) = history_of(tmp_path / "model")
    assert (told.corpora[0].name, told.steps) == ("synthetic", None)


def test_a_published_table_shows_a_start_as_extra_data(start: Path, tmp_path: Path) -> None:
    run = with_origin(run_of(tmp_path, "contrastive", f"train.start={start}"))
    more = extra_data(run, "how2sign")
    assert more == ["youtube_asl (large/contrastive)", "youtube_asl (large/finetune)"]
    assert extra_data(run, "youtube_asl") == []
    assert extra_data(dataclasses.replace(run, origin=None), "how2sign") == []
    table = table_for(
        results("how2sign", "test"), {"ours": {"BLEU-4": 99.0}}, "sacrebleu", {"ours": more}
    )
    assert table[0].differences[0] == "trained with more: youtube_asl (large/contrastive)"


def test_check_names_a_start_that_is_not_there(tmp_path: Path) -> None:
    run = run_of(tmp_path, "contrastive", "train.start=runs/nowhere/finetune")
    found = [f for f in check_weights([run], {}, True) if f.level == "error"]
    assert [f.what for f in found] == ["train.start=runs/nowhere/finetune"]


@pytest.mark.long  # it imports torch in a process of its own
def test_check_says_what_is_taken_and_what_does_not_fit(
    config: ModelConfig, start: Path, tmp_path: Path
) -> None:
    words = (f"train.start={start}", "train.stages=[finetune]")
    run = dataclasses.replace(run_of(tmp_path, "finetune", *words), model=config)
    (found,) = [f for f in check_weights([run], {}, True) if f.what.startswith("train.start")]
    assert found.level == "ok", found
    assert "fusion, temporal, adapter" in found.value
    assert "large/finetune: 30000 steps" in found.value
    other = dataclasses.replace(run, model=dataclasses.replace(config, lora_rank=7))
    (found,) = [f for f in check_weights([other], {}, True) if f.what.startswith("train.start")]
    assert found.level == "error"
    assert "lora: model.lora_rank was 2, is 7" in found.value
