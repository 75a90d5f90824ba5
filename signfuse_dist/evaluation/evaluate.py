"""Evaluation of a split: deterministic, shared by all processes, resumed after a kill."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
import uuid
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

import numpy as np
import torch
import torch.distributed as dist
import transformers
from numpy.typing import NDArray
from torch.distributed.rendezvous import rendezvous
from tqdm import tqdm

from signfuse_dist import __version__
from signfuse_dist.batch import SignBatch
from signfuse_dist.config import AugmentConfig, RunConfig
from signfuse_dist.data.loader import ClipBatches, batches, count_workers
from signfuse_dist.data.manifest import manifest_bytes
from signfuse_dist.data.split import Split, open_split
from signfuse_dist.errors import UserError, raise_together
from signfuse_dist.evaluation.controls import CONTROLS, hidden, score_control, why_inapplicable
from signfuse_dist.evaluation.protocols import find_preset
from signfuse_dist.evaluation.scores import (
    Results,
    Scores,
    format_scores,
    name_ids,
    score,
    score_with_intervals,
    write_results,
)
from signfuse_dist.evaluation.translations import (
    rank_samples,
    spread,
    write_arrays,
    write_hypotheses,
    write_json,
)
from signfuse_dist.evaluation.translator import Translation, Translator, load_translator
from signfuse_dist.files import checksum
from signfuse_dist.plan import ClipFrames, MicroBatch
from signfuse_dist.report.model_card import write_card
from signfuse_dist.run_folder import EvaluationFolder, RunFolder

AS_IS = "as_is"
Unit = tuple[str, int]
"""A piece of the work: how the clips are shown (AS_IS or a control), and the batch's number."""
Ids = Sequence[tuple[str, ...]]
"""The clips of each batch."""


@dataclass
class Journal:
    """The files of one evaluation; ``folder`` is that of its key."""

    folder: Path
    _file: IO[bytes] | None = None
    _path: Path | None = None

    def read(self, ids: Ids) -> dict[Unit, list[Translation]]:
        """Return the finished units that earlier processes have left."""
        found: dict[Unit, list[Translation]] = {}
        for path in sorted(self.folder.glob("part-*.jsonl")):
            for line in path.read_bytes().split(b"\n"):
                entry = _read_line(line, ids)
                if entry is not None:
                    found[entry[0]] = entry[1]
        return found

    def append(self, unit: Unit, translations: Sequence[Translation]) -> None:
        """Put a finished unit on the disk."""
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Never behind an earlier process's last line, which may be cut short.
            self._path = self.folder / f"part-{uuid.uuid4().hex}.jsonl"
            self._file = self._path.open("xb")
        clips = [_plain(translation) for translation in translations]
        entry = {"shown": unit[0], "batch": unit[1], "clips": clips}
        text = json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
        self._file.write(b"%08x %s\n" % (zlib.crc32(text), text))
        self._file.flush()
        os.fsync(self._file.fileno())

    def remove_own(self) -> None:
        """Remove this process's file: its host may be the only one that sees it."""
        if self._file is not None and self._path is not None:
            self._file.close()
            self._path.unlink(missing_ok=True)
            self._file = self._path = None

    def remove(self) -> None:
        """Remove what all processes of this key left; other keys keep theirs."""
        for path in self.folder.glob("part-*.jsonl"):
            path.unlink(missing_ok=True)
        for folder in (self.folder, self.folder.parent):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def _read_line(line: bytes, ids: Ids) -> tuple[Unit, list[Translation]] | None:
    """Return what a line holds, or None when it is not whole or of other clips."""
    said, _, text = line.partition(b" ")
    if not text or said != b"%08x" % zlib.crc32(text):
        return None
    try:
        entry = json.loads(text)
        shown, batch = str(entry["shown"]), int(entry["batch"])
        translations = [_translation(clip) for clip in entry["clips"]]
    except (ValueError, KeyError, TypeError):
        return None
    names = tuple(translation.id for translation in translations)
    fits = 0 <= batch < len(ids) and names == ids[batch]
    return ((shown, batch), translations) if fits else None


def _plain(translation: Translation) -> dict[str, Any]:
    gate = translation.gate
    # A float32 has the same digits as a Python float, so it comes back bit by bit.
    steps = None if gate is None else [float(value) for value in gate]
    return {"id": translation.id, "text": translation.text, "gate": steps}


def _translation(clip: Mapping[str, Any]) -> Translation:
    gate = clip["gate"]
    return Translation(
        clip["id"], clip["text"], None if gate is None else np.array(gate, dtype=np.float32)
    )


@dataclass
class Work:
    """What is to be decoded: a function of run, split and controls, never of the processes."""

    run: RunConfig
    split: Split
    shown: tuple[str, ...]

    @cached_property
    def frames(self) -> ClipFrames:
        """How many frames of each clip the model sees."""
        return ClipFrames(self.split.lengths, self.run.data.max_frames, AugmentConfig(), 0)

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Frames of each clip, ``[clips]``."""
        return self.frames.counts(0, np.arange(len(self.split)))

    @cached_property
    def places(self) -> list[MicroBatch]:
        """The clips of each batch, longest first."""
        size = self.run.evaluation.batch_size
        order = np.argsort(-self.counts, kind="stable").tolist()
        return [MicroBatch(order[i : i + size], 0) for i in range(0, len(order), size)]

    @cached_property
    def ids(self) -> list[tuple[str, ...]]:
        """The names of the clips of each batch."""
        return [tuple(self.split.ids[place] for place in batch.clips) for batch in self.places]

    def size(self, unit: Unit) -> int:
        """Frames of a unit: what its time goes by, nearly."""
        return int(self.counts[self.places[unit[1]].clips].sum())

    def units(self) -> list[Unit]:
        """Return every unit, batch by batch, each in all the ways that it is shown."""
        return [(shown, batch) for batch in range(len(self.places)) for shown in self.shown]

    def key(self, run_folder: Path, device: torch.device) -> str:
        """Return a name for everything that the sentences depend on."""
        run, split = self.run, self.split
        manifests = [split.manifest, *([split.poses.manifest] if split.poses else [])]
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


T = TypeVar("T")
_CLOSED = 1 << 40  # above any number of batches
# The others wait for the first one while it scores and draws intervals.
_PATIENCE = timedelta(hours=2)


class _Counters(Protocol):
    """What is asked of torch's store: a sum by name that all processes see."""

    def add(self, key: str, value: int, /) -> int: ...


@dataclass
class Processes:
    """One of ``world`` processes; ``store`` is None when it is alone."""

    rank: int
    world: int
    device: torch.device
    store: _Counters | None = None
    _own: Counter[str] = field(default_factory=Counter)

    def add(self, name: str, amount: int) -> int:
        """Add to a sum over all processes and return what it is now."""
        if self.store is not None:
            return int(self.store.add(f"evaluate/{name}", amount))
        self._own[name] += amount
        return self._own[name]

    def claims(self, count: int) -> Iterator[int]:
        """Yield numbers below ``count``, each to one process: whoever asks next gets the next."""
        while (number := self.add("claimed", 1) - 1) < count:
            yield number

    def close(self) -> None:
        """Let no process claim anything more."""
        self.add("claimed", _CLOSED)

    def gather(self, own: T) -> list[T]:
        """Return what every process gives, on every process."""
        if self.world == 1:
            return [own]
        parts: list[T] = [own] * self.world
        dist.all_gather_object(parts, own)
        return parts

    def agree(self, own: T) -> T:
        """Return what the first process gives, on every process."""
        if self.world == 1:
            return own
        value = [own]
        dist.broadcast_object_list(value, src=0)
        return value[0]


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the launched processes.

    Sentences travel between hosts, so gloo on GPUs as well. On the CPU every process computes on
    one thread: more threads add up in another order, and what is written must not depend on how
    many there are. More processes make it faster.
    """
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    device, threads = torch.device("cpu"), torch.get_num_threads()
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)  # a quantized LLM is loaded onto the current one
    else:
        torch.set_num_threads(1)
    store = None
    try:
        if world > 1:
            store, rank, world = next(iter(rendezvous("env://", rank, world)))
            dist.init_process_group(
                "gloo", store=store, rank=rank, world_size=world, timeout=_PATIENCE
            )
        yield Processes(rank, world, device, store)
        if world > 1:
            dist.barrier()
    finally:
        torch.set_num_threads(threads)
        if store is not None:
            dist.destroy_process_group()


Maps = Callable[[str], Mapping[str, NDArray[np.float32]]]
_TITLES = {
    "shuffled": "the same with the videos shuffled among the sentences",
    "blank": "the same with grey pictures, joints kept",
    "masked_joints": "the same with all joints masked, pictures kept",
}


@dataclass(frozen=True)
class Outcome:
    """What was decoded: translations by way of showing and id, and why controls do not apply."""

    run: RunConfig
    references: dict[str, str]
    translations: dict[str, dict[str, Translation]]
    reasons: dict[str, str | None]

    def sentences(self, shown: str) -> dict[str, str]:
        """Return the hypotheses of one way of showing, by id."""
        return {name: t.text for name, t in self.translations[shown].items()}


def write_outcome(run_folder: Path, folder: Path, outcome: Outcome, maps: Maps) -> None:
    """Write all files of ``RUN/evaluation/SPLIT``, the run's model card, and print the scores.

    ``maps`` gives a clip's cross-attention by its id. The scores are written last but the card, so
    a folder with scores has the rest.
    """
    sentences = outcome.sentences(AS_IS)
    folder.mkdir(parents=True, exist_ok=True)
    files = EvaluationFolder(folder)
    write_hypotheses(files.hypotheses, sentences, outcome.references)
    gates = {t.id: t.gate for t in outcome.translations[AS_IS].values() if t.gate is not None}
    _write_or_remove(files.gates, gates)
    _write_or_remove(files.attention, _sample_maps(outcome, sentences, maps))
    results = _results(outcome, sentences)
    write_results(files.scores, results)
    write_card(run_folder)
    _print(results)


def _results(outcome: Outcome, sentences: dict[str, str]) -> Results:
    run = outcome.run
    preset = find_preset(run.data.metric_preset, run.data.bleu_tokenizer)
    language, references = run.data.language, outcome.references
    scores = score_with_intervals(sentences, references, preset, language)
    controls: dict[str, Scores] = {}
    for control in (name for name, reason in outcome.reasons.items() if reason is None):
        if control == "shuffled":
            found = score_control(sentences, references, preset, run.train.seed, language)
            assert found is not None
            controls[control] = found
        else:
            controls[control] = score(outcome.sentences(control), references, preset, language)
    inapplicable = {name: reason for name, reason in outcome.reasons.items() if reason}
    return Results(scores, controls, inapplicable, asdict(run.evaluation))


def _sample_maps(
    outcome: Outcome, sentences: dict[str, str], maps: Maps
) -> dict[str, NDArray[np.float32]]:
    """Return the maps of the samples that the report shows, by ``DIRECTION/ID``."""
    ranked = rank_samples(sentences, outcome.references)
    chosen = spread(ranked, outcome.run.evaluation.num_samples)
    return {f"{way}/{s.id}": array for s in chosen for way, array in maps(s.id).items()}


def _write_or_remove(path: Path, arrays: Mapping[str, NDArray[np.float32]]) -> None:
    """Write the arrays; where there are none, none of an earlier evaluation may stay."""
    if arrays:
        write_arrays(path, arrays)
    else:
        path.unlink(missing_ok=True)


def _print(results: Results) -> None:
    print(format_scores(results.scores))
    for name, scores in results.controls.items():
        print(f"\n{_TITLES[name]}:\n{format_scores(scores)}")
    for name, reason in results.inapplicable.items():
        print(f"\nno control {name}: {reason}")


Found = dict[Unit, list[Translation]]


def evaluate(
    run_folder: Path,
    split_name: str,
    words: Sequence[str] = (),
    controls: Sequence[str] = CONTROLS,
) -> Path:
    """Translate and score one split; write ``RUN/evaluation/SPLIT`` and return that folder.

    Batches are formed from all clips, longest first, before they are shared out whole, so the
    result does not depend on the number of processes. A killed evaluation goes on where it was.
    ``words`` are ``evaluation.key=value``. Raises UserError naming clips that cannot be read or
    have no text: a score over fewer clips than the split has would not be that split's score.
    """
    began = time.monotonic()
    with joined() as processes:
        translator = load_translator(run_folder, processes.device, words)
        run = translator.run
        find_preset(run.data.metric_preset, run.data.bleu_tokenizer)  # before hours of decoding
        split = open_split(run.shards(split_name), run.data)
        references = _references(split)
        reasons = {c: why_inapplicable(c, run.model.streams, len(split)) for c in controls}
        decoded = [c for c in controls if c != "shuffled" and reasons[c] is None]
        work = Work(run, split, (AS_IS, *decoded))
        folder = RunFolder(run_folder).evaluation(split_name).path
        key = processes.agree(work.key(run_folder, processes.device))
        journal = Journal(EvaluationFolder(folder).parts / key)
        before = journal.read(work.ids) if processes.rank == 0 else {}
        done = processes.agree(frozenset(before))
        found = _decode(translator, work, journal, processes, done)
        if processes.rank == 0:
            outcome = Outcome(run, references, _by_id({**before, **found}, work), reasons)
            write_outcome(run_folder, folder, outcome, _attention_of(translator, work))
            _write_record(folder, processes, work, len(done), time.monotonic() - began)
        journal.remove_own()
        if processes.rank == 0:
            journal.remove()
    return folder


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


def _decode(
    translator: Translator,
    work: Work,
    journal: Journal,
    processes: Processes,
    done: frozenset[Unit],
) -> Found:
    """Decode what is not done, together with the other processes; return what all have found.

    Raises UserError on all of them together: one that stopped by itself would leave the others
    waiting.
    """
    missing = [unit for unit in work.units() if unit not in done]
    todo: dict[int, list[str]] = {}
    for shown, batch in missing:
        todo.setdefault(batch, []).append(shown)
    own, faults = _own_share(translator, work, journal, processes, todo)
    found: Found = {}
    named: list[str] = []
    for theirs, other_faults in processes.gather((own, faults)):
        found.update(theirs)
        named += other_faults
    raise_together(sorted(set(named)), f"{work.split.folder}: clips cannot be translated")
    return found


def _own_share(
    translator: Translator,
    work: Work,
    journal: Journal,
    processes: Processes,
    todo: Mapping[int, list[str]],
) -> tuple[Found, list[str]]:
    """Decode the batches that this process gets hold of; return them and what was wrong."""
    found: Found = {}
    faults: list[str] = []
    shown_frames = 0
    with _progress(work, processes, todo) as bar:
        for number, batch in _claimed(translator, work, processes, list(todo)):
            faults += batch.faults
            for shown in todo[number]:
                unit = (shown, number)
                seen = batch if shown == AS_IS else hidden(batch, shown)
                try:
                    found[unit] = translator.translate(seen)
                except UserError as error:  # a broken model: no other batch would fare better
                    faults.append(str(error))
                    processes.close()
                    return found, faults
                if not batch.faults:
                    journal.append(unit, found[unit])
                done = processes.add("frames", work.size(unit))
                bar.update(done - shown_frames)  # by what the others have done meanwhile as well
                shown_frames = done
    return found, faults


def _claimed(
    translator: Translator, work: Work, processes: Processes, numbers: Sequence[int]
) -> Iterator[tuple[int, SignBatch]]:
    """Yield batches, longest first, each with its number and to one process only."""
    claimed: list[int] = []

    def items() -> Iterator[int]:
        for claim in processes.claims(len(numbers)):
            claimed.append(numbers[claim])
            yield numbers[claim]

    dataset = ClipBatches(work.split, work.places, work.frames, encode=None)
    workers = count_workers(work.run.train.num_workers)
    pin = translator.device.type == "cuda"
    for place, batch in enumerate(batches(dataset, workers, pin, items())):
        yield claimed[place], batch


def _progress(work: Work, processes: Processes, todo: Mapping[int, list[str]]) -> Any:
    """Return the bar of all processes' work, in frames, whose time left is nearly true."""
    sizes = {unit: work.size(unit) for unit in work.units()}
    left = sum(sizes[shown, number] for number, ways in todo.items() for shown in ways)
    total = sum(sizes.values())
    ways = f" as {', '.join(work.shown)}" if len(work.shown) > 1 else ""
    if processes.rank == 0 and left < total:
        print(f"{(total - left) / total:.0%} was decoded before; going on", file=sys.stderr)
    return tqdm(
        total=total,
        initial=total - left,
        unit="frame",
        unit_scale=True,
        disable=processes.rank > 0,
        desc=f"translating {len(work.split)} clips{ways}",
        dynamic_ncols=True,
        mininterval=0.1 if sys.stderr.isatty() else 10.0,
    )


def _by_id(found: Found, work: Work) -> dict[str, dict[str, Translation]]:
    """Return the translations by way of showing and id; a set of other ids is a defect."""
    by_id: dict[str, dict[str, Translation]] = {shown: {} for shown in work.shown}
    for (shown, _), translations in found.items():
        for translation in translations:
            if shown not in by_id:
                continue  # left by an evaluation with more controls
            if translation.id in by_id[shown]:
                raise RuntimeError(f"{translation.id} was translated twice as {shown}")
            by_id[shown][translation.id] = translation
    for shown, ours in by_id.items():
        odd = sorted(ours.keys() ^ set(work.split.ids))
        if odd:
            raise RuntimeError(f"{shown}: {len(odd)} ids are not those of the split: {odd[:10]}")
    return by_id


def _attention_of(translator: Translator, work: Work) -> Any:
    """Return a function that gives the cross-attention maps of a clip by its id."""
    place_of = {name: place for place, name in enumerate(work.split.ids)}

    def maps(name: str) -> dict[str, NDArray[np.float32]]:
        places = [MicroBatch([place_of[name]], 0)]
        return translator.cross_attention(
            ClipBatches(work.split, places, work.frames, encode=None)[0]
        )

    return maps


def _write_record(
    folder: Path, processes: Processes, work: Work, num_before: int, seconds: float
) -> None:
    """Write ``evaluation.json``: how it was computed, which no score depends on."""
    cuda = processes.device.type == "cuda"
    record = {
        "processes": processes.world,
        "device": torch.cuda.get_device_name(processes.device) if cuda else "cpu",
        "seconds": round(seconds, 1),
        "units": len(work.places) * len(work.shown),
        "units_decoded_before": num_before,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "signfuse_dist": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    write_json(EvaluationFolder(folder).record, record)
