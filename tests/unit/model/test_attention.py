"""Which attention is there, and what is said of one that is not."""

from __future__ import annotations

import logging
import sys
import types
from collections.abc import Iterator

import pytest
import torch

from signfuse_dist.config import ModelConfig
from signfuse_dist.errors import UserError
from signfuse_dist.model import attention
from signfuse_dist.model.attention import BACKENDS, attend, choose_backend, choose_for, why_not

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
BF16, FP32 = torch.bfloat16, torch.float32


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    attention._choose.cache_clear()
    yield
    attention._choose.cache_clear()


@pytest.fixture
def ampere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that is new enough, as far as the choice looks; no flash-attn."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setitem(sys.modules, "flash_attn", None)  # importing it fails


@pytest.fixture
def flash_attn(monkeypatch: pytest.MonkeyPatch, ampere: None) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", types.ModuleType("flash_attn"))


def test_sdpa_and_eager_are_always_there() -> None:
    assert [b for b in BACKENDS if why_not(b, CPU, FP32, 64) is None] == ["sdpa", "eager"]
    assert choose_backend("sdpa", CPU, FP32, 64) == "sdpa"
    assert choose_backend("eager", GPU, BF16, 7) == "eager"


@pytest.mark.parametrize("asked", ["flash_attention_2", "varlen"])
def test_what_needs_a_gpu_is_refused_on_a_cpu_with_what_there_is(asked: str) -> None:
    with pytest.raises(UserError) as error:
        choose_backend(asked, CPU, BF16, 64)  # type: ignore[arg-type]
    assert str(error.value) == (
        f"model.attention={asked}: it needs a CUDA GPU, and this is cpu. "
        "Here there are: sdpa, eager; auto chooses sdpa"
    )


def test_attention_itself_refuses_what_is_not_there() -> None:
    x = torch.randn(1, 3, 16)
    with pytest.raises(UserError, match=r"model\.attention=varlen: it needs a CUDA GPU"):
        attend(x, x, x, 2, None, None, "varlen")


@pytest.mark.usefixtures("ampere")
def test_a_missing_package_is_named_with_how_to_get_it() -> None:
    with pytest.raises(UserError, match=r"flash-attn \(pip install flash-attn\)") as error:
        choose_backend("flash_attention_2", GPU, BF16, 64)
    assert "there are: varlen, sdpa, eager" in str(error.value)


@pytest.mark.usefixtures("flash_attn")
@pytest.mark.parametrize("asked", ["flash_attention_2", "varlen"])
def test_a_flash_kernel_asked_for_in_fp32_is_refused(asked: str) -> None:
    with pytest.raises(UserError, match=r"takes float16 and bfloat16, not float32 \(see train"):
        choose_backend(asked, GPU, FP32, 64)  # type: ignore[arg-type]


@pytest.mark.usefixtures("flash_attn")
def test_heads_that_no_flash_kernel_takes_are_refused() -> None:
    for head_dim in (12, 264):
        with pytest.raises(UserError, match=f"not {head_dim} "):
            choose_backend("varlen", GPU, BF16, head_dim)


@pytest.mark.usefixtures("flash_attn")
def test_an_old_gpu_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    with pytest.raises(UserError, match="Ampere GPU or newer, and this is Tesla V100"):
        choose_backend("flash_attention_2", GPU, BF16, 64)
    assert choose_backend("auto", GPU, BF16, 64) == "sdpa"


@pytest.mark.usefixtures("flash_attn")
def test_auto_takes_flash_attn_where_it_is_there() -> None:
    assert choose_backend("auto", GPU, BF16, 64) == "flash_attention_2"


@pytest.mark.usefixtures("ampere")
@pytest.mark.parametrize(
    ("device", "dtype", "head_dim", "expected"),
    [
        (GPU, BF16, 64, "varlen"),
        (GPU, torch.float16, 64, "varlen"),
        (GPU, FP32, 64, "sdpa"),
        (GPU, BF16, 12, "sdpa"),
        (CPU, BF16, 64, "sdpa"),
        (CPU, FP32, 64, "sdpa"),
        (torch.device("meta"), FP32, 64, "sdpa"),
    ],
)
def test_auto_goes_by_device_dtype_and_width(
    device: torch.device, dtype: torch.dtype, head_dim: int, expected: str
) -> None:
    assert choose_backend("auto", device, dtype, head_dim) == expected


@pytest.mark.usefixtures("flash_attn")
def test_auto_packs_nothing_over_at_most_128_steps() -> None:
    assert choose_backend("auto", GPU, BF16, 64, 128) == "sdpa"
    assert choose_backend("auto", GPU, BF16, 64, 129) == "flash_attention_2"
    assert choose_backend("varlen", GPU, BF16, 64, 5) == "varlen"
    shipped = ModelConfig(llm="x", llm_dtype="bfloat16", lora_targets=None, attention="auto")
    assert choose_for(shipped, "bf16", GPU, 256) == "sdpa"
    assert choose_for(shipped, "bf16", GPU, 257) == "flash_attention_2"


@pytest.mark.usefixtures("ampere")
def test_auto_goes_on_where_torch_has_no_variable_length_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", None)
    assert choose_backend("auto", GPU, BF16, 64) == "sdpa"


def test_auto_logs_its_choice_once(caplog: pytest.LogCaptureFixture) -> None:
    x = torch.randn(1, 3, 16)
    with caplog.at_level(logging.INFO, logger="signfuse_dist"):
        for _ in range(3):
            attend(x, x, x, 2, None)
    assert [r.getMessage() for r in caplog.records] == [
        "attention on cpu in torch.float32: auto chose sdpa"
    ]
