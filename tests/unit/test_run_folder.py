"""The run folder: its files, what is refused, what a run has in common with its checkpoint."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

from helpers.repository import ROOT
from signfuse_dist.config import RunConfig
from signfuse_dist.engine.checkpoint_files import Checkpoint, refuse_other_run
from signfuse_dist.errors import UserError
from signfuse_dist.experiment import load_run
from signfuse_dist.plan import data_position, make_plan
from signfuse_dist.run_folder import (
    EvaluationFolder,
    RunFolder,
    begin,
    fixed,
    identify,
    refuse_other,
    refuse_other_before,
    refuse_other_data,
    refuse_other_meeting,
)
from signfuse_dist.sections import keys_with

CONFIGS = ROOT / "configs" / "experiment"


def identity(output: Path, *words: str) -> dict[str, Any]:
    words = (f"train.output={output}", *words)
    run = load_run(str(CONFIGS / "demo.yaml"), None, words)
    return identify(run, make_plan(2, run.stage, run.train, 2))


def before(output: Path, stage: str, content: str) -> None:
    (output / "demo" / stage / "model").mkdir(parents=True, exist_ok=True)
    (output / "demo" / stage / "model" / "state.json").write_text(content)


def test_it_tells_another_configuration_and_another_stage_before_apart(tmp_path: Path) -> None:
    before(tmp_path, "contrastive", "one")
    one = identity(tmp_path, "stage=alignment")
    assert identity(tmp_path, "stage=alignment") == one
    before(tmp_path, "contrastive", "another")
    other = identity(tmp_path, "stage=alignment")
    assert [k for k in one if one[k] != other[k]] == ["starts_from"]
    seeded = identity(tmp_path, "stage=alignment", "train.seed=1")
    assert [k for k in other if other[k] != seeded[k]] == ["config"]
    assert identity(tmp_path, "stage=contrastive")["starts_from"] is None


def test_a_checkpoint_of_a_version_without_a_key_is_gone_on_from(tmp_path: Path) -> None:
    now = identity(tmp_path, "stage=contrastive")
    then = {**now, "config": {k: v for k, v in now["config"].items() if k != "model.fusion_gain"}}
    refuse_other_run(Checkpoint(tmp_path, then), now)
    changed = {**now, "config": {**now["config"], "model.fusion_gain": 0.5}}
    with pytest.raises(UserError, match=r"config.model.fusion_gain was 0.5, is 0.1"):
        refuse_other_run(Checkpoint(tmp_path, changed), now)


@pytest.mark.parametrize(
    ("words", "meeting"),
    [
        (["stage=contrastive"], 8),
        (["stage=contrastive", "train.micro_batch_size=2"], 4),
        (["stage=contrastive", "train.micro_batch_size=2", "model.norm=layer"], 8),
        (["stage=alignment", "train.stages=[alignment]"], None),
        (["stage=finetune", "train.stages=[finetune]"], 8),
        (["stage=finetune", "train.stages=[finetune]", "loss.contrastive_weight=0"], 8),
        (
            [
                "stage=finetune",
                "train.stages=[finetune]",
                "loss.contrastive_weight=0",
                "model.norm=layer",
            ],
            None,
        ),
        (
            [
                "stage=finetune",
                "train.stages=[finetune]",
                "loss.contrastive_weight=0",
                "model.norm=frozen",
                "model.visual_norm=local",
            ],
            8,
        ),
    ],
)
def test_how_many_clips_meet_counts_where_they_see_each_other(
    tmp_path: Path, words: list[str], meeting: int | None
) -> None:
    assert identity(tmp_path, *words)["meeting"] == meeting


@pytest.mark.parametrize(
    ("world_size", "size", "advice"),
    [
        (1, 4, "give train.micro_batch_size=8, which keeps every number"),
        (2, 2, "give train.micro_batch_size=4, which keeps every number"),
        (8, 1, None),
        (4, 1, "give train.micro_batch_size=2, which keeps every number"),
    ],
)
def test_another_number_of_processes_is_told_which_micro_batch_keeps_the_statistics(
    tmp_path: Path, world_size: int, size: int, advice: str | None
) -> None:
    run = demo(tmp_path, "contrastive", f"train.micro_batch_size={size}")
    plan = make_plan(20, run.stage, run.train, world_size)
    if advice is None:
        refuse_other_meeting(run, plan, 8)
        return
    with pytest.raises(UserError) as error:
        refuse_other_meeting(run, plan, 8)
    assert advice in str(error.value)
    assert "was trained with 8 clips that see each other" in str(error.value)
    assert "model.norm=sync takes statistics over them" in str(error.value)


def test_a_number_of_processes_that_cannot_keep_the_statistics_says_what_would(
    tmp_path: Path,
) -> None:
    run = demo(tmp_path, "contrastive", "train.global_batch_size=12", "train.micro_batch_size=2")
    with pytest.raises(UserError, match="a number of processes that divides 4 evenly"):
        refuse_other_meeting(run, make_plan(20, run.stage, run.train, 3), 4)
    refuse_other_meeting(run, make_plan(20, run.stage, run.train, 3), None)


def test_where_the_data_stands_follows_from_the_step() -> None:
    run = load_run(str(CONFIGS / "demo.yaml"), "contrastive")
    plan = make_plan(20, run.stage, run.train, 1)  # 3 steps an epoch
    assert data_position(plan, 5, 0) == {"seed": 5, "epoch": 0, "step": 0, "clips": 20}
    assert data_position(plan, 5, 7) == {"seed": 5, "epoch": 2, "step": 1, "clips": 20}


def demo(output: Path, stage: str = "alignment", *overrides: str) -> RunConfig:
    return load_run(str(CONFIGS / "demo.yaml"), stage, [f"train.output={output}", *overrides])


def test_a_start_writes_what_the_run_is_and_another_configuration_is_refused(
    tmp_path: Path,
) -> None:
    run = demo(tmp_path)
    plan = make_plan(20, run.stage, run.train, 2)
    begin(run, plan, None, main=False)
    assert not run.folder.exists()
    begin(run, plan, {"zero": 2}, main=True)
    folder = RunFolder.of(run)
    text = folder.config.read_text()
    assert json.loads(folder.plan.read_text())["world_size"] == 2
    assert json.loads(folder.ds_config.read_text()) == {"zero": 2}
    assert {"python", "torch"} <= json.loads(folder.versions.read_text()).keys()
    changed = demo(tmp_path, "alignment", "train.log_steps=3", "evaluation.num_beams=1")
    begin(changed, make_plan(20, run.stage, run.train, 1), None, main=True)
    assert folder.config.read_text() == text
    assert json.loads(folder.plan.read_text())["world_size"] == 1
    other = demo(tmp_path, "alignment", "train.seed=1", "loss.temperature=0.5")
    for refuse in (refuse_other, lambda run: begin(run, plan, None, main=False)):
        with pytest.raises(UserError) as error:
            refuse(other)
        assert "train.seed was 0, is 1" in str(error.value)
        assert "loss.temperature was 0.07, is 0.5" in str(error.value)
        assert "train.output=FOLDER" in str(error.value)


def begun(run: RunConfig) -> None:
    begin(run, make_plan(20, run.stage, run.train, 1), None, main=True)


def test_a_stage_does_not_go_on_from_one_of_another_model_or_data(tmp_path: Path) -> None:
    begun(demo(tmp_path, "contrastive"))
    other = demo(tmp_path, "finetune", "model.fusion_gain=0.5", "data.max_frames=9")
    plan = make_plan(20, other.stage, other.train, 1)
    for refuse in (refuse_other_before, lambda run: begin(run, plan, None, main=False)):
        with pytest.raises(UserError) as error:
            refuse(other)
        assert f"{tmp_path}/demo/contrastive holds stage contrastive of" in str(error.value)
        assert "model.fusion_gain was 0.1, is 0.5" in str(error.value)
        assert "data.max_frames was 64, is 9" in str(error.value)
    begun(demo(tmp_path, "alignment", "train.stages=[alignment,finetune]"))
    said = r"train\.stages was \['alignment'\], is \['contrastive', 'alignment'\]"
    with pytest.raises(UserError, match=said):
        refuse_other_before(demo(tmp_path, "finetune"))


def test_a_stage_goes_on_from_one_that_was_trained_with_less_to_follow_or_another_llm(
    tmp_path: Path,
) -> None:
    """As the rows of an ablation do, which share stages."""
    begun(demo(tmp_path, "contrastive", "train.stages=[contrastive]", "model.lora_rank=3"))
    refuse_other_before(demo(tmp_path, "alignment"))
    refuse_other_before(demo(tmp_path, "finetune", "train.stages=[contrastive,finetune]"))
    begun(demo(tmp_path, "alignment", "train.stages=[contrastive,alignment]"))
    refuse_other_before(demo(tmp_path, "finetune"))
    with pytest.raises(UserError, match=r"alignment holds stage .*model\.lora_rank was 16, is 4"):
        refuse_other_before(demo(tmp_path, "finetune", "model.lora_rank=4"))


def test_the_stages_of_an_experiment_may_differ_in_what_is_their_own(tmp_path: Path) -> None:
    begun(demo(tmp_path, "contrastive"))
    words = ("stage.learning_rate=0.1", "train.features=cached", "loss.alignment_weight=0.5")
    refuse_other_before(demo(tmp_path, "alignment", *words))
    refuse_other(demo(tmp_path, "contrastive", "data.shard_cache_gb=1"))


def test_what_may_change_when_a_run_goes_on_is_no_part_of_its_identity(tmp_path: Path) -> None:
    run = demo(tmp_path)
    assert fixed(run).keys() == run.flat().keys() - set(keys_with("resume"))
    assert {"name", "stage.epochs", "model.dim", "train.seed"} <= fixed(run).keys()


def test_a_stage_starts_from_the_one_before_it_among_those_that_are_used(tmp_path: Path) -> None:
    run = demo(tmp_path, "finetune", "train.stages=[contrastive,finetune]")
    folder = RunFolder.of(run)
    assert folder.before(run) == RunFolder(tmp_path / "demo" / "contrastive")
    first = demo(tmp_path, "contrastive")
    assert RunFolder.of(first).before(first) is None


def test_a_users_path_is_refused_unless_it_is_a_run_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such run folder"):
        RunFolder.open(tmp_path / "none")
    (tmp_path / "demo" / "alignment").mkdir(parents=True)
    with pytest.raises(UserError, match=r"is no run folder, it has no config\.yaml; give runs/"):
        RunFolder.open(tmp_path / "demo")
    (tmp_path / "demo" / "alignment" / "config.yaml").touch()
    with pytest.raises(UserError, match=r"give .*demo/alignment$"):
        RunFolder.open(tmp_path / "demo")
    assert not RunFolder.open(tmp_path / "demo" / "alignment").is_finished


@pytest.mark.parametrize("split", ["", "..", "../test", "a/b", "/tmp", ".hidden", "test\n"])
def test_a_splits_name_does_not_lead_out_of_the_run_folder(tmp_path: Path, split: str) -> None:
    with pytest.raises(UserError, match="is not a name"):
        RunFolder(tmp_path).evaluation(split)
    with pytest.raises(UserError, match=r"--name .* is not a name"):
        RunFolder(tmp_path).evaluation("test", split)
    named = RunFolder(tmp_path).evaluation("test", "beams8")
    assert named.path == tmp_path / "evaluation" / "test@beams8"
    assert named.run == RunFolder(tmp_path)
    assert RunFolder(tmp_path).evaluation("test.v2").path == tmp_path / "evaluation" / "test.v2"


def test_the_evaluations_of_a_run_are_those_with_scores(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.scored() == {}
    for split in ("test", "dev", "begun"):
        folder.evaluation(split).path.mkdir(parents=True)
    for split in ("test", "dev"):
        folder.evaluation(split).scores.touch()
    assert list(folder.scored()) == ["dev", "test"]


def test_an_evaluation_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with pytest.raises(UserError, match=r"evaluate the run on 'test' first\. There are: none"):
        folder.evaluated("test")
    for name in (None, "beams8"):
        folder.evaluation("test", name).path.mkdir(parents=True)
        folder.evaluation("test", name).hypotheses.touch()
    assert folder.evaluated("test", "beams8") == folder.evaluation("test", "beams8")
    with pytest.raises(
        UserError, match=r"did you mean 'test@beams8'.*There are: test, test@beams8$"
    ):
        folder.evaluated("test", "beam8")
    own = folder.evaluation("test", "beams8")
    assert EvaluationFolder.open(own.path, None) == own
    with pytest.raises(UserError, match="say which split of it"):
        EvaluationFolder.open(tmp_path, None)


def names_in(folder: RunFolder | EvaluationFolder) -> set[str]:
    """The names that a class of run_folder.py gives inside its folder."""
    values = [
        getattr(folder, name) for name, v in vars(type(folder)).items() if isinstance(v, property)
    ]
    inside = [path for path in values if isinstance(path, Path) and path.parent == folder.path]
    more = [folder.stacks("RANK")] if isinstance(folder, RunFolder) else []
    return {path.name for path in [*inside, *more]}


RUN, EVALUATION = RunFolder(Path("run")), EvaluationFolder(Path("run/evaluation/SPLIT"))


@pytest.mark.parametrize(
    ("heading", "folder"), [("## Files", RUN), ("## evaluation/SPLIT", EVALUATION)]
)
def test_the_page_lists_what_lies_in_the_folder(
    heading: str, folder: RunFolder | EvaluationFolder
) -> None:
    page = (ROOT / "docs/run-folder.md").read_text()
    section = page.split(f"\n{heading}\n")[1].split("\n## ")[0]
    table = next(part for part in section.split("\n\n") if part.strip().startswith("|"))
    cells = [row.split("|")[1] for row in table.strip().split("\n")[2:]]
    listed = {name.split("/")[0] for cell in cells for name in re.findall(r"`([^`]+)`", cell)}
    assert listed == names_in(folder)


def joined_names(module: ast.Module) -> set[str]:
    """Names that a module joins to a path, and file names that it holds as text."""
    names: set[str] = set()
    docstrings = {
        id(node.value) for node in ast.walk(module) if isinstance(node, ast.Expr)
    }  # also the strings below fields
    for node in ast.walk(module):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) not in docstrings and re.fullmatch(r"[\w*/-]+\.\w+", node.value):
                names.add(node.value.rpartition("/")[2])
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            right = node.right.values[0] if isinstance(node.right, ast.JoinedStr) else node.right
            if isinstance(right, ast.Constant) and isinstance(right.value, str):
                names.add(right.value.split("/")[0])
    return names


def test_no_other_module_knows_a_name_in_the_run_folder() -> None:
    known = names_in(RUN) | names_in(EVALUATION) | {"stacks_"}
    own = ROOT / "signfuse_dist" / "run_folder.py"
    assert known - {"stacks_RANK.txt"} <= joined_names(ast.parse(own.read_text()))
    elsewhere = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in (ROOT / "signfuse_dist").rglob("*.py")
        if path != own
        for name in joined_names(ast.parse(path.read_text())) & known
    }
    assert elsewhere == set()


DATA = {
    "clips": "c",
    "texts": "t",
    "pictures": "p",
    "joints": "j",
    "shards": "s",
    "pose_set": None,
}
EARLIER = {**DATA, "pictures": None, "joints": None}


def trained(run: RunConfig, content: dict[str, str | None], step: int | None = None) -> None:
    """Leave what a stage that was trained on ``content`` says: its model, or a checkpoint."""
    folder = RunFolder.of(run)
    state: dict[str, Any] = {"trained_on": content}
    path = folder.model_state
    if step is not None:
        path, state = folder.checkpoints / f"step_{step:08d}" / "state.json", {"run": state}
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(state))


@pytest.mark.parametrize("step", [None, 7])
@pytest.mark.parametrize(
    ("before", "now", "odd"),
    [
        (DATA, {}, None),
        (DATA, {"shards": "other"}, None),  # what training does not see
        (DATA, {"clips": "x", "shards": "x"}, "clips"),
        (DATA, {"texts": "x", "shards": "x"}, "texts"),
        (DATA, {"pictures": "x", "shards": "x"}, "pictures"),
        (DATA, {"joints": "x", "shards": "x"}, "joints"),
        (DATA, {"pictures": "x", "joints": "x", "shards": "x"}, "pictures and joints"),
        (EARLIER, {}, None),
        (EARLIER, {"shards": "x"}, "pictures or joints"),
        (EARLIER, {"texts": "x", "shards": "x"}, "texts"),
        ({**EARLIER, "pose_set": "a"}, {"pose_set": "b"}, "joints"),
        ({**EARLIER, "pose_set": "a"}, {"pose_set": "a", "shards": "x"}, "pictures"),
        ({**DATA, "pose_set": "a"}, {"pose_set": "b"}, None),  # the same joints in other tars
        ({"clips": "c"}, {"texts": "x", "pictures": "x", "shards": "x"}, None),
    ],
)
def test_a_run_on_other_data_is_refused_with_what_of_it_differs(
    tmp_path: Path,
    before: dict[str, str | None],
    now: dict[str, str],
    odd: str | None,
    step: int | None,
) -> None:
    run = demo(tmp_path, "contrastive")
    trained(run, before, step)
    for stage in ("contrastive", "alignment"):  # that goes on, and the one after it
        asked = demo(tmp_path, stage)
        if odd is None:
            refuse_other_data(asked, {**DATA, **now})
            continue
        with pytest.raises(UserError) as error:
            refuse_other_data(asked, {**DATA, **now})
        assert f"{run.folder}: stage contrastive was trained on other {odd} than" in str(
            error.value
        )
        assert "train.output=FOLDER" in str(error.value)


def test_a_new_pose_set_is_named_as_such(tmp_path: Path) -> None:
    run = demo(tmp_path, "contrastive", "data.poses=mine")
    trained(run, {**DATA, "pose_set": "a"})
    with pytest.raises(UserError, match=r"on other joints than pose set mine of .* has now"):
        refuse_other_data(run, {**DATA, "joints": "x", "pose_set": "b"})


def test_data_of_a_run_of_an_earlier_version_is_compared_by_ids_and_lengths(
    tmp_path: Path,
) -> None:
    run = demo(tmp_path, "contrastive")
    path = RunFolder.of(run).checkpoints / "step_00000004" / "state.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"run": {"clips_sha256": "c"}}))
    refuse_other_data(run, {**DATA, "texts": "whatever"})
    with pytest.raises(UserError, match="was trained on other clips than"):
        refuse_other_data(run, {**DATA, "clips": "other"})
    trained(run, {})  # a model of an earlier version says nothing
    refuse_other_data(run, {**DATA, "clips": "other"})


@pytest.mark.parametrize("text", ["", "[]", '{"run": 3}', '{"trained_on": 5}'])
def test_a_state_that_cannot_be_read_says_nothing_of_the_data(tmp_path: Path, text: str) -> None:
    run = demo(tmp_path, "contrastive")
    trained(run, {**DATA, "texts": "other"}, step=3)
    damaged = RunFolder.of(run).checkpoints / "step_00000004" / "state.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_text(text)
    with pytest.raises(UserError, match="was trained on other texts than"):
        refuse_other_data(run, DATA)
