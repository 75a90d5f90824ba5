"""What of a model another one starts from (``train.start_parts``): which tensors, and what fits.

Parts are the components of :class:`~signfuse_dist.model.signfuse.SignFuse`, the ``statistics`` of
their norms, and the start's LoRA matrices: ``lora`` goes on training them, ``merged_lora`` adds
them to the frozen LLM for good. A part that is asked for and does not fit is refused by name; what
the start does not have begins as it would without a start. Where no parts are listed, all that the
start has is taken, and its configuration must be this one's; of parts that are listed, names and
shapes must be.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from signfuse_dist.config import ModelConfig, RunConfig, StageName
from signfuse_dist.errors import raise_together
from signfuse_dist.model import saved
from signfuse_dist.model.llm import MergedLora
from signfuse_dist.model.llm_identity import find_folder, fingerprint
from signfuse_dist.model.place import WEIGHTS
from signfuse_dist.model.signfuse import SignFuse
from signfuse_dist.stages import TRAINABLE, needs_language_model
from signfuse_dist.tensor_files import read_infos
from signfuse_dist.weights import Shaped, load_tensors, refuse_not_finite

COMPONENTS = ("visual", "skeletal", "fusion", "temporal", "adapter")
# Of the saved configuration, what another model may have otherwise when it takes all parts: also
# which streams there are, since one that the start does not have begins anew.
_FREE = {*saved.FREE, "streams"}
_STATISTICS = (".running_mean", ".running_var")
_NAMED = 3  # tensors in an error message


@dataclass(frozen=True)
class Chosen:
    """What is taken of a start.

    Attributes:
        folder: the start's.
        config: the start's own.
        tensors: names of those that are taken.
        lora: how its LoRA matrices are taken: `lora`, `merged_lora`, or None.
        anew: components that this model has and the start gives nothing of.
        needs_visual_weights: whether the ResNet, or its statistics, begin as without a start.
    """

    folder: Path
    config: ModelConfig
    tensors: frozenset[str]
    lora: str | None
    anew: tuple[str, ...]
    needs_visual_weights: bool

    def describe(self) -> list[str]:
        """Return in lines what is taken and what is not."""
        components = sorted({n.partition(".")[0] for n in self.tensors}, key=COMPONENTS.index)
        statistics = any(n.endswith(_STATISTICS) for n in self.tensors)
        taken = [*components, *(["statistics"] if statistics else []), *filter(None, [self.lora])]
        lines = [f"starts from {self.folder}: {', '.join(taken)}"]
        if self.anew:
            lines.append(f"begins anew: {', '.join(self.anew)}")
        return lines


def choose(
    folder: Path,
    run: RunConfig,
    expected: Mapping[str, Shaped],
    llm_fingerprint: str | None,
) -> Chosen:
    """Return what is taken of the model in ``folder``; raise UserError with all that does not fit.

    Args:
        folder: of a saved model.
        run: the stage that starts; ``train.start_parts`` says what is wanted.
        expected: the tensors of its components.
        llm_fingerprint: of its LLM; None for a stage without one.
    """
    files, config = saved.read(folder)
    found = read_infos(folder / WEIGHTS)
    listed, then, stage = run.train.start_parts, config.model, run.stage.name
    there = {name.partition(".")[0] for name in found}
    has_lora, other_llm = saved.ADAPTER_WEIGHTS in files, False
    if None not in (config.llm_fingerprint, llm_fingerprint):
        other_llm = config.llm_fingerprint != llm_fingerprint
    # One that was trained lies in the start: its place is what model.llm has to name.
    its_llm = str(folder / then.llm) if config.llm_trained else then.llm
    errors: list[str] = []
    if listed is None:
        wanted = {*there, "statistics", *(["lora"] if has_lora else [])}
        errors += _differences(then, run.model)
        if other_llm:
            errors.append(_other_llm("adapter", its_llm, run.model))
    else:
        wanted = {*listed}
        missing = [part for part in listed if part in COMPONENTS and part not in there]
        missing += [part for part in listed if part.endswith("lora") and not has_lora]
        errors += [f"{part}: the start has none" for part in missing]
        wanted -= {*missing}
    with_statistics = "statistics" in wanted
    tensors: set[str] = set()
    for part in (c for c in COMPONENTS if c in wanted):
        names = _names(found, part, with_statistics)
        unfit = _unfit(names, found, expected, part, with_statistics)
        if part == "visual" and unfit is None:
            unfit = _other_vision(config, run.model)
        if unfit is None:
            tensors |= names
        else:
            errors.append(f"{part}: {_absent(part, stage, run.model) or unfit}")
    lora = next((part for part in ("lora", "merged_lora") if part in wanted), None)
    if lora is not None:
        errors += _unfit_lora(lora, stage, then, run.model, its_llm if other_llm else None)
    raise_together(
        errors,
        f"train.start={run.train.start}: stage {stage} cannot start from {folder}. "
        "train.start_parts=[PART, ...] takes some parts and leaves the others out",
    )
    anew = [c for c in COMPONENTS if _names(expected, c, True) and not _names(tensors, c, True)]
    visual = not _names(expected, "visual", True) <= tensors
    return Chosen(folder, then, frozenset(tensors), lora, tuple(anew), visual)


def load(chosen: Chosen, model: SignFuse) -> None:
    """Let ``model``, prepared for its stage but for its LoRA, start from what was chosen.

    LoRA matrices that are merged change the LLM; those that are gone on with are loaded by
    :func:`load_lora` once the stage has added its own. Raises UserError for a damaged file.
    """
    path = chosen.folder / WEIGHTS
    found = load_tensors(path)
    refuse_not_finite(found, path)
    model.load_state_dict({name: found[name] for name in chosen.tensors}, strict=False)
    if model.language_model is None:
        return
    for merged in saved.read_merged(chosen.folder):
        model.language_model.merge(merged, model.built_from)
    if chosen.lora == "merged_lora":
        tensors = load_tensors(chosen.folder / saved.ADAPTER_WEIGHTS)
        refuse_not_finite(tensors, chosen.folder / saved.ADAPTER_WEIGHTS)
        model.language_model.merge(MergedLora.of(chosen.config, tensors), model.built_from)


def load_lora(chosen: Chosen, model: SignFuse) -> None:
    """Put the start's LoRA matrices in the place of the stage's, where they are gone on with."""
    if chosen.lora == "lora":
        saved.load_adapter(chosen.folder, model)


def _names(tensors: Mapping[str, Shaped] | set[str], part: str, statistics: bool) -> set[str]:
    return {
        name
        for name in tensors
        if name.startswith(f"{part}.") and (statistics or not name.endswith(_STATISTICS))
    }


def _differences(then: ModelConfig, now: ModelConfig) -> list[str]:
    before, after = (json.loads(json.dumps(dataclasses.asdict(c))) for c in (then, now))
    return [
        f"model.{key} was {before[key]!r}, is {after[key]!r}"
        for key in after
        if key not in _FREE and not saved.same_value(key, before[key], after[key])
    ]


def _unfit(
    names: set[str],
    found: Mapping[str, Shaped],
    expected: Mapping[str, Shaped],
    part: str,
    statistics: bool,
) -> str | None:
    """Return why a component does not fit; None where it does.

    Statistics that this model has and the start has not begin anew, as without a start.
    """
    missing = _names(expected, part, False) - names
    unknown = sorted(names - expected.keys())
    other = sorted(
        n for n in names & expected.keys() if tuple(found[n].shape) != tuple(expected[n].shape)
    )
    if not (missing or unknown or other):
        return None
    if statistics and not missing and not other and all(n.endswith(_STATISTICS) for n in unknown):
        return "this model has no norm statistics there: leave statistics out"
    return (
        f"{len(missing)} tensors missing {sorted(missing)[:_NAMED]}, {len(unknown)} unknown "
        f"{unknown[:_NAMED]}, {len(other)} of another shape {other[:_NAMED]}"
    )


def _other_vision(then: saved.SignFuseConfig, now: ModelConfig) -> str | None:
    """Say why a start's visual stream is of another vision model; None where it is of the same.

    The weights of one that was trained are the start's own.
    """
    if now.vision_model is None or then.visual_fingerprint is None or now.trains_backbone:
        return None
    folder = find_folder(now.vision_model, now.visual_revision)
    if folder is None or fingerprint(folder) == then.visual_fingerprint:
        return None
    return f"was trained with {then.visual_backbone}, and {now.visual_backbone} is another model"


def _absent(part: str, stage: StageName, model: ModelConfig) -> str | None:
    """Say why this model has no such component; None where it has one."""
    if part == "adapter" and not needs_language_model(stage):
        return f"stage {stage} has no LLM, and so no adapter"
    streams = {"visual": "skeletal", "skeletal": "visual"}
    if model.streams == streams.get(part):
        return f"model.streams={model.streams} has none"
    return None


def _unfit_lora(
    part: str, stage: StageName, then: ModelConfig, now: ModelConfig, other_llm: str | None
) -> list[str]:
    if not needs_language_model(stage):
        return [f"{part}: stage {stage} has no LLM"]
    if other_llm is not None:
        return [_other_llm(part, other_llm, now)]
    if part == "merged_lora":
        if now.llm_quantization == "none":
            return []
        return [f"{part}: model.llm_quantization={now.llm_quantization} holds no such sum"]
    if "llm" not in TRAINABLE[stage]:
        return [
            f"{part}: stage {stage} trains no LoRA matrices; merged_lora in place of lora keeps "
            "them as they are"
        ]
    if now.llm_training != "lora":
        return [
            f"{part}: model.llm_training={now.llm_training} has no LoRA matrices; merged_lora in "
            "place of lora adds them to the LLM"
        ]
    keys = ("lora_rank", "lora_alpha", "lora_targets")
    return [
        f"{part}: model.{key} was {getattr(then, key)!r}, is {getattr(now, key)!r}"
        for key in keys
        if getattr(then, key) != getattr(now, key)
    ]


def _other_llm(part: str, its: str, now: ModelConfig) -> str:
    return f"{part}: was trained with the LLM {its}, and model.llm={now.llm} is another"
