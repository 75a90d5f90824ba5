"""Eight faults of a disk in every command: the path, the cause and what helps, and no traceback."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from helpers.failing_disk import Call, failing_disk
from helpers.little_clips import write_corpus
from helpers.repository import ROOT
from signfuse_dist import cli
from signfuse_dist.data.pack import PackConfig, pack
from signfuse_dist.jobs import batch, pipeline
from signfuse_dist.synthetic import corpus as synthetic_corpus

FIXTURE = ROOT / "tests" / "fixtures" / "earlier_run"
RUN = "runs/small/finetune"
EXPERIMENT = "configs/experiment/small.yaml"
# The calls that such a disk refuses, and the status that the command ends with.
FAULTS: dict[str, tuple[tuple[Call, ...], int]] = {
    "ENOSPC": (("write",), 75),
    "EDQUOT": (("write",), 75),
    "EROFS": (("write",), 75),
    "EIO": (("read", "write"), 75),
    "ESTALE": (("read", "write"), 75),
    "EMFILE": (("read", "write"), 75),
    "EACCES": (("read", "write"), 2),
    "EXDEV": (("rename",), 2),
}


HELPS = {
    "EACCES": "ask its owner for the right|cannot be read|give --",
    "EXDEV": "keep both on one|give --",
}


def tiny_llm(words: Sequence[str]) -> int:
    from signfuse_dist.synthetic.tiny_llm import main

    return main(words)


@dataclass(frozen=True)
class Case:
    """A command, and the places where a disk fails it; None: there is no such call."""

    words: str
    reads: str
    writes: str | None = None
    main: Callable[[Sequence[str]], int] = cli.main
    closed: int = 2
    """The status where a file may not be read: what looks for faults names it among others."""
    slow: bool = False
    renames: bool = True


TABLE = "table --root corpus/corpus.tsv --split train"
SMALL = "--frame-size 32 --clips-per-shard 2 --workers 0"
POSE = f"pose {TABLE} --shards packed --name v2 --workers 0"
VERIFY = "verify packed --workers 0"
CHECK = f"check {EXPERIMENT} --world-size 1"
EVALUATE = f"evaluate {RUN} --split train"
REPORT = f"report {RUN} --split train"
SCORED = f"{RUN}/evaluation/train"
TRANSLATE = f"translate {RUN} corpus/0.mp4 --joints corpus/0.npz --out new.jsonl"
MANIFEST, INDEX = "packed/manifest.json", "packed/shard-000000.index.json"
DRAW = "new --train 8 --dev 2 --test 2 --frame-size 32"
PRETRAIN = "--text corpus/corpus.tsv --out new --minutes 0.001"
CASES = {
    "pack": Case(f"pack {TABLE} --out new {SMALL}", "corpus/corpus.tsv", "new"),
    "pack, videos away": Case(f"pack {TABLE} --out new {SMALL}", "corpus"),
    "pack again": Case(f"pack {TABLE} --out packed {SMALL}", MANIFEST),
    "pose": Case(POSE, MANIFEST, "packed/poses"),
    "verify": Case(VERIFY, MANIFEST, closed=1),
    "verify, an index": Case(VERIFY, INDEX, closed=1),
    "verify, a shard": Case(VERIFY, "packed/shard-000001.tar", closed=1),
    "stats": Case("stats packed --plot plots/new.png", MANIFEST, "plots"),
    "show": Case("show packed clip.0 --out plots/new.png", "packed/shard-000000.tar", "plots"),
    "check": Case(CHECK, EXPERIMENT),
    "check, its part": Case(CHECK, "configs/model/tiny.yaml"),
    "check, shards": Case(CHECK, "shards/train/manifest.json", closed=1),
    "check, dev": Case(CHECK, "shards/dev/manifest.json", closed=0),
    "check, launch": Case(f"{CHECK} --launch own.yaml", "own.yaml"),
    "train": Case(f"train {EXPERIMENT} --launch own.yaml", EXPERIMENT, slow=True),
    "evaluate": Case(EVALUATE, f"{RUN}/config.yaml", slow=True),
    "evaluate, written": Case(EVALUATE, f"{RUN}/model/state.json", f"{RUN}/evaluation", slow=True),
    "score": Case("score --hypotheses h.jsonl --preset sacrebleu", "h.jsonl"),
    "compare": Case("compare h.jsonl other.jsonl --preset sacrebleu", "other.jsonl"),
    "report": Case(REPORT, f"{SCORED}/hypotheses.jsonl", SCORED, slow=True),
    "report, scores": Case(REPORT, f"{SCORED}/scores.json", slow=True),
    "report, gates": Case(REPORT, f"{SCORED}/gates.npz", closed=0, slow=True),
    "report, curves": Case(REPORT, f"{RUN}/metrics.jsonl", closed=0, slow=True),
    "translate": Case(TRANSLATE, f"{RUN}/config.yaml", slow=True),
    "translate, written": Case(
        TRANSLATE, f"{RUN}/model/state.json", "new.jsonl", slow=True, renames=False
    ),
    "serve": Case(f"serve {RUN}", f"{RUN}/config.yaml", slow=True),
    "ablate": Case(f"ablate own_rows.yaml {EXPERIMENT} --plan", "own_rows.yaml"),
    "ablate, tables": Case(f"ablate own_rows.yaml {EXPERIMENT} --collect", EXPERIMENT, "runs"),
    "synthetic.corpus": Case(DRAW, "new", "new", main=synthetic_corpus.main),
    "synthetic.tiny_llm": Case(PRETRAIN, "corpus/corpus.tsv", main=tiny_llm, slow=True),
    "jobs.pipeline": Case(EXPERIMENT, EXPERIMENT, main=pipeline.main),
    "jobs.batch": Case("true", "jobs", "jobs", main=batch.main),
}


def cases() -> list[object]:
    """Every fault of every call that a command makes."""
    found = []
    for name, case in CASES.items():
        for fault, (calls, status) in FAULTS.items():
            for call in calls:
                place = case.reads if call == "read" else case.writes
                if place is None or (call == "rename" and not case.renames):
                    continue
                usual = fault == {"read": "EIO", "write": "ENOSPC", "rename": "EXDEV"}[call]
                marks = [] if usual and not case.slow else [pytest.mark.long]
                label = f"{name}-{fault}-{call}"
                ends = case.closed if (fault, call) == ("EACCES", "read") else status
                found.append(pytest.param(case, fault, call, place, ends, id=label, marks=marks))
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, a corpus, its shards and what else the commands are given."""
    folder = tmp_path_factory.mktemp("whole") / "project"
    shutil.copytree(FIXTURE, folder)
    table = write_corpus(folder / "corpus", 3)
    config = PackConfig(frame_size=32, clips_per_shard=2)
    pack("table", table, "train", folder / "packed", config, workers=0)
    for name in ("h.jsonl", "other.jsonl"):
        shutil.copy(folder / RUN / "evaluation" / "train" / "hypotheses.jsonl", folder / name)
    (folder / "plots").mkdir()
    (folder / "own.yaml").write_text("num_processes: 1\nmain_process_port: 0\n")
    rows = "rows: [{name: all}, {name: none, words: [model.fusion=sum]}]"
    (folder / "own_rows.yaml").write_text(f"title: t\npaper: p\nfull: all\n{rows}\n")
    return folder


@pytest.mark.parametrize(("case", "fault", "call", "place", "status"), cases())
def test_a_disk_that_fails_a_command_is_named_with_cause_and_what_helps(
    case: Case,
    fault: str,
    call: Call,
    place: str,
    status: int,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    here = tmp_path / "project"
    shutil.copytree(whole, here)
    monkeypatch.chdir(here)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SIGNFUSE_JOBS", "jobs")
    if f"{RUN}/evaluation" == case.writes:
        shutil.rmtree(here / RUN / "evaluation")
    if place == "new" and call == "read":
        (here / "new").mkdir()
        (here / "new" / "corpus.json").write_text("{}")
    if case.reads == "jobs":
        (here / "jobs" / "7").mkdir(parents=True)
        (here / "jobs" / "7" / "attempts.json").write_text("[]")
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with failing_disk(fault, call, here / place) as met:
        ended = case.main(case.words.split())
    said = "".join(capsys.readouterr())
    assert met, "the command does not come that way"
    assert "Traceback" not in said
    assert ended == status, said
    if status == 0:
        return  # a warning of the check, a piece that the report says it lacks
    assert os.strerror(getattr(errno, fault)) in said
    assert place.rpartition("/")[2] in said, "the place is named"
    assert re.search(HELPS.get(fault, "run the same command again"), said, re.IGNORECASE)
