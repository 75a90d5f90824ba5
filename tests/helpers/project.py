"""A small corpus, a small LLM and a way to launch the trainer as a user does."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml

from helpers.repository import ROOT

FRAME_SIZE = 32
NUM_TRAIN = 20


@dataclass(frozen=True)
class Project:
    """An experiment on a small synthetic corpus, with everything it names in one folder."""

    folder: Path

    @property
    def experiment(self) -> str:
        return str(self.folder / "configs" / "experiment" / "small.yaml")

    def command(self, output: Path, processes: int, words: list[str]) -> list[str]:
        """The command that trains one stage, through `accelerate launch` and DeepSpeed ZeRO-2."""
        return [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            "--config_file",
            "launch/cpu_zero2.yaml",
            "--num_processes",
            str(processes),
            "--main_process_port",
            str(free_port()),
            "-m",
            "signfuse_dist.train",
            self.experiment,
            f"train.output={output}",
            *words,
        ]

    def train(self, output: Path, processes: int, *words: str, status: int = 0) -> str:
        """Train one stage, assert how it ended, and return what was printed."""
        done = subprocess.run(
            self.command(output, processes, list(words)),
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=400,
            check=False,
        )
        assert done.returncode == status, done.stdout
        return done.stdout

    def train_until_killed(
        self, output: Path, processes: int, when: Callable[[], bool], *words: str
    ) -> None:
        """Start a stage and kill every process of it (-9) as soon as ``when()`` holds."""
        with subprocess.Popen(
            self.command(output, processes, list(words)),
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            deadline = time.monotonic() + 300
            while not when():
                assert process.poll() is None, "training ended before it could be killed"
                assert time.monotonic() < deadline
                time.sleep(0.02)
            # Every process by itself: torchrun gives each worker a session of its own.
            tree = psutil.Process(process.pid)
            for child in [*tree.children(recursive=True), tree]:
                child.kill()


def environment() -> dict[str, str]:
    """One thread a process, so that processes do not fight for cores; no GPU is looked for."""
    import torch

    variables = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return variables if torch.cuda.is_available() else {**variables, "DS_ACCELERATOR": "cpu"}


STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "
# What the project says before the first step line, by its first words.
_SAID = re.compile(
    r"small, stage \w+ -> |  20 clips, 2 processes x |  5 steps an epoch, |  4 pairs in each |"
    r"  \w+ +[\d,]+ parameters, |  ResNet: all frames at once |attention: |no MFU: |warning  |"
    + STAMP
    + "first step after "
)


def said_by_others(printed: str) -> list[str]:
    """Return the lines before the first step line that are none of the project's, whole."""
    assert "\r" not in printed
    lines = printed.split("\n")
    first = next(n for n, line in enumerate(lines) if re.match(STAMP + "step 1, epoch 1, ", line))
    assert any(line.startswith("attention: ") for line in lines[:first])
    return [line for line in lines[:first] if not _SAID.match(line)]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """As launched processes have: more threads sum in another order, and drawn weights let it show.

    What was trained is surer of its words.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Draw and pack 20 training clips and build an untrained LLM, once for all tests."""
    from signfuse_dist.data.pack import PackConfig, pack
    from signfuse_dist.synthetic.corpus import write_corpus
    from signfuse_dist.synthetic.language import SplitSizes

    folder = tmp_path_factory.mktemp("project")
    write_corpus(folder / "corpus", sizes=SplitSizes(NUM_TRAIN, 3, 5), frame_size=FRAME_SIZE)
    for split in ("train", "dev", "test"):
        config = PackConfig(frame_size=FRAME_SIZE, fps=10)
        pack("synthetic", folder / "corpus", split, folder / "shards" / split, config, workers=0)
    _write_llm(folder)
    shutil.copytree(ROOT / "configs", folder / "configs")
    _write_experiment(folder)
    return Project(folder)


def _write_llm(folder: Path) -> None:
    from signfuse_dist.config import ModelConfig
    from signfuse_dist.synthetic.tiny_llm import TinyLLM, build, read_texts, train_tokenizer

    size = TinyLLM(vocab_size=300, hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2)
    texts = read_texts(folder / "corpus" / "synthetic.tsv", "train")
    tokenizer = train_tokenizer(texts, ModelConfig.prompt, size.vocab_size)
    build(size, tokenizer).save_pretrained(folder / "llm")
    tokenizer.save_pretrained(folder / "llm")


def _write_experiment(folder: Path) -> None:
    experiment = {
        "use": {"data": "synthetic", "model": "tiny"},
        "data": {"shards": str(folder / "shards"), "frame_size": FRAME_SIZE},
        "model": {
            "llm": str(folder / "llm"),
            "visual_width": 4,
            "dim": 16,
            "num_heads": 2,
            "skeletal_channels": [4, 6, 8, 16],
            "pooled_length": 6,
            "num_sign_tokens": 4,
            "lora_rank": 2,
            "lora_alpha": 4,
        },
        "train": {
            "micro_batch_size": 2,
            "global_batch_size": 4,
            "precision": "fp32",
            "gradient_clipping": 1.0,
            "num_workers": 0,
            "log_steps": 1,
            "checkpoint_steps": 2,
        },
        "stage": {
            name: {"epochs": 1, "warmup_epochs": 0}
            for name in ("contrastive", "alignment", "finetune")
        },
        "evaluation": {"max_new_tokens": 12, "batch_size": 2, "num_beams": 2},
    }
    path = folder / "configs" / "experiment" / "small.yaml"
    path.write_text(yaml.safe_dump(experiment), encoding="utf-8")
