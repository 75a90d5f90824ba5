"""The development score: how well a stage does, on clips that it does not see.

Paper: names no model selection. Here: the contrastive stage is scored by Eq. 21, the others by
L_LM, nats a token, both lower is better; or by BLEU-4 or chrF where that is asked for. Because:
beam search for a 7B LLM costs more than the epoch it would judge; a loss is one pass without a
gradient, 2 to 3% of an epoch on the paper's corpora. L_LM rises before BLEU falls, so it chooses
early. With ``train.select_by`` of ``bleu`` or ``chrf`` the split is decoded with one beam, as
``signfuse evaluate`` would with ``evaluation.num_beams=1``, and scored by the run's protocol.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from signfuse_dist.batch import SignBatch
from signfuse_dist.config import AugmentConfig, BlendedCorpus, EvaluationConfig, RunConfig
from signfuse_dist.data.loader import ClipBatches, batches, count_workers
from signfuse_dist.data.split import Split, open_split
from signfuse_dist.engine.processes import gather_patiently
from signfuse_dist.errors import UserError
from signfuse_dist.evaluation.protocols import find_preset
from signfuse_dist.evaluation.scores import score_one
from signfuse_dist.model import losses
from signfuse_dist.model.norm import BatchNorm
from signfuse_dist.model.signfuse import SignFuse, SignFuseOutput
from signfuse_dist.model.text_tokenizer import TextTokenizer
from signfuse_dist.objective import set_mode
from signfuse_dist.plan import ClipFrames, MicroBatches, make_plan
from signfuse_dist.progress import print_line
from signfuse_dist.stages import needs_language_model

_METRICS = {"bleu": "BLEU-4", "chrf": "chrF"}
RISING = frozenset(f"dev_{name}" for name in _METRICS)
"""Figures of which higher is better."""


def open_development(run: RunConfig) -> dict[str, Split]:
    """Open the development split, and those of a blend's corpora by their names; raise UserError.

    The first, whose name is "", is the run's own: the one that checkpoints are compared by. Empty
    where no score is asked for.
    """
    if not run.train.dev_epochs:
        return {}
    try:
        own = open_split(run.shards(run.data.dev_split), run.data, run.model.feature_sets)
        of_corpora = {
            part.corpus: open_split(
                part.data.place(part.data.dev_split), part.data, run.model.feature_sets
            )
            for part in (run.corpora if run.data.blend else ())
            if not _is_own(run, part)
        }
    except UserError as e:
        raise UserError(f"{e}; or train without a development score: train.dev_epochs=0") from e
    return {"": own, **of_corpora}


def _is_own(run: RunConfig, part: BlendedCorpus) -> bool:
    """Return whether a corpus's development split is the run's own, asked in the same way."""
    own = run.data.place(run.data.dev_split), run.data.poses
    return (part.data.place(part.data.dev_split), part.data.poses) == own and part.prompt is None


class DevelopmentScores:
    """The scores of the run's own development split and, of a blend, of each of its corpora."""

    def __init__(
        self,
        run: RunConfig,
        model: SignFuse,
        splits: Mapping[str, Split],
        tokenizer: TextTokenizer | None,
        accelerator: Any,
    ) -> None:
        """``splits`` are those of :func:`open_development`; ``model`` is the bare one."""
        numbers = {part.corpus: i for i, part in enumerate(run.corpora)} if run.data.blend else {}
        self._scores = {
            name: DevelopmentScore(run, model, split, tokenizer, accelerator, numbers.get(name))
            for name, split in splits.items()
        }
        self._own = [part.corpus for part in run.data.blend if _is_own(run, part)]

    def __call__(self) -> dict[str, float]:
        """Return the run's own score and, with ``/CORPUS`` behind the name, those of a blend.

        Empty where the run's own could not be taken: no other stands for it.
        """
        found: dict[str, float] = {}
        for name, score in self._scores.items():
            of_split = score()
            if not name and not of_split:
                return {}
            for of in (name,) if name else ("", *self._own):
                found |= {f"{what}/{of}" if of else what: v for what, v in of_split.items()}
        return found


class DevelopmentScore:
    """Scores a model in training; called by every process at the same step.

    Clips come in one order, in groups of ``train.global_batch_size`` that all processes share, and
    B of Eq. 21 is such a group: the score does not depend on the number of processes beyond
    rounding. The model is in evaluation mode meanwhile, nothing is drawn, and the training modes
    are restored, so that training goes on as if it had not been scored.
    """

    def __init__(
        self,
        run: RunConfig,
        model: SignFuse,
        split: Split,
        tokenizer: TextTokenizer | None,
        accelerator: Any,
        corpus: int | None = None,
    ) -> None:
        """``model`` is the bare one: neither DDP nor DeepSpeed may see calls that do not train.

        ``corpus`` is the number of the split's in a blend: it says how its clips are asked.

        Raises UserError where translations would not fit into the LLM's context.
        """
        self._run, self._model, self._accelerator = run, model, accelerator
        once = replace(run.stage, epochs=1, warmup_epochs=0)
        self._plan = make_plan(len(split), once, run.train, accelerator.num_processes)
        frames = ClipFrames(split.lengths, run.data.max_frames, AugmentConfig(), run.train.seed)
        order = MicroBatches(
            self._plan, run.train.seed, frames.counts, accelerator.process_index, 0
        )
        encode = tokenizer.encode if tokenizer else None
        self._clips = ClipBatches(split, order, frames, encode, corpus)
        self._name = run.data.dev_split if corpus is None else str(split.folder)
        self._language = needs_language_model(run.stage.name)
        self._decoding: EvaluationConfig | None = None
        if self._language and run.train.select_by != "loss" and corpus is None:
            self._decoding = replace(run.evaluation, num_beams=1)
            assert tokenizer is not None
            assert model.language_model is not None
            model.language_model.refuse_beyond_context(
                run.model.num_sign_tokens,
                run.evaluation.max_new_tokens,
                "evaluation.max_new_tokens",
            )
        self._tokenizer, self._split = tokenizer, split
        self._translations: dict[str, str] = {}
        self._times = 0

    def __call__(self) -> dict[str, float]:
        """Return `dev_contrastive` or `dev_language`, the same on every process.

        Before it stands `dev_bleu` or `dev_chrf`, where ``train.select_by`` asks for one. Empty,
        with a message, when clips cannot be read or the score is not finite: a score over fewer
        clips than before would compare with nothing.
        """
        self._share_statistics()
        self._translations = {}
        self._model.eval()
        try:
            with torch.no_grad():
                total, count, broken = self._sums()
        finally:
            set_mode(self._model, self._run.stage.name)
        name = "dev_language" if self._language else "dev_contrastive"
        if broken:
            self._print_main(
                f"no development score: {broken:.0f} of {self._plan.num_clips} clips of "
                f"{self._name} could not be read; they are named above"
            )
        elif not count:
            self._print_main(f"no development score: no clip of {self._name} has both streams")
        elif not math.isfinite(total / count):
            self._print_main(f"no development score: {name} is {total / count}")
        else:
            return {**self._scored(), name: total / count}
        return {}

    def _scored(self) -> dict[str, float]:
        """Return the score of the translations of all processes, where they are asked for."""
        if self._decoding is None:
            return {}
        run, metric = self._run, self._run.train.select_by
        self._times += 1
        topic = f"development translations {self._times}"
        parts = gather_patiently(topic, json.dumps(self._translations), lambda: None)
        translations = {name: text for part in parts for name, text in json.loads(part).items()}
        references = {entry.id: entry.text for entry in self._split.entries()}
        preset = find_preset(run.data.metric_preset, run.data.bleu_tokenizer)
        return {f"dev_{metric}": score_one(_METRICS[metric], translations, references, preset)}

    def _translate(self, batch: SignBatch) -> None:
        """Keep the translations of a batch's real clips."""
        assert self._decoding is not None
        assert self._tokenizer is not None
        with self._autocast():
            rows = self._model.decode(batch, self._decoding).tokens
        for name, row in zip(batch.ids, rows, strict=True):
            if name:
                self._translations[name] = self._tokenizer.decode(row)

    def _print_main(self, text: str) -> None:
        if self._accelerator.is_main_process:
            print_line(text)

    def _sums(self) -> tuple[float, float, float]:
        """Return the summed loss, what it is averaged over, and unreadable clips, of all."""
        sums = torch.zeros(3, dtype=torch.float64, device=self._accelerator.device)
        on_gpu = self._accelerator.device.type == "cuda"
        source = batches(self._clips, count_workers(self._run.train.num_workers), on_gpu)
        for _ in range(self._plan.total_steps):
            sums += self._of_group(islice(source, self._plan.accumulation))
        if self._accelerator.num_processes > 1:
            dist.all_reduce(sums)
        total, count, broken = sums.tolist()
        return total, count, broken

    def _of_group(self, group: Iterator[SignBatch]) -> Tensor:
        """Return this process's part of a group: summed loss, count, unreadable clips."""
        summaries, weights = [], []
        sums = torch.zeros(3, dtype=torch.float64, device=self._accelerator.device)
        for batch in group:
            for fault in batch.faults:
                print_line(f"development clip left out: {fault}")
            sums[2] += len(batch.faults)
            batch = batch.to(self._accelerator.device)
            output = self._forward(batch)
            if output.negative_log_likelihood is not None:
                assert batch.text_lengths is not None
                sums[0] += (output.negative_log_likelihood * batch.weight).sum()
                sums[1] += (batch.text_lengths * batch.weight).sum()
                # Sign tokens that are not finite have no translation, and their loss says so.
                if self._decoding is not None and bool(sums[0].isfinite()):
                    self._translate(batch)
            if output.summaries is not None:
                summaries.append(output.summaries)
                weights.append(batch.pair_weight)
        if summaries:
            visual, skeletal = (torch.cat(part) for part in zip(*summaries, strict=True))
            weight = torch.cat(weights)
            temperature = self._run.loss.temperature
            sums[0] += losses.contrastive(visual, skeletal, weight, temperature).sum()
            sums[1] += weight.sum()
        return sums

    def _forward(self, batch: SignBatch) -> SignFuseOutput:
        features = None if self._language else self._run.loss.contrastive_features
        with self._autocast():
            output: SignFuseOutput = self._model(batch, features, self._language)
        return output

    def _autocast(self) -> torch.autocast:
        bf16 = self._run.train.precision == "bf16"
        return torch.autocast(self._accelerator.device.type, torch.bfloat16, enabled=bf16)

    def _share_statistics(self) -> None:
        """Give all processes the norm statistics that are saved: `local` ones are the first's."""
        if self._accelerator.num_processes == 1:
            return
        for norm in self._model.modules():
            if isinstance(norm, BatchNorm) and norm.policy == "local":
                dist.broadcast(norm.running_mean, src=0)
                dist.broadcast(norm.running_var, src=0)
