"""Eq. 20 for causal and encoder-decoder LLMs as equals: likelihood, gradients, LoRA, decoding."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.model_factory import (
    VOCABULARY,
    small_config,
    tiny_gpt2,
    tiny_llama,
    tiny_mt5,
    tiny_qwen,
    tiny_t5,
)
from signfuse_dist.config import EvaluationConfig
from signfuse_dist.errors import UserError
from signfuse_dist.model.llm import LanguageModel, find_projections
from signfuse_dist.preflight.llm_files import find_llm_files

PROMPT = [3, 2, 4]
# 1 is the end token, 0 the padding of T5: both stand inside texts and are learned there.
TEXTS = [[5, 7, 0, 1, 9, 1], [4], [8, 6, 1]]
LLMS: dict[str, Callable[..., Any]] = {
    "llama": tiny_llama, "qwen": tiny_qwen, "gpt2": tiny_gpt2, "t5": tiny_t5, "mt5": tiny_mt5
}  # fmt: skip
each_llm = pytest.mark.parametrize("name", LLMS)


def _inputs(llm_dim: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sign = torch.randn(3, 4, llm_dim, generator=generator).requires_grad_()
    tokens = torch.zeros(3, 6, dtype=torch.long)
    for i, text in enumerate(TEXTS):
        tokens[i, : len(text)] = torch.tensor(text)
    return sign, tokens, torch.tensor([len(text) for text in TEXTS])


def _next_logits(model: Any, sign: Tensor, written: list[int]) -> Tensor:
    """Logits of the next token after ``written``, of one clip, as the architecture defines them."""
    table = model.get_input_embeddings().weight
    prefix = torch.cat((sign, table[torch.tensor(PROMPT)]))
    if not model.config.is_encoder_decoder:
        embeds = torch.cat((prefix, table[torch.tensor(written, dtype=torch.long)]))
        return model(inputs_embeds=embeds[None]).logits[0, -1]  # type: ignore[no-any-return]
    started = torch.tensor([[0, *written]])
    return model(  # type: ignore[no-any-return]
        inputs_embeds=prefix[None], decoder_input_ids=started
    ).logits[0, -1]


def _naive(model: Any, sign: Tensor, text: list[int]) -> Tensor:
    """The sum of -log P(y_n | E_sign, e_prompt, y_<n), one forward pass a token."""
    total = torch.zeros(())
    for n, token in enumerate(text):
        logits = _next_logits(model, sign, text[:n])
        total = total - (logits[token] - torch.logsumexp(logits, 0))
    return total


@each_llm
def test_the_likelihood_is_the_product_over_tokens_with_its_gradient(name: str) -> None:
    model = LLMS[name]().double()  # T5's norms take their mean square in float32 all the same
    llm = LanguageModel(model, PROMPT)
    sign, tokens, lengths = _inputs()
    sign = sign.detach().double().requires_grad_()
    found = llm.negative_log_likelihood(sign, tokens, lengths)
    expected = torch.stack([_naive(model, s, t) for s, t in zip(sign, TEXTS, strict=True)])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, check_dtype=False)
    probe = torch.tensor([1.0, -2.0, 0.5])
    (a,) = torch.autograd.grad((found * probe).sum(), sign)
    (b,) = torch.autograd.grad((expected * probe).sum(), sign)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert a.abs().amax(dim=(1, 2)).min() > 1e-4  # every clip's sign tokens are read


@each_llm
def test_label_smoothing_is_torchs_over_the_real_tokens_whatever_stands_behind_them(
    name: str,
) -> None:
    """(1 - e) of the target's term and e of the vocabulary's mean, a token; padding has none."""
    model, smoothing = LLMS[name](), 0.3
    llm = LanguageModel(model, PROMPT)
    sign, tokens, lengths = _inputs()
    for i, text in enumerate(TEXTS):
        tokens[i, len(text) :] = VOCABULARY - 1
    found = llm.negative_log_likelihood(sign, tokens, lengths, smoothing)
    for clip, text, value in zip(sign, TEXTS, found, strict=True):
        logits = torch.stack([_next_logits(model, clip, text[:n]) for n in range(len(text))])
        target = torch.tensor(text)
        expected = F.cross_entropy(logits, target, label_smoothing=smoothing, reduction="sum")
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)
        log_p = logits.log_softmax(dim=1)
        by_hand = -(1 - smoothing) * log_p.gather(1, target[:, None]) - smoothing * log_p.mean(
            dim=1, keepdim=True
        )
        torch.testing.assert_close(value, by_hand.sum(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["t5", "mt5"])
def test_the_loss_of_an_encoder_decoder_is_that_of_transformers_for_labels_masked_by_length(
    name: str,
) -> None:
    model = LLMS[name]()
    llm = LanguageModel(model, PROMPT)
    sign, tokens, lengths = _inputs()
    labels = torch.full_like(tokens, -100)
    for i, text in enumerate(TEXTS):
        labels[i, : len(text)] = torch.tensor(text)
    prefix = torch.cat((sign, llm.embed(torch.tensor([PROMPT] * 3))), dim=1)
    loss = model(inputs_embeds=prefix, labels=labels).loss
    found = llm.negative_log_likelihood(sign, tokens, lengths).sum() / lengths.sum()
    torch.testing.assert_close(found, loss, rtol=1e-5, atol=1e-6)


@each_llm
def test_padding_is_known_by_length_and_a_clip_is_the_same_alone(name: str) -> None:
    llm = LanguageModel(LLMS[name](), PROMPT)
    sign, tokens, lengths = _inputs()
    before = llm.negative_log_likelihood(sign, tokens, lengths)
    other = tokens.clone()
    for i, text in enumerate(TEXTS):
        other[i, len(text) :] = VOCABULARY - 1
    torch.testing.assert_close(llm.negative_log_likelihood(sign, other, lengths), before)
    for i, text in enumerate(TEXTS):
        alone = llm.negative_log_likelihood(
            sign[i : i + 1], torch.tensor([text]), torch.tensor([len(text)])
        )
        torch.testing.assert_close(alone[0], before[i], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "qwen"])
def test_told_where_padding_is_a_causal_llm_gives_the_same(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """flash-attn gets a mask to leave padding out; here SDPA gets the same mask."""
    llm = LanguageModel(LLMS[name](), PROMPT)
    sign, tokens, lengths = _inputs()
    expected = llm.negative_log_likelihood(sign, tokens, lengths)
    seen: list[Tensor] = []
    llm.model.register_forward_pre_hook(
        lambda module, given, named: seen.append(named["attention_mask"]), with_kwargs=True
    )
    monkeypatch.setattr(LanguageModel, "attention", "flash_attention_2")
    found = llm.negative_log_likelihood(sign, tokens, lengths)
    assert [mask.sum(dim=1).tolist() for mask in seen] == [[4 + 3 + n for n in (6, 1, 3)]]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@each_llm
@pytest.mark.parametrize("num_beams", [1, 3])
def test_decoding_is_deterministic_and_a_clip_is_decoded_as_if_alone(
    name: str, num_beams: int
) -> None:
    llm = LanguageModel(LLMS[name](), PROMPT)
    sign = 3 * _inputs()[0].detach()
    config = EvaluationConfig(num_beams=num_beams, max_new_tokens=6)
    rows = [_cut(row) for row in llm.generate(sign, config, end=1)]
    assert rows == [_cut(row) for row in llm.generate(sign, config, end=1)]
    assert rows == [_cut(llm.generate(clip[None], config, end=1)[0]) for clip in sign]
    assert len({tuple(row) for row in rows}) > 1  # else the test could not fail
    assert all(len(row) <= 6 for row in rows)


def _cut(row: list[int]) -> list[int]:
    return row[: row.index(1)] if 1 in row else row


@each_llm
def test_greedy_decoding_takes_the_likeliest_token_each_time(name: str) -> None:
    model = LLMS[name]()
    llm = LanguageModel(model, PROMPT)
    sign = 3 * _inputs()[0].detach()
    rows = llm.generate(sign, EvaluationConfig(num_beams=1, max_new_tokens=6), end=1)
    for clip, row in zip(sign, rows, strict=True):
        written = list[int]()
        for _ in range(6):
            written.append(int(_next_logits(model, clip, written).argmax()))
            if written[-1] == 1:
                break
        assert row[: len(written)] == written
        assert all(token == 1 for token in row[len(written) :])


@each_llm
def test_what_a_model_brings_along_for_decoding_is_not_used(name: str) -> None:
    sign, config = 3 * _inputs()[0].detach(), EvaluationConfig(num_beams=2, max_new_tokens=6)
    expected = LanguageModel(LLMS[name](), PROMPT).generate(sign, config, end=1)
    model = LLMS[name]()
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.min_length = 6
    model.generation_config.suppress_tokens = [token for row in expected for token in row]
    assert LanguageModel(model, PROMPT).generate(sign, config, end=1) == expected


PROJECTIONS = {
    "llama": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "qwen": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "gpt2": {"c_attn", "c_proj"},
    "t5": {"q", "k", "v", "o"},
    "mt5": {"q", "k", "v", "o"},
}
# Two layers; T5 has two in its encoder and two in its decoder, those with cross-attention too.
BLOCKS = {"llama": 2, "qwen": 2, "gpt2": 2, "t5": 2 + 2 * 2, "mt5": 2 + 2 * 2}


@each_llm
def test_the_attention_projections_are_found_in_the_model(name: str) -> None:
    found = find_projections(LLMS[name]())
    assert {target.rpartition(".")[2] for target in found} == PROJECTIONS[name]
    assert len(found) == len(set(found)) == BLOCKS[name] * len(PROJECTIONS[name])
    assert not any("mlp" in target or "DenseReluDense" in target for target in found)


@each_llm
def test_lora_trains_its_own_matrices_alone_and_starts_as_nothing(name: str) -> None:
    llm = LanguageModel(LLMS[name](), PROMPT)
    sign, tokens, lengths = _inputs()
    before = llm.negative_log_likelihood(sign, tokens, lengths)
    llm.add_lora(small_config(lora_targets=None))
    llm.train()
    after = llm.negative_log_likelihood(sign, tokens, lengths)
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
    trained = {n: p for n, p in llm.named_parameters() if p.requires_grad}
    assert all("lora_" in n for n in trained)
    assert len(trained) == 2 * BLOCKS[name] * len(PROJECTIONS[name])  # A and B
    frozen = {n: p.clone() for n, p in llm.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.Adam(trained.values(), lr=0.05)
    for _ in range(3):  # B starts at zero, so A's first gradient is zero
        optimizer.zero_grad()
        llm.negative_log_likelihood(sign.detach(), tokens, lengths).sum().backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.any() for p in trained.values())
    learned = llm.negative_log_likelihood(sign, tokens, lengths)
    assert learned.sum() < after.sum()
    assert all(torch.equal(dict(llm.named_parameters())[n], p) for n, p in frozen.items())
    rows = llm.generate(sign.detach(), EvaluationConfig(num_beams=2, max_new_tokens=4), end=1)
    assert len(rows) == 3


MLP = {
    "llama": ("gate_proj", "up_proj", "down_proj"),
    "qwen": ("gate_proj", "up_proj", "down_proj"),
    "gpt2": ("c_fc", "mlp.c_proj"),
    "t5": ("wi_0", "wi_1", "wo"),
    "mt5": ("wi_0", "wi_1", "wo"),
}


@each_llm
@pytest.mark.parametrize("which", ["mlp", "all"])
def test_lora_on_the_feed_forward_layers_or_on_all_of_them_trains(
    name: str, which: str, tmp_path: Path
) -> None:
    """Two layers, T5 two on each side; and `signfuse check` counts the same without torch."""
    model = LLMS[name]()
    model.save_pretrained(tmp_path)
    llm, layers = LanguageModel(model, PROMPT), 4 if name.endswith("t5") else 2
    config = small_config(lora_targets="all" if which == "all" else MLP[name])
    llm.add_lora(config)
    llm.train()
    trained = {n: p for n, p in llm.named_parameters() if p.requires_grad}
    wrapped = {n.partition(".lora_")[0] for n in trained}
    attention = BLOCKS[name] * len(PROJECTIONS[name]) if which == "all" else 0
    assert len(wrapped) == layers * len(MLP[name]) + attention
    assert not any("lm_head" in n for n in wrapped)
    sign, tokens, lengths = _inputs()
    optimizer = torch.optim.Adam(trained.values(), lr=0.05)
    for _ in range(2):  # B starts at zero, so A's first gradient is zero
        optimizer.zero_grad()
        llm.negative_log_likelihood(sign.detach(), tokens, lengths).sum().backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.any() for p in trained.values())
    files = find_llm_files(dataclasses.replace(config, llm=str(tmp_path)))
    assert files is not None
    assert files.lora_parameters(config) == sum(p.numel() for p in trained.values())


@each_llm
def test_the_start_token_may_stand_before_the_sign_tokens(name: str) -> None:
    """[<s>; E_sign; prompt; text]: another likelihood, and the same by hand; room counts it."""
    model, sign, tokens, lengths = LLMS[name](), *_inputs()
    llm = LanguageModel(model, PROMPT[1:], PROMPT[:1])
    found = llm.negative_log_likelihood(sign, tokens, lengths)
    table = model.get_input_embeddings().weight
    moved = torch.cat((table[torch.tensor(PROMPT[:1])].expand(3, 1, -1), sign), dim=1)
    expected = LanguageModel(model, PROMPT[1:]).negative_log_likelihood(moved, tokens, lengths)
    torch.testing.assert_close(found, expected)
    after = LanguageModel(model, PROMPT)
    assert not torch.allclose(found, after.negative_log_likelihood(sign, tokens, lengths))
    assert llm.room(4) == after.room(4)
    config = EvaluationConfig(num_beams=2, max_new_tokens=4)
    assert llm.generate(sign, config, end=1) == LanguageModel(model, PROMPT[1:]).generate(
        moved, config, end=1
    )


@each_llm
def test_trained_whole_every_weight_of_an_llm_gets_a_gradient_and_it_learns(name: str) -> None:
    """A weight without one would stop distributed training; bfloat16 becomes float32."""
    llm = LanguageModel(LLMS[name]().bfloat16(), PROMPT)
    sign, tokens, lengths = _inputs()
    llm.train_whole()
    llm.train()
    trained = dict(llm.named_parameters())
    assert all(p.requires_grad and p.dtype == torch.float32 for p in trained.values())
    assert not any(module.training for module in llm.model.modules())
    optimizer = torch.optim.Adam(trained.values(), lr=0.01)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = llm.negative_log_likelihood(sign.detach(), tokens, lengths).sum()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert [n for n, p in trained.items() if p.grad is None or not p.grad.any()] == []
    assert losses[-1] < losses[0]


def test_lora_targets_can_be_named_and_each_must_be_there() -> None:
    llm = LanguageModel(tiny_t5(), PROMPT)
    with pytest.raises(UserError, match="no layers called q_proj; its attention has k, o, q, v"):
        llm.add_lora(small_config(lora_targets=("q", "q_proj")))
    llm.add_lora(small_config(lora_targets=("q", "wi_0")))
    layers = {
        n.split(".lora_")[0].rpartition(".")[2] for n, _ in llm.named_parameters() if "lora_" in n
    }
    assert layers == {"q", "wi_0"}


def test_only_the_innermost_blocks_are_attention() -> None:
    """A layer may say itself whether it is causal, and has more than attention inside."""
    layer = tiny_llama().model.layers[0]
    layer.is_causal = True
    assert find_projections(layer) == [f"self_attn.{x}_proj" for x in "qkvo"]


def test_deep_models_get_lora_on_the_same_layers() -> None:
    """PEFT shortens long lists of names; GPT-2's feed-forward part has a c_proj as well."""
    llm = LanguageModel(tiny_gpt2(num_layers=12), PROMPT)
    llm.add_lora(small_config(lora_targets=None))
    adapted = {
        n.split(".lora_")[0].split(".h.")[1] for n, p in llm.named_parameters() if p.requires_grad
    }
    assert adapted == {f"{i}.attn.{name}" for i in range(12) for name in ("c_attn", "c_proj")}


def test_a_model_without_attention_blocks_asks_for_names() -> None:
    with pytest.raises(UserError, match=r"no attention layers were found in Sequential"):
        find_projections(torch.nn.Sequential(torch.nn.Linear(2, 2)))


def test_the_dropout_of_a_frozen_llm_is_off_in_training() -> None:
    llm = LanguageModel(tiny_t5(dropout_rate=0.5), PROMPT).train()
    llm.add_lora(small_config(lora_targets=None))
    llm.train()
    sign, tokens, lengths = _inputs()
    first = llm.negative_log_likelihood(sign, tokens, lengths)
    assert torch.equal(llm.negative_log_likelihood(sign, tokens, lengths), first)
    llm.model.train()  # the dropout is there
    assert not torch.equal(llm.negative_log_likelihood(sign, tokens, lengths), first)


@each_llm
def test_width_and_scale_are_read_from_the_model(name: str) -> None:
    model = LLMS[name](dim=20)
    llm = LanguageModel(model, PROMPT)
    assert llm.llm_dim == 20
    table = model.get_input_embeddings().weight
    assert llm.embedding_rms == pytest.approx(float(table.pow(2).mean().sqrt()))
    torch.testing.assert_close(llm.embed(torch.tensor([[4, 2]])), table[torch.tensor([[4, 2]])])


@pytest.mark.parametrize("name", ["llama", "qwen", "gpt2"])
def test_a_text_beyond_the_context_is_refused(name: str) -> None:
    llm = LanguageModel(LLMS[name](), PROMPT)  # a context of 64
    assert llm.room(num_sign_tokens=4) == 57
    sign, tokens = _inputs()[0][:1], torch.full((1, 57), 5)
    assert llm.negative_log_likelihood(sign, tokens, torch.tensor([57])).isfinite()
    tokens = torch.full((1, 58), 5)
    with pytest.raises(
        UserError, match="58 tokens does not fit: the LLM's context of 64 leaves 57"
    ):
        llm.negative_log_likelihood(sign, tokens, torch.tensor([58]))
    with pytest.raises(UserError, match=r"evaluation\.max_new_tokens of 58"):
        llm.generate(sign.detach(), EvaluationConfig(max_new_tokens=58), end=1)


def test_relative_positions_set_no_limit() -> None:
    llm = LanguageModel(tiny_t5(), PROMPT)
    assert llm.context is None
    assert llm.room(num_sign_tokens=4) is None
    sign, tokens = _inputs()[0][:1], torch.full((1, 300), 5)
    assert llm.negative_log_likelihood(sign, tokens, torch.tensor([300])).isfinite()
