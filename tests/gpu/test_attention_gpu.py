"""The CUDA kernels mean what the loops mean, forward and backward, alone and in the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.attention import AttentionBench, measure, run
from helpers.attention_reference import attend_by_loops
from helpers.model_factory import draw_clips, join, small_config, tiny_t5, tiny_tokenizer
from signfuse_dist.batch import length_mask
from signfuse_dist.config import EvaluationConfig, LossConfig
from signfuse_dist.errors import UserError
from signfuse_dist.model import llm, saved
from signfuse_dist.model.attention import BACKENDS, attend, choose_backend
from signfuse_dist.model.signfuse import SignFuse
from signfuse_dist.objective import StageObjective, prepare, set_mode

pytestmark = pytest.mark.gpu
DIM, HEADS = 32, 2
CASES: dict[str, tuple[list[int] | None, list[int] | None]] = {
    "odd": ([7, 1, 4], [7, 1, 4]), "cross": ([5, 2, 3], [1, 3, 2]), "one step": ([1], [1]),
    "every key real": (None, [2, 6, 1]), "every query real": ([3, 8, 1], None),
    "all real": (None, None), "long": ([300, 7, 131], [300, 7, 131]),
}  # fmt: skip


def _draw(case: str, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    keys, queries = CASES[case]
    clips = len(keys or queries or [0, 0])
    most_keys, most_queries = max(keys or [6]), max(queries or [5])
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(clips, n, DIM, generator=generator).to(device, dtype).requires_grad_()
        for n in (most_queries, most_keys, most_keys)
    )
    key_mask = None if keys is None else length_mask(torch.tensor(keys, device=device), most_keys)
    query_mask = key_mask
    if keys != queries:
        query_mask = (
            None if queries is None else length_mask(torch.tensor(queries).to(device), most_queries)
        )
    return query, key, value, key_mask, query_mask


def _exact(case: str, inputs: tuple[Any, ...]) -> Tensor:
    """The same by float64 on the CPU: by loops where they are quick, else by eager."""
    query, key, value = (x.cpu().double() for x in inputs[:3])
    if case == "long":
        masks = [None if mask is None else mask.cpu() for mask in inputs[3:]]
        return attend(query, key, value, HEADS, *masks, "eager")
    keys, queries = CASES[case]
    return attend_by_loops(
        query,
        key,
        value,
        HEADS,
        keys or [key.shape[1]] * len(key),
        queries or [query.shape[1]] * len(query),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES)
def test_a_kernel_is_the_loops_forward_and_backward(
    kernel: Any, case: str, dtype: torch.dtype, device: torch.device
) -> None:
    inputs = _draw(case, device, dtype)
    found = attend(*inputs[:3], HEADS, *inputs[3:], kernel)
    assert found.dtype == dtype
    expected = _exact(case, inputs)
    tolerance = 2e-2 if dtype == torch.bfloat16 else 3e-3
    torch.testing.assert_close(found.cpu().double(), expected, rtol=tolerance, atol=tolerance)
    probe = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).double()
    ours = torch.autograd.grad((found * probe.to(device, dtype)).sum(), inputs[:3])
    theirs = torch.autograd.grad((expected * probe).sum(), inputs[:3])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(
            a.cpu().double(), b.cpu().double(), rtol=3 * tolerance, atol=3 * tolerance
        )


def test_padding_is_never_read(kernel: Any, device: torch.device) -> None:
    query, key, value, mask, _ = _draw("odd", device, torch.bfloat16)
    clean = attend(query, key, value, HEADS, mask, mask, kernel)
    dirty = [x.detach().masked_fill(~mask[:, :, None], torch.nan) for x in (query, key, value)]
    found = attend(*dirty, HEADS, mask, mask, kernel)
    assert torch.equal(found, clean)
    assert not found[~mask].any()


def test_the_backward_pass_repeats_itself_bit_for_bit(device: torch.device) -> None:
    """What a resumed run relies on; promised for flash-attn, whose backward pass can be asked."""
    if choose_backend("auto", device, torch.bfloat16, DIM // HEADS) != "flash_attention_2":
        pytest.skip("flash_attention_2 is not here: install flash-attn")
    inputs = _draw("long", device, torch.bfloat16)
    first, second = (
        torch.autograd.grad(
            attend(*inputs[:3], HEADS, *inputs[3:], "flash_attention_2").float().sum(), inputs[:3]
        )
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def _losses(backend: str, device: torch.device) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Losses and gradients of the first stage, in bfloat16 under autocast."""
    torch.manual_seed(0)
    config = small_config(attention=backend, dim=DIM, skeletal_channels=(4, 6, 8, DIM))
    model = SignFuse(config, None).to(device)
    prepare(model, "contrastive", LossConfig())
    set_mode(model, "contrastive")
    batch = join(draw_clips([5, 3, 8, 1])).to(device)
    with torch.autocast("cuda", torch.bfloat16):
        sums = StageObjective("contrastive", LossConfig())(model, batch)
    torch.stack(list(sums.values())).sum().backward()
    gradients = {n: p.grad for n, p in model.fusion.named_parameters() if p.grad is not None}
    return {n: float(v) for n, v in sums.items()}, gradients


def test_a_model_trains_with_a_kernel_as_with_sdpa(kernel: str, device: torch.device) -> None:
    expected, wanted = _losses("sdpa", device)
    found, gradients = _losses(kernel, device)
    assert found == pytest.approx(expected, rel=2e-2)
    assert gradients.keys() == wanted.keys()
    ours, theirs = (torch.cat([g.flatten() for g in each.values()]) for each in (gradients, wanted))
    assert torch.nn.functional.cosine_similarity(ours, theirs, dim=0) > 0.99


def test_auto_takes_the_first_that_is_here(device: torch.device) -> None:
    assert choose_backend("auto", device, torch.float32, 64) == "sdpa"
    for backend in BACKENDS:
        try:
            assert choose_backend(backend, device, torch.bfloat16, 64) == backend
        except UserError:
            continue
        assert choose_backend("auto", device, torch.bfloat16, 64) == backend
        break


def _wide_llama(folder: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=23,
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=64,
            bos_token_id=0,
            eos_token_id=1,
            initializer_range=0.1,
        )
    ).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def test_the_llm_with_flash_attention_is_the_llm_with_sdpa(
    tmp_path: Path, device: torch.device
) -> None:
    try:
        choose_backend("flash_attention_2", device, torch.bfloat16, 32)
    except UserError as e:
        pytest.skip(str(e))
    _wide_llama(tmp_path)
    batch, found = join(draw_clips([5, 3, 8])).to(device), {}
    for attention in ("sdpa", "flash_attention_2"):
        config = small_config(
            llm=str(tmp_path),
            llm_dtype="bfloat16",
            attention=attention,
            dim=DIM,
            skeletal_channels=(4, 6, 8, DIM),
        )
        torch.manual_seed(0)
        model, _ = saved.build(config, language=True)
        model = model.to(device).eval()
        assert model.language_model is not None
        assert model.language_model.attention == attention
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
            found[attention] = model(batch, None, True).negative_log_likelihood
    torch.testing.assert_close(found["flash_attention_2"], found["sdpa"], rtol=5e-2, atol=5e-2)


def test_an_encoder_decoder_without_flash_attention_says_so(
    tmp_path: Path, device: torch.device
) -> None:
    try:
        choose_backend("flash_attention_2", device, torch.bfloat16, 64)
    except UserError as e:
        pytest.skip(str(e))
    tiny_t5(d_kv=8).save_pretrained(tmp_path)
    config = small_config(llm=str(tmp_path), llm_dtype="bfloat16", attention="flash_attention_2")
    with pytest.raises(UserError, match="T5ForConditionalGeneration"):
        llm.load_frozen(config)


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_a_quantized_llm_trains_and_translates(
    quantization: str, tmp_path: Path, device: torch.device
) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    _wide_llama(tmp_path)
    config = small_config(
        llm=str(tmp_path),
        llm_dtype="bfloat16",
        llm_quantization=quantization,
        lora_targets=None,
        attention="auto",
    )
    model, tokenizer = saved.build(config, language=True)
    prepare(model, "finetune", LossConfig())
    model = model.to(device)
    set_mode(model, "finetune")
    with torch.autocast("cuda", torch.bfloat16):
        sums = StageObjective("finetune", LossConfig())(model, join(draw_clips([5, 3])).to(device))
    torch.stack(list(sums.values())).sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert model.language_model is not None
    assert tokenizer is not None
    sign = torch.randn(2, 3, 64, device=device)
    decoding = EvaluationConfig(num_beams=2, max_new_tokens=4)
    assert len(model.language_model.generate(sign, decoding, tokenizer.end)) == 2


def test_the_benchmark_measures_each_kernel(kernel: Any, device: torch.device) -> None:
    bench = AttentionBench((64,), 4, 512, 8, torch.bfloat16, device, repeats=3)
    cost = measure(bench, kernel, 64)
    assert cost is not None
    assert cost.seconds > 0
    assert cost.peak_bytes > 4 * 64 * 512 * 2  # the output at least
    assert torch.cuda.get_device_name(device) in run(bench)
