"""What the first stage of an experiment starts from, where ``train.start`` names something.

A run folder, the folder of a model, or a name of the model hub, ``OWNER/NAME`` or, of one revision,
``OWNER/NAME@REVISION``. What of it is taken is :mod:`signfuse_dist.model.parts`'s. Imports no
torch: ``signfuse check`` finds a start as the trainer does.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from signfuse_dist.config import RunConfig
from signfuse_dist.errors import UserError
from signfuse_dist.experiment import load_resolved
from signfuse_dist.files import STATE, checksum, read_state
from signfuse_dist.model.place import is_model, local
from signfuse_dist.model.usage import read_usage
from signfuse_dist.origin import OF_EARLIER_VERSION, Origin, TrainedCorpus, TrainedStage
from signfuse_dist.run_folder import RunFolder


@dataclass(frozen=True)
class Start:
    """A model that a run starts from: its folder, and what goes on record of it."""

    folder: Path
    origin: Origin


def find_start(run: RunConfig) -> Start | None:
    """Return what this stage starts from, None without ``train.start`` or after another stage.

    Raises UserError where there is no such model, it is damaged, or it is the run itself.
    """
    name = run.train.start
    if name is None or run.stage.name != run.train.stages[0]:
        return None
    try:
        folder = _model_folder(name, run)
        read_state(folder)  # or say that it is none
        fingerprint, history = checksum(folder / STATE), history_of(folder)
        return Start(folder, Origin(start=name, fingerprint=fingerprint, history=history))
    except UserError as e:
        raise type(e)(f"train.start={name}: {e}") from e


def local_fingerprint(run: RunConfig) -> str | None:
    """Return what tells the start of this stage from another one, by its ``state.json`` alone.

    None without a start, and for one that is not here: the trainer says so, or asks the model hub.
    """
    name = run.train.start
    if name is None or run.stage.name != run.train.stages[0] or not Path(name).is_dir():
        return None
    return checksum(_model_folder(name, run) / STATE)


def with_origin(run: RunConfig) -> RunConfig:
    """Return the run with what it comes from: its own start, or that of the experiment's first.

    Raises UserError as :func:`find_start` does.
    """
    if run.train.start is None:
        return run
    start = find_start(run)
    if start is not None:
        return dataclasses.replace(run, origin=start.origin)
    first = RunFolder.of(run).beside(run.train.stages[0]).config
    origin = load_resolved(first).origin if first.is_file() else None
    return dataclasses.replace(run, origin=origin)


def history_of(folder: Path) -> tuple[TrainedStage, ...]:
    """Return every training of the model in a folder, oldest first; empty where it says nothing."""
    usage = read_usage(folder)
    if usage is None:
        return ()
    if usage.history:
        return usage.history
    corpus = TrainedCorpus(name=usage.corpus, language=usage.language, clips=None)
    return (TrainedStage(run=OF_EARLIER_VERSION, corpora=(corpus,), steps=None),)


def _model_folder(name: str, run: RunConfig) -> Path:
    path = Path(name)
    if not path.is_dir():
        if len(path.parts) != 2 or path.parts[0] in ("/", ".", ".."):
            raise UserError("no such folder; give runs/EXPERIMENT/STAGE, a model or OWNER/NAME")
        bare, _, revision = name.partition("@")
        return local(bare, revision or None)
    if is_model(path):
        folder = path
    else:
        of_run = RunFolder.open(path)
        if not of_run.is_finished:
            raise UserError(f"{of_run.model} does not exist: that stage is not trained to its end")
        folder = of_run.model
    if folder.resolve() == RunFolder.of(run).model.resolve():
        raise UserError("a run cannot start from itself; give train.output=FOLDER for a new one")
    return folder
