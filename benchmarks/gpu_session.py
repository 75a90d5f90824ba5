"""The first quarter of an hour on a machine with a GPU: does it work, is it right, what costs most.

Every part is a command of this repository in a process of its own, with a limit of its own and a
log. A part that fails or does not fit into the time is a row that says so; the others run. At the
end the figures stand in one Markdown file.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from signfuse_dist.answer import answer
from signfuse_dist.cli import add_options, from_options, parse
from signfuse_dist.config import STAGES
from signfuse_dist.device import describe
from signfuse_dist.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = ("torch", "accelerate", "deepspeed", "transformers", "peft", "flash-attn")
_STOPPED = 75  # of a run that was asked to stop
_KILL_AFTER = 20.0  # seconds that a part has for its last words


@dataclass(frozen=True)
class GpuSession:
    """What is run, and where it writes."""

    out: Path = field(
        default=Path("gpu-session"),
        metadata={"metavar": "FOLDER", "help": "logs, runs and the table (default: %(default)s)"},
    )
    seconds: int = field(
        default=900, metadata={"help": "of the whole; what is left is named (default: %(default)s)"}
    )
    shards: Path = field(
        default=Path("shards/synthetic"),
        metadata={"metavar": "FOLDER", "help": "the demo's, of `make synthetic` (%(default)s)"},
    )
    rehearse: bool = field(
        default=False,
        metadata={"help": "the same parts at a size for a CPU: figures that mean nothing"},
    )


@dataclass(frozen=True)
class Size:
    """How large the parts are."""

    precision: str
    shape: str
    chunk: int
    checkpoint_steps: int
    epochs: int


_FULL = Size(
    precision="bf16",
    shape="how2sign --llm-shape llama2_7b --clips 8 --frames 128 --repeats 3",
    chunk=128,
    checkpoint_steps=20,
    epochs=1,
)
_REHEARSAL = Size(
    precision="fp32",
    shape="demo --llm-shape tiny --clips 2 --frames 8 --repeats 1",
    chunk=4,
    checkpoint_steps=20,
    epochs=1,
)


@dataclass(frozen=True)
class Part:
    """What came of a command: ``status`` None where time was over before it ended or began."""

    name: str
    status: int | None
    seconds: float
    log: Path | None
    expected: Sequence[int] = (0,)

    @property
    def failed(self) -> bool:
        """Whether it ended with a status that it should not have."""
        return self.status is not None and self.status not in self.expected

    def __str__(self) -> str:
        if self.log is None:
            return "not run: no time was left"
        if self.status is None:
            return f"ended after its {self.seconds:.0f} s"
        if self.status == 0:
            return "done"
        return f"status {self.status}: {self._last_words()}"

    def _last_words(self) -> str:
        assert self.log is not None
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else "nothing was printed"


class Clock:
    """Runs parts one after the other until the time of the session is over."""

    def __init__(self, session: GpuSession, environment: Mapping[str, str]) -> None:
        self._session, self._environment = session, environment
        self._began = time.monotonic()
        self.parts: list[Part] = []

    def left(self) -> float:
        """Return the seconds that are left."""
        return self._session.seconds - (time.monotonic() - self._began)

    def run(self, name: str, limit: float, *words: str, expected: Sequence[int] = (0,)) -> Part:
        """Run ``python words`` for ``limit`` seconds at most, its output in a log of its name."""
        with self.started(name, limit, *words, expected=expected):
            pass
        return self.parts[-1]

    @contextmanager
    def started(
        self, name: str, limit: float, *words: str, expected: Sequence[int] = (0,)
    ) -> Iterator[subprocess.Popen[bytes] | None]:
        """Start a part, yield its process, and wait for its end; None where no time is left."""
        limit = min(limit, self.left() - _KILL_AFTER)
        if limit <= 0:
            self._end(Part(name, None, 0.0, None))
            yield None
            return
        log = self._session.out / f"{name.replace(' ', '_').replace('/', '_')}.log"
        began = time.monotonic()
        with (
            log.open("wb") as output,
            subprocess.Popen(
                [sys.executable, *words],
                cwd=ROOT,
                env=dict(self._environment),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            ) as process,
        ):
            yield process
            status: int | None = None
            try:
                status = process.wait(max(1.0, limit - (time.monotonic() - began)))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
        self._end(Part(name, status, time.monotonic() - began, log, expected))

    def _end(self, part: Part) -> None:
        self.parts.append(part)
        print(f"{self._session.seconds - self.left():4.0f} s  {part.name}: {part}", flush=True)


def run_session(session: GpuSession) -> tuple[Path, Sequence[Part]]:
    """Run all parts; return the Markdown file and what came of each.

    Raises UserError for what keeps it from beginning.
    """
    if not torch.cuda.is_available() and not session.rehearse:
        raise UserError(
            f"a GPU session on {describe()}: run it where there is a GPU, or see with --rehearse "
            "that its parts run"
        )
    if not (session.shards / "tiny_llm" / "config.json").is_file():
        raise UserError(f"--shards {session.shards}: not the demo's shards: run `make synthetic`")
    if session.out.exists() and any(session.out.iterdir()):
        raise UserError(f"--out {session.out} is not empty: give another folder")
    session.out.mkdir(parents=True, exist_ok=True)
    size = _REHEARSAL if session.rehearse else _FULL
    clock = Clock(session, {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"})
    sections = [_machine(session)]
    clock.run("tests of kernels", 120, "-m", "pytest", "-q", "tests/gpu", "-p", "no:cacheprovider")
    sections += [
        _section("Training", _train, session, clock, size),
        _section("The same bits", _repeat, session, clock, size),
        _section("A step at full size", _steps, session, clock, size),
    ]
    sections.append(_table(("part", "seconds", "what came of it"), _rows(clock.parts), "Parts"))
    written = session.out / "benchmarks.md"
    written.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    return written, clock.parts


def _section(
    title: str,
    make: Callable[[GpuSession, Clock, Size], str],
    session: GpuSession,
    clock: Clock,
    size: Size,
) -> str:
    return f"### {title}\n\n{make(session, clock, size)}"


def _machine(session: GpuSession) -> str:
    """Return what ran: device, versions, command and date."""
    versions = []
    for name in _PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {name}")
    rehearsed = "\n\n**A rehearsal: these figures mean nothing.**" if session.rehearse else ""
    return (
        f"## On a GPU\n\n`make gpu-session`, {datetime.date.today()}, {describe()}; Python "
        f"{sys.version.split()[0]}, {', '.join(versions)}.{rehearsed}"
    )


def _words(session: GpuSession, size: Size, output: str, launch: str, *more: str) -> list[str]:
    """Return the command that trains the demo's stages in short."""
    return [
        *("-m", "signfuse_dist.cli", "train", "demo"),
        *("--launch", f"launch/{launch}.yaml", "--num-processes", "1"),
        f"train.output={session.out / output}",
        f"train.precision={size.precision}",
        f"data.shards={session.shards}",
        f"model.llm={session.shards / 'tiny_llm'}",
        *("train.micro_batch_size=8", "train.global_batch_size=8", "train.dev_epochs=1"),
        *("train.log_steps=5", f"train.checkpoint_steps={size.checkpoint_steps}"),
        *(f"stage.epochs={size.epochs}", "stage.warmup_epochs=0"),
        *more,
    ]


def _train(session: GpuSession, clock: Clock, size: Size) -> str:
    """Train every stage under ZeRO-2 and DDP, and translate with the last one."""
    rows = []
    for launch in ("node_zero2", "node_ddp"):
        clock.run(f"train {launch}", 150, *_words(session, size, launch, launch))
        for stage in STAGES:
            line = _last_line(session.out / launch / "demo" / stage / "metrics.jsonl")
            names = ("total", "frames_per_second", "peak_memory_gb", "data_wait", "mfu")
            rows.append((launch, stage, *(_figure(line.get(name)) for name in names)))
    folder = session.out / "node_zero2" / "demo" / "finetune"
    words = ("-m", "signfuse_dist.cli", "evaluate", str(folder), "--split", "dev")
    clock.run("evaluate", 90, *words, "evaluation.num_beams=2")
    head = ("launch", "stage", "last total loss", "frames/s", "peak GB", "data wait", "MFU")
    return _table(head, rows)


def _repeat(session: GpuSession, clock: Clock, size: Size) -> str:
    """Say whether the same run, and a run that was stopped and went on, ends with the same bits."""

    def contrastive(output: str, *more: str) -> list[str]:
        return _words(session, size, output, "node_zero2", "stage=contrastive", *more)

    exact = "train.deterministic=true"
    clock.run("train again", 60, *contrastive("again"))
    clock.run("train deterministic", 60, *contrastive("exact", exact))
    clock.run("train deterministic again", 60, *contrastive("exact_again", exact))
    folder = session.out / "stopped" / "demo" / "contrastive"
    with clock.started("stop", 60, *contrastive("stopped", exact), expected=(_STOPPED,)) as process:
        while process is not None and process.poll() is None and clock.left() > _KILL_AFTER:
            if any((folder / "checkpoints").glob("step_*/state.json")):
                process.send_signal(signal.SIGTERM)
                break
            time.sleep(0.05)
    stopped = clock.parts[-1].status
    clock.run("go on", 60, *contrastive("stopped", exact))
    ended = "" if stopped == _STOPPED else f" (the stop ended with {stopped}, not {_STOPPED})"
    pairs = {
        "the same run twice": ("node_zero2", "again"),
        "twice with train.deterministic": ("exact", "exact_again"),
        f"stopped and gone on, train.deterministic{ended}": ("exact", "stopped"),
    }
    rows = [(name, _compare(session, *outputs)) for name, outputs in pairs.items()]
    return _table(("weights after the contrastive stage", "difference"), rows)


def _compare(session: GpuSession, one: str, other: str) -> str:
    paths = [
        session.out / name / "demo" / "contrastive" / "model" / "model.safetensors"
        for name in (one, other)
    ]
    if missing := [str(path) for path in paths if not path.is_file()]:
        return f"not known: no {' and no '.join(missing)}"
    first, second = (load_file(path) for path in paths)
    if all(torch.equal(first[name], second[name]) for name in first):
        return "none, bit for bit"
    largest = max((first[n].double() - second[n].double()).abs().max().item() for n in first)
    return f"at most {largest:.1e}"


def _steps(session: GpuSession, clock: Clock, size: Size) -> str:
    """Measure a step in each way that the model can be run."""
    whole = "model.visual_chunk=null"
    zero2 = ("--ds-config", "ds_configs/zero2.json")
    ways: dict[str, tuple[str, ...]] = {
        "whole, ZeRO-2": (*zero2, whole, "--profile"),
        "whole, plain": (whole,),
        "in chunks": (f"model.visual_chunk={size.chunk}",),
        "channels first": (whole, "model.visual_channels_last=false"),
        "attention sdpa": (whole, "model.attention=sdpa"),
        "attention varlen": (whole, "model.attention=varlen"),
        "attention flash_attention_2": (whole, "model.attention=flash_attention_2"),
        "compiled": (whole, "model.visual_compile=true"),
    }
    records: dict[str, dict[str, Any]] = {}
    for name, words in ways.items():
        record = session.out / f"step_{len(records)}.json"
        command = ("benchmarks/step.py", *size.shape.split(), *words, "--record", str(record))
        # Status 2: what this way needs is not here, and its row says so.
        part = clock.run(f"step {name}", 80, *command, expected=(0, 2))
        records[name] = json.loads(record.read_text()) if part.status == 0 else {"why": str(part)}
    return "\n\n".join([_step_table(records), *_costs(next(iter(records.values())))])


def _step_table(records: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for name, record in records.items():
        if "why" in record:
            rows.append((name, str(record["why"]), *[""] * 3))
            continue
        engine, bare = record["engine"], record["bare"]
        mfu = ", ".join(
            f"{part} {values['mfu']:.1%}"
            for part, values in record["parts"].items()
            if values.get("mfu")
        )
        rows.append(
            (
                name,
                _figure(engine["frames_per_second"]),
                f"{engine['seconds'] / bare['seconds']:.3f}",
                _figure(engine["peak_gb"]),
                mfu or "none",
            )
        )
    head = ("way", "frames/s", "over a bare loop", "peak GB", "MFU by component")
    return _table(head, rows)


def _costs(record: Mapping[str, Any]) -> list[str]:
    costs = [
        (cost["name"], f"{cost['share']:.1%}", f"{cost['milliseconds']:.2f}", str(cost["calls"]))
        for cost in record.get("largest", ())
    ]
    title = "The five largest costs of a step, by time of their own:"
    return [f"{title}\n\n{_table(('operator', 'share', 'ms', 'calls'), costs)}"] if costs else []


def _last_line(path: Path) -> dict[str, Any]:
    """Return the last line of a run's metrics, empty where the stage has not written one."""
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    last: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    return last


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _rows(parts: Sequence[Part]) -> list[tuple[str, ...]]:
    return [(part.name, f"{part.seconds:.0f}", str(part)) for part in parts]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> str:
    lines = [head, ["---"] * len(head), *rows]
    drawn = "\n".join(f"| {' | '.join(c.replace('|', ' ') for c in line)} |" for line in lines)
    return f"### {title}\n\n{drawn}" if title else drawn


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the session and return 0, or 1 where a part failed."""
    command = argparse.ArgumentParser(
        prog="python benchmarks/gpu_session.py",
        description="On a machine with a GPU, in a quarter of an hour and without network: tests "
        "of the kernels, every stage under ZeRO-2 and DDP, the same run twice, a stop and a "
        "resume, an evaluation, and a step of the paper's model in each way that it can be run. "
        "Writes logs and benchmarks.md into a folder. What a part needs that is not here is said "
        "in its row.",
        epilog="Example: python benchmarks/gpu_session.py --out gpu-session. Figures: "
        "docs/benchmarks.md.",
    )
    add_options(command, GpuSession)
    options = parse(command, arguments)
    return answer(lambda: _run(from_options(GpuSession, options)))


def _run(session: GpuSession) -> int:
    written, parts = run_session(session)
    print(written.read_text(encoding="utf-8"))
    print(f"written: {written}")
    failed = [part.name for part in parts if part.failed]
    if failed:
        print(f"failed, see their logs beside it: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
