"""How a stage starts from the saved model of the one before it, and from what it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers.model_factory import small_config
from helpers.saved_models import config_of, finetuned, untrained, write_llm
from signfuse_dist.config import ModelConfig
from signfuse_dist.errors import UserError
from signfuse_dist.model import saved


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    """A small model whose LLM lies in a folder."""
    return config_of(tmp_path_factory.mktemp("llm"))


@pytest.fixture
def aligned(config: ModelConfig, tmp_path: Path) -> Path:
    """The folder of a stage before the last: no LoRA."""
    untrained(config).save_pretrained(tmp_path / "aligned")
    return tmp_path / "aligned"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dim": 32, "skeletal_channels": (4, 6, 8, 32)}, r"model\.dim was 16, is 32"),
        # The same shapes, another function of them:
        ({"num_heads": 4}, r"model\.num_heads was 2, is 4"),
        ({"scale_strides": (1, 1, 1)}, r"model\.scale_strides was \[1, 2, 4\], is \[1, 1, 1\]"),
        ({"fusion": "no_gate"}, r"model\.fusion was 'cmfa', is 'no_gate'"),
        ({"norm": "sync"}, "tensors missing"),
    ],
)
def test_a_stage_does_not_start_from_another_model(
    config: ModelConfig, aligned: Path, changes: dict[str, Any], said: str
) -> None:
    other = small_config(llm=config.llm, prompt=config.prompt, **changes)
    with pytest.raises(UserError, match=said) as refused:
        saved.load_into(aligned, untrained(other))
    assert str(aligned) in str(refused.value)


def test_the_llm_may_have_moved_and_be_asked_otherwise(
    config: ModelConfig, aligned: Path, tmp_path: Path
) -> None:
    Path(config.llm).rename(tmp_path / "moved")
    try:
        moved = small_config(llm=str(tmp_path / "moved"), prompt="the sign")
        saved.load_into(aligned, untrained(moved))
    finally:
        (tmp_path / "moved").rename(config.llm)


def test_a_stage_does_not_go_on_with_another_llm(
    config: ModelConfig, aligned: Path, tmp_path: Path
) -> None:
    write_llm(tmp_path / "other", seed=1)
    other = small_config(llm=str(tmp_path / "other"), prompt=config.prompt)
    with pytest.raises(UserError, match="is another LLM now"):
        saved.load_into(aligned, untrained(other))


def test_no_stage_starts_from_one_with_lora(config: ModelConfig, tmp_path: Path) -> None:
    finetuned(config).save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="holds LoRA matrices"):
        saved.load_into(tmp_path / "model", finetuned(config))


def test_only_a_stage_without_an_llm_may_miss_the_adapter(
    config: ModelConfig, tmp_path: Path
) -> None:
    untrained(config, language=False).save_pretrained(tmp_path / "model")
    model = untrained(config)
    saved.load_into(tmp_path / "model", model, may_miss=("adapter.",))
    with pytest.raises(UserError, match="tensors missing"):
        saved.load_into(tmp_path / "model", model)


def test_statistics_of_batch_norms_may_be_frozen_by_a_later_stage(
    config: ModelConfig, tmp_path: Path
) -> None:
    before = small_config(llm=config.llm, prompt=config.prompt, norm="sync", visual_norm="sync")
    untrained(before).save_pretrained(tmp_path / "before")
    after = small_config(llm=config.llm, prompt=config.prompt, norm="frozen", visual_norm="frozen")
    saved.load_into(tmp_path / "before", untrained(after))
