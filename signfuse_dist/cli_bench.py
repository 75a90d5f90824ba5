"""The parsers of `signfuse bench WHAT`. Each imports what it needs when it runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from signfuse_dist.config import STAGES, ModelConfig

if TYPE_CHECKING:
    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_bench(commands: _Commands) -> None:
    """Add the subcommand `bench` and what it can measure."""
    command = commands.add_parser(
        "bench",
        help="measure a part of the system on this machine",
        description="Measure a part of the system on this machine; the figures go to standard "
        "output.",
    )
    whats = command.add_subparsers(
        title="what to measure", required=True, metavar="WHAT", help="each has its own --help"
    )
    for add in (_add_attention, _add_loader, _add_memory, _add_pack, _add_parameters, _add_step):
        add(whats)


def _add_attention(whats: _Commands) -> None:
    command = whats.add_parser(
        "attention",
        help="time and peak memory of each attention backend over the clips' length",
        description="Run forward and backward passes of attention with padding, for every backend "
        "that is here, and say why the others are not.",
    )
    command.add_argument(
        "--lengths", type=_numbers, default=(64, 128, 256, 512), metavar="T,T,...",
        help="steps of the longest clip, as in 64,128 (default: 64,128,256,512)",
    )  # fmt: skip
    command.add_argument("--batch-size", type=int, default=8, help="clips (default: %(default)s)")
    command.add_argument("--dim", type=int, default=ModelConfig.dim, help="default: %(default)s")
    command.add_argument(
        "--heads", type=int, default=ModelConfig.num_heads, help="default: %(default)s"
    )
    command.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"),
        help="default: bfloat16 on a GPU, float32 on a CPU",
    )  # fmt: skip
    command.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: cuda where there is a GPU"
    )
    command.add_argument(
        "--repeats", type=int, default=10, help="passes that are timed (default: %(default)s)"
    )
    command.set_defaults(run=_attention)


def _attention(options: argparse.Namespace) -> int:
    import torch

    from signfuse_dist.bench.attention import AttentionBench, run
    from signfuse_dist.errors import UserError

    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here")
    gpu = options.device == "cuda" or (options.device is None and torch.cuda.is_available())
    bench = AttentionBench(
        lengths=options.lengths,
        batch_size=options.batch_size,
        dim=options.dim,
        num_heads=options.heads,
        dtype=getattr(torch, options.dtype or ("bfloat16" if gpu else "float32")),
        device=torch.device("cuda" if gpu else "cpu"),
        repeats=options.repeats,
    )
    print(run(bench))
    return 0


def _add_loader(whats: _Commands) -> None:
    command = whats.add_parser(
        "loader",
        help="reading a packed split: against a bare loop that decodes the same JPEGs",
        description="Read every clip of a packed split in four ways: bare JPEGs, the loader in "
        "this thread and in another one, and stock webdataset. Wants an idle machine, and memory "
        "for all JPEGs of the split.",
    )
    command.add_argument("folder", help="a split's folder (with manifest.json)")
    command.add_argument("--batch-size", type=int, default=4, help="clips (default: %(default)s)")
    command.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    command.set_defaults(run=_loader)


def _loader(options: argparse.Namespace) -> int:
    from signfuse_dist.bench.loader import bench_loader

    print(bench_loader(options.folder, options.batch_size, options.rounds))
    return 0


def _add_pack(whats: _Commands) -> None:
    command = whats.add_parser(
        "pack",
        help="packing: against a bare loop, on two workers, with pose",
        description="Compare packing with a bare loop of decoding, resizing and JPEG encoding, two "
        "workers with one, and with --pose the time inside MediaPipe with all time. Takes about "
        "two minutes, with pose about six, and wants an idle machine.",
    )
    command.add_argument(
        "--root",
        type=Path,
        metavar="TABLE",
        help="clips to measure with, a TSV with rows of split train (default: one drawn video)",
    )
    command.add_argument("--pose", action="store_true", help="measure with MediaPipe as well")
    command.add_argument(
        "--pose-model",
        type=Path,
        help="a holistic_landmarker.task for mediapipe 1.0 or newer",
    )
    command.set_defaults(run=_pack)


def _pack(options: argparse.Namespace) -> int:
    from signfuse_dist.bench.pack import BenchConfig, bench_pack

    print(bench_pack(BenchConfig(options.root, options.pose, options.pose_model)))
    return 0


def _add_experiment(command: argparse.ArgumentParser) -> None:
    command.add_argument("experiment", help="a YAML file, or a name in configs/experiment")
    command.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="what differs from the files, such as model=llama2_7b",
    )


def _add_memory(whats: _Commands) -> None:
    command = whats.add_parser(
        "memory",
        help="peak memory of the encoders over clip lengths and chunk sizes",
        description="Run a forward and backward pass for each length: the ResNet whole, recomputed "
        "by blocks, and in chunks of frames; and the options at the largest length. Prints what a "
        "pass adds to model, gradients and batch at rest, and its time. Frames are drawn; no data "
        "and no LLM is read.",
    )
    _add_experiment(command)
    command.add_argument(
        "--part",
        choices=("visual", "step"),
        default="visual",
        help="the visual stream alone, or a step of the contrastive stage (default: %(default)s)",
    )
    command.add_argument(
        "--frames", type=_numbers, default=(16, 32, 64), metavar="T,T,...",
        help="frames a clip (default: 16,32,64)",
    )  # fmt: skip
    command.add_argument(
        "--chunks", type=_numbers, default=(4, 8), metavar="N,N,...",
        help="frames at once (default: 4,8)",
    )  # fmt: skip
    command.add_argument(
        "--options", nargs="*", choices=("channels_last", "bf16", "compile"),
        default=("channels_last", "bf16", "compile"),
        help="also tried at the largest length (default: all three)",
    )  # fmt: skip
    command.add_argument("--clips", type=int, default=1, help="default: %(default)s")
    command.add_argument("--threads", type=int, default=1, help="of a CPU (default: %(default)s)")
    command.set_defaults(run=_memory)


def _memory(options: argparse.Namespace) -> int:
    from signfuse_dist.bench.memory import MemoryBench, run

    bench = MemoryBench(
        options.experiment, options.overrides, options.part, options.frames, options.chunks,
        options.options, options.clips, options.threads,
    )  # fmt: skip
    print(run(bench))
    return 0


def _add_parameters(whats: _Commands) -> None:
    command = whats.add_parser(
        "parameters",
        help="count the parameters of every row of the ablations (the paper's section 5.4)",
        description="Build every row's model without memory and count the parameters of its "
        "components. Reads the LLM's configuration, and no data.",
    )
    command.add_argument(
        "names", metavar="NAME", help="files of configs/ablation or paths, with commas; or `all`"
    )
    _add_experiment(command)
    command.set_defaults(run=_parameters)


def _parameters(options: argparse.Namespace) -> int:
    from signfuse_dist.bench.parameters import count_rows

    print(count_rows(options.names, options.experiment, options.overrides))
    return 0


def _add_step(whats: _Commands) -> None:
    command = whats.add_parser(
        "step",
        help="a training step by component, against the same modules in a bare PyTorch loop",
        description="Take steps of the engine and of a bare loop in turn, over the same drawn "
        "batch, and say how they compare (goal: 1.05 at most), by component. The LLM has random "
        "weights; no data and no weights are read. How the model runs is said as in training: "
        "model.visual_chunk=16, model.visual_checkpoint=true, model.visual_compile=true, "
        "model.attention=sdpa, train.precision=bf16.",
    )
    _add_experiment(command)
    command.add_argument("--stage", choices=STAGES, default=STAGES[-1], help="default: %(default)s")
    command.add_argument(
        "--llm-shape", choices=("tiny", "smollm2_135m", "llama2_7b"), default="tiny",
        help="architecture of the LLM (default: %(default)s, for a CPU)",
    )  # fmt: skip
    command.add_argument("--clips", type=int, default=2, help="default: %(default)s")
    command.add_argument(
        "--frames", type=int, default=16, help="frames of each clip (default: %(default)s)"
    )
    command.add_argument(
        "--tokens", type=int, default=24, help="tokens of each text (default: %(default)s)"
    )
    command.add_argument(
        "--repeats", type=int, default=9, help="steps of each loop (default: %(default)s)"
    )
    command.add_argument(
        "--ds-config", type=Path, metavar="TEMPLATE",
        help="run the engine under DeepSpeed with this template (default: plain)",
    )  # fmt: skip
    command.add_argument(
        "--cached",
        action="store_true",
        help="also take steps from cached features; with --stage alignment",
    )
    command.add_argument(
        "--profile", action="store_true", help="also list the five largest costs of a step"
    )
    command.set_defaults(run=_step)


def _step(options: argparse.Namespace) -> int:
    from signfuse_dist.bench.step import bench_step
    from signfuse_dist.bench.step_case import StepBench

    bench = StepBench(
        options.experiment, options.overrides, options.stage, options.llm_shape, options.clips,
        options.frames, options.tokens, options.repeats, options.ds_config, options.cached,
        options.profile,
    )  # fmt: skip
    print(bench_step(bench))
    return 0


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as e:
        raise argparse.ArgumentTypeError(f"{text!r} is not numbers with commas between") from e
