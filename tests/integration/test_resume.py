"""Stopped and killed runs: to the bit on the same processes, to rounding on others, on a full disk.

Training is launched as a user does, but for one script around it that writes down which clips
every step sees, and stops the run, or fills the disk, at a step that a test names.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from helpers import dying_writes
from helpers.project import Project, environment
from helpers.repository import ROOT
from helpers.trained import furthest, log, weights
from signfuse_dist.engine import checkpoint_files
from signfuse_dist.stages import TRAINABLE

pytestmark = [pytest.mark.alone, pytest.mark.long]

AROUND_TRAINING = """
import json, os, signal, sys
from signfuse_dist import train
from signfuse_dist.engine.loop import Step

RANK, WORLD = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
take = Step.take

def take_and_note(self, step, window, counts, interval):
    with open(f"{os.environ['SEEN']}.{RANK}", "a") as file:
        ids = [name for batch in window for name in batch.ids if name]
        file.write(json.dumps({"step": step, "ids": ids}) + "\\n")
    take(self, step, window, counts, interval)
    if step + 1 == int(os.environ.get("STOP_AFTER", 0)) and RANK == WORLD - 1:
        os.kill(os.getpid(), signal.SIGUSR1)
    if step + 1 == int(os.environ.get("FILL_AFTER", 0)) and RANK == 0:
        try:
            with open(os.environ["BALLAST"], "wb") as file:
                while True:
                    file.write(bytes(4096))
                    file.flush()
        except OSError:
            pass

Step.take = take_and_note
if RANK == 0 and "DIE_AT" in os.environ:
    sys.path.append(os.environ["TESTS"])
    from helpers.dying_writes import die_while_writing
    die_while_writing(os.environ["DIE_AT"], write=2)
sys.exit(train.main())
"""

EPOCHS, STEPS, STOP = 2, 10, 7
WHOLE = {
    "contrastive": ["stage=contrastive", f"stage.epochs={EPOCHS}"],
    "finetune": [
        "stage=finetune",
        f"stage.epochs={EPOCHS}",
        "train.stages=[finetune]",
        "train.keep_checkpoints=9",
    ],
}


class Watched:
    """Runs of a project through the script above, in folders of ``folder``."""

    def __init__(self, project: Project, folder: Path) -> None:
        self.project, self.folder = project, folder
        self.script = folder / "around_training.py"
        self.script.write_text(AROUND_TRAINING, encoding="utf-8")

    def launch(self, output: Path, how: str, processes: int, words: list[str], **env: str) -> str:
        """Train on this many processes under `zero2` or `ddp`; return what was printed."""
        command = self.project.command(output, processes, words)
        at = command.index("signfuse_dist.train")
        command[at - 1 : at + 1] = [str(self.script)]
        if how == "ddp":
            command = [
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--nproc_per_node",
                str(processes),
                "--master_port",
                command[command.index("--main_process_port") + 1],
                *command[command.index(str(self.script)) :],
            ]
        seen = {"SEEN": str(output) + ".seen", "TESTS": str(ROOT / "tests"), **env}
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**environment(), **seen},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
            check=False,
        )
        finished = not env
        assert (done.returncode == 0) == finished, done.stdout
        return done.stdout

    def undisturbed(self, stage: str) -> Path:
        """Return the output of a stage from nothing on two processes under ZeRO-2."""
        output = self.folder / f"undisturbed-{stage}"
        if not output.exists():
            self.launch(output, "zero2", 2, [*WHOLE[stage], micro(2)])
            assert sorted(self.seen(output)) == list(range(STEPS))
        return output

    def stopped(self, stage: str, how: tuple[str, int], name: str) -> Path:
        """Return a copy, called ``name``, of the output of a stage that was stopped half way."""
        first = self.folder / f"{stage}-{how[0]}{how[1]}"
        if not first.exists():
            words = [*WHOLE[stage], micro(how[1])]
            printed = self.launch(first, *how, words, STOP_AFTER=str(STOP))
            assert "stopped; run the same command again" in printed
        for path in (first, *self.folder.glob(f"{first.name}.seen.*")):
            copy = shutil.copytree if path.is_dir() else shutil.copy
            copy(path, self.folder / path.name.replace(first.name, f"{first.name}-{name}", 1))
        return self.folder / f"{first.name}-{name}"

    def seen(self, output: Path) -> dict[int, set[str]]:
        """Return the clips of each step, those of all processes together."""
        steps: dict[int, list[str]] = {}
        for path in output.parent.glob(f"{output.name}.seen.*"):
            for line in path.read_text(encoding="utf-8").splitlines():
                noted = json.loads(line)
                steps.setdefault(noted["step"], []).extend(noted["ids"])
        assert all(len(ids) == len(set(ids)) for ids in steps.values()), "a clip twice in a step"
        return {step: set(ids) for step, ids in steps.items()}


def micro(processes: int) -> str:
    """The micro batch with which as many clips meet as on two processes."""
    return f"train.micro_batch_size={4 // processes}"


def relative(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The distance of all weights over their size."""
    assert one.keys() == other.keys()
    apart = sum(float((one[n].double() - other[n].double()).square().sum()) for n in one)
    size = sum(float(value.double().square().sum()) for value in other.values())
    return float((apart / size) ** 0.5)


@pytest.fixture(scope="module")
def watched(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    return Watched(project, tmp_path_factory.mktemp("watched"))


@pytest.mark.parametrize(
    ("stage", "first", "then"),
    [
        ("finetune", ("zero2", 2), ("zero2", 1)),
        ("finetune", ("zero2", 1), ("zero2", 2)),
        ("finetune", ("zero2", 2), ("zero2", 4)),
        ("finetune", ("zero2", 2), ("ddp", 2)),
        ("finetune", ("ddp", 2), ("zero2", 2)),
        ("contrastive", ("zero2", 2), ("zero2", 1)),
        ("contrastive", ("zero2", 1), ("zero2", 2)),
        ("contrastive", ("zero2", 2), ("zero2", 4)),
    ],
)
def test_a_stopped_stage_goes_on_elsewhere_with_the_same_clips_and_weights(
    watched: Watched,
    stage: str,
    first: tuple[str, int],
    then: tuple[str, int],
) -> None:
    """On another number of processes, or under plain DDP what ZeRO-2 began."""
    output = watched.stopped(stage, first, f"{then[0]}{then[1]}")
    printed = watched.launch(output, *then, [*WHOLE[stage], micro(then[1])])
    undisturbed = watched.undisturbed(stage)
    assert f"resuming after step {STOP} of {STEPS}" in printed
    assert watched.seen(output) == watched.seen(undisturbed)
    ours, theirs = weights(output, stage), weights(undisturbed, stage)
    apart = relative(ours, theirs)
    print(f"{stage} {first} {then}: {apart:.2e} relative, {furthest(ours, theirs):.2e} at most")
    assert apart <= 1e-6
    name = "dev_contrastive" if stage == "contrastive" else "dev_language"
    one, other = log(output, stage)[-1], log(undisturbed, stage)[-1]
    assert one[name] == pytest.approx(other[name], rel=3e-6)


def test_another_number_of_clips_that_meet_is_refused_by_name(watched: Watched) -> None:
    """Half the clips in the statistics of the batch norms would be another training."""
    output = watched.folder / "refused"
    words = WHOLE["contrastive"]
    watched.launch(output, "zero2", 1, [*words, micro(1)], STOP_AFTER="2")
    words = [*words, "train.micro_batch_size=2"]
    printed = watched.launch(output, "zero2", 1, words, STOP_AFTER="4")
    assert "was trained with 4 clips that see each other at a time" in printed
    assert "give train.micro_batch_size=4, which keeps every number" in printed
    assert max(watched.seen(output)) == 1


def test_the_best_checkpoint_becomes_the_model_when_it_is_asked_for(
    watched: Watched, tmp_path: Path
) -> None:
    """Of a finished run too: its checkpoints are there. The score is made worse at the end."""
    source = watched.undisturbed("finetune") / "small" / "finetune"
    folder = tmp_path / "small" / "finetune"
    shutil.copytree(source, folder)
    shutil.rmtree(folder / "model")
    state = json.loads((folder / "checkpoints" / f"step_{STEPS:08d}" / "state.json").read_text())
    del state["state_sha256"]  # it is changed on purpose
    state["score"] += 1.0
    (folder / "checkpoints" / f"step_{STEPS:08d}" / "state.json").write_text(json.dumps(state))
    words = [*WHOLE["finetune"], "train.select=best", "train.micro_batch_size=4"]
    printed = watched.project.train(tmp_path, 1, *words)
    assert "model of step 5" in printed
    best = checkpoint_files.find_best(folder / "checkpoints", pytest.fail)
    assert best is not None
    expected = load_file(best.path / "weights.safetensors")
    found = load_file(folder / "model" / "model.safetensors")
    assert furthest(found, {name: expected.get(name, found[name]) for name in found}) == 0.0
    assert furthest(found, load_file(source / "model" / "model.safetensors")) > 0.0


def test_a_full_disk_is_said_and_the_run_ends_as_the_undisturbed_one_when_there_is_room(
    watched: Watched, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here (needs root)")
    try:
        output, ballast = disk / "runs", disk / "ballast"
        words = [*WHOLE["finetune"], micro(2)]
        printed = watched.launch(
            output,
            "zero2",
            2,
            words,
            SEEN=str(tmp_path / "seen"),
            FILL_AFTER="5",
            BALLAST=str(ballast),
        )
        assert "No space left on device" in printed
        assert "training goes on" in printed
        refusals = re.findall(
            r"error: (the checkpoint of step \d+ could not be written.*)", printed
        )
        assert len(refusals) == 2, "both processes end"
        assert refusals[0] == refusals[1], "at one step, for one reason"
        assert re.search(
            r"of step [24], and what was trained since, up to step \d+, is", refusals[0]
        )
        assert "Traceback" not in printed.split("ChildFailedError")[0].split("Traceback")[0]
        assert not (output / "small" / "finetune" / "model").exists()
        ballast.unlink()
        printed = watched.project.train(output, 2, *words)
        # Step 4's may not have been on the disk yet when it was filled.
        assert re.search(r"resuming after step [24] of 10", printed), printed
        whole = watched.undisturbed("finetune")
        assert furthest(weights(output, "finetune"), weights(whole, "finetune")) == 0.0
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_killed_21_times_the_stages_end_as_undisturbed_ones(
    watched: Watched, tmp_path: Path
) -> None:
    """In each stage twice at random, before the first checkpoint or in a step, and once at
    each moment of writing one."""
    project = watched.project
    draw = random.Random(20261124)
    words = ["stage.epochs=8"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    kills = 0
    for stage in TRAINABLE:
        project.train(whole, 2, f"stage={stage}", *words)
        folder = killed / "small" / stage
        for kill in [None] * 2 + list(dying_writes.MOMENTS):
            if kill is None:
                when = moment(folder / "metrics.jsonl", draw.randint(0, 6), draw.uniform(0, 0.4))
                project.train_until_killed(killed, 2, when, f"stage={stage}", *words)
            else:
                watched.launch(killed, "zero2", 2, [f"stage={stage}", *words], DIE_AT=kill)
            assert not (folder / "model").exists()
            # What a kill leaves is no damage: the newest is whole, and nothing else has a name.
            checkpoint_files.find_latest(folder / "checkpoints", pytest.fail)
            kills += 1
        project.train(killed, 2, f"stage={stage}", *words)
        assert furthest(weights(killed, stage), weights(whole, stage)) == 0.0
        kept = (
            checkpoint_files.list_checkpoints(output / "small" / stage / "checkpoints")
            for output in (killed, whole)
        )
        ours, theirs = ([path.name for path in paths] for paths in kept)
        assert ours == theirs
        for name in ours:
            path = Path("small") / stage / "checkpoints" / name
            one, other = (
                {
                    n: t
                    for part in ("weights", "optimizer")
                    for n, t in load_file(output / path / f"{part}.safetensors").items()
                }
                for output in (killed, whole)
            )
            assert furthest(one, other) == 0.0
        scores = [
            [
                (line["step"], line.get("dev_language"), line.get("dev_contrastive"))
                for line in log(output, stage)
            ]
            for output in (killed, whole)
        ]
        assert scores[0] == scores[1]
        assert not list((folder / "checkpoints").glob(".*")), "nothing half written is left"
    assert kills == 21


class moment:
    """True ``delay`` seconds after a log has ``lines`` more lines than now, or a run has begun."""

    def __init__(self, metrics: Path, lines: int, delay: float) -> None:
        self.metrics, self.delay = metrics, delay
        self.wanted = self._count() + lines if lines else 0
        self.reached: float | None = None

    def __call__(self) -> bool:
        if self.reached is None and self._count() >= self.wanted:
            self.reached = time.monotonic() + self.delay * (1 if self.wanted else 20)
        return self.reached is not None and time.monotonic() >= self.reached

    def _count(self) -> int:
        return self.metrics.read_bytes().count(b"\n") if self.metrics.exists() else 0
