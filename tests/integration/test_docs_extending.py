"""The page on extending: applied to a copy of the code as it stands, every block of it works."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

from helpers.little_clips import write_joints, write_video
from helpers.project import environment
from helpers.repository import ROOT
from helpers.worked_examples import apply, blocks

pytestmark = pytest.mark.long

PAGE = ROOT / "docs" / "extending.md"
HEADER = "clip;talk;begin;finish;sentence;interpreter"
SENTENCES = {
    "train": [
        "a1;t1;0;1.2;good morning;kim", 'a2;t1;1.2;2.4;"the signs; of a talk";kim',
        "a3;t1;2.4;4;thank you;", "b1;t2;0;1.6;a good talk;lee",
        "a1;t2;1.6;3;an id twice;lee", "b2;../t2;1.6;3;out of the folder;lee",
        "b3;t9;0;1;a talk that is not there;lee", "b4;t2;3;2;back in time;lee",
    ],
    "dev": ["c1;t2;1.6;4;good signs;lee"],
}  # fmt: skip

# What the page's own tests and tests/conftest.py import.
HELPERS = ("tests/helpers/model_factory.py", "tests/helpers/repository.py")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the code with the page applied to it, and lectures in the layout it describes."""
    root = tmp_path_factory.mktemp("extended")
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("signfuse_dist", "configs", "launch", "ds_configs"):
        shutil.copytree(ROOT / name, root / name, ignore=ignore)
    (root / "tests" / "helpers").mkdir(parents=True)
    for name in ("setup.cfg", "tests/conftest.py", *HELPERS):
        shutil.copy(ROOT / name, root / name)
    apply(PAGE, root)
    with (root / "launch" / "cpu_zero2.yaml").open("a", encoding="utf-8") as launch:
        launch.write("main_process_port: 0\n")  # tests run beside each other
    lectures = root / "data" / "lectures"
    (lectures / "sentences").mkdir(parents=True)
    for split, lines in SENTENCES.items():
        table = "\n".join([HEADER, *lines]) + "\n"
        (lectures / "sentences" / f"{split}.csv").write_text(table, encoding="utf-8")
    for talk in ("t1", "t2", "unnamed"):
        write_video(lectures / "talks" / f"{talk}.mp4", 40)
        write_joints(lectures / "joints" / f"{talk}.npz", 40)
    return root


@pytest.fixture(scope="module")
def printed(copy: Path) -> dict[str, str]:
    """What each command of the page printed, the Python block after it included."""
    program = ROOT / "tests" / "helpers" / "worked_examples.py"
    done = subprocess.run(
        [sys.executable, str(program), str(PAGE)],
        cwd=copy,
        text=True,
        check=False,
        timeout=900,
        env={**environment(), "PYTHONPATH": str(copy), "PYTHONUNBUFFERED": "1"},
        capture_output=True,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    parts = re.split(r"^\$ (.*)\n", done.stdout, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def run_python(copy: Path, program: str) -> str:
    """Run a program in the copy, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=copy,
        text=True,
        check=False,
        timeout=300,
        env={**environment(), "PYTHONPATH": f"{copy}:{copy / 'tests'}"},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def output(printed: dict[str, str], *words: str) -> str:
    (found,) = (text for line, text in printed.items() if all(w in line.split() for w in words))
    return found


def test_the_lectures_are_packed_and_what_is_wrong_with_a_row_is_named(
    copy: Path, printed: dict[str, str]
) -> None:
    assert "train: 8 rows = 4 packed + 4 dropped" in output(printed, "pack", "lectures", "train")
    dropped = (copy / "shards/lectures/train/dropped.tsv").read_text(encoding="utf-8").splitlines()
    assert [line.split("\t")[1:] for line in dropped[1:]] == [
        ["a1", "duplicate id: 'a1', the first row that has it is kept"],
        ["b2", "bad path: talk 'talks/../t2.mp4' leaves the corpus's folder"],
        ["b3", "missing video: t9.mp4 is no file and no folder of frames"],
        ["b4", "bad time: end 2 s is not after start 3 s"],
    ]
    orphans = (copy / "shards/lectures/train/orphans.tsv").read_text(encoding="utf-8")
    assert "unnamed.mp4\tno row" in orphans
    assert output(printed, "verify").strip() == "shards/lectures/train: whole"


def test_the_clips_that_are_read_back_are_the_windows_of_the_talks(printed: dict[str, str]) -> None:
    lines = output(printed, "stats").splitlines()
    assert [line for line in lines if ", 75, 2)" in line] == [
        "a1 (12, 32, 32, 3) (12, 75, 2) good morning",
        "a2 (12, 32, 32, 3) (12, 75, 2) the signs; of a talk",
        "a3 (16, 32, 32, 3) (16, 75, 2) thank you",
        "b1 (16, 32, 32, 3) (16, 75, 2) a good talk",
    ]


def test_the_table_of_the_same_lectures_packs_the_same_clips(printed: dict[str, str]) -> None:
    by_table = output(printed, "pack", "table").splitlines()[0]
    by_importer = output(printed, "pack", "lectures", "train").splitlines()[0]
    assert by_table == by_importer


def test_the_new_language_models_train_and_translate(copy: Path, printed: dict[str, str]) -> None:
    assert "visual" in output(printed, "check", "model=my_mistral")
    assert "CMFA" in output(printed, "ablate", "fusion")
    for runs in ("runs", "runs/gated_sum"):  # a Mistral, and a BART with the new fusion
        run = copy / runs / "lectures" / "finetune"
        assert (run / "model" / "adapter" / "adapter_model.safetensors").is_file()
        steps = [json.loads(s) for s in (run / "metrics.jsonl").read_text().splitlines()]
        assert any("language" in step for step in steps)
        (line,) = (run / "evaluation/dev/hypotheses.jsonl").read_text().splitlines()
        assert json.loads(line)["reference"] == "good signs"


def test_lora_finds_every_projection_and_the_end_token_is_learned(printed: dict[str, str]) -> None:
    text = output(printed, "evaluate", "runs/lectures/finetune")
    assert "my_mistral: d_LLM 16" in text
    assert "LoRA on ['k_proj', 'o_proj', 'q_proj', 'v_proj']" in text
    assert "LoRA on ['k_proj', 'out_proj', 'q_proj', 'v_proj']" in text
    costs = [float(found) for found in re.findall(r"the end token costs ([\d.]+)", text)]
    assert len(costs) == 2
    assert min(costs) > 1


def test_the_new_fusion_passes_its_tests_and_is_trained_and_saved(
    copy: Path, printed: dict[str, str]
) -> None:
    from safetensors.torch import load_file

    assert "4 passed" in output(printed, "pytest")
    saved = copy / "runs/gated_sum/lectures/finetune/model/model.safetensors"
    names = [name for name in load_file(saved) if name.startswith("fusion.layers.0.")]
    assert "fusion.layers.0.share.weight" in names
    assert not any("skeletal_from_visual" in name for name in names)


def test_check_counts_the_parameters_of_the_new_fusion_on_the_model(
    copy: Path, printed: dict[str, str]
) -> None:
    """At the sizes of the page and of the demo, where its three maps are a third of the fusion."""
    checked = output(printed, "check", "model.fusion=gated_sum")
    saved = copy / "runs/gated_sum/lectures/finetune/model/model.safetensors"
    with safe_open(saved, "np") as tensors:
        names = [name for name in tensors.keys() if name.startswith("fusion.")]  # noqa: SIM118
        count = sum(math.prod(tensors.get_slice(name).get_shape()) for name in names)
    line = f"parameters of model.fusion=gated_sum: {count:,}, counted on the model itself"
    assert line in checked
    assert "memory of a GPU in stage contrastive" in checked
    program = (
        "import sys; from signfuse_dist.experiment import load_stages; "
        "from signfuse_dist.preflight import memory; "
        "run = load_stages('demo', ['model.fusion=gated_sum'])[-1]; "
        "print(memory.parameters(run.model, 128)['fusion'], 'torch' in sys.modules)"
    )
    assert run_python(copy, program).split() == ["49920", "False"]


def test_the_operations_of_the_new_fusion_are_those_that_torch_counts(copy: Path) -> None:
    program = """
from torch.utils.flop_counter import FlopCounterMode
from helpers.model_factory import draw_clips, join, small_model
from signfuse_dist.config import LossConfig
from signfuse_dist.model.flops import StepFlops
from signfuse_dist.objective import StageObjective, prepare, set_mode

model = small_model(fusion="gated_sum", attention="eager")
prepare(model, "contrastive", LossConfig())
set_mode(model, "contrastive")
batch = join(draw_clips([9, 9]))
with FlopCounterMode(display=False, depth=None) as counter:
    StageObjective("contrastive", LossConfig())(model, batch)
counted = sum(counter.get_flop_counts()["SignFuse.fusion"].values())
print(int(StepFlops(model, "unimodal", False)(batch)["fusion"].forward), counted)
"""
    ours, counted = run_python(copy, program).split()
    assert ours == counted
    assert int(ours) > 0


def test_the_operations_of_the_new_fusion_are_in_the_log_and_its_gate_is_in_the_report(
    copy: Path, printed: dict[str, str]
) -> None:
    assert "report.html" in output(printed, "report")
    run = copy / "runs/gated_sum/lectures/finetune"
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(step["fusion/teraflops"] > 0 for step in steps if "fusion/seconds" in step)
    assert list((run / "evaluation/dev/figures").glob("sample-01-gate*.png"))
    page = (run / "evaluation/dev/report.html").read_text(encoding="utf-8")
    assert "The gate of c1 over time" in page


def test_every_block_of_the_page_is_run_written_or_applied() -> None:
    """A block of another kind would be left out without a word."""
    kinds = {block.language for block in blocks(PAGE)}
    assert kinds == {"", "python", "yaml", "diff", "text"}
    assert all(block.file for block in blocks(PAGE) if block.language == "yaml")
