"""Planning ablations: what a file may say, which runs its rows need, and which rows share them."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import yaml

from helpers.repository import ROOT
from signfuse_dist.ablation.rows import AblationRow, read_ablation, read_ablations
from signfuse_dist.ablation.runs import AblationPlan, Chains, StageRun, make_plan
from signfuse_dist.errors import UserError
from signfuse_dist.experiment import load_run, load_stages
from signfuse_dist.files import write_folder
from signfuse_dist.model.place import CONFIG, WEIGHTS

# Section 5.4 compares what is done with two streams.
OF_BOTH_STREAMS = [
    path.stem
    for path in sorted((ROOT / "configs" / "experiment").glob("*.yaml"))
    if load_stages(str(path))[-1].model.streams == "both"
]
SHIPPED = sorted((ROOT / "configs" / "ablation").rglob("*.yaml"))
SECTION_5_4 = ("components", "fusion", "scales", "stages", "backbones")


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def write(path: Path, **changes: object) -> Path:
    content = {"title": "T", "paper": "P", "full": "a", "rows": [{"name": "a"}], **changes}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def plan(names: str, *words: str, seeds: tuple[int, ...] = (0,)) -> AblationPlan:
    return make_plan(read_ablations(names), "demo", words, seeds, None)


def last(words: tuple[str, ...], seed: int = 0, given: tuple[str, ...] = ()) -> StageRun:
    return Chains("demo", given).make(words, seed)


def keys(run: StageRun) -> list[str]:
    return [stage.key for stage in run.chain()]


def augments_alone(row: AblationRow) -> bool:
    words = [word for word in row.overrides if not word.startswith("recipe=")]
    return bool(words) and all(word.startswith("augment.") for word in words)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: str(p.relative_to(ROOT)))
@pytest.mark.parametrize("experiment", OF_BOTH_STREAMS)
def test_every_shipped_row_is_a_valid_run_of_every_shipped_experiment(
    path: Path, experiment: str
) -> None:
    found = make_plan([read_ablation(path)], experiment, [], [0], None)
    (planned,) = found.ablations
    assert [row.row.name for row in planned.rows] == [r.name for r in planned.ablation.rows]
    rows = planned.rows
    if experiment == "demo":  # it augments nothing, so rows of augmentation alone are none of its
        rows = tuple(row for row in rows if not augments_alone(row.row))
    assert len({row.runs[0].key for row in rows}) == len(rows)


def test_all_are_the_five_of_section_5_4_and_the_layers() -> None:
    assert {one.name for one in read_ablations("all")} == {*SECTION_5_4, "layers"}


def test_planning_imports_no_torch() -> None:
    code = (
        "import sys; from signfuse_dist.cli import main; "
        "main(['ablate', 'fusion', 'demo', '--plan']); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_whole_model_is_trained_once_for_all_tables() -> None:
    found = plan("components,fusion,scales,stages")
    full = [
        table.rows[[r.row.name for r in table.rows].index(table.ablation.full)].runs[0].key
        for table in found.ablations
    ]
    assert len(set(full)) == 1
    assert [run.key for run in found.stage_runs()].count(full[0]) == 1
    rows = sum(len(table.rows) for table in found.ablations)
    # The full row is there four times; "+ HTA" is "finetune alone".
    assert len(found.finals()) == rows - 3 - 1


def test_rows_that_differ_in_the_language_model_share_the_stage_that_has_none() -> None:
    runs = [row.runs[0].chain() for row in plan("backbones").ablations[0].rows]
    assert len({chain[0].key for chain in runs}) == 1
    assert len({chain[1].key for chain in runs}) == len(runs) == 4
    # Whichever row is first, its configuration is the same to the letter.
    assert len({chain[0].overrides for chain in [*runs, last(()).chain()]}) > 1
    assert len({str(load_run("demo", None, chain[0].overrides)) for chain in runs}) == 1


def test_a_stage_is_another_when_the_one_before_it_is() -> None:
    whole, without = last(()), last(("train.stages=[alignment,finetune]",))
    assert whole.run.model == without.run.model
    assert whole.chain()[1].key != without.chain()[0].key
    assert last(("train.stages=[contrastive,finetune]",)).chain()[0].key == whole.chain()[0].key


@pytest.mark.parametrize(
    ("words", "same"),
    [
        (("model.fusion_layers=1",), True),  # the narrow model's own
        (("train.num_workers=3", "train.log_steps=7"), True),  # free on a resume
        (("model.fusion_layers=2",), False),
        (("stage.epochs=3",), False),
        (("loss.temperature=0.5",), False),
        (("evaluation.num_beams=2",), False),
    ],
)
def test_a_run_is_known_by_what_its_numbers_depend_on(words: tuple[str, ...], same: bool) -> None:
    assert (last(words).key == last(()).key) == same
    assert (last((), given=words).key == last(()).key) == same


def test_what_is_translated_with_is_the_last_stage_s_own() -> None:
    ours, other = last(("evaluation.num_beams=2",)), last(())
    assert keys(ours)[:2] == keys(other)[:2]
    assert ours.key != other.key


def test_seeds_are_runs_of_their_own_and_the_first_comes_first() -> None:
    found = plan("stages", seeds=(3, 5))
    assert [run.run.train.seed for run in found.finals()] == [3] * 4 + [5] * 4
    assert len({run.key for run in found.stage_runs()}) == len(found.stage_runs())


def test_a_run_s_words_give_its_configuration_and_its_folder() -> None:
    for run in plan("components").stage_runs():
        assert load_run("demo", None, run.overrides) == run.run
        assert run.folder == Path("runs/ablation") / run.key / "demo" / run.run.stage.name


def test_a_folder_s_name_says_what_differs_and_its_seed() -> None:
    name = last(("model.fusion=sum", "model.scales=[]"), seed=4).key
    assert name.rpartition("-")[0] == "fusion-sum-scales-none-seed4"
    assert last(()).key.startswith("full-seed0-")
    hostile = last(("model.llm='../../etc; rm -rf $HOME'",)).key
    assert set(hostile) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-")


def test_the_stages_before_are_found_beside_a_run(tmp_path: Path) -> None:
    run = last((), given=(f"train.output={tmp_path}",))
    for stage in run.chain():
        stage.link_stages()
        stage.link_stages()  # again, when it goes on
        stage.folder.mkdir(parents=True, exist_ok=True)
        (stage.folder / "model").mkdir()
    for name in ("contrastive", "alignment"):
        beside = run.folder.with_name(name)
        assert (beside / "model").is_dir()
        assert not beside.readlink().is_absolute()
    other = last((), given=(f"train.output={tmp_path}", "stage.epochs=3"))
    other.folder.with_name("contrastive").mkdir(parents=True)
    with pytest.raises(UserError, match="is no link"):
        other.link_stages()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rows": []}, "rows: [] does not have at least 1 entries"),
        ({"rows": {"a": 1}}, "rows: {'a': 1} is not a list"),
        ({"rows": None}, "rows: None is not a list"),
        ({"rows": [{"name": "a"}, {"name": "a"}]}, "row 'a': more than once"),
        ({"full": "b"}, "full: no row 'b'"),
        ({"title": 3}, "title: 3 is not a str"),
        ({"title": "  "}, "title: '  ' is not text"),
        ({"title": None}, "title: None is not a str"),
        ({"paper": 3}, "paper: 3 is not a str"),
        ({"full": 3}, "full: 3 is not a str"),
        ({"full": "A"}, "full: no row 'A'"),
        ({"row": []}, "unknown key 'row'; did you mean 'rows'?"),
        ({"rows": [{"name": "a", "above": "c"}]}, "above: no row 'c'"),
        ({"rows": [{"name": "a", "above": "a", "below": "a"}]}, "above and below"),
        ({"rows": [{"name": "a", "above": 3}]}, "row 'a': above: 3 is not a str"),
        ({"rows": [{"name": "a", "above": None}]}, "row 'a': above: None is not a str"),
        (
            {"rows": [{"name": "a", "words": "model.fusion=sum"}]},
            "words: 'model.fusion=sum' is not",
        ),
        ({"rows": [{"name": "a", "words": None}]}, "row 'a': words: None is not a list"),
        ({"rows": [{"name": "a", "words": ["sum"]}]}, "words.entry 1: 'sum' is not section.key="),
        ({"rows": [{"name": "a", "words": [3]}]}, "row 'a': words.entry 1: 3 is not a str"),
        ({"rows": [{"name": "a", "wrods": []}]}, "row 'a': unknown key 'wrods'; did you mean"),
        ({"rows": [{"name": "a", "overrides": []}]}, "row 'a': unknown key 'overrides'"),
        ({"rows": [{"words": []}]}, "rows: entry 1: name: missing"),
        ({"rows": [{"name": " "}]}, "rows: entry 1: name: ' ' is not text"),
        (
            {"rows": [[1]]},
            "rows: entry 1: expected a mapping of name, words, above, below, got [1]",
        ),
    ],
)
def test_a_file_that_is_no_ablation_is_refused_with_what_is_wrong(
    tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    path = write(tmp_path / "own.yaml", **changes)
    with pytest.raises(UserError, match=r"own\.yaml") as caught:
        read_ablations(str(path))
    assert said in str(caught.value)


def test_all_errors_of_a_file_come_together_and_none_follows_from_another(tmp_path: Path) -> None:
    rows = [{"name": "a", "wrods": 1, "below": "b"}, {"words": []}, {"name": "c", "above": "a"}]
    path = write(tmp_path / "own.yaml", titel="x", full="A row", rows=rows)
    with pytest.raises(UserError) as caught:
        read_ablations(str(path))
    assert str(caught.value).split("\n  - ")[1:] == [
        "unknown key 'titel'; did you mean 'title'?",
        "row 'a': unknown key 'wrods'; did you mean 'words'?",
        "rows: entry 2: name: missing",
        "full: no row 'A row'",
        "row 'a': below: no row 'b'",
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not an ablation (1)\n  - expected a mapping of title, paper, full, rows, got None"),
        (
            b"[1]",
            "not an ablation (1)\n  - expected a mapping of title, paper, full, rows, got [1]",
        ),
        (b"a: [", ", line 1, column 5: not YAML: while parsing"),
        (b"\xff\xfe\x00", "not UTF-8 text (byte 0)"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_ablations(str(path))
    assert str(caught.value).startswith(f"{path}{said}" if said[0] == "," else f"{path}: {said}")


def test_names_that_are_not_there_are_refused_with_those_that_are() -> None:
    with pytest.raises(UserError, match="did you mean 'fusion'"):
        read_ablations("fussion")
    with pytest.raises(UserError, match="no ablation named"):
        read_ablations("")
    with pytest.raises(UserError, match="two ablations are called fusion"):
        read_ablations("fusion,configs/ablation/fusion.yaml")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("stage=finetune", "every stage"),
        ("train.seed=3", "--seeds 3"),
        ("model.fusion=summ", "did you mean 'sum'"),
    ],
)
def test_words_that_an_ablation_cannot_take_are_refused(word: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        plan("fusion", word)


def test_every_row_with_an_error_is_named(tmp_path: Path) -> None:
    rows = [
        {"name": "a"},
        {"name": "b", "words": ["model.streams=visual"]},
        {"name": "c", "words": ["train.output=elsewhere"]},
        {"name": "d", "words": ["train.stages=[contrastive]"]},
    ]
    path = write(tmp_path / "own.yaml", rows=rows)
    with pytest.raises(UserError) as caught:
        plan(str(path))
    said = str(caught.value)
    assert "row 'a'" not in said
    assert "row 'b': " in said
    assert "train.output=elsewhere: not a row's to say" in said
    assert "has no LLM and cannot be scored" in said


def test_a_start_that_was_trained_again_makes_another_run(tmp_path: Path) -> None:
    """So that no table shows what an earlier one came to; without the start a plan can be made."""
    words = ("train.stages=[finetune]", f"train.start={tmp_path / 'start'}")
    absent = keys(last(words))
    found = [absent]
    for weights in ("one", "one", "other"):
        content = {CONFIG: "{}", WEIGHTS: weights}
        writers = {name: partial(Path.write_text, data=text) for name, text in content.items()}
        write_folder(tmp_path / "start", writers, {})
        found.append(keys(last(words)))
    assert found[1] == found[2]
    assert absent != found[1] != found[3]


def test_rows_that_are_meant_to_differ_and_do_not_are_refused(tmp_path: Path) -> None:
    rows = [{"name": "a"}, {"name": "b", "words": ["train.log_steps=3"]}]
    path = write(tmp_path / "own.yaml", rows=rows)
    with pytest.raises(UserError, match=r"'a' and 'b' differ in train\.log_steps alone"):
        plan(str(path))


def test_the_table_of_progressive_training_has_the_papers_share_of_steps() -> None:
    (table,) = read_ablations("configs/ablation/tiny/progressive.yaml")
    (planned,) = make_plan([table], "ablation_demo", [], (0,), None).ablations
    runs = {row.row.name: [run.run.stage for run in row.runs[0].chain()] for row in planned.rows}
    first, second, last = runs[table.full]
    assert (first.epochs + second.epochs) / last.epochs == pytest.approx((30 + 20) / 15, rel=0.02)
    assert [stage.learning_rate for stage in (first, second)] == [2e-4, 5e-4]
    (longest,) = runs["direct, as many epochs"]
    assert longest.epochs == sum(stage.epochs for stage in runs[table.full])
    assert last == runs["direct"][-1]
