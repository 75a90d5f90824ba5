"""How fast new clips are translated, beside an evaluation of the same clips.

An evaluation reads JPEGs and joints from shards; new clips are videos, which are decoded, scaled
and compressed as the packer does it, and come in any order. Both are timed from a loaded model to
the last sentence, in turn, the best of several rounds; the sentences must be the same. Where other
work takes the cores, processor seconds say what the wall cannot: with workers, those of the model's
own process are what a machine with free cores would wait for.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from signfuse_dist.answer import answer
from signfuse_dist.cli import add_options, from_options, parse
from signfuse_dist.errors import UserError

if TYPE_CHECKING:
    from signfuse_dist.evaluation.evaluate import DecodingPlan
    from signfuse_dist.evaluation.translator import Translator

# What imports torch is imported where it is used: processes that read clips import this file, too.


@dataclass(frozen=True)
class TranslateBench:
    """What is translated."""

    split: str = field(default="test", metadata={"help": "of the corpus (default: %(default)s)"})
    workers: int = field(
        default=0, metadata={"help": "processes that read clips (default: %(default)s)"}
    )
    rounds: int = field(default=3, metadata={"help": "of each way (default: %(default)s)"})

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.workers < 0:
            raise UserError("--rounds: at least 1 is needed, and --workers: 0 or more")


def bench_translate(run_folder: Path, root: Path, bench: TranslateBench) -> str:
    """Translate the split both ways and return the figures as text."""
    from signfuse_dist import device
    from signfuse_dist.corpora import read_corpus
    from signfuse_dist.data.split import open_split
    from signfuse_dist.evaluation.asked import trained_run
    from signfuse_dist.evaluation.choices import Choices
    from signfuse_dist.evaluation.evaluate import AS_IS, DecodingPlan
    from signfuse_dist.evaluation.new_clips import reader_for, sources_of
    from signfuse_dist.evaluation.translate import in_order, translated
    from signfuse_dist.evaluation.translator import load_translator

    run = trained_run(run_folder)
    translator = load_translator(run_folder, device.choose())
    corpus = read_corpus(run.data.corpus, root, bench.split)
    rows = [row for row in corpus.rows if row.video is not None]
    joints = [row.joints for row in rows if row.joints is not None]
    choices = Choices(joints=joints or None, workers=bench.workers)
    sources = sources_of([row.video for row in rows if row.video is not None], choices)
    names = [row.id for row in rows]
    plan = DecodingPlan(run, open_split(run.shards(bench.split), run.data), (AS_IS,))

    def of_shards() -> dict[str, str]:
        return _decoded(translator, plan)

    def of_videos() -> dict[str, str]:
        reader = reader_for(translator.usage, None, say=print, sources=sources, choices=choices)
        found = translated(translator, in_order(reader, sources, bench.workers))
        texts = [t.text if t else f"cannot be read: {clip}" for _, clip, t in found]
        return dict(zip(names, texts, strict=True))

    ways: dict[str, list[tuple[float, float]]] = {"evaluate": [], "translate": []}
    for _ in range(bench.rounds):
        seconds, expected = _timed(of_shards)
        ways["evaluate"].append(seconds)
        seconds, found = _timed(of_videos)
        ways["translate"].append(seconds)
        other = [name for name in names if found[name] != expected.get(name)]
        if other:
            raise UserError(f"{len(other)} clips have other sentences, the first {other[0]}")
    best = {way: tuple(map(min, zip(*taken, strict=True))) for way, taken in ways.items()}
    lines = [
        f"{way:9s} {len(names) / wall:7.1f} clips/s, {wall:6.2f} s, of which the model's process "
        f"computes {cpu:6.2f}"
        for way, (wall, cpu) in best.items()
    ]
    wall, cpu = (ours / theirs for ours, theirs in zip(*best.values(), strict=True))
    return "\n".join(
        [
            f"{len(names)} clips, {bench.workers} workers, {len(os.sched_getaffinity(0))} cores",
            *lines,
            f"translate at {wall:.2f} of the speed of evaluate, {cpu:.2f} by what is computed",
        ]
    )


def _decoded(translator: Translator, plan: DecodingPlan) -> dict[str, str]:
    """Return the sentence of each clip of a split, as an evaluation comes by it."""
    from signfuse_dist.data.loader import ClipBatches, batches, count_workers

    dataset = ClipBatches(plan.split, plan.batches, plan.frames, encode=None)
    workers, pin = count_workers(plan.run.train.num_workers), translator.device.type == "cuda"
    texts: dict[str, str] = {}
    for batch in batches(dataset, workers, pin):
        texts.update({t.id: t.text for t in translator.translate(batch)})
    return texts


def _timed(work: Callable[[], dict[str, str]]) -> tuple[tuple[float, float], dict[str, str]]:
    """Return wall seconds and processor seconds of this process, and what was done."""
    began, cpu = time.perf_counter(), time.process_time()
    done = work()
    return (time.perf_counter() - began, time.process_time() - cpu), done


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the measurement that the command line describes."""
    command = argparse.ArgumentParser(
        prog="python benchmarks/translate.py",
        description="Translate a split's videos as new clips, and its shards as an evaluation "
        "does, with the model of a trained run.",
        epilog="Example: python benchmarks/translate.py runs/demo/finetune data/synthetic. "
        "Figures: docs/benchmarks.md.",
    )
    command.add_argument("run_folder", type=Path, metavar="RUN", help="a finished run")
    command.add_argument("root", type=Path, metavar="ROOT", help="the corpus, as it was packed")
    add_options(command, TranslateBench)
    command.set_defaults(run=_translate)
    options = parse(command, arguments)
    return answer(lambda: options.run(options))


def _translate(options: argparse.Namespace) -> int:
    bench = from_options(TranslateBench, options)
    print(bench_translate(options.run_folder, options.root, bench))
    return 0


if __name__ == "__main__":
    sys.exit(main())
