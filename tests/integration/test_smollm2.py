"""SmolLM2-135M, a real LLM: read from its folder, adapted, and taught when to stop."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from helpers.model_factory import small_config
from signfuse_dist.config import EvaluationConfig, ModelConfig
from signfuse_dist.model.llm import LanguageModel, load_language_model
from signfuse_dist.model.text_tokenizer import TextTokenizer, load_tokenizer

pytestmark = pytest.mark.long
SENTENCES = ("tomorrow it will rain in the north", "the cat sees a dog")


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    folder = os.environ.get("SIGNFUSE_SMOLLM2")
    if folder is None or not (Path(folder) / "config.json").is_file():
        pytest.skip("SmolLM2-135M-Instruct is absent: set SIGNFUSE_SMOLLM2 to its folder")
    return small_config(
        llm=folder,
        prompt=ModelConfig.prompt,
        lora_targets=None,
        attention="auto",
        lora_rank=ModelConfig.lora_rank,
        lora_alpha=ModelConfig.lora_alpha,
    )


@pytest.fixture
def tokenizer(config: ModelConfig) -> TextTokenizer:
    return load_tokenizer(config)


@pytest.fixture
def llm(config: ModelConfig, tokenizer: TextTokenizer) -> LanguageModel:
    return load_language_model(config, tokenizer)


def _texts(tokenizer: TextTokenizer, sentences: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    rows = [tokenizer.encode(sentence) for sentence in sentences]
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.full((len(rows), int(lengths.max())), tokenizer.end)  # its padding is its end
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
    return tokens, lengths


def test_what_is_read_from_the_model(llm: LanguageModel, config: ModelConfig) -> None:
    assert llm.llm_dim == 576
    assert llm.context == 8192
    assert llm.room(32) == 8192 - 32 - len(llm.prompt)
    assert 0.01 < llm.embedding_rms < 1
    llm.add_lora(config)
    trained = sum(p.numel() for p in llm.parameters() if p.requires_grad)
    # 30 layers; q and o are 576 -> 576, k and v 576 -> 192; rank 16.
    assert trained == 30 * 16 * (2 * (576 + 576) + 2 * (576 + 192)) == 1_843_200


def test_it_knows_english_and_a_text_that_fits_what_comes_before(
    llm: LanguageModel, tokenizer: TextTokenizer
) -> None:
    """Words stand where sign tokens will: the LLM must read them."""
    words = torch.tensor([tokenizer.encode("France Paris capital river Seine")[:-1]])
    sign = llm.embed(words)
    tokens, lengths = _texts(tokenizer, ("Paris is the capital of France.",))
    other, other_lengths = _texts(tokenizer, ("Twelve of them sat under a piano.",))
    with torch.no_grad():
        fits = llm.negative_log_likelihood(sign, tokens, lengths) / lengths
        not_fits = llm.negative_log_likelihood(sign, other, other_lengths) / other_lengths
    assert float(fits) < 3 < float(not_fits)


def test_lora_learns_two_sentences_and_when_to_stop(
    llm: LanguageModel, tokenizer: TextTokenizer, config: ModelConfig
) -> None:
    torch.manual_seed(0)
    llm.add_lora(config)
    llm.train()
    sign = llm.embedding_rms * torch.randn(2, 4, llm.llm_dim)
    tokens, lengths = _texts(tokenizer, SENTENCES)
    trained = [p for p in llm.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-3)
    for _ in range(30):
        optimizer.zero_grad()
        nll = llm.negative_log_likelihood(sign, tokens, lengths)
        nll.sum().backward()
        optimizer.step()
    assert float(nll.detach().sum() / lengths.sum()) < 0.2
    rows = llm.generate(sign, EvaluationConfig(num_beams=2, max_new_tokens=20), tokenizer.end)
    assert [tokenizer.decode(row) for row in rows] == list(SENTENCES)
    assert all(tokenizer.end in row for row in rows)
    alone = llm.generate(sign[1:], EvaluationConfig(num_beams=2, max_new_tokens=20), tokenizer.end)
    assert tokenizer.decode(alone[0]) == SENTENCES[1]
