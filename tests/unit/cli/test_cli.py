"""The command `signfuse` as a user meets it: help, errors, statuses."""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from helpers.command_line import refused
from helpers.little_clips import write_corpus
from helpers.repository import ROOT
from signfuse_dist import __version__
from signfuse_dist.cli import add_options, build_parser, data, from_options, main
from signfuse_dist.corpora import CORPORA
from signfuse_dist.data.manifest import MANIFEST_NAME, Manifest, PackConfig, Packing, ShardEntry
from signfuse_dist.data.manifest_files import manifest_bytes
from signfuse_dist.skeleton import JOINT_LAYOUT

DEMO = str(ROOT / "configs" / "experiment" / "demo.yaml")
# What users have in their scripts: each subcommand with its arguments.
ARGUMENTS = {
    "check": "experiment overrides --world-size --launch --gpu-memory --parameters",
    "pack":
        "corpus --root --split --out --retry-dropped --workers --task-id --num-tasks "
        "--frame-size --fps --jpeg-quality --max-gap --clips-per-shard --crop "
        "--pose-confidence --extractor --poses --pose-model --visibility",
    "pose":
        "corpus --root --split --shards --name --workers --task-id --num-tasks --extractor "
        "--poses --pose-model --visibility",
    "features":
        "shards --model --from --name --revision --dtype --precision --frames-at-once --rate "
        "--window --file --task-id --num-tasks",
    "verify": "folder --workers",
    "stats": "folder --poses others --plot",
    "show": "folder --poses id --frames --out",
    "train": "experiment overrides --launch --num-processes",
    "evaluate": "run_folder overrides --split --name --corpus --controls",
    "score":
        "--hypotheses --split --references --preset --tokenizer --language --bleurt --allow-empty "
        "--json --intervals --trained",
    "compare":
        "systems --split --references --preset --tokenizer --language --bleurt --allow-empty "
        "--json --method --num-samples --seed --seeds --published --baselines",
    "report": "run_folder --split --name",
    "translate":
        "model videos --joints --box --nbest --decoding --out --workers --folder-fps "
        "--poses --picture-size --pose-model",
    "serve":
        "model --host --port --max-megabytes --max-waiting --max-kept-megabytes --allow-host "
        "--decoding --max-seconds --max-work-seconds --max-pixels --max-frames --pose-model",
    "ablate":
        "names experiment overrides --seeds --split --plan --collect --parameters --launch "
        "--num-processes --parallel --task-id --num-tasks",
}  # fmt: skip


@pytest.fixture
def shards(tmp_path: Path) -> str:
    """The word that points at a split of 40 clips, written as far as the plan looks at it."""
    folder = tmp_path / "shards" / "train"
    folder.mkdir(parents=True)
    (folder / "shard-000000.tar").write_bytes(b"x" * 512)
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
    shard = ShardEntry("shard-000000.tar", "0" * 64, 512, 40, 400)
    manifest = Manifest(packing, (shard,), 40, 40, 400, 0, 0, "0")
    (folder / MANIFEST_NAME).write_bytes(manifest_bytes(manifest))
    return f"data.shards={tmp_path / 'shards'}"


def misread(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run a command line that cannot be parsed."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "error: " in error
    return error


def told(text: str, name: str) -> bool:
    """Whether the line of an argument says more than its name and that of its value."""
    (line,) = re.findall(rf"^  {re.escape(name)}(?![\w-]).*$", text, re.MULTILINE)
    return re.search(r"\S {2,}\S", line) is not None


@pytest.mark.parametrize("command", ARGUMENTS)
def test_every_subcommand_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: signfuse {command}")
    description = text.partition("\n\n")[2].partition("\n\n")[0]
    assert len(description.split()) >= 8
    arguments = re.findall(r"^  (\S+).*((?:\n {10,}.*)*)", text, re.MULTILINE)
    untold = [name for name, more in arguments if not more and not told(text, name)]
    assert untold == []


def test_the_command_lists_its_subcommands_each_with_a_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for command in ARGUMENTS:
        assert re.search(rf"^    {command}\s+\w\S* \w+", text, re.MULTILINE), command


def test_every_argument_that_users_know_is_there() -> None:
    (subcommands,) = (
        action for action in build_parser()._actions if isinstance(action.choices, dict)
    )
    known = {
        name: " ".join(
            a.option_strings[0] if a.option_strings else a.dest for a in sub._actions[1:]
        )
        for name, sub in subcommands.choices.items()
    }
    assert known == ARGUMENTS


def test_a_bare_command_prints_the_whole_help_and_ends_with_status_2(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert main([]) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", text)
    assert "first steps:" in text
    assert "signfuse check NAME --world-size 4" in text


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"signfuse {__version__}\n"


@pytest.mark.parametrize("command", ["pack", "pose"])
def test_packing_and_poses_list_every_corpus(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = capsys.readouterr().out
    assert [name for name in CORPORA if f"`{name}`" not in text] == []


def test_help_and_command_lines_are_read_without_torch() -> None:
    program = (
        "import sys; from signfuse_dist.cli import build_parser; build_parser();"
        "sys.exit(' '.join({'torch', 'transformers', 'gradio'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@dataclass(frozen=True)
class Baking:
    """A record that is taken from options."""

    name: str
    loaf_weight: float = field(metadata={"help": "in grams"})
    shape: Literal["round", "long"] | None = field(default=None, metadata={"help": "of a loaf"})
    hours: tuple[int, ...] = field(default=(5, 6), metadata={"nargs": "+", "help": "of the day"})
    flours: Sequence[Literal["rye", "wheat"]] = field(default=(), metadata={"help": "mixed"})
    cold: bool = field(default=False, metadata={"help": "overnight"})
    table: Path | None = field(default=None, metadata={"help": "of orders", "metavar": "TSV"})


def baking(*words: str) -> Baking:
    parser = argparse.ArgumentParser()
    add_options(parser, Baking)
    return from_options(Baking, parser.parse_args(words), name="bread")


def test_a_dataclass_says_what_its_options_are_and_is_returned() -> None:
    assert baking("--loaf-weight", "500") == Baking("bread", 500.0)
    words = ["--loaf-weight", "1", "--shape", "long", "--hours", "4", "--flours", "rye", "wheat"]
    made = baking(*words, "--cold", "--table", "t.tsv")
    assert made == Baking("bread", 1.0, "long", [4], ["rye", "wheat"], True, Path("t.tsv"))


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ([], "the following arguments are required: --loaf-weight"),
        (["--loaf-weight", "heavy"], "argument --loaf-weight: invalid float value: 'heavy'"),
        (["--loaf-weight", "1", "--shape", "flat"], "argument --shape: invalid choice: 'flat'"),
        (["--loaf-weight", "1", "--flours", "oat"], "argument --flours: invalid choice: 'oat'"),
        (["--loaf-weight", "1", "--name", "x"], "unrecognized arguments: --name x"),
    ],
)
def test_values_that_a_dataclass_does_not_take_are_refused_by_the_option(
    words: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        baking(*words)
    assert error in capsys.readouterr().err


def test_options_may_be_made_of_some_fields_alone() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser, Baking, "cold")
    assert vars(parser.parse_args([])) == {"cold": False}


def test_a_command_line_that_makes_no_sense_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "COMMAND" in misread(capsys, "--")
    assert "invalid choice: 'pakc'" in misread(capsys, "pakc")
    assert "--world-size" in misread(capsys, "check", DEMO)
    assert "--wrld" in misread(capsys, "check", DEMO, "--world-size", "2", "--wrld", "3")
    assert "a seed is 0 or more" in misread(capsys, "ablate", "all", DEMO, "--seeds", "0,-1")
    assert "surplus" in misread(capsys, "verify", "folder", "--workers", "0", "surplus")


def checked(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["check", *words]) == 1, "the index of the fixture's shard is missing"
    return capsys.readouterr().out


def test_overrides_stand_before_and_after_the_options(
    shards: str, capsys: pytest.CaptureFixture[str]
) -> None:
    size, seed, four = "train.micro_batch_size=2", "train.seed=7", ("--world-size", "4")
    told = checked(capsys, DEMO, shards, size, seed, *four)
    assert "4 processes x 2 clips x 1 accumulated = 8 a step" in told
    assert "seed: 7" in told
    assert checked(capsys, DEMO, *four, shards, size, seed) == told
    assert checked(capsys, DEMO, shards, *four, size, seed) == told
    assert checked(capsys, *four, DEMO, shards, size, seed) == told
    assert "seed: 9" in checked(capsys, DEMO, shards, size, seed, *four, "train.seed=9")


def test_one_stage_can_be_checked(shards: str, capsys: pytest.CaptureFixture[str]) -> None:
    told = checked(capsys, DEMO, shards, "--world-size", "2", "stage=alignment")
    assert "stage alignment" in told
    assert "stage finetune" not in told


def test_check_shows_the_stages_that_are_used_and_warns_of_local_statistics(
    shards: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [shards, "train.stages=[alignment,finetune]", "model.norm=local"]
    printed = checked(capsys, DEMO, *words, "--world-size", "2")
    assert "stage alignment" in printed
    assert "stage contrastive" not in printed
    assert "warning: model.norm=local" in printed


def test_a_batch_that_does_not_divide_is_refused_with_what_does(
    shards: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ("train.global_batch_size=16", "train.micro_batch_size=8")
    error = refused(capsys, "check", DEMO, shards, *sizes, "--world-size", "4")
    assert "train.global_batch_size 16 does not divide by train.micro_batch_size 8 x 4" in error
    assert "train.micro_batch_size of 1, 2, 4 divides" in error
    assert error.count("does not divide") == 1, "said once, not once a stage"
    error = refused(capsys, "check", DEMO, shards, *sizes, "--world-size", "3")
    assert "number of processes that divides 16" in error


@pytest.mark.parametrize("size", ["0", "-1"])
def test_no_processes_are_too_few(
    shards: str, size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(capsys, "check", DEMO, shards, f"--world-size={size}")
    assert f"--world-size {size}" in error


def test_unknown_keys_are_refused_together_each_with_a_suggestion(
    shards: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("train.sed=1", "modle.dim=16", "stage.epochs=0")
    error = refused(capsys, "check", DEMO, shards, "--world-size", "2", *words)
    assert "unknown key 'sed'; did you mean 'seed'?" in error
    assert "no section 'modle'; did you mean 'model'?" in error
    assert "stage.epochs: 0 is not at least 1" in error


@pytest.mark.parametrize("fps", ["0", "-25", "0.0", ".nan"])
def test_a_frame_rate_that_is_none_is_refused(
    shards: str, fps: str, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(capsys, "check", DEMO, shards, f"data.fps={fps}", "--world-size", "2")
    assert "data.fps: " in error


@pytest.mark.parametrize("fps", ["25", "12.5", "null"])
def test_a_frame_rate_or_that_of_the_videos_is_accepted(
    shards: str, fps: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "fps: " in checked(capsys, DEMO, shards, f"data.fps={fps}", "--world-size", "2")


def test_an_experiment_or_shards_that_are_not_there_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "nothing.yaml" in refused(capsys, "check", "nothing.yaml", "--world-size", "2")
    found = checked(capsys, DEMO, f"data.shards={tmp_path}", "--world-size", "2")
    assert f"error    training split {tmp_path / 'train'}: " in found
    assert f"{tmp_path / 'train' / MANIFEST_NAME}: no such file" in found
    assert "signfuse pack" in found


def test_check_answers_within_three_seconds_and_without_torch(shards: str) -> None:
    program = (
        "import sys; from signfuse_dist.cli import main; status = main(sys.argv[1:]);"
        "assert not {'torch', 'transformers', 'accelerate', 'deepspeed'} & set(sys.modules);"
        "sys.exit(status)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    launch = ["--launch", "launch/cpu_zero2.yaml"]
    done = subprocess.run(
        [sys.executable, "-c", program, "check", DEMO, shards, "--world-size", "2", *launch],
        cwd=ROOT,
        check=False,
        timeout=60,
        stdout=subprocess.DEVNULL,
    )
    assert done.returncode == 1
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Time of the processor, so that a busy machine does not count.
    assert after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime < 3


def test_a_user_meets_a_message_and_never_a_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "signfuse_dist.cli", "verify", str(tmp_path / "nowhere")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path / 'nowhere'}: no such folder of shards\n"


def test_ctrl_c_is_answered_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(options: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(data, "_verify", interrupted)
    assert main(["verify", "folder"]) == 130
    assert "run the same command again" in capsys.readouterr().err


@pytest.fixture
def packed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A split packed by the command."""
    table, out = write_corpus(tmp_path / "corpus", 3), tmp_path / "packed"
    words = ["pack", "table", "--root", str(table), "--split", "train", "--out", str(out)]
    assert main([*words, "--workers", "0", "--frame-size", "32", "--clips-per-shard", "2"]) == 0
    assert "train: 3 rows = 3 packed + 0 dropped" in capsys.readouterr().out
    return out


def test_pack_makes_what_verify_finds_whole(
    packed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((packed / MANIFEST_NAME).read_text(encoding="utf-8"))
    assert manifest["settings"]["frame_size"] == 32
    assert len(manifest["shards"]) == 2
    assert main(["verify", str(packed), "--workers", "0"]) == 0
    assert f"{packed}: whole" in capsys.readouterr().out


def test_verify_names_every_fault_and_ends_with_status_1(
    packed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (packed / "shard-000001.index.json").unlink()
    tar = packed / "shard-000000.tar"
    tar.write_bytes(tar.read_bytes()[:-512])
    assert main(["verify", str(packed), "--workers", "0"]) == 1
    out = capsys.readouterr().out
    assert "shard-000000.tar: torn" in out
    assert "shard-000001.index.json" in out
    assert out.splitlines()[-1] == f"{packed}: {len(out.splitlines()) - 1} faults"


def test_pack_says_what_is_wrong_with_what_it_was_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = str(write_corpus(tmp_path / "corpus", 1))

    def told(*words: str, corpus: str = "table", root: str = table) -> str:
        place = ("--root", root, "--split", "train", "--out", str(tmp_path / "out"))
        return refused(capsys, "pack", corpus, *place, "--workers", "0", *words)

    assert "jpeg_quality 0" in told("--jpeg-quality", "0")
    assert "fps -1.0" in told("--fps", "-1")
    assert "absent.tsv" in told(root=str(tmp_path / "absent.tsv"))
    assert "tabel" in told(corpus="tabel")


def test_tasks_share_the_shards_and_the_last_writes_the_manifest(
    tmp_path: Path, packed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, out = str(tmp_path / "corpus" / "corpus.tsv"), tmp_path / "tasks"
    words = ["pack", "table", "--root", table, "--split", "train", "--out", str(out)]
    words += ["--workers", "0", "--frame-size", "32", "--clips-per-shard", "2", "--num-tasks", "2"]
    assert main([*words, "--task-id", "1"]) == 0
    assert "1 of 2 shards are whole" in capsys.readouterr().out
    assert main([*words, "--task-id", "0"]) == 0
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {
        p.name: p.read_bytes() for p in packed.iterdir()
    }
    capsys.readouterr()
    assert "task 2 of 2: must be from 0" in refused(capsys, *words, "--task-id", "2")


def test_a_pose_set_is_extracted_verified_and_named(
    tmp_path: Path, packed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = str(tmp_path / "corpus" / "corpus.tsv")
    words = ["pose", "table", "--root", table, "--split", "train", "--shards", str(packed)]
    assert main([*words, "--name", "v2", "--workers", "0"]) == 0
    assert "train, poses v2: 3 rows = 3 packed" in capsys.readouterr().out
    assert main(["verify", str(packed / "poses" / "v2"), "--workers", "0"]) == 0
    capsys.readouterr()
    assert "pose set '../v2'" in refused(capsys, *words, "--name", "../v2", "--workers", "0")


def test_frames_are_packed_without_an_extractor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, out = str(write_corpus(tmp_path, 1)), tmp_path / "out"
    words = ["pack", "table", "--root", table, "--split", "train", "--out", str(out)]
    words += ["--workers", "0", "--extractor", "none"]
    assert "leave one of them out" in refused(capsys, *words, "--pose-model", "x.task")
    said = refused(capsys, *words, "--visibility", "0.5")
    assert "--visibility 0.5 is of joints that MediaPipe finds" in said
    assert main(words) == 0
    manifest = json.loads((out / MANIFEST_NAME).read_text(encoding="utf-8"))
    assert manifest["extractor"] == "none"


def test_score_prints_figures_with_signatures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "the cat sees the dog and the bird\n"
    (tmp_path / "ours.txt").write_text(text)
    (tmp_path / "theirs.txt").write_text(text)
    files = ["--hypotheses", str(tmp_path / "ours.txt"), "--references"]
    assert main(["score", *files, str(tmp_path / "theirs.txt"), "--preset", "sacrebleu"]) == 0
    out = capsys.readouterr().out
    assert "BLEU-4" in out
    assert "100.0" in out
    assert "tok:13a" in out
    (tmp_path / "theirs.txt").write_text(2 * text)
    words = ("score", *files, str(tmp_path / "theirs.txt"), "--preset")
    assert "has 1 lines" in refused(capsys, *words, "sacrebleu")
    assert "did you mean 'sacrebleu'" in refused(capsys, *words, "sacrableu")


def test_figures_are_written_over_nothing_that_is_read_and_over_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = "id\thypothesis\treference\n1\ta\tb\n"
    for name in ("ours.tsv", "theirs.tsv"):
        Path(name).write_text(text)
    Path("link").symlink_to("theirs.tsv")
    preset = ("--preset", "sacrebleu", "--json")
    of_one = ("score", "--hypotheses", "ours.tsv", "--references", "theirs.tsv", *preset)
    of_two = ("compare", "ours.tsv", "theirs.tsv", *preset)
    for words in (of_one, of_two):
        for place in ("ours.tsv", "theirs.tsv", "link"):
            assert "would be overwritten" in refused(capsys, *words, place)
            assert Path(place).read_text() == text
        for place in (".", "..", str(tmp_path)):
            assert "is a folder" in refused(capsys, *words, place)


def test_a_run_that_is_not_there_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "runs")
    assert run in refused(capsys, "report", run, "--split", "test")
    for words in (["evaluate", run, "--split", "test"], ["translate", run, "video.mp4"]):
        assert f"{run}: no such run folder" in refused(capsys, *words)
        (tmp_path / "runs").mkdir(exist_ok=True)
        assert f"{run}: holds no trained model" in refused(capsys, *words)
        (tmp_path / "runs").rmdir()
