"""LLMs from folders: both kinds load, train and come back; what is missing is said by name."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from safetensors.torch import save_file

from helpers.model_factory import (
    draw_clips,
    join,
    scramble,
    small_config,
    tiny_gpt2,
    tiny_llama,
    tiny_mt5,
    tiny_qwen,
    tiny_t5,
    tiny_t5_tokenizer,
    tiny_tokenizer,
)
from signfuse_dist.config import EvaluationConfig, LossConfig, ModelConfig
from signfuse_dist.engine.checkpoint import trained_state
from signfuse_dist.errors import UserError
from signfuse_dist.model import attention as attention_module
from signfuse_dist.model import llm, saved
from signfuse_dist.model.llm import load_language_model
from signfuse_dist.model.signfuse import SignFuse
from signfuse_dist.model.text_tokenizer import TextTokenizer, load_tokenizer
from signfuse_dist.objective import StageObjective, prepare, set_mode

LLMS: dict[str, tuple[Callable[..., Any], Callable[[], Any]]] = {
    "llama": (tiny_llama, tiny_tokenizer), "qwen": (tiny_qwen, tiny_tokenizer),
    "gpt2": (tiny_gpt2, tiny_tokenizer), "t5": (tiny_t5, tiny_t5_tokenizer),
    "mt5": (tiny_mt5, tiny_t5_tokenizer),
}  # fmt: skip
each_llm = pytest.mark.parametrize("name", LLMS)
BATCH_LENGTHS = (5, 3, 8)


def _config(folder: Path, name: str, **changes: Any) -> ModelConfig:
    """Write an LLM of a kind into ``folder``; return a small model's configuration around it."""
    make_model, make_tokenizer = LLMS[name]
    make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return small_config(
        **{"llm": str(folder), "prompt": "translate the sign", "lora_targets": None, **changes}
    )


def _finetuned(config: ModelConfig) -> Any:
    model, _ = saved.build(config, language=True)
    prepare(model, "finetune", LossConfig())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    for part in (model.visual, model.skeletal, model.fusion, model.temporal):
        scramble(part)
    return model.eval()


@each_llm
def test_a_finetuned_model_around_any_llm_comes_back(name: str, tmp_path: Path) -> None:
    config = _config(tmp_path / "llm", name)
    model, batch = _finetuned(config), join(draw_clips(BATCH_LENGTHS))
    model.save_pretrained(tmp_path / "model")
    again = SignFuse.from_pretrained(tmp_path / "model")
    tokenizer = again.tokenizer
    assert tokenizer is not None
    with torch.no_grad():
        expected, found = (m.eval()(batch, None, True) for m in (model, again))
        assert torch.equal(found.negative_log_likelihood, expected.negative_log_likelihood)
        decoding = EvaluationConfig(num_beams=2, max_new_tokens=5)
        rows, theirs = (
            m.language_model.generate(found.sign_embeddings, decoding, tokenizer.end)
            for m in (again, model)
        )
    assert rows == theirs


@each_llm
def test_the_last_stage_reaches_every_trained_parameter_and_learns(
    name: str, tmp_path: Path
) -> None:
    config = _config(tmp_path, name)
    model = _finetuned(config)
    set_mode(model, "finetune")
    objective, batch = StageObjective("finetune", LossConfig()), join(draw_clips(BATCH_LENGTHS))
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.Adam(trained.values(), lr=3e-3)
    losses = []
    for step in range(6):
        sums = objective(model, batch)
        losses.append(float(sums["language"].detach()))
        optimizer.zero_grad()
        torch.stack([objective.weights[n] * value for n, value in sums.items()]).sum().backward()
        if step == 0:
            assert not [n for n, p in trained.items() if p.grad is None or not p.grad.any()]
        optimizer.step()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("name", "quantization"),
    [("llama", "none"), ("gpt2", "none"), ("t5", "none"), ("llama", "8bit"), ("llama", "4bit")],
)  # GPT-2 and this T5 use one table under several names; quantized weights come with scales
def test_a_checkpoint_holds_nothing_of_the_frozen_llm(
    name: str, quantization: str, tmp_path: Path
) -> None:
    if quantization != "none":
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    config = _config(tmp_path, name, llm_quantization=quantization, norm="sync")
    make = {"llama": tiny_llama, "gpt2": tiny_gpt2, "t5": tiny_t5}[name]
    make(dim=64, **({"tie_word_embeddings": True} if name == "t5" else {})).save_pretrained(
        tmp_path
    )
    model = _finetuned(config)
    stored = trained_state(model)
    of_llm = {n for n in stored if n.startswith("language_model.")}
    assert of_llm
    assert all("lora_" in n for n in of_llm)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    statistics = {n for n in stored if n.endswith(("running_mean", "running_var"))}
    assert stored.keys() - trained == statistics
    save_file({n: t.contiguous() for n, t in stored.items()}, tmp_path / "stored.safetensors")


@pytest.mark.parametrize(
    ("asked", "found"), [("auto", "sdpa"), ("sdpa", "sdpa"), ("eager", "eager"), ("varlen", "sdpa")]
)
@pytest.mark.parametrize("name", ["llama", "t5"])
def test_the_setting_drives_the_llm_too(name: str, asked: str, found: str, tmp_path: Path) -> None:
    model = llm.load_frozen(_config(tmp_path, name, attention=asked))
    assert model.config._attn_implementation == found
    if name == "t5":  # its two halves have configurations of their own
        assert model.encoder.config._attn_implementation == found
        assert model.decoder.config._attn_implementation == found


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_eager_and_sdpa_are_the_same_llm(name: str, tmp_path: Path) -> None:
    batch, found = join(draw_clips(BATCH_LENGTHS)), []
    for attention in ("sdpa", "eager"):
        torch.manual_seed(0)
        model, _ = saved.build(_config(tmp_path, name, attention=attention), language=True)
        with torch.no_grad():
            found.append(model.eval()(batch, None, True).negative_log_likelihood)
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


def test_flash_attention_without_a_gpu_is_refused_before_it_is_tried(tmp_path: Path) -> None:
    config = _config(tmp_path, "llama", attention="flash_attention_2", llm_dtype="bfloat16")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match=r"flash_attention_2: it needs a CUDA GPU, and this is cpu"):
        llm.load_frozen(config)


def test_an_llm_without_flash_attention_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm, "choose_backend", lambda asked, *_: asked)  # as on a GPU
    config = _config(tmp_path, "t5", attention="flash_attention_2")
    with pytest.raises(UserError, match=r"T5ForConditionalGeneration\).*Choose auto") as error:
        llm.load_frozen(config)
    assert "model.attention=flash_attention_2: not for the LLM" in str(error.value)


def test_the_dtype_is_that_of_the_configuration(tmp_path: Path) -> None:
    model = llm.load_frozen(_config(tmp_path, "t5", llm_dtype="bfloat16"))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_a_model_that_writes_no_text_is_refused(tmp_path: Path) -> None:
    from transformers import DetrConfig

    DetrConfig().save_pretrained(tmp_path / "detr")
    for folder in ("detr", "nothing"):
        with pytest.raises(UserError, match=f"{folder}.*cannot be loaded"):
            llm.load_frozen(small_config(llm=str(tmp_path / folder)))


def test_an_llm_that_was_cut_off_is_named(tmp_path: Path) -> None:
    config = _config(tmp_path, "llama")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be loaded"):
        llm.load_frozen(config)


def test_a_decoder_that_does_not_know_how_to_start_is_refused(tmp_path: Path) -> None:
    config = _config(tmp_path, "t5")
    tiny_t5(decoder_start_token_id=None).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has no decoder_start_token_id"):
        load_language_model(config, load_tokenizer(config))


def test_a_context_without_room_for_a_text_is_refused(tmp_path: Path) -> None:
    config = _config(tmp_path, "llama", num_sign_tokens=60)  # 60 + 4 of the prompt = 64
    with pytest.raises(UserError, match=r"context of 64: model\.num_sign_tokens 60 and the 4 tok"):
        load_language_model(config, load_tokenizer(config))
    config = _config(tmp_path, "llama", num_sign_tokens=59)
    assert load_language_model(config, load_tokenizer(config)).room(59) == 1


# --- texts


def test_a_prompt_has_what_the_llm_has_around_a_text() -> None:
    assert TextTokenizer(tiny_tokenizer(), "translate the sign").prompt == [0, 2, 3, 4]
    tokenizer = TextTokenizer(tiny_t5_tokenizer(), "translate the sign")
    assert tokenizer.prompt == [2, 3, 4, 1]
    assert tokenizer.encode("i see a cat") == [5, 6, 7, 8, 1]
    assert tokenizer.decode([5, 6, 7, 8, 1, 1, 0]) == "i see a cat"


@pytest.mark.parametrize("make", [tiny_tokenizer, tiny_t5_tokenizer])
def test_an_empty_text_is_the_end_token_alone(make: Callable[[], Any]) -> None:
    assert TextTokenizer(make(), "sign").encode("") == [1]
    assert TextTokenizer(make(), "sign").decode([1, 1]) == ""


def test_texts_that_do_not_fit_are_found_by_name() -> None:
    tokenizer = TextTokenizer(tiny_tokenizer(), "sign")
    texts = {"short": "i see", "exact": "i see a", "long": "i see a cat", "odd": "i zebra"}
    too_long, unknown, longest = tokenizer.find_unfit(texts, room=4)
    assert longest == 5
    assert too_long == ["long: 5 tokens, and there is room for 4"]
    assert unknown == ["odd"]
    assert tokenizer.find_unfit(texts, room=None)[0] == []


PUBLISHED: dict[str, tuple[Callable[..., Any], str, dict[str, Any], dict[str, Any]]] = {
    "mt5": (
        tiny_mt5, "spiece", {"tokenizer_class": "T5Tokenizer", "extra_ids": 0},
        {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "vocab_size": 40},
    ),
    "vicuna": (
        tiny_llama, "tokenizer",
        {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "legacy": False},
        {"unk_id": 0, "bos_id": 1, "eos_id": 2, "model_type": "bpe", "byte_fallback": True,
         "vocab_size": 290},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_folder_with_a_sentencepiece_model_alone_has_a_tokenizer(
    name: str, tmp_path: Path
) -> None:
    """As mT5 and Vicuna are published."""
    make, prefix, settings, training = PUBLISHED[name]
    make().save_pretrained(tmp_path)
    lines = tmp_path / "lines.txt"
    lines.write_text("\n".join(f"i see a cat and {n} dogs" for n in range(200)), "utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(lines), model_prefix=str(tmp_path / prefix), minloglevel=2, **training
    )
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_tokenizer(small_config(llm=str(tmp_path), prompt="i see"))
    assert tokenizer.end == training["eos_id"]
    special = {"mt5": tokenizer.prompt[-1], "vicuna": tokenizer.prompt[0]}[name]
    assert special == 1  # </s> after the prompt for T5, <s> before it for LLaMA
    tokens = tokenizer.encode("i see a cat")
    assert tokens[-1] == tokenizer.end
    assert training["unk_id"] not in tokens
    assert tokenizer.decode(tokens) == "i see a cat"


# --- quantization


def test_quantization_without_its_package_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        llm.importlib.util,
        "find_spec",
        lambda name: None if name == "bitsandbytes" else find(name),
    )
    config = _config(tmp_path, "llama", llm_quantization="4bit")
    with pytest.raises(UserError, match=r"=4bit needs.*\(pip install bitsandbytes\)"):
        llm.load_frozen(config)


@pytest.mark.parametrize(
    ("quantization", "layer", "apart"), [("8bit", "Linear8bitLt", 0.2), ("4bit", "Linear4bit", 0.6)]
)
@pytest.mark.parametrize("name", ["llama", "t5"])
def test_a_quantized_llm_trains_its_lora_and_passes_gradients_on(
    name: str, quantization: str, layer: str, apart: float, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    config = _config(tmp_path, name, llm_dtype="bfloat16")
    wide = {"d_kv": 32} if name == "t5" else {}  # 4-bit on a CPU takes widths of 32, 64, ...
    LLMS[name][0](dim=64, **wide).save_pretrained(tmp_path)
    quantized = small_config(**{**vars(config), "llm_quantization": quantization})
    torch.manual_seed(0)
    sign, batch = torch.randn(3, 4, 64), join(draw_clips(BATCH_LENGTHS))
    found = {}
    for each in (config, quantized):
        llm = load_language_model(each, load_tokenizer(each))
        assert llm.llm_dim == 64
        inputs = sign.clone().requires_grad_()
        llm.add_lora(each)
        nll = llm.negative_log_likelihood(inputs, batch.tokens, batch.text_lengths)
        nll.sum().backward()
        assert inputs.grad is not None
        assert inputs.grad.any()
        trained = [p for p in llm.parameters() if p.requires_grad]
        assert len(trained) >= 2 * 2 * 4
        assert sum(bool(p.grad.any()) for p in trained if p.grad is not None) >= len(trained) // 2
        found[each.llm_quantization] = nll.detach()
    assert layer in {type(m).__name__ for m in llm.model.modules()}
    difference = (found[quantization] - found["none"]).abs() / found["none"]
    assert 0 < float(difference.max()) < apart
    rows = llm.generate(sign, EvaluationConfig(num_beams=1, max_new_tokens=3), end=1)
    assert len(rows) == 3


def test_the_choice_of_an_encoder_follows_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(attention_module, "choose_backend", lambda *given: seen.append(given))
    cpu = torch.device("cpu")
    for precision in ("fp32", "bf16"):
        attention_module.choose_for(small_config(attention="auto"), precision, cpu, 301)
    assert seen == [
        ("auto", cpu, dtype, 8, 151, False) for dtype in (torch.float32, torch.bfloat16)
    ]


def _byte_level(add_prefix_space: bool) -> Any:
    """Return a tokenizer as GPT-2's, in which a word after a space is another token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<s>", "</s>", "a", "Ġa", "t", "h", "e", "Ġ", "the", "Ġthe", "th"]
    merges = [("Ġ", "a"), ("t", "h"), ("th", "e"), ("Ġ", "the")]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=add_prefix_space, use_regex=True
    )
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def test_the_first_word_may_be_cut_as_one_inside_a_text() -> None:
    plain = TextTokenizer(_byte_level(False), "the")
    spaced = TextTokenizer(_byte_level(False), "the", leading_space=True)
    assert plain.encode("the a") == [8, 3, 1]
    assert spaced.encode("the a") == [9, 3, 1]
    assert plain.decode([8, 3, 1]) == spaced.decode([9, 3, 1]) == "the a"
    assert spaced.encode("") == [1]
    assert spaced.prompt == plain.prompt
    assert spaced.find_unfit({"x": "the a"}, 2) == (
        ["x: 3 tokens, and there is room for 2"],
        [],
        3,
    )


def test_a_tokenizer_that_marks_first_words_itself_gets_no_second_space() -> None:
    marked = TextTokenizer(_byte_level(True), "the", leading_space=True)
    assert marked.encode("the a") == [9, 3, 1]


def test_a_start_token_before_the_sign_tokens_must_be_there() -> None:
    tokenizer = TextTokenizer(tiny_tokenizer(), "translate the sign", "before")
    assert (tokenizer.opening, tokenizer.prompt) == ([0], [2, 3, 4])
    with pytest.raises(UserError, match=r"model\.start_token=before: the tokenizer of .* puts no"):
        TextTokenizer(tiny_t5_tokenizer(), "translate the sign", "before")
