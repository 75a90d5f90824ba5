"""Decoding: deterministic, shared by all processes, gathered by id."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from tqdm import tqdm

from signfuse_dist.augment import ClipFrames
from signfuse_dist.batch import SignBatch
from signfuse_dist.config import AugmentConfig, RunConfig
from signfuse_dist.config_load import load_resolved
from signfuse_dist.data.loader import ClipBatches, batches, count_workers
from signfuse_dist.data.split import Split, open_split
from signfuse_dist.errors import UserError, raise_together
from signfuse_dist.evaluation.card import write_card
from signfuse_dist.evaluation.control import score_control
from signfuse_dist.evaluation.files import write_gates, write_hypotheses
from signfuse_dist.evaluation.metrics import format_scores, score_with_intervals
from signfuse_dist.evaluation.presets import find_preset
from signfuse_dist.evaluation.results import write_scores
from signfuse_dist.model import saved
from signfuse_dist.model.attention_choice import choose_for
from signfuse_dist.model.signfuse import SignFuse
from signfuse_dist.plan import MicroBatch
from signfuse_dist.stages import needs_language_model


@dataclass(frozen=True)
class Translation:
    """One clip's translation and its gate over time, float32 ``[steps]``, None without a gate.

    ``candidates`` are the best sentences that beam search found, with their scores.
    """

    id: str
    text: str
    gate: NDArray[np.float32] | None
    candidates: list[tuple[str, float | None]]


Share = tuple[list[Translation], list[str]]  # one process's translations and faults


class Translator:
    """A trained stage, ready to translate batches."""

    def __init__(self, run: RunConfig, model: SignFuse) -> None:
        self.run, self.model = run, model.eval()
        self.device = next(model.parameters()).device

    @torch.no_grad()
    def translate(self, batch: SignBatch, num_candidates: int = 1) -> list[Translation]:
        """Translate the clips of a batch; nothing is sampled."""
        tokenizer = self.model.tokenizer
        assert tokenizer is not None
        batch = batch.to(self.device)
        bf16 = self.run.train.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            found = self.model.decode(batch, self.run.evaluation, num_candidates)
        gates: list[NDArray[np.float32] | None] = [None] * len(batch.ids)
        if found.gate is not None:
            rows, lengths = found.gate.float().cpu().numpy(), found.step_lengths.tolist()
            gates = [row[:length] for row, length in zip(rows, lengths, strict=True)]
        sentences = [[(tokenizer.decode(c.tokens), c.score) for c in of] for of in found.candidates]
        return [
            Translation(name, candidates[0][0], over_time, candidates)
            for name, candidates, over_time in zip(batch.ids, sentences, gates, strict=True)
        ]


def load_translator(run_folder: Path, device: torch.device) -> Translator:
    """Load ``RUN/model``; raise UserError when it is missing, damaged or of the first stage."""
    if not (run_folder / "model").is_dir():
        raise UserError(
            f"{run_folder} holds no trained model: give runs/EXPERIMENT/STAGE of a finished stage"
        )
    run = load_resolved(run_folder / "config.yaml")
    if not needs_language_model(run.stage.name):
        raise UserError(f"{run_folder}: the {run.stage.name} stage has no LLM and cannot translate")
    choose_for(run.model, run.train.precision, device)  # or say why not, at once
    # The LLM may have moved since: the run's configuration says where it is now.
    moved = {key: getattr(run.model, key) for key in saved.MOVABLE}
    model = SignFuse.from_pretrained(run_folder / "model", **moved)
    return Translator(run, model.to(device))


def evaluate(run_folder: Path, split_name: str) -> Path:
    """Translate and score one split; write ``RUN/evaluation/SPLIT`` and return that folder.

    Batches are formed from all clips, longest first, before they are shared out, so the result
    does not depend on the number of processes. Raises UserError naming clips that cannot be read:
    a score over fewer clips than the split has would not be that split's score.
    """
    rank, world, device = _processes()
    translator = load_translator(run_folder, device)
    run = translator.run
    find_preset(run.data.metric_preset, run.data.bleu_tokenizer)  # before hours of decoding
    split = open_split(run.shards(split_name), run.data)
    found: dict[str, Translation] = {}
    faults: list[str] = []
    # Faults travel as well: a process that stopped by itself would leave the others waiting.
    for translations, named in _gathered(_own_share(translator, split, rank, world), world):
        found.update({translation.id: translation for translation in translations})
        faults += named
    raise_together(faults, f"{split.folder}: clips cannot be read")
    folder = run_folder / "evaluation" / split_name
    if rank == 0:
        _write(folder, run, split, found)
        write_card(run_folder)
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()
    return folder


def _own_share(translator: Translator, split: Split, rank: int, world: int) -> Share:
    run, size = translator.run, translator.run.evaluation.batch_size
    frames = ClipFrames(split.lengths, run.data.max_frames, AugmentConfig(), run.train.seed)
    order = np.argsort(-frames.counts(0, np.arange(len(split))), kind="stable").tolist()
    places = [MicroBatch(order[i : i + size], 0) for i in range(0, len(order), size)][rank::world]
    dataset = ClipBatches(split, places, frames, encode=None)
    workers = count_workers(run.train.num_workers)
    done: list[Translation] = []
    faults: list[str] = []
    with tqdm(total=sum(len(batch.clips) for batch in places), unit="clip", desc="translating",
              disable=rank > 0) as bar:  # fmt: skip
        for batch in batches(dataset, workers, translator.device.type == "cuda"):
            faults += batch.faults
            done += translator.translate(batch)
            bar.update(len(batch.ids))
    return done, faults


def _write(folder: Path, run: RunConfig, split: Split, found: dict[str, Translation]) -> None:
    references = {entry.id: entry.text for entry in split.entries()}
    if found.keys() != references.keys():
        odd = sorted(found.keys() ^ references.keys())
        raise RuntimeError(f"{len(odd)} clips have no translation or no reference: {odd[:10]}")
    hypotheses = {name: translation.text for name, translation in found.items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_hypotheses(folder / "hypotheses.jsonl", hypotheses, references)
    gates = {name: t.gate for name, t in found.items() if t.gate is not None}
    if gates:
        write_gates(folder / "gates.npz", gates)
    preset = find_preset(run.data.metric_preset, run.data.bleu_tokenizer)
    language = run.data.language
    scores = score_with_intervals(hypotheses, references, preset, language)
    control = score_control(hypotheses, references, preset, run.train.seed, language)
    write_scores(folder / "scores.json", scores, control)
    print(format_scores(scores))
    if control is not None:
        print("\nthe same with the videos shuffled among the sentences:")
        print(format_scores(control))


def _processes() -> tuple[int, int, torch.device]:
    """Join the launched processes; translations travel between hosts, so gloo on GPUs as well."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    if world > 1:
        dist.init_process_group("gloo")
    if not torch.cuda.is_available():
        return rank, world, torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)  # a quantized LLM is loaded onto the current one
    return rank, world, device


def _gathered(own: Share, world: int) -> list[Share]:
    if world == 1:
        return [own]
    parts: list[Share] = [([], [])] * world
    dist.all_gather_object(parts, own)
    return parts
