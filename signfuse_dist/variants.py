"""The variants that section 5.4 compares, each as words for the command line. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

_ONE_STREAM = ("loss.contrastive_weight=0", "train.stages=[alignment,finetune]")
_DIRECTLY = "train.stages=[finetune]"


@dataclass(frozen=True)
class Variant:
    """A row of one of the ablations; without ``words`` it is the model of the experiment."""

    ablation: str
    name: str
    words: tuple[str, ...] = ()


# Each step of the first adds a component to the step before it. One stream has no pairs for
# Eq. 21, so the contrastive loss and its stage go with the other stream.
VARIANTS: tuple[Variant, ...] = (
    Variant("components", "visual only", (
        "model.streams=visual", "model.fusion_layers=0", "model.scales=[]",
        "loss.contrastive_weight=0", _DIRECTLY,
    )),
    Variant("components", "+ skeletal", ("model.fusion_layers=0", "model.scales=[]", _DIRECTLY)),
    Variant("components", "+ CMFA", ("model.scales=[]", _DIRECTLY)),
    Variant("components", "+ HTA", (_DIRECTLY,)),
    Variant("components", "+ progressive training"),
    Variant("streams", "both"),
    Variant("streams", "visual", ("model.streams=visual", *_ONE_STREAM)),
    Variant("streams", "skeletal", ("model.streams=skeletal", *_ONE_STREAM)),
    Variant("fusion", "CMFA"),
    Variant("fusion", "concatenation", ("model.fusion=concat",)),
    Variant("fusion", "sum", ("model.fusion=sum",)),
    Variant("fusion", "V->S", ("model.fusion=visual_from_skeletal",)),
    Variant("fusion", "S->V", ("model.fusion=skeletal_from_visual",)),
    Variant("fusion", "both directions, no gate", ("model.fusion=no_gate",)),
    Variant("CMFA layers", "0", ("model.fusion_layers=0",)),
    Variant("CMFA layers", "1", ("model.fusion_layers=1",)),
    Variant("CMFA layers", "2", ("model.fusion_layers=2",)),
    Variant("CMFA layers", "3", ("model.fusion_layers=3",)),
    Variant("CMFA layers", "4", ("model.fusion_layers=4",)),
    Variant("scales", "none", ("model.scales=[]",)),
    Variant("scales", "frame", ("model.scales=[frame]",)),
    Variant("scales", "segment", ("model.scales=[segment]",)),
    Variant("scales", "sequence", ("model.scales=[sequence]",)),
    Variant("scales", "frame, segment", ("model.scales=[frame,segment]",)),
    Variant("scales", "frame, sequence", ("model.scales=[frame,sequence]",)),
    Variant("scales", "segment, sequence", ("model.scales=[segment,sequence]",)),
    Variant("scales", "all three"),
    Variant("stages", "finetune alone", (_DIRECTLY,)),
    Variant("stages", "without contrastive", ("train.stages=[alignment,finetune]",)),
    Variant("stages", "without alignment", ("train.stages=[contrastive,finetune]",)),
    Variant("stages", "all three"),
)  # fmt: skip
