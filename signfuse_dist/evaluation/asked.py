"""What is asked of a trained run, looked at before anything heavy: no torch, no LLM.

A mistyped folder, split, control or setting is named in half a second. An evaluation that is there
is what it is: the same again is answered from its files, and another one gets a name of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from signfuse_dist.config import RunConfig
from signfuse_dist.data.columns import SplitContent
from signfuse_dist.data.manifest import MANIFEST_NAME
from signfuse_dist.data.split import Split, open_split
from signfuse_dist.data.storage import Folder, is_local, open_folder
from signfuse_dist.errors import UserError, suggest
from signfuse_dist.evaluation.controls import CONTROLS, USUAL_CONTROLS
from signfuse_dist.evaluation.protocols import find_preset
from signfuse_dist.evaluation.scores import SplitScores, read_split_scores
from signfuse_dist.experiment import load_resolved, override, override_section
from signfuse_dist.files import checksum
from signfuse_dist.model.place import is_model, local
from signfuse_dist.model.usage import Usage, read_usage
from signfuse_dist.run_folder import EvaluationFolder, RunFolder
from signfuse_dist.stages import needs_language_model

CORPUS = "data.blend: corpus"
"""Setting of an evaluation: whose split it is, where it is one of a blend's."""
_MODEL, _SPLIT = "the model", "the packed split"  # settings that are checksums


def trained_run(run_folder: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the configuration of a run that can translate.

    ``overrides`` are ``evaluation.key=value``, what differs from the run's decoding settings, and
    ``data.stage_to``, which is the machine's.
    Raises UserError when one is wrong, or there is no trained model, or one without an LLM.
    """
    folder = RunFolder(run_folder)
    if not folder.is_finished:
        what = "holds no trained model" if run_folder.is_dir() else "no such run folder"
        raise UserError(f"{run_folder}: {what}; give runs/EXPERIMENT/STAGE of a finished stage")
    run = override(load_resolved(folder.config), overrides, "evaluation", "data.stage_to")
    if not needs_language_model(run.stage.name):
        raise UserError(f"{run_folder}: the {run.stage.name} stage has no LLM and cannot translate")
    return run


@dataclass(frozen=True)
class AskedModel:
    """A model that is asked to translate: that of a run, or one that stands alone.

    Attributes:
        folder: the model's.
        usage: how clips are brought to it, with the decoding that is asked for.
        run: None for a model that stands alone.
    """

    folder: Path
    usage: Usage
    run: RunConfig | None


def ask_model(place: Path, overrides: Sequence[str] = ()) -> AskedModel:
    """Return the model at ``place``: a run folder, a folder of a model, or a name of the model hub.

    ``overrides`` are ``evaluation.key=value``; for a run, also what :func:`trained_run` takes.
    Raises UserError when there is none that can translate, or an override is wrong.
    """
    if _is_of_a_run(place):
        run, folder = trained_run(place, overrides), RunFolder(place).model
        said = read_usage(folder)
        extraction = (None, None) if said is None else (said.extractor, said.extractor_version)
        features = () if said is None else said.features
        return AskedModel(folder, Usage.of(run, *extraction, features=features), run)
    folder = local(place)
    usage = read_usage(folder)
    if usage is None:
        raise UserError(
            f"{place}: a model that does not say how clips are brought to it, as those of earlier "
            "versions do not: give the run folder that it is of, runs/EXPERIMENT/STAGE"
        )
    decoding = override_section("evaluation", usage.decoding, overrides, str(place))
    return AskedModel(folder, replace(usage, decoding=decoding), None)


def _is_of_a_run(place: Path) -> bool:
    """Return whether a run is meant; what is no folder may be a model of the hub, OWNER/NAME."""
    if place.is_dir():
        return not is_model(place)
    # Where OWNER is a folder here, such as runs, what is behind it is a folder that is not there.
    return len(place.parts) != 2 or place.parent.exists()


@dataclass(frozen=True)
class AskedEvaluation:
    """An evaluation that is asked for, and what of it is there.

    Attributes:
        run: the run, with the decoding that is asked for.
        split: the packed split.
        folder: where the evaluation goes.
        settings: what scores follow from beside the decoding, by name.
        finished: the scores that are there with these settings; None where there are none.
        controls: those that are asked for and those that are there, in the order of CONTROLS.
    """

    run: RunConfig
    split: Split
    folder: EvaluationFolder
    settings: dict[str, Any]
    finished: SplitScores | None
    controls: tuple[str, ...]

    @property
    def is_answered(self) -> bool:
        """Whether everything that is asked for is there."""
        return self.finished is not None and set(self.controls) <= _controls_of(self.finished)


def ask(
    run_folder: Path,
    split: str,
    overrides: Sequence[str] = (),
    controls: Sequence[str] = USUAL_CONTROLS,
    name: str | None = None,
    corpus: str | None = None,
) -> AskedEvaluation:
    """Look at what an evaluation needs and at what is there.

    ``corpus`` is one of the run's blend, whose split it is; None: the run's own.

    Raises UserError for what :func:`trained_run` refuses, an unknown protocol, a split that is not
    packed, and where an evaluation with other settings is in the place; the message names them.
    """
    run = trained_run(run_folder, overrides)
    if corpus is not None:
        run = of_corpus(run, corpus)
        name = corpus if name is None else f"{corpus}.{name}"
    find_preset(run.data.metric_preset, run.data.bleu_tokenizer)
    folder = RunFolder(run_folder).evaluation(split, name)
    location = open_folder(run.shards(split))
    _refuse_unpacked(location, split)
    opened = open_split(run.shards(split), run.data, run.model.feature_sets)
    settings = _settings(run_folder, run, opened.content)
    settings |= {} if corpus is None else {CORPUS: corpus}
    finished = _finished(folder, run, settings)
    there = set() if finished is None else _controls_of(finished)
    wanted = tuple(c for c in CONTROLS if c in controls or c in there)
    return AskedEvaluation(run, opened, folder, settings, finished, wanted)


def of_corpus(run: RunConfig, corpus: str) -> RunConfig:
    """Return the run as it stands to one corpus of its blend: its data, and how it is asked."""
    names = [part.corpus for part in run.data.blend]
    if corpus not in names:
        raise UserError(
            f"--corpus {corpus}: {'not in' if names else 'the run has no'} data.blend"
            f"{suggest(corpus, names)}. There are: {', '.join(names) or 'none'}"
        )
    part = run.corpora[names.index(corpus)]
    asked = replace(run.model, prompt=part.prompt or run.model.prompt)
    return replace(run, data=replace(part.data, blend=run.data.blend), model=asked)


def _controls_of(scores: SplitScores) -> set[str]:
    return {*scores.controls, *scores.inapplicable}


def _settings(run_folder: Path, run: RunConfig, content: SplitContent) -> dict[str, Any]:
    """Return what scores follow from beside the decoding; model and data by their checksums.

    Shards of earlier versions have no checksums of pictures and joints: there those of the tars do.
    """
    tars = content.shards
    return {
        _MODEL: checksum(RunFolder(run_folder).model_state),
        _SPLIT: {
            "clips": content.clips,
            "texts": content.texts,
            "pictures": content.pictures or tars,
            "joints": content.joints or content.pose_set or tars,
        },
        "data.max_frames": run.data.max_frames,
        "data.metric_preset": run.data.metric_preset,
        "data.bleu_tokenizer": run.data.bleu_tokenizer,
        "train.precision": run.train.precision,
    }


def _refuse_unpacked(folder: Folder, split: str) -> None:
    """Raise UserError for a split that is not packed, naming those beside it."""
    if not is_local(folder) or (folder / MANIFEST_NAME).is_file():
        return
    beside = sorted(path.parent.name for path in folder.parent.glob(f"*/{MANIFEST_NAME}"))
    raise UserError(
        f"{folder / MANIFEST_NAME}: does not exist, the split {split!r} is not packed"
        f"{suggest(split, beside)}. There are: {', '.join(beside) or 'none'}"
    )


def _finished(
    folder: EvaluationFolder, run: RunConfig, settings: Mapping[str, Any]
) -> SplitScores | None:
    """Return the scores of the evaluation in ``folder``, None where none is finished.

    Raises UserError naming the settings in which it is another. A setting that only one of two
    versions of this program knows says nothing.
    """
    if not (folder.scores.is_file() and folder.hypotheses.is_file()):
        return None
    try:
        scores = read_split_scores(folder.scores)
    except UserError:
        return None  # damaged or of another version: nothing can be answered from it
    before = {f"evaluation.{key}": value for key, value in scores.decoding.items()}
    before |= scores.settings or {"data.metric_preset": scores.scores.preset}
    now = {f"evaluation.{key}": value for key, value in asdict(run.evaluation).items()}
    now |= settings
    changed = [
        f"{key} was another"
        if key in (_MODEL, _SPLIT)
        else f"{key} was {before[key]!r}, is {value!r}"
        for key, value in now.items()
        if key in before and before[key] != value
    ]
    if changed:
        raise UserError(
            f"{folder.path} holds an evaluation with other settings ({'; '.join(changed)}), which "
            "is not overwritten: give --name NAME for another beside it, or remove that folder"
        )
    return scores
