"""The model card, ``model/README.md`` of a run folder, filled in from what the run wrote.

Names, corpora and prompts are anybody's text: they are escaped. A piece that cannot be read is
named in the card, and the rest is written.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic.dataclasses import dataclass

from signfuse_dist.config import ModelConfig, RunConfig
from signfuse_dist.data.joints import JointsFile
from signfuse_dist.data.manifest import NO_EXTRACTOR
from signfuse_dist.errors import UserError
from signfuse_dist.evaluation.protocols import in_order
from signfuse_dist.evaluation.scores import Scores, SplitScores, read_split_scores
from signfuse_dist.experiment import load_resolved
from signfuse_dist.files import read_json, write_text
from signfuse_dist.languages import fill_prompt
from signfuse_dist.locks import held
from signfuse_dist.model.usage import Usage, read_usage
from signfuse_dist.recipe import described
from signfuse_dist.records import read_record
from signfuse_dist.report.inputs import PlanFacts, read_log, read_plan
from signfuse_dist.report.markup import LANGUAGE, environment
from signfuse_dist.run_folder import RunFolder
from signfuse_dist.skeleton import JOINT_LAYOUT

Rows = list[tuple[str, str]]
_T = TypeVar("_T")
_PATIENCE = 60.0  # seconds for another that writes the card
_CROPPED = {
    "none": "",
    "signer": " cut around the signer's joints",
    "box": " cut around the corpus's boxes",
}
_LOSSES = ("contrastive", "alignment", "language", "total")


@dataclass(frozen=True)
class _SavedModel:
    """What ``model/config.json`` says of the LLM; None of a stage that has none."""

    llm_fingerprint: str | None = None
    llm_commit: str | None = None
    llm_trained: bool = False


def write_card(run_folder: Path) -> Path:
    """Write ``RUN/model/README.md`` and return it; raise UserError without a ``config.yaml``."""
    files = RunFolder(run_folder)
    path = files.model / "README.md"
    template = environment().get_template("model_card.md.j2")
    # Evaluations of several splits may end at once: each shows what the others have written.
    with held(files.card_lock, f"the model card {path}", patience=_PATIENCE):
        write_text(path, template.render(_content(run_folder)))
    return path


def _content(folder: Path) -> dict[str, Any]:
    files = RunFolder(folder)
    run = load_resolved(files.config)
    missing: list[str] = []
    saved = _attempt(files.model / "config.json", _read_saved, _SavedModel(), missing)
    plan = _attempt(files.plan, read_plan, PlanFacts(), missing)
    no_versions: dict[str, Any] = {}
    versions = _attempt(files.versions, _read_object, no_versions, missing)
    usage = _attempt(files.model, read_usage, None, missing)
    translates = saved.llm_fingerprint is not None
    return {
        "front_matter": _front_matter(run, translates),
        "title": f"{run.name}, stage {run.stage.name}",
        "translates": translates,
        "llm_trained": saved.llm_trained,
        "adapted": (files.model / "adapter").is_dir(),
        "joints_in_files": usage is not None and usage.extractor == JointsFile.name,
        "data": _data(run, plan, usage),
        "training": _training(run, plan, _last_losses(folder)),
        "model": _model(run, saved, translates),
        "splits": _splits(folder, missing),
        "versions": sorted((name, str(value)) for name, value in versions.items()),
        "missing": missing,
    }


def _front_matter(run: RunConfig, translates: bool) -> str:
    """What the model hub reads: YAML whose values are JSON, so that each stays on its line."""
    known: dict[str, Any] = {"library_name": "signfuse_dist", "tags": ["sign-language-translation"]}
    if LANGUAGE.fullmatch(run.data.language):
        known["language"] = [run.data.language]
    if translates and not Path(run.model.llm).is_dir():
        known["base_model"] = run.model.llm
    return "".join(f"{key}: {json.dumps(value)}\n" for key, value in sorted(known.items()))


def _data(run: RunConfig, plan: PlanFacts, usage: Usage | None) -> Rows:
    data = run.data
    blend = [
        (
            f"blended: {part.corpus}",
            f"{part.data.corpus} ({part.data.language}), weight {part.weight:g}"
            f"{'' if part.max_clips is None else f', at most {part.max_clips} clips'}; licence: "
            f"{part.data.licence or 'not stated'}",
        )
        for part in data.blend
    ]
    return [
        *blend,
        ("corpus", data.corpus),
        ("training split", f"{data.train_split}, {_known(plan.num_clips)} clips"),
        ("language", data.language),
        (
            "frames",
            f"{data.frame_size} x {data.frame_size}{_CROPPED[data.crop]}, "
            f"{'the rate of each video' if data.fps is None else f'{data.fps:g} a second'}",
        ),
        ("longest clip", f"{data.max_frames} frames; longer ones are sampled down"),
        ("joints", _joints(usage)),
        ("licence of the corpus", data.licence or "not stated"),
    ]


def _joints(usage: Usage | None) -> str:
    if usage is None or usage.extractor is None:
        return JOINT_LAYOUT
    found = f"found by {usage.joints_from}"
    if usage.extractor == JointsFile.name:
        found = "of files beside the clips"
    elif usage.extractor == NO_EXTRACTOR:
        found = "none"
    return f"{usage.joint_layout}, {found}"


def _training(run: RunConfig, plan: PlanFacts, losses: str) -> Rows:
    train, stage = run.train, run.stage
    return [
        ("recipe", described(run)),
        ("stages", f"{', '.join(train.stages)}; this is {stage.name}"),
        ("epochs", f"{stage.epochs}, {_known(plan.total_steps)} optimizer steps"),
        (
            "learning rate",
            f"{stage.learning_rate:g}, {stage.warmup_epochs} epochs of warmup, cosine to zero",
        ),
        (
            "clips a step",
            f"{train.global_batch_size} over {_known(plan.world_size)} "
            f"processes; {_known(plan.num_pairs)} pairs in Eq. 21",
        ),
        ("precision", train.precision),
        ("weight decay, clipping", f"{train.weight_decay:g}, {train.gradient_clipping:g}"),
        ("last losses", losses),
        *([] if run.origin is None else [("started from", str(run.origin))]),
    ]


def _known(value: int | None) -> str:
    return "unknown" if value is None else str(value)


def _last_losses(folder: Path) -> str:
    """Return the losses of the last line of the log."""
    try:
        last = read_log(RunFolder(folder).metrics, lambda torn: None)[-1]
    except (UserError, IndexError):
        return "unknown"
    losses = {name: last.value(name) for name in _LOSSES}
    return ", ".join(f"{name} {value:.4g}" for name, value in losses.items() if value is not None)


def _picture(model: ModelConfig) -> str:
    """Say what encodes frames, and whether it was trained."""
    trained = "" if model.trains_backbone else ", frozen"
    if model.has_resnet:
        width = f"width {model.visual_width}, {model.visual_norm} norm"
        return f"{model.visual_backbone}, {width}{trained}"
    return model.visual_backbone + (trained if model.vision_model else "")


def _model(run: RunConfig, saved: _SavedModel, translates: bool) -> Rows:
    model = run.model
    rows = [
        ("streams", model.streams),
        ("picture", _picture(model)),
        ("fusion", model.fusion),
        ("its layers", str(model.fusion_layers)),
        ("time scales", ", ".join(model.scales) or "none"),
        ("sign tokens", str(model.num_sign_tokens)),
    ]
    if translates:
        rows += [
            ("language model", _named(model.llm)),
            ("its licence", model.llm_licence or "not stated"),
            (
                "what of it trained",
                {"lora": "LoRA matrices", "full": "all of it", "frozen": "nothing"}[
                    model.llm_training if run.stage.name == "finetune" else "frozen"
                ],
            ),
            ("its revision", str(saved.llm_commit or "a folder, no revision")),
            ("its fingerprint", str(saved.llm_fingerprint)),
            ("prompt", fill_prompt(model.prompt, run.data.language)),
        ]
    return rows


def _named(llm: str) -> str:
    """Return the LLM's name; the folders above one are those of a machine, and a card travels."""
    return f"{Path(llm).name}, a folder" if Path(llm).is_dir() else llm


def _splits(folder: Path, missing: list[str]) -> list[dict[str, Any]]:
    splits = []
    for name, evaluation in RunFolder(folder).scored().items():
        try:
            split_scores = read_split_scores(evaluation.scores)
        except UserError as e:
            missing.append(str(e))
            continue
        scores = split_scores.scores
        splits.append(
            {
                "name": name,
                "decoding": _decoding(split_scores) if "@" in name else "",
                "preset": scores.preset,
                "num_samples": scores.num_samples,
                "rows": _rows(scores, split_scores.controls.get("shuffled")),
            }
        )
    return splits


def _decoding(split_scores: SplitScores) -> str:
    """Return how an evaluation with a name of its own was decoded."""
    return ", ".join(f"{key} {value}" for key, value in sorted(split_scores.decoding.items()))


def _rows(scores: Scores, control: Scores | None) -> list[dict[str, str]]:
    rows = []
    for name in in_order(scores.scores):
        value, signature = scores.scores[name]
        other = control.scores.get(name) if control else None
        shown = "–" if other is None else f"{other.value:.2f}"
        rows.append(
            {"name": name, "value": f"{value:.2f}", "control": shown, "signature": signature}
        )
    return rows


def _attempt(path: Path, read: Callable[[Path], _T], otherwise: _T, missing: list[str]) -> _T:
    """Return what a file holds, or note, without the folders above it, why there is none."""
    try:
        return read(path)
    except UserError as e:
        missing.append(str(e).replace(str(path), path.name))
        return otherwise


def _read_object(path: Path) -> dict[str, Any]:
    return read_record(dict[str, Any], read_json(path), f"{path}: not a JSON object")


def _read_saved(path: Path) -> _SavedModel:
    return read_record(_SavedModel, read_json(path), f"{path}: not a saved model")
