"""Evaluation of a split: deterministic, shared by all processes, resumed after a kill."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from tqdm import tqdm

from signfuse_dist import __version__
from signfuse_dist.batch import SignBatch
from signfuse_dist.data.loader import ClipBatches, batches, count_workers
from signfuse_dist.data.split import Split, open_split
from signfuse_dist.errors import UserError, raise_together
from signfuse_dist.evaluation.control import CONTROLS, hidden, why_inapplicable
from signfuse_dist.evaluation.files import write_json
from signfuse_dist.evaluation.journal import AS_IS, Journal, Unit
from signfuse_dist.evaluation.metrics import name_ids
from signfuse_dist.evaluation.outcome import Outcome, write_outcome
from signfuse_dist.evaluation.presets import find_preset
from signfuse_dist.evaluation.processes import Processes, joined
from signfuse_dist.evaluation.translator import Translation, Translator, load_translator
from signfuse_dist.evaluation.work import Work
from signfuse_dist.plan import MicroBatch

Found = dict[Unit, list[Translation]]


def evaluate(
    run_folder: Path, split_name: str, words: Sequence[str] = (),
    controls: Sequence[str] = CONTROLS,
) -> Path:  # fmt: skip
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
        folder = run_folder / "evaluation" / split_name
        key = processes.agree(work.key(run_folder, processes.device))
        journal = Journal(folder / "parts" / key)
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
    translator: Translator, work: Work, journal: Journal, processes: Processes,
    done: frozenset[Unit],
) -> Found:  # fmt: skip
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
    translator: Translator, work: Work, journal: Journal, processes: Processes,
    todo: Mapping[int, list[str]],
) -> tuple[Found, list[str]]:  # fmt: skip
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
        total=total, initial=total - left, unit="frame", unit_scale=True,
        disable=processes.rank > 0,
        desc=f"translating {len(work.split)} clips{ways}", dynamic_ncols=True,
        mininterval=0.1 if sys.stderr.isatty() else 10.0,
    )  # fmt: skip


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
    write_json(folder / "evaluation.json", record)
