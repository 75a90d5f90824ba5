"""What a user mistyped is said before torch and the LLM are loaded, which takes seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from helpers.repository import ROOT
from signfuse_dist.experiment import load_run
from signfuse_dist.plan import make_plan
from signfuse_dist.run_folder import begin

# Runs each command line of standard input, and says what it imported when it was refused.
SCRIPT = """
import sys
from signfuse_dist.cli import main
for line in sys.stdin.read().splitlines():
    status = main(line.split("\\t"))
    heavy = [m for m in ("torch", "transformers", "deepspeed", "matplotlib") if m in sys.modules]
    print("=>", status, *heavy, file=sys.stderr, flush=True)
"""


def finished_run(folder: Path) -> Path:
    """A run folder that looks finished, and a packed split `test` beside it."""
    words = [f"train.output={folder}", f"data.shards={folder / 'shards'}"]
    run = load_run(str(ROOT / "configs" / "experiment" / "demo.yaml"), "finetune", words)
    begin(run, make_plan(20, run.stage, run.train, 1), None, main=True)
    (run.folder / "model").mkdir()
    (run.folder / "model" / "state.json").write_text("{}")
    (folder / "shards" / "test").mkdir(parents=True)
    (folder / "shards" / "test" / "manifest.json").write_text("{}")
    return run.folder


def test_a_mistyped_folder_split_or_setting_is_named_before_torch_is_imported(
    tmp_path: Path,
) -> None:
    run, none = str(finished_run(tmp_path)), str(tmp_path / "none")
    text = tmp_path / "text.tsv"
    text.write_text("id\thypothesis\treference\n1\ta\tb\n", encoding="utf-8")
    said = {
        ("evaluate", none, "--split", "test"): f"{none}: no such run folder",
        ("evaluate", run, "--split", "tset"): "did you mean 'test'?. There are: test",
        ("evaluate", run, "--split", "test", "evaluation.num_beans=2"): "did you mean 'num_beams'",
        ("report", none, "--split", "test"): f"{none}: no such run folder",
        ("report", run, "--split", "test"): "evaluate the run on 'test' first",
        ("translate", none, "clip.mp4"): f"{none}: no such run folder",
        ("serve", none): f"{none}: no such run folder",
        ("compare", none, run, "--preset", "neccam"): f"{none}: no such file or folder",
        ("compare", str(text), run, "--preset", "neccam"): "say which split of it",
        ("compare", str(text), run, "--split", "tset", "--preset", "neccam"): "evaluate the run",
        ("score", "--hypotheses", none, "--preset", "neccam"): f"{none}: no such file or folder",
        ("score", "--hypotheses", run, "--preset", "neccam"): "say which split of it",
        ("score", "--hypotheses", run, "--split", "tset", "--preset", "neccam"): "evaluate the run",
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input="\n".join("\t".join(words) for words in said),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    *answers, end = done.stderr.split("=> 2\n")  # refused, with nothing heavy imported
    assert end == "", end
    for answer, what in zip(answers, said.values(), strict=True):
        assert answer.startswith("error: ")
        assert what in answer
