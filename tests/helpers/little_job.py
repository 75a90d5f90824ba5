"""What a run of the demo's configuration reads, small and in order: for the check before a job."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from helpers.little_clips import write_corpus
from signfuse_dist.cli import main
from signfuse_dist.data.manifest import PackConfig
from signfuse_dist.data.pack import pack


def write_job(folder: Path) -> Path:
    """Write three verified splits of four clips, and an LLM's files without its weights."""
    table = write_corpus(folder / "corpus", clips=4)
    config = PackConfig(frame_size=48, fps=10, clips_per_shard=2)
    written = table.read_text()
    for split in ("train", "dev", "test"):
        table.write_text(written.replace("clip.", f"{split}.").replace("sentence", split))
        pack("table", table, split, folder / "shards" / split, config, workers=0)
    assert main(["verify", str(folder / "shards"), "--workers", "0"]) == 0
    llm = folder / "llm"
    llm.mkdir()
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 99}
    (llm / "config.json").write_text(json.dumps({**shape, "dtype": "bfloat16"}))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    every = trainers.BpeTrainer(
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([], every)
    tokenizer.save(str(llm / "tokenizer.json"))
    (llm / "model.safetensors").write_bytes(bytes(4000))
    return folder


def overrides(folder: Path) -> list[str]:
    """Return what the demo's experiment says otherwise, to read what is there."""
    return [
        f"data.shards={folder / 'shards'}",
        f"model.llm={folder / 'llm'}",
        f"train.output={folder / 'runs'}",
    ]
