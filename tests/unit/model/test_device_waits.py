"""Where the host would wait for a GPU in a step: counted on the CPU, where everything runs.

Fake tensors (test_fake_cuda.py) refuse every wait but those that transformers leaves out for them.
"""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.model_factory import (
    draw_clips,
    join,
    small_config,
    tiny_gpt2,
    tiny_llama,
    tiny_mt5,
    tiny_qwen,
    tiny_t5,
)
from signfuse_dist.config import STAGES, LossConfig, StageName
from signfuse_dist.model import attention, hta
from signfuse_dist.model.llm import LanguageModel
from signfuse_dist.model.signfuse import SignFuse
from signfuse_dist.objective import StageObjective, prepare, set_mode
from signfuse_dist.stages import needs_language_model

_LOOKS = (
    "_local_scalar_dense",
    "item",
    "is_nonzero",
    "nonzero",
    "equal",
    "masked_select",
    "_unique2",
)
_TORCH = str(Path(torch.__file__).parent)
# transformers asks whether several texts are packed into one row: once a pass of a causal LLM.
PACKED = "find_packed_sequence_indices"


class Waits(TorchDispatchMode):
    """Notes where operations look into values: file, line and function, the innermost first."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = name.startswith("index") and any(
            getattr(x, "dtype", None) == torch.bool
            for x in torch.utils._pytree.tree_leaves(args[1])
        )
        if name in _LOOKS or masks:
            frames = [f for f in traceback.extract_stack() if not f.filename.startswith(_TORCH)]
            place = frames[-2]  # the last is this
            self.places.append(f"{place.filename}:{place.lineno} {place.name}")
        return func(*args, **(kwargs or {}))


LLMS = {
    "llama": tiny_llama, "qwen": tiny_qwen, "gpt2": tiny_gpt2, "t5": tiny_t5, "mt5": tiny_mt5
}  # fmt: skip


def waits(stage: StageName, llm: str = "llama", **changes: Any) -> list[str]:
    """Return where the host looks into values in a forward and backward pass of a stage."""
    torch.manual_seed(0)
    language = None
    if needs_language_model(stage):
        language = LanguageModel(LLMS[llm](), [0, 2, 3, 4])
    values = {"visual_norm": "frozen", "norm": "sync", "lora_targets": None, **changes}
    model = SignFuse(small_config(**values), language)
    prepare(model, stage, LossConfig())
    set_mode(model, stage)
    batch, objective = join(draw_clips([5, 3, 8])), StageObjective(stage, LossConfig())
    with Waits() as seen:
        sums = objective(model, batch)
        torch.stack(list(sums.values())).sum().backward()
    return seen.places


@pytest.mark.parametrize("llm", LLMS)
def test_a_step_waits_once_in_a_causal_llm_and_never_elsewhere(llm: str) -> None:
    found = waits("finetune", llm)
    assert [place.rpartition(" ")[2] for place in found] == [PACKED] * (llm not in ("t5", "mt5"))


@pytest.mark.parametrize(
    "changes",
    [
        {"visual_chunk": 2},
        {"visual_checkpoint": True},
        {"visual_norm": "group", "norm": "layer"},
        {"attention": "eager", "fusion": "no_gate"},
        {"scales": (), "fusion": "concat"},
    ],
    ids=str,
)
def test_no_way_to_run_the_encoders_waits(changes: dict[str, Any]) -> None:
    assert waits("contrastive", **changes) == []


def test_alignment_waits_nowhere_but_in_the_llm() -> None:
    assert [place.rpartition(" ")[2] for place in waits("alignment")] == [PACKED]


@pytest.fixture
def offsets(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """All of the path of a variable-length kernel but the kernel; the offsets of each call.

    Each token gets its own value for a result: what attention computes is not the subject.
    """
    given: list[Any] = []

    def kernel(*inputs: Any) -> Any:
        given.append(inputs[3:5])
        return inputs[2]

    monkeypatch.setattr(attention, "choose_backend", lambda *_: "varlen")
    monkeypatch.setattr(attention, "kernel_of", lambda _: kernel)
    return given


@pytest.mark.parametrize("stage", STAGES)
def test_variable_length_attention_is_packed_once_a_batch_and_waits_for_nothing(
    stage: StageName, offsets: list[Any]
) -> None:
    places = [place.rpartition(" ")[2] for place in waits(stage, attention="varlen")]
    assert places == [PACKED] * needs_language_model(stage)
    if needs_language_model(stage):
        offsets.pop()  # HTA's, of pooled steps without padding
    assert len(offsets) > 1
    assert len({id(one) for pair in offsets for one in pair}) == 1


def test_a_new_wait_is_named_with_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = hta._pool

    def peeking(*inputs: Any) -> Any:
        return whole(*inputs) if inputs[1].max() > 0 else None

    monkeypatch.setattr(hta, "_pool", peeking)
    found = [place for place in waits("alignment") if not place.endswith(PACKED)]
    assert len(found) == 3  # a scale of time each
    assert all(place.endswith("peeking") and "test_device_waits.py" in place for place in found)
