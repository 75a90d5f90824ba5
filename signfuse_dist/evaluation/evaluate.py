"""Evaluation of a split: the same bytes on any number of processes, resumed after a kill.

Batches are formed from all clips of the split, longest first, and process r of n decodes
``batches[r::n]``: which clips are computed together does not depend on the number of processes. A
finished batch is a line of the process's part file, in a folder whose name is a hash of everything
that the sentences depend on; whoever goes on reads the part files of all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
import transformers
from numpy.typing import NDArray

from signfuse_dist import __version__
from signfuse_dist.config import AugmentConfig, RunConfig
from signfuse_dist.data.loader import ClipBatches, batches, count_workers
from signfuse_dist.data.manifest_files import manifest_bytes
from signfuse_dist.data.split import Split
from signfuse_dist.data.staging import stage
from signfuse_dist.data.storage import is_local, open_folder
from signfuse_dist.device import has_gpu
from signfuse_dist.errors import UserError, raise_together
from signfuse_dist.evaluation.asked import AskedEvaluation, ask
from signfuse_dist.evaluation.controls import (
    USUAL_CONTROLS,
    hidden,
    score_control,
    why_inapplicable,
)
from signfuse_dist.evaluation.protocols import find_preset
from signfuse_dist.evaluation.scores import (
    NearAttention,
    Scores,
    SplitScores,
    format_split_scores,
    name_ids,
    score,
    score_with_intervals,
    write_split_scores,
)
from signfuse_dist.evaluation.seen import packed_texts, score_unseen
from signfuse_dist.evaluation.translations import (
    rank_samples,
    spread_samples,
    write_arrays,
    write_hypotheses,
)
from signfuse_dist.evaluation.translator import Translation, Translator, load_translator
from signfuse_dist.files import checksum, write_json
from signfuse_dist.languages import fill_prompt
from signfuse_dist.locks import held
from signfuse_dist.model.positions import near_diagonal
from signfuse_dist.plan import ClipFrames, MicroBatch
from signfuse_dist.progress import Progress, print_line
from signfuse_dist.report.model_card import write_card
from signfuse_dist.run_folder import EvaluationFolder, RunFolder
from signfuse_dist.system_errors import at_path, told

AS_IS = "as_is"
Unit = tuple[str, int]
"""A piece of the work: how the clips are shown (AS_IS or a control), and the batch's number."""
Decoded = dict[Unit, list[Translation]]


def evaluate(
    run_folder: Path,
    split_name: str,
    overrides: Sequence[str] = (),
    controls: Sequence[str] = USUAL_CONTROLS,
    name: str | None = None,
    corpus: str | None = None,
) -> Path:
    """Translate and score one split; write ``RUN/evaluation/SPLIT[@NAME]``, return that folder.

    Every launched process calls this. ``overrides`` are ``evaluation.key=value``. ``corpus`` is one
    of a blend, whose split is meant: it is written as ``SPLIT@CORPUS``, or ``SPLIT@CORPUS.NAME``.
    What is there with the same settings is not computed again; controls that it has not are added.
    Raises UserError as :func:`~signfuse_dist.evaluation.asked.ask` does, and naming clips that
    cannot be read or have no text: a score over fewer clips than the split has would not be that
    split's.
    """
    began = time.monotonic()
    words = (run_folder, split_name, overrides, controls, name, corpus)
    asked = ask(*words)
    run, split, folder = asked.run, asked.split, asked.folder
    if asked.is_answered:
        return folder.path
    with joined() as processes, ExitStack() as until_end:
        if _hold(folder, processes, until_end, lambda: ask(*words).is_answered):
            return folder.path
        translator = load_translator(run_folder, processes.device, overrides)
        translator.ask_by(fill_prompt(run.model.prompt, run.data.language))
        references = _references(split)
        split = _staged(split, run.data.stage_to, processes)
        reasons = {c: why_inapplicable(c, run.model, len(split)) for c in asked.controls}
        decoded_controls = [c for c in asked.controls if c != "shuffled" and reasons[c] is None]
        plan = DecodingPlan(run, split, (AS_IS, *decoded_controls))
        key = processes.agree(plan.key(run_folder, processes.device))
        parts = PartFiles(folder.parts / key, processes.rank)
        before = parts.read(plan) if processes.rank == 0 else {}
        done = processes.agree(frozenset(before))
        decoded = _decode(translator, plan, parts, processes, done)
        if processes.rank == 0:
            translations = _by_id({**before, **decoded}, plan)
            result = EvaluationResult(asked, references, translations, reasons)
            write_evaluation(run_folder, folder, result, _attention_of(translator, plan))
            _write_record(folder, processes, plan, len(done), time.monotonic() - began)
        parts.remove()
    return folder.path


def _hold(
    folder: EvaluationFolder,
    processes: Processes,
    until_end: ExitStack,
    is_answered: Callable[[], bool],
) -> bool:
    """Let the first process alone write in the folder; return whether all is there by now.

    Every process raises what the first one does, and HeldError where another evaluation writes.
    """
    answered = False
    refusal: UserError | None = None
    if processes.rank == 0:
        try:
            until_end.callback(_remove_empty, folder.path)
            until_end.enter_context(held(folder.lock, f"the evaluation {folder.path}"))
            answered = is_answered()
            if answered:
                print(f"{folder.path}: another process has evaluated it meanwhile")
        except UserError as e:
            refusal = e
        except OSError as e:
            refusal = told(e, folder.path)
    answered, refusal = processes.agree((answered, refusal))
    if refusal is not None:
        raise refusal
    return answered


def _remove_empty(folder: Path) -> None:
    """Remove the folder of an evaluation that came to nothing, and the one above."""
    with suppress(OSError):  # they hold something
        folder.rmdir()
        folder.parent.rmdir()


def _staged(split: Split, stage_to: str | None, processes: Processes) -> Split:
    """Return the split as it is read from this node's disk; every process raises what any does."""
    if stage_to is None:
        return split
    refusal: UserError | None = None
    try:
        split = stage(split, stage_to)
    except UserError as e:
        refusal = e
    for found in processes.gather(refusal):
        if found is not None:
            raise found
    return split


@dataclass
class DecodingPlan:
    """What is to be decoded: a function of run, split and controls, never of the processes."""

    run: RunConfig
    split: Split
    shown: tuple[str, ...]
    """AS_IS and the controls that are decoded."""

    @cached_property
    def frames(self) -> ClipFrames:
        """How many frames of each clip the model sees."""
        return ClipFrames(self.split.lengths, self.run.data.max_frames, AugmentConfig(), 0)

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Frames of each clip, ``[clips]``."""
        return self.frames.counts(0, np.arange(len(self.split)))

    @cached_property
    def batches(self) -> list[MicroBatch]:
        """The clips of each batch, longest first."""
        size = self.run.evaluation.batch_size
        order = np.argsort(-self.counts, kind="stable").tolist()
        return [MicroBatch(order[i : i + size], 0) for i in range(0, len(order), size)]

    def ids(self, batch: int) -> list[str]:
        """Return the names of the clips of a batch."""
        return [self.split.ids[clip] for clip in self.batches[batch].clips]

    def num_frames(self, batch: int) -> int:
        """Return the frames of a batch: what its time goes by, nearly."""
        return int(self.counts[self.batches[batch].clips].sum())

    def missing(self, done: frozenset[Unit]) -> dict[int, list[str]]:
        """Return the ways of showing that are not done, by batch."""
        todo = {b: [s for s in self.shown if (s, b) not in done] for b in range(len(self.batches))}
        return {batch: shown for batch, shown in todo.items() if shown}

    def key(self, run_folder: Path, device: torch.device) -> str:
        """Return a name for everything that the sentences depend on."""
        run, split = self.run, self.split
        manifests = split.manifests
        decoding = asdict(run.evaluation)
        del decoding["num_samples"]
        parts = {
            "model": checksum(RunFolder(run_folder).model_state),
            "numbers": asdict(run.model),
            "precision": run.train.precision,
            "decoding": decoding,
            "max_frames": run.data.max_frames,
            "data": [hashlib.sha256(manifest_bytes(m)).hexdigest() for m in manifests],
            "versions": [__version__, torch.__version__, transformers.__version__],
            "device": device.type if device.type == "cpu" else torch.cuda.get_device_name(device),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


@dataclass
class PartFiles:
    """The finished batches of one evaluation: a file a process in ``folder``, that of its key."""

    folder: Path
    rank: int

    def read(self, plan: DecodingPlan) -> Decoded:
        """Return the units that earlier processes have finished, however many there were."""
        if any(self.folder.glob("part-*.jsonl")):
            print(f"{self.folder}: of an earlier version, is decoded again", file=sys.stderr)
        decoded: Decoded = {}
        for path in sorted(self.folder.glob("rank-*.jsonl")):
            with at_path(path):
                lines = path.read_bytes().splitlines()
            for line in lines:
                decoded.update(_read_unit(line, plan))
        return decoded

    def append(self, unit: Unit, translations: Sequence[Translation]) -> None:
        """Put a finished unit on the disk."""
        # A float32 has the same digits as a Python float, so it comes back bit by bit.
        clips = [[t.id, t.text, None if t.gate is None else t.gate.tolist()] for t in translations]
        entry = {"shown": unit[0], "batch": unit[1], "clips": clips}
        self.folder.mkdir(parents=True, exist_ok=True)
        with at_path(self._own), self._own.open("ab") as file:
            # The last line of a process that was killed may be cut short: a line of its own.
            file.write(f"\n{json.dumps(entry, ensure_ascii=False)}".encode())
            file.flush()
            os.fsync(file.fileno())

    def remove(self) -> None:
        """Remove what all processes left under this key; other keys keep theirs.

        Each process calls this when all have finished: a host may be the only one that sees its
        file.
        """
        self._own.unlink(missing_ok=True)
        if self.rank == 0:
            shutil.rmtree(self.folder, ignore_errors=True)
            if self.folder.parent.is_dir() and not any(self.folder.parent.iterdir()):
                self.folder.parent.rmdir()

    @property
    def _own(self) -> Path:
        return self.folder / f"rank-{self.rank}.jsonl"


def _read_unit(line: bytes, plan: DecodingPlan) -> Decoded:
    """Return the unit of a line; nothing where the line is cut short or of other clips."""
    try:
        entry = json.loads(line)
        unit = str(entry["shown"]), int(entry["batch"])
        translations = [
            Translation(str(name), str(text), gate if gate is None else np.array(gate, np.float32))
            for name, text, gate in entry["clips"]
        ]
    except (ValueError, KeyError, TypeError):
        return {}
    fits = 0 <= unit[1] < len(plan.batches) and [t.id for t in translations] == plan.ids(unit[1])
    return {unit: translations} if fits else {}


T = TypeVar("T")
# Process 0 scores while the others wait, and shares do not end at the same time.
_PATIENCE = timedelta(hours=24)


@dataclass(frozen=True)
class Processes:
    """This process among the ``world`` that were launched."""

    rank: int
    world: int
    device: torch.device

    def gather(self, own: T) -> list[T]:
        """Return what every process gives, on every process."""
        if self.world == 1:
            return [own]
        parts: list[T] = [own] * self.world
        dist.all_gather_object(parts, own)
        return parts

    def agree(self, own: T) -> T:
        """Return what the first process gives, on every process."""
        return self.gather(own)[0]


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the launched processes.

    Sentences travel between hosts, so gloo on GPUs as well. On the CPU every process computes on
    one thread: more threads add up in another order, and what is written must not depend on how
    many there are. More processes make it faster.
    """
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    device, threads = torch.device("cpu"), torch.get_num_threads()
    if has_gpu():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)  # a quantized LLM is loaded onto the current one
    else:
        torch.set_num_threads(1)
    try:
        if world > 1:
            dist.init_process_group("gloo", timeout=_PATIENCE)
        yield Processes(rank, world, device)
        if world > 1:
            dist.barrier()
    finally:
        torch.set_num_threads(threads)
        if world > 1 and dist.is_initialized():
            dist.destroy_process_group()


def _decode(
    translator: Translator,
    plan: DecodingPlan,
    parts: PartFiles,
    processes: Processes,
    done: frozenset[Unit],
) -> Decoded:
    """Decode what is not done, together with the other processes; return what all have decoded.

    Raises UserError on all of them together: one that stopped by itself would leave the others
    waiting.
    """
    decoded: Decoded = {}
    faults: list[str] = []
    for share, share_faults in processes.gather(
        _decode_share(translator, plan, parts, processes, done)
    ):
        decoded.update(share)
        faults += share_faults
    raise_together(sorted(set(faults)), f"{plan.split.folder}: clips cannot be translated")
    return decoded


def _decode_share(
    translator: Translator,
    plan: DecodingPlan,
    parts: PartFiles,
    processes: Processes,
    done: frozenset[Unit],
) -> tuple[Decoded, list[str]]:
    """Decode this process's share of what is not done; return it, and what was wrong."""
    todo = plan.missing(done)
    share = list(todo)[processes.rank :: processes.world]
    dataset = ClipBatches(plan.split, plan.batches, plan.frames, encode=None)
    workers, pin = count_workers(plan.run.train.num_workers), translator.device.type == "cuda"
    decoded: Decoded = {}
    faults: list[str] = []
    with _progress(plan, processes, todo, share) as progress:
        for number, batch in zip(share, batches(dataset, workers, pin, share), strict=True):
            faults += batch.faults
            for shown in todo[number]:
                unit = (shown, number)
                seen = batch if shown == AS_IS else hidden(batch.to(translator.device), shown)
                try:
                    decoded[unit] = translator.translate(seen)
                except UserError as error:  # a broken model: no other batch would fare better
                    return decoded, [*faults, str(error)]
                if not batch.faults:
                    parts.append(unit, decoded[unit])
                progress.advance(plan.num_frames(number))
    return decoded, faults


def _progress(
    plan: DecodingPlan, processes: Processes, todo: Mapping[int, list[str]], share: Sequence[int]
) -> Progress:
    """Return the progress of the first process's share, in frames, whose time left is nearly true.

    That share has the longest batches: it takes the longest, and the others are nearly as long.
    """
    every = sum(map(plan.num_frames, range(len(plan.batches)))) * len(plan.shown)
    left = sum(plan.num_frames(batch) * len(shown) for batch, shown in todo.items())
    if processes.rank == 0 and left < every:
        print_line(f"{(every - left) / every:.0%} was decoded before; going on", sys.stderr)
    ways = f" as {', '.join(plan.shown)}" if len(plan.shown) > 1 else ""
    of = f", share of 1 of {processes.world} processes" if processes.world > 1 else ""
    return Progress(
        f"translating {len(plan.split)} clips{ways}{of}",
        sum(plan.num_frames(batch) * len(todo[batch]) for batch in share),
        "frame",
        active=processes.rank == 0,
    )


def _by_id(decoded: Decoded, plan: DecodingPlan) -> dict[str, dict[str, Translation]]:
    """Return the translations by way of showing and id; a set of other ids is a defect."""
    by_id: dict[str, dict[str, Translation]] = {shown: {} for shown in plan.shown}
    for (shown, _), translations in decoded.items():
        if shown in by_id:  # else left by an evaluation with more controls
            by_id[shown].update({translation.id: translation for translation in translations})
    for shown, ours in by_id.items():
        odd = sorted(ours.keys() ^ set(plan.split.ids))
        if odd:
            raise RuntimeError(f"{shown}: {len(odd)} ids are not those of the split: {odd[:10]}")
    return by_id


def _references(split: Split) -> dict[str, str]:
    """Return the texts by id; raise UserError where there is nothing to score against."""
    references = {entry.id: entry.text for entry in split.entries()}
    blank = sorted(name for name, text in references.items() if not text.strip())
    if blank:
        raise UserError(
            f"{split.folder}: {len(blank)} of {len(references)} clips have no text to score "
            f"against: {name_ids(blank)}. Pack the split without those rows; videos alone are "
            "for `signfuse translate`"
        )
    return references


def _attention_of(translator: Translator, plan: DecodingPlan) -> Any:
    """Return a function that gives the cross-attention maps of a clip by its id."""
    place_of = {name: place for place, name in enumerate(plan.split.ids)}

    def maps(name: str) -> dict[str, NDArray[np.float32]]:
        places = [MicroBatch([place_of[name]], 0)]
        return translator.cross_attention(
            ClipBatches(plan.split, places, plan.frames, encode=None)[0]
        )

    return maps


@dataclass(frozen=True)
class EvaluationResult:
    """What was decoded: translations by way of showing and id, and why controls do not apply."""

    asked: AskedEvaluation
    references: dict[str, str]
    translations: dict[str, dict[str, Translation]]
    reasons: dict[str, str | None]

    def sentences(self, shown: str) -> dict[str, str]:
        """Return the hypotheses of one way of showing, by id."""
        return {name: t.text for name, t in self.translations[shown].items()}


Maps = Callable[[str], Mapping[str, NDArray[np.float32]]]


def write_evaluation(
    run_folder: Path, folder: EvaluationFolder, result: EvaluationResult, maps: Maps
) -> None:
    """Write all files of an evaluation's folder, the run's model card, and print the scores.

    ``maps`` gives a clip's cross-attention by its id. The scores are written last but the card, so
    a folder with scores has the rest.
    """
    sentences = result.sentences(AS_IS)
    folder.path.mkdir(parents=True, exist_ok=True)
    write_hypotheses(folder.hypotheses, sentences, result.references)
    _write_or_remove(folder.gates, _gates(result))
    of_samples = _sample_maps(result, sentences, maps)
    _write_or_remove(folder.attention, of_samples)
    results = replace(_results(result, sentences), near_attention=near_attention(of_samples))
    write_split_scores(folder.scores, results)
    write_card(run_folder)
    print(format_split_scores(results))


def _gates(result: EvaluationResult) -> dict[str, NDArray[np.float32]]:
    """Return the gate of each clip over time, empty for a clip of one stream among others."""
    gates = {t.id: t.gate for t in result.translations[AS_IS].values()}
    if all(gate is None for gate in gates.values()):
        return {}
    none = np.empty(0, dtype=np.float32)
    return {name: none if gate is None else gate for name, gate in gates.items()}


def _results(result: EvaluationResult, sentences: dict[str, str]) -> SplitScores:
    run = result.asked.run
    preset = find_preset(run.data.metric_preset, run.data.bleu_tokenizer)
    language, references = run.data.language, result.references
    scores = score_with_intervals(sentences, references, preset, language)
    controls: dict[str, Scores] = {}
    for control in (name for name, reason in result.reasons.items() if reason is None):
        if control == "shuffled":
            shuffled = score_control(sentences, references, preset, run.train.seed, language)
            assert shuffled is not None
            controls[control] = shuffled
        else:
            controls[control] = score(result.sentences(control), references, preset, language)
    inapplicable = {name: reason for name, reason in result.reasons.items() if reason}
    decoding, settings = asdict(run.evaluation), result.asked.settings
    trained = _training_texts(run)
    unseen = score_unseen(sentences, references, trained, preset, language) if trained else None
    return SplitScores(scores, controls, inapplicable, decoding, settings, unseen=unseen)


def _training_texts(run: RunConfig) -> set[str]:
    """Return the texts of all that was trained on; a split that is not here is named and left out.

    Indexes at an address would have to be fetched, so those are not looked at.
    """
    texts: set[str] = set()
    for part in run.corpora:
        try:
            folder = open_folder(part.data.place(part.data.train_split))
            texts |= packed_texts(folder) if is_local(folder) else set()
        except UserError as error:
            print_line(f"sentences of training on {part.corpus} are not scored apart: {error}")
    return texts


def _sample_maps(
    result: EvaluationResult, sentences: dict[str, str], maps: Maps
) -> dict[str, NDArray[np.float32]]:
    """Return the maps of the samples that the report shows, by ``DIRECTION/ID``."""
    ranked = rank_samples(sentences, result.references)
    chosen = spread_samples(ranked, result.asked.run.evaluation.num_samples)
    return {f"{way}/{s.id}": array for s in chosen for way, array in maps(s.id).items()}


def near_attention(maps: Mapping[str, NDArray[np.float32]]) -> NearAttention | None:
    """Return how near attention stays to the diagonal of maps by ``DIRECTION/ID``; None of none."""
    shares: dict[str, list[float]] = {}
    chances = []
    for name, weights in maps.items():
        share, chance = near_diagonal(torch.from_numpy(weights))
        shares.setdefault(name.partition("/")[0], []).append(share)
        chances.append(chance)
    if not chances:
        return None
    means = {way: fmean(values) for way, values in shares.items()}
    return NearAttention(means, fmean(chances), len(next(iter(shares.values()))))


def _write_or_remove(path: Path, arrays: Mapping[str, NDArray[np.float32]]) -> None:
    """Write the arrays; where there are none, none of an earlier evaluation may stay."""
    if arrays:
        write_arrays(path, arrays)
    else:
        path.unlink(missing_ok=True)


def _write_record(
    folder: EvaluationFolder,
    processes: Processes,
    plan: DecodingPlan,
    num_before: int,
    seconds: float,
) -> None:
    """Write ``evaluation.json``: how it was computed, which no score depends on."""
    cuda = processes.device.type == "cuda"
    record = {
        "processes": processes.world,
        "device": torch.cuda.get_device_name(processes.device) if cuda else "cpu",
        "seconds": round(seconds, 1),
        "units": len(plan.batches) * len(plan.shown),
        "units_decoded_before": num_before,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "signfuse_dist": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    write_json(folder.record, record)
