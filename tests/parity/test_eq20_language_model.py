"""Eq. 20: the product over tokens, one forward pass of the LLM for each, and transformers' loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.model_factory import VOCABULARY, small_config, tiny_gpt2, tiny_llama, tiny_tokenizer
from signfuse_dist.config import EvaluationConfig
from signfuse_dist.errors import UserError
from signfuse_dist.model.llm import LanguageModel
from signfuse_dist.model.text_tokenizer import TextTokenizer

PROMPT = [0, 2, 3]
TEXTS = [[5, 7, 1, 1, 9], [4], [8, 6, 1]]  # 1 is the end token and the padding at once


def _inputs(llm_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sign = torch.randn(3, 4, llm_dim, dtype=torch.float64, generator=generator).requires_grad_()
    tokens = torch.ones(3, 5, dtype=torch.long)
    for i, text in enumerate(TEXTS):
        tokens[i, : len(text)] = torch.tensor(text)
    return sign, tokens, torch.tensor([len(text) for text in TEXTS])


def _naive(model: Any, sign: Tensor, text: list[int]) -> Tensor:
    """-log P(Y | V, S) as the sum of -log P(y_n | E_sign, e_prompt, y_<n), one pass a token."""
    table = model.get_input_embeddings().weight
    total = torch.zeros((), dtype=torch.float64)
    for n, token in enumerate(text):
        before = [table[t] for t in [*PROMPT, *text[:n]]]
        logits = model(inputs_embeds=torch.cat((sign, torch.stack(before)))[None]).logits[0, -1]
        total = total - (logits[token] - torch.logsumexp(logits, 0)).double()
    return total


@pytest.mark.parametrize(
    ("make", "tolerance"), [(tiny_gpt2, 1e-9), (tiny_llama, 1e-5)], ids=["gpt2", "llama"]
)
def test_the_likelihood_is_the_product_over_tokens(make: Any, tolerance: float) -> None:
    model = make().double()  # Llama's norms compute in float32 whatever its dtype
    llm = LanguageModel(model, PROMPT)
    sign, tokens, lengths = _inputs(llm.llm_dim)
    found = llm.negative_log_likelihood(sign, tokens, lengths)
    expected = torch.stack([_naive(model, s, t) for s, t in zip(sign, TEXTS, strict=True)])
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    probe = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    (a,) = torch.autograd.grad((found * probe).sum(), sign)
    (b,) = torch.autograd.grad((expected * probe).sum(), sign)
    torch.testing.assert_close(a, b, rtol=10 * tolerance, atol=10 * tolerance)


def test_the_loss_is_that_of_transformers_for_labels_masked_by_length() -> None:
    model = tiny_llama()
    llm = LanguageModel(model, PROMPT)
    sign, tokens, lengths = _inputs(llm.llm_dim)
    found = llm.negative_log_likelihood(sign.float(), tokens, lengths)
    prefix = torch.cat((sign.float(), llm.embed(torch.tensor([PROMPT] * 3))), dim=1)
    labels = torch.full((3, prefix.shape[1] + 5), -100)
    for i, text in enumerate(TEXTS):
        labels[i, prefix.shape[1] : prefix.shape[1] + len(text)] = torch.tensor(text)
    embeds = torch.cat((prefix, llm.embed(tokens)), dim=1)
    loss = model(inputs_embeds=embeds, labels=labels).loss  # the mean over labelled tokens
    torch.testing.assert_close(found.sum() / lengths.sum(), loss, rtol=1e-5, atol=1e-6)


def test_padding_is_known_by_length_so_the_end_token_is_learned() -> None:
    llm = LanguageModel(tiny_llama(), PROMPT)
    sign, tokens, lengths = _inputs(llm.llm_dim)
    before = llm.negative_log_likelihood(sign.float(), tokens, lengths)
    other = tokens.clone()
    for i, text in enumerate(TEXTS):
        other[i, len(text) :] = VOCABULARY - 1
    torch.testing.assert_close(llm.negative_log_likelihood(sign.float(), other, lengths), before)
    shorter = llm.negative_log_likelihood(sign.float(), tokens, lengths - torch.tensor([0, 0, 1]))
    assert shorter[2] < before[2]  # the last token of the third text is the end token


def test_lora_adds_alpha_over_r_times_b_a_and_nothing_at_the_start() -> None:
    config = small_config(lora_targets=("c_attn",), lora_rank=2, lora_alpha=6)
    plain, llm = tiny_gpt2().double(), LanguageModel(tiny_gpt2().double(), PROMPT)
    sign, tokens, lengths = _inputs(llm.llm_dim)
    before = llm.negative_log_likelihood(sign, tokens, lengths)
    llm.add_lora(config)
    torch.testing.assert_close(llm.negative_log_likelihood(sign, tokens, lengths), before)
    trained = {n: p for n, p in llm.named_parameters() if p.requires_grad}
    assert len(trained) == 4  # A and B of two layers
    assert all("lora_" in name for name in trained)
    for block, layer in enumerate(plain.transformer.h):
        a, b = (
            next(p for n, p in trained.items() if f"h.{block}." in n and f"lora_{x}" in n)
            for x in "AB"
        )
        assert a.shape[0] == b.shape[1] == 2
        with torch.no_grad():
            torch.nn.init.normal_(b)
            layer.attn.c_attn.weight.add_((6 / 2 * b @ a).T.double())  # GPT-2 stores W transposed
    expected = torch.stack([_naive(plain, s, t) for s, t in zip(sign, TEXTS, strict=True)])
    found = llm.negative_log_likelihood(sign, tokens, lengths)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)  # A and B are float32


class _Adapted:
    """The plain LLM whose weights are W + alpha / r B A, as a function of A and B."""

    def __init__(self, plain: Any, matrices: list[tuple[Tensor, Tensor]], scale: float) -> None:
        self.plain = plain
        self.changed = {
            f"transformer.h.{i}.attn.c_attn.weight": block.attn.c_attn.weight + scale * (b @ a).T
            for i, (block, (a, b)) in enumerate(zip(plain.transformer.h, matrices, strict=True))
        }

    def get_input_embeddings(self) -> Any:
        return self.plain.get_input_embeddings()

    def __call__(self, **inputs: Any) -> Any:
        return torch.func.functional_call(self.plain, self.changed, kwargs=inputs)


def test_the_gradients_of_lora_are_those_of_the_changed_weights() -> None:
    config = small_config(lora_targets=("c_attn",), lora_rank=2, lora_alpha=6)
    plain, llm = tiny_gpt2().double(), LanguageModel(tiny_gpt2(), PROMPT)
    llm.add_lora(config)
    llm.double()
    trained = {n: p for n, p in llm.named_parameters() if p.requires_grad}
    matrices: list[Any] = [
        [next(p for n, p in trained.items() if f"h.{i}." in n and f"lora_{x}" in n) for x in "AB"]
        for i in range(2)
    ]
    with torch.no_grad():
        for _, b in matrices:
            torch.nn.init.normal_(b)
    sign, tokens, lengths = _inputs(llm.llm_dim)
    found = llm.negative_log_likelihood(sign, tokens, lengths)
    adapted = _Adapted(plain, matrices, scale=6 / 2)
    expected = torch.stack([_naive(adapted, s, t) for s, t in zip(sign, TEXTS, strict=True)])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    inputs = [sign, *(matrix for pair in matrices for matrix in pair)]
    for a, b in zip(
        torch.autograd.grad(found.sum(), inputs),
        torch.autograd.grad(expected.sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def test_a_lora_target_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="nonsense_proj"):
        LanguageModel(tiny_llama(), PROMPT).add_lora(small_config(lora_targets=("nonsense_proj",)))


def test_the_width_is_read_from_the_llm() -> None:
    assert LanguageModel(tiny_llama(dim=16), PROMPT).llm_dim == 16


def test_greedy_generation_takes_the_likeliest_token_each_time() -> None:
    model = tiny_llama()
    llm = LanguageModel(model, PROMPT)
    sign, _, _ = _inputs(llm.llm_dim)
    rows = llm.generate(sign.float(), EvaluationConfig(num_beams=1, max_new_tokens=6), end=1)
    for clip, row in zip(sign.detach().float(), rows, strict=True):
        table, written = model.get_input_embeddings().weight, list[int]()
        for _ in range(6):
            embeds = torch.cat((clip, table[torch.tensor([*PROMPT, *written])]))
            written.append(int(model(inputs_embeds=embeds[None]).logits[0, -1].argmax()))
            if written[-1] == 1:
                break
        assert row[: len(written)] == written
        assert all(token == 1 for token in row[len(written) :])


def test_the_prompt_begins_as_the_llm_begins_a_text_and_a_target_ends_with_its_end() -> None:
    tokenizer = TextTokenizer(tiny_tokenizer(), "translate the sign")
    assert tokenizer.prompt == [0, 2, 3, 4]
    assert tokenizer.encode("i see a cat") == [5, 6, 7, 8, 1]
    assert tokenizer.decode([5, 6, 1, 9, 1]) == "i see"
