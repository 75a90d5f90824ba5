"""Models on disk: building one from a configuration, saving it, loading it.

The folder of a model holds

    config.json                          SignFuseConfig: numbers, and which LLM
    model.safetensors                    everything but the LLM
    adapter/                             LoRA as a folder of PEFT, after the last stage
    usage.json                           how clips are brought to it (:class:`.usage.Usage`)
    merged/                              LoRA of a start, added to the LLM (train.start_parts)
    llm/                                 the LLM, where it was trained or that was asked for
    state.json                           checksums of these files
    README.md                            the model card, written by the run

Else the LLM is not copied: ``config.json`` holds its name, revision and fingerprint.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic.dataclasses import dataclass
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig

from signfuse_dist.config import ModelConfig, names_with
from signfuse_dist.errors import UserError, raise_together, refuse_unknown
from signfuse_dist.files import read_json, read_state, write_folder, write_json, write_text
from signfuse_dist.model.llm import LanguageModel, MergedLora, load_language_model, without_bars
from signfuse_dist.model.llm_identity import find_folder, fingerprint, refer
from signfuse_dist.model.place import (
    ADAPTER,
    CARD,
    CONFIG,
    LLM,
    MERGED,
    OWN_LLM,
    WEIGHTS,
    local,
)
from signfuse_dist.model.signfuse import SignFuse
from signfuse_dist.model.text_tokenizer import TextTokenizer, load_tokenizer
from signfuse_dist.model.usage import USAGE, read_usage
from signfuse_dist.model.vision import VisionModel, without_weights
from signfuse_dist.records import STRICT_KEYS, Whole, read_record
from signfuse_dist.sections import build_section
from signfuse_dist.weights import (
    load_exactly,
    load_tensors,
    refuse_difference,
    refuse_not_finite,
    save_tensors,
)

_FIELDS = {f.name for f in dataclasses.fields(ModelConfig)}
# Keys that transformers writes beside a model's own, and takes where it reads a configuration.
_OF_TRANSFORMERS = {f.name for f in dataclasses.fields(PreTrainedConfig)}
_OF_TRANSFORMERS |= PreTrainedConfig().to_dict().keys()
_OF_TRANSFORMERS |= {
    "name_or_path",
    "output_attentions",
    "attn_implementation",
    "experts_implementation",
    "torch_dtype",
    "num_labels",
}


# What a model of feature sets, or with a vision model of transformers, says besides.
_OF_FRAMES = ("vector_dim", "visual_commit", "visual_fingerprint", "visual_network")


class SignFuseConfig(PreTrainedConfig):
    """The configuration of a SignFuse model, with what transformers expects of one.

    Its values are the fields of :class:`~signfuse_dist.config.ModelConfig`, which alone defines
    them and their defaults, and three of what the model was trained with.

    Attributes:
        llm_commit: revision of the frozen LLM on the model hub; None for a folder, or no LLM.
        llm_fingerprint: of the LLM (:func:`signfuse_dist.model.llm_identity.fingerprint`); None
            for a model without LLM.
        llm_trained: whether the LLM's own weights were trained, and lie in the model's folder.
        max_frames: the longest clip it takes, in frames; None = any.
        vector_dim: numbers of a frame in the feature sets that it sees; None for one of pictures.
        visual_commit: revision on the model hub of the vision model that encodes frames; None for a
            folder, or none.
        visual_fingerprint: of that model, as of an LLM; None without one.
        visual_network: what it is built from, where its weights were trained and are this model's.
    """

    model_type = "signfuse"
    vector_dim: int | None = None
    visual_commit: str | None = None
    visual_fingerprint: str | None = None
    visual_network: dict[str, Any] | None = None

    def __init__(
        self,
        *,
        llm_commit: str | None = None,
        llm_fingerprint: str | None = None,
        llm_trained: bool = False,
        max_frames: int | None = None,
        **values: Any,
    ) -> None:
        """Raise :class:`UserError` with every value that is missing, unknown or of another type."""
        errors: list[str] = []
        of_frames = {name: values.pop(name) for name in _OF_FRAMES if name in values}
        refuse_unknown(values, _FIELDS | _OF_TRANSFORMERS, "model", errors)
        own = {name: value for name, value in values.items() if name in _FIELDS}
        model = build_section("model", ModelConfig, own, errors)
        raise_together(errors, "not the configuration of a SignFuse model")
        assert model is not None
        theirs = _OF_TRANSFORMERS - {"model_type", "transformers_version"}
        super().__init__(**{k: v for k, v in values.items() if k in theirs})
        for name in _FIELDS:
            setattr(self, name, getattr(model, name))
        self.llm_commit, self.llm_fingerprint = llm_commit, llm_fingerprint
        self.llm_trained = llm_trained
        self.max_frames = max_frames
        for name, value in of_frames.items():
            if value is not None:  # others' files stay what they were
                setattr(self, name, value)

    @classmethod
    def of(cls, model: ModelConfig, **trained_with: Any) -> SignFuseConfig:
        """Return the configuration of a model that is built from ``model``."""
        return cls(**dataclasses.asdict(model), **trained_with)

    @property
    def model(self) -> ModelConfig:
        """The values that a model is built from."""
        return ModelConfig(**{name: getattr(self, name) for name in _FIELDS})

    def __eq__(self, other: object) -> bool:
        """Compare the model's values; what transformers generates compares its own only."""
        return isinstance(other, SignFuseConfig) and self._own() == other._own()

    def _own(self) -> tuple[Any, ...]:
        identity = self.llm_commit, self.llm_fingerprint, self.llm_trained
        return self.model, *identity, self.max_frames, *(getattr(self, n) for n in _OF_FRAMES)

    __hash__ = None  # type: ignore[assignment]  # values can be changed


AutoConfig.register(SignFuseConfig.model_type, SignFuseConfig)


def read_config(folder: Any) -> SignFuseConfig:
    """Read ``config.json`` of a folder; raise :class:`UserError` naming it."""
    try:
        return SignFuseConfig.from_pretrained(folder)
    except (OSError, ValueError, TypeError, RecursionError) as e:
        raise UserError(f"{folder}: its config.json cannot be read: {e}") from e


ADAPTER_WEIGHTS = f"{ADAPTER}/adapter_model.safetensors"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf")  # or of other programs
# What may differ where a model is loaded: where its LLM is and how the numbers are computed.
MOVABLE = names_with(ModelConfig, "load")
# What a stage may change of the one before: also how the LLM is adapted and asked, and whose
# statistics batch norms use (with others than batch norms, names of tensors differ).
FREE = names_with(ModelConfig, "load", "stage")


@dataclass(frozen=True, config=STRICT_KEYS)
class _MergedRecord:
    """The form of LoRA matrices that were added to the LLM, beside their tensors."""

    rank: Whole
    alpha: Whole
    targets: tuple[str, ...] | Literal["all"] | None

    def values(self) -> dict[str, Any]:
        return vars(self)


def build(
    config: ModelConfig,
    language: bool,
    max_frames: int | None = None,
    in_full: bool = False,
    vector_dim: int | None = None,
    vision: VisionModel | None = None,
) -> tuple[SignFuse, TextTokenizer | None]:
    """Build an untrained model, with the LLM and its tokenizer when ``language``.

    ``in_full`` loads the LLM in float32, as a stage that trains its weights needs it;
    ``vector_dim`` and ``vision`` are as in :class:`SignFuse`. Raises UserError when the LLM cannot
    be loaded.
    """
    if not language:
        return SignFuse(config, None, max_frames, vector_dim, vision), None
    tokenizer = load_tokenizer(config)
    llm = load_language_model(config, tokenizer, in_full)
    model = SignFuse(config, llm, max_frames, vector_dim, vision)
    model.tokenizer = tokenizer
    model.llm_reference = refer(config.llm, config.llm_revision)
    return model, tokenizer


def own_state(model: SignFuse) -> dict[str, Tensor]:
    """Return the components: everything but the LLM and its LoRA matrices.

    And but a vision model of transformers that stays as it is, which has a name, as the LLM has.
    """
    others: tuple[str, ...] = ("language_model.",)
    if model.vision is not None and not model.built_from.trains_backbone:
        others = (*others, "visual.backbone.")
    return {
        name: tensor.detach()
        for name, tensor in model.state_dict().items()
        if not name.startswith(others)
    }


def save(model: SignFuse, folder: Path, said: dict[str, Any], with_llm: bool = False) -> None:
    """Write the folder of a model, whole or not at all; an earlier one is replaced.

    An LLM whose own weights were trained is written with it, whatever ``with_llm`` says.
    ``said`` is what ``state.json`` holds beside the checksums. The card of a model that was loaded
    goes with it; it may be edited, so it has no checksum.

    Raises UserError when something else is there, or the LLM is of no folder and no hub.
    """
    is_free = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not is_free and not _is_saved_model(folder):
        raise UserError(f"{folder} holds something else than a saved model; give another folder")
    if model.language_model is not None and model.llm_reference is None:
        raise UserError("the model's LLM came from no folder and no hub, so it cannot be named")
    config, tensors = model.config, own_state(model)
    language_model, tokenizer = model.language_model, model.tokenizer
    llm_trained = language_model is not None and language_model.is_trained
    if llm_trained and config.llm_quantization != "none":
        raise UserError(
            f"the model's LLM was trained and is here in {config.llm_quantization}: load the model "
            "with llm_quantization=none to write it"
        )
    if llm_trained:
        config.llm, config.llm_commit = OWN_LLM, None
    elif with_llm:
        source = _llm_folder(config)
        config.llm = OWN_LLM
    elif config.llm_fingerprint is not None and Path(config.llm).is_dir():
        config.llm = str(Path(config.llm).absolute())  # read from other working folders too
    if model.built_from.vision_model is not None and Path(model.built_from.vision_model).is_dir():
        config.visual_backbone = f"hf:{Path(model.built_from.vision_model).absolute()}"
    contiguous = {name: t.cpu().contiguous() for name, t in tensors.items()}
    writers: dict[str, Any] = {}
    if llm_trained:  # first: its fingerprint is part of the configuration
        writers[LLM] = lambda path: _save_llm(language_model, tokenizer, path)
    elif with_llm:
        writers[LLM] = lambda path: _copy_llm(source, path)
    writers[CONFIG] = lambda path: _save_config(config, llm_trained, path)
    writers[WEIGHTS] = lambda path: save_tensors(contiguous, path, {"format": "pt"})
    if language_model is not None and language_model.merged and not llm_trained:
        merged = language_model.merged
        writers[MERGED] = lambda path: _save_merged(merged, path)
    adapted = _peft(model)
    if adapted is not None:
        writers[ADAPTER] = lambda path: _save_adapter(adapted, config, path)
    usage = model.usage
    if usage is not None:
        writers[USAGE] = lambda path: path.write_text(usage.to_json(), encoding="utf-8")
    write_folder(folder, writers, said)
    if model.card is not None:
        write_text(folder / CARD, model.card)


def is_nowhere_else(llm: str) -> bool:
    """Return whether ``model.llm`` is a relative folder, which means nothing to another machine.

    A name of the hub does, and a whole path is where somebody keeps an LLM for many models.
    """
    return not Path(llm).is_absolute() and Path(llm).is_dir()


def load(name: str | Path, revision: str | None, changes: dict[str, Any]) -> SignFuse:
    """Load a saved model; see :meth:`SignFuse.from_pretrained`."""
    unknown = sorted(changes.keys() - {*MOVABLE, "visual_backbone"})
    if unknown:
        raise UserError(f"{unknown} cannot be changed where a model is loaded, only {MOVABLE}")
    folder = local(name, revision)
    files, config = read(folder)
    usage = read_usage(folder) if USAGE in files else None
    if config.llm_trained and "llm" in changes:
        raise UserError(
            f"llm={changes['llm']}: the LLM of {folder} was trained with it and lies in it; no "
            "other can take its place"
        )
    numbers = dataclasses.replace(config.model, **changes)
    if numbers.llm == OWN_LLM:
        numbers = dataclasses.replace(numbers, llm=str((folder / LLM).absolute()))
    elif numbers.llm == config.model.llm and numbers.llm_revision is None:
        numbers = dataclasses.replace(numbers, llm_revision=config.llm_commit)
    if numbers.visual_backbone == config.visual_backbone and numbers.visual_revision is None:
        numbers = dataclasses.replace(numbers, visual_revision=config.visual_commit)
    vision = None
    if config.visual_network is not None:
        vision = without_weights(config.visual_network, str(folder / CONFIG))
        vision.commit, vision.fingerprint = config.visual_commit, config.visual_fingerprint
    language = config.llm_fingerprint is not None
    model, _ = build(
        numbers, language, config.max_frames, vector_dim=config.vector_dim, vision=vision
    )
    _refuse_another_llm(model, config, folder)
    _refuse_another_vision(model, config, folder)
    load_exactly(load_tensors(folder / WEIGHTS), own_state(model), model, folder / WEIGHTS)
    _merge(folder, model)
    if model.language_model is not None:
        model.language_model.is_trained = config.llm_trained
    if ADAPTER_WEIGHTS in files:
        assert model.language_model is not None
        model.language_model.add_lora(model.built_from)
        load_adapter(folder, model)
        model.language_model.requires_grad_(False)
    model.usage, model.card = usage, _read_card(folder)
    return model.eval()


def load_into(folder: Path, model: SignFuse, may_miss: tuple[str, ...] = ()) -> None:
    """Let a model start from the components in the folder of the stage before it.

    ``may_miss``: components that the folder need not have. Raises UserError when a file is
    damaged or of another configuration.
    """
    files, config = read(folder)
    then, now = (
        json.loads(json.dumps(dataclasses.asdict(c))) for c in (config.model, model.built_from)
    )
    differ = [k for k in now if k not in FREE and not same_value(k, then[k], now[k])]
    errors = [f"model.{k} was {then[k]!r}, is {now[k]!r}" for k in differ]
    raise_together(errors, f"{folder} was trained with another model configuration")
    _refuse_another_llm(model, config, folder)
    _refuse_another_vision(model, config, folder)
    if ADAPTER_WEIGHTS in files:
        raise UserError(f"{folder} holds LoRA matrices, which no stage starts from")
    load_exactly(
        load_tensors(folder / WEIGHTS), own_state(model), model, folder / WEIGHTS, may_miss
    )
    _merge(folder, model)


def same_value(key: str, before: Any, now: Any) -> bool:
    """Return whether a key of two models says the same; a vision model may lie elsewhere now.

    Whether that is the same model, its fingerprint says.
    """
    if key == "visual_backbone" and before.startswith("hf:") and now.startswith("hf:"):
        return True
    return bool(before == now)


def read(folder: Path) -> tuple[dict[str, str], SignFuseConfig]:
    """Return the files of a saved model, every checksum compared, and its configuration."""
    files = read_state(folder)["files"]
    for name in (CONFIG, WEIGHTS):
        if name not in files:
            raise UserError(f"{folder}: its state.json lists no {name}")
    return files, read_config(folder)


def _is_saved_model(folder: Path) -> bool:
    try:
        text = (folder / CONFIG).read_text(encoding="utf-8")
        return json.loads(text)["model_type"] == SignFuseConfig.model_type  # type: ignore[no-any-return]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _read_card(folder: Path) -> str | None:
    """Return the text of the card, None where there is none that can be read as text."""
    try:
        return (folder / CARD).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None  # nothing that is computed depends on it


def _llm_folder(config: SignFuseConfig) -> Path:
    """Return where the files of a model's LLM are; raise UserError where it has none."""
    found = None
    if config.llm_fingerprint is not None:
        found = find_folder(config.llm, config.llm_commit)
    if found is None:
        raise UserError("with_llm: the model has no LLM whose files are here")
    return found


def _copy_llm(source: Path, path: Path) -> None:
    """Copy the files that transformers reads, without what is pickled where that is not needed."""
    files = [f for f in sorted(source.iterdir()) if f.is_file() and not f.name.startswith(".")]
    if any(f.suffix == ".safetensors" for f in files):
        files = [f for f in files if f.suffix not in _PICKLED]
    path.mkdir()
    for file in files:
        shutil.copyfile(file, path / file.name)


def _save_llm(
    language_model: LanguageModel | None, tokenizer: TextTokenizer | None, path: Path
) -> None:
    """Write an LLM that was trained, with its tokenizer, as transformers reads them."""
    assert language_model is not None
    if tokenizer is None:
        raise UserError("the model's LLM was trained, and its tokenizer is not known")
    with without_bars():
        language_model.model.save_pretrained(path)
    tokenizer.save(path)


def _save_config(config: SignFuseConfig, llm_trained: bool, path: Path) -> None:
    """Write ``config.json``; of an LLM that was trained the fingerprint is that of its files."""
    if llm_trained:
        config.llm_fingerprint = fingerprint(path.parent / LLM)
    path.write_text(config.to_json_string(), encoding="utf-8")


def _refuse_another_llm(model: SignFuse, config: SignFuseConfig, folder: Path) -> None:
    now = model.llm_reference
    if now is None or config.llm_fingerprint in (None, now.fingerprint):
        return
    raise UserError(
        f"{folder} was trained with {config.llm} (fingerprint {config.llm_fingerprint[:12]}), and "
        f"model.llm={model.built_from.llm} is another LLM now (fingerprint {now.fingerprint[:12]})"
    )


def _refuse_another_vision(model: SignFuse, config: SignFuseConfig, folder: Path) -> None:
    now = None if model.vision is None else model.vision.fingerprint
    if config.visual_fingerprint == now:
        return
    raise UserError(
        f"{folder} was trained with {config.visual_backbone} (fingerprint "
        f"{str(config.visual_fingerprint)[:12]}), and model.visual_backbone="
        f"{model.built_from.visual_backbone} is another vision model now (fingerprint "
        f"{str(now)[:12]})"
    )


def _peft(model: SignFuse) -> Any:
    language_model = model.language_model
    if language_model is None:
        return None
    from peft import PeftModel

    return language_model.model if isinstance(language_model.model, PeftModel) else None


def _save_adapter(adapted: Any, config: SignFuseConfig, path: Path) -> None:
    described = adapted.peft_config["default"]
    described.base_model_name_or_path, described.revision = config.llm, config.llm_commit
    with warnings.catch_warnings():
        # PEFT asks the hub whether the vocabulary grew; no stage changes it.
        warnings.filterwarnings("ignore", "Could not find a config file in ", UserWarning)
        adapted.save_pretrained(path)
    (path / "README.md").unlink(missing_ok=True)  # PEFT's empty form; the card is the model's


def load_adapter(folder: Path, model: SignFuse) -> None:
    """Load LoRA matrices into those that a model has; nothing of the adapter's own code is run.

    Raises UserError when they are of another configuration or damaged.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    assert model.language_model is not None
    found = load_tensors(folder / ADAPTER_WEIGHTS)
    adapted = model.language_model.model
    refuse_difference(found, get_peft_model_state_dict(adapted), folder / ADAPTER_WEIGHTS)
    refuse_not_finite(found, folder / ADAPTER_WEIGHTS)
    set_peft_model_state_dict(adapted, found)


def read_merged(folder: Path) -> list[MergedLora]:
    """Return the LoRA matrices that were added to a model's LLM, in their order."""
    return [
        MergedLora(
            **read_record(_MergedRecord, read_json(path), f"{path}: no LoRA matrices").values(),
            tensors=load_tensors(path.with_suffix(".safetensors")),
        )
        for path in sorted((folder / MERGED).glob("*.json"))
    ]


def _merge(folder: Path, model: SignFuse) -> None:
    """Add to the LLM what a model's folder says was added to it."""
    if model.language_model is not None:
        for merged in read_merged(folder):
            model.language_model.merge(merged, model.built_from)


def _save_merged(merged: Sequence[MergedLora], path: Path) -> None:
    path.mkdir()
    for number, lora in enumerate(merged):
        described = dataclasses.asdict(_MergedRecord(lora.rank, lora.alpha, lora.targets))
        write_json(path / f"{number:03d}.json", described)
        save_tensors(dict(lora.tensors), path / f"{number:03d}.safetensors")
