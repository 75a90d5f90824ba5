"""The language model, Eq. 20: any causal or encoder-decoder LM of transformers, frozen, with LoRA.

A causal LM reads [E_sign; e_prompt; text]. An encoder-decoder reads [E_sign; e_prompt] in its
encoder and writes the text with its decoder. Both give P(Y | V, S) of Eq. 20.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from signfuse_dist import device
from signfuse_dist.batch import length_mask
from signfuse_dist.config import EvaluationConfig, ModelConfig
from signfuse_dist.errors import UserError, first_line
from signfuse_dist.model.attention import choose_backend
from signfuse_dist.model.dropout import ClipDropout
from signfuse_dist.model.llm_identity import find_folder, not_found
from signfuse_dist.model.read_ahead import read_ahead
from signfuse_dist.model.text_tokenizer import TextTokenizer
from signfuse_dist.weights import refuse_difference

# PEFT and what transformers makes an LLM of are imported where there is one: they take three
# seconds, and the contrastive stage needs neither.
if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LanguageModel(nn.Module):
    """The LLM around the sign tokens; its own weights never train.

    Paper: silent on the LLM's own dropout. Here: the LLM stays in evaluation mode while its LoRA
    matrices, or its own weights, train. Because: T5 has a dropout of 0.1, and noise in a frozen
    function would make a step depend on how the batch is shared out.
    """

    opening: Tensor
    prompt: Tensor

    def __init__(
        self, model: PreTrainedModel, prompt: list[int], opening: Sequence[int] = ()
    ) -> None:
        """Put ``opening`` before the sign tokens and ``prompt`` behind them, as ids."""
        from transformers import GenerationConfig

        super().__init__()
        self.model: Any = model.requires_grad_(False)
        for name, ids in (("opening", opening), ("prompt", prompt)):
            tokens = torch.tensor(list(ids), dtype=torch.long)
            self.register_buffer(name, tokens, persistent=False)
        self.merged: list[MergedLora] = []
        self._lora_dropouts: list[ClipDropout] = []
        self.is_trained = False
        """Whether its own weights were trained, so that they are part of the model."""
        self.num_prompts = 0
        self.is_encoder_decoder = bool(model.config.is_encoder_decoder)
        self.start: int | None = getattr(model.config, "decoder_start_token_id", None)
        if self.is_encoder_decoder and self.start is None:
            raise UserError(f"{type(model).__name__}: its config has no decoder_start_token_id")
        # What some models bring along, such as a repetition penalty, would decode otherwise than
        # the configuration of the run says.
        model.generation_config = GenerationConfig()

    @property
    def llm_dim(self) -> int:
        """d_LLM, read from the embedding table."""
        return int(self._table.shape[1])

    @property
    def embedding_rms(self) -> float:
        """Root mean square of the embedding table."""
        return float(self._table.float().square().mean().sqrt())

    @property
    def attention(self) -> str:
        """The attention implementation of transformers that is in use."""
        return str(self.model.config._attn_implementation)

    @property
    def context(self) -> int | None:
        """How many positions the LLM knows; None where they are relative, as in T5."""
        limit = getattr(self.model.config, "max_position_embeddings", None)
        return None if limit is None else int(limit)

    @property
    def _table(self) -> Tensor:
        weight: Tensor = self.model.get_input_embeddings().weight
        return weight

    def train(self, mode: bool = True) -> LanguageModel:
        """Keep the LLM itself in evaluation mode whatever ``mode`` says."""
        super().train(mode)
        self.model.eval()
        for dropout in self._lora_dropouts:
            dropout.train(mode)
        return self

    def room(self, num_sign_tokens: int) -> int | None:
        """Return how many tokens of text the context leaves; None without a limit."""
        if self.context is None:
            return None
        longest = max(map(len, (self.prompt, *self._prompts())))
        left = self.context - num_sign_tokens - len(self.opening) - longest
        return self.context if self.is_encoder_decoder and left >= 0 else left

    def set_prompts(self, prompts: Sequence[list[int]]) -> None:
        """Ask clips of corpus i of a blend by prompt i, its tokens, in the place of the one."""
        for number, prompt in enumerate(prompts):
            self.register_buffer(f"prompt_{number}", torch.tensor(prompt), persistent=False)
        self.num_prompts = len(prompts)

    def _prompts(self) -> list[Tensor]:
        return [getattr(self, f"prompt_{number}") for number in range(self.num_prompts)]

    def add_lora(self, config: ModelConfig) -> None:
        """Add trainable LoRA matrices of rank r and scale alpha / r (section 3.6)."""
        self.model = add_lora(self.model, config)
        self._lora_dropouts = _by_clip(self.model, config.lora_dropout)

    def train_whole(self) -> None:
        """Let the LLM's own weights train, in float32 as all that trains."""
        self.model = self.model.float().requires_grad_(True)
        self.is_trained = True

    def merge(self, lora: MergedLora, config: ModelConfig) -> None:
        """Add trained LoRA matrices to the frozen weights for good; LoRA can be added after that.

        In the LLM's own precision: with bfloat16 the sum is rounded. Raises UserError for a
        quantized LLM, and for matrices of another form than they say.
        """
        from peft import get_peft_model_state_dict, set_peft_model_state_dict

        if config.llm_quantization != "none":
            raise UserError(
                f"LoRA matrices cannot be merged into model.llm_quantization="
                f"{config.llm_quantization}"
            )
        of_its_form = dataclasses.replace(
            config, lora_rank=lora.rank, lora_alpha=lora.alpha, lora_targets=lora.targets
        )
        adapted = add_lora(self.model, of_its_form)
        refuse_difference(
            lora.tensors, get_peft_model_state_dict(adapted), "LoRA matrices to be merged"
        )
        set_peft_model_state_dict(adapted, dict(lora.tensors))
        self.model = adapted.merge_and_unload().requires_grad_(False)
        self.merged.append(lora)

    def embed(self, tokens: Tensor) -> Tensor:
        """``[..., tokens]`` to ``[..., tokens, llm_dim]``."""
        embedded: Tensor = self.model.get_input_embeddings()(tokens)
        return embedded

    def negative_log_likelihood(
        self,
        sign_embeddings: Tensor,
        tokens: Tensor,
        text_lengths: Tensor,
        label_smoothing: float = 0.0,
        corpora: Sequence[int] | None = None,
    ) -> Tensor:
        """Return -log P(Y | V, S) of Eq. 20, summed over each clip's real tokens: ``[batch]``.

        Clips of ``corpora``, numbers of a blend's, are asked by their prompts
        (:meth:`set_prompts`).

        With ``label_smoothing`` e, a token's term is (1 - e) times that of its target and e times
        the mean of all tokens of the vocabulary (Szegedy et al., 2016), as in torch.

        Labels are masked by length, never by id: the padding id may be the end token's. Padding
        comes last where tokens see only those before them, so no real position sees it.
        Raises UserError when the text does not fit into the context.
        """
        if corpora is not None and self.num_prompts:
            given = (sign_embeddings, tokens, text_lengths)
            return self._by_prompt(given, label_smoothing, corpora)
        self.refuse_beyond_context(sign_embeddings.shape[1], tokens.shape[1], "a text")
        prefix = self._prefix(sign_embeddings)
        real = length_mask(text_lengths, tokens.shape[1])
        if self.is_encoder_decoder:
            logits = self._decoder_logits(prefix, tokens)
        else:
            logits = self._causal_logits(prefix, tokens, real)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        nll = F.cross_entropy(
            logits.transpose(1, 2), tokens, reduction="none", label_smoothing=label_smoothing
        )
        return (nll * real).sum(dim=1)

    def _by_prompt(
        self, given: tuple[Tensor, Tensor, Tensor], label_smoothing: float, corpora: Sequence[int]
    ) -> Tensor:
        """Ask the clips of each corpus by its own prompt, and put their terms into order again.

        A prompt at a time: prompts of several lengths in one batch would be padded in the middle.
        """
        rows = [[i for i, of in enumerate(corpora) if of == n] for n in range(self.num_prompts)]
        parts = []
        for number, own in enumerate(rows):
            if not own:
                continue
            places = torch.tensor(own).to(given[0].device, non_blocking=True)
            asked = [x.index_select(0, places) for x in given]
            with self._asking(self._prompts()[number], places):
                parts.append(
                    self.negative_log_likelihood(asked[0], asked[1], asked[2], label_smoothing)
                )
        back = torch.tensor([i for own in rows for i in own]).argsort()
        return torch.cat(parts).index_select(0, back.to(given[0].device, non_blocking=True))

    @contextmanager
    def _asking(self, prompt: Tensor, places: Tensor) -> Iterator[None]:
        """Ask some clips of a batch by another prompt; their dropout stays that of the clips."""
        one, keys = self.prompt, [dropout.keys for dropout in self._lora_dropouts]
        self.prompt = prompt
        for dropout, of_all in zip(self._lora_dropouts, keys, strict=True):
            dropout.keys = None if of_all is None else of_all.index_select(0, places)
        try:
            yield
        finally:
            self.prompt = one
            for dropout, of_all in zip(self._lora_dropouts, keys, strict=True):
                dropout.keys = of_all

    def _causal_logits(self, prefix: Tensor, tokens: Tensor, real: Tensor) -> Tensor:
        embeds = torch.cat((prefix, self.embed(tokens).to(prefix.dtype)), dim=1)
        mask = None
        if self.attention == "flash_attention_2":  # it leaves padding out, told where that is
            mask = torch.cat((real.new_ones(prefix.shape[:2]), real), dim=1).long()
        logits: Tensor = self.model(
            inputs_embeds=embeds,
            attention_mask=mask,
            logits_to_keep=tokens.shape[1] + 1,
            use_cache=False,
        ).logits
        return logits[:, :-1]

    def _decoder_logits(self, prefix: Tensor, tokens: Tensor) -> Tensor:
        assert self.start is not None
        start = tokens.new_full((len(tokens), 1), self.start)
        # No attention_mask, since every position is real: transformers would look into it.
        logits: Tensor = self.model(
            inputs_embeds=prefix,
            decoder_input_ids=torch.cat((start, tokens[:, :-1]), dim=1),
            use_cache=False,
        ).logits
        return logits

    def generate(self, sign_embeddings: Tensor, config: EvaluationConfig, end: int) -> list[Any]:
        """Return the best translation's tokens for each clip; see :meth:`candidates`."""
        return [best[0].tokens for best in self.candidates(sign_embeddings, config, end, 1)]

    @torch.no_grad()
    def candidates(
        self, sign_embeddings: Tensor, config: EvaluationConfig, end: int, count: int
    ) -> list[list[Candidate]]:
        """Return the ``count`` best translations of each clip, best first; nothing is sampled.

        Raises UserError when ``max_new_tokens`` do not fit into the context, or the beams are fewer
        than what is asked for.
        """
        from transformers import GenerationConfig

        self.refuse_beyond_context(
            sign_embeddings.shape[1], config.max_new_tokens, "evaluation.max_new_tokens"
        )
        if count > config.num_beams:
            raise UserError(
                f"{count} translations of a clip need as many beams, and evaluation.num_beams is "
                f"{config.num_beams}"
            )
        prefix = self._prefix(sign_embeddings)
        generation = GenerationConfig(
            do_sample=False,
            num_beams=config.num_beams,
            num_return_sequences=count,
            length_penalty=config.length_penalty,
            max_new_tokens=config.max_new_tokens,
            eos_token_id=end,
            pad_token_id=end,
            decoder_start_token_id=self.start,
            return_dict_in_generate=True,
            output_scores=count > 1,  # it keeps every step's logits: half a gigabyte for 8 clips
        )
        generated = self.model.generate(
            inputs_embeds=prefix, attention_mask=_all_real(prefix), generation_config=generation
        )
        # A decoder's answer begins with its start token.
        rows = generated.sequences[:, int(self.is_encoder_decoder) :].tolist()
        scores = generated.sequences_scores.tolist() if count > 1 else [None] * len(rows)
        every = [Candidate(*pair) for pair in zip(rows, scores, strict=True)]
        return [every[i : i + count] for i in range(0, len(every), count)]

    def _prefix(self, sign_embeddings: Tensor) -> Tensor:
        opening, prompt = (
            self.embed(tokens).expand(len(sign_embeddings), -1, -1)
            for tokens in (self.opening, self.prompt)
        )
        return torch.cat((opening, sign_embeddings.to(prompt.dtype), prompt), dim=1)

    def refuse_beyond_context(self, num_sign_tokens: int, num_tokens: int, what: str) -> None:
        """Raise UserError where ``what``, of so many tokens, does not fit into the context."""
        room = self.room(num_sign_tokens)
        if room is not None and num_tokens > room:
            raise UserError(
                f"{what} of {num_tokens} tokens does not fit: the LLM's context of {self.context} "
                f"leaves {room} after {num_sign_tokens} sign tokens and the prompt"
            )


@dataclass(frozen=True)
class MergedLora:
    """LoRA matrices that are part of the frozen LLM: their form, and tensors by PEFT's names."""

    rank: int
    alpha: int
    targets: tuple[str, ...] | Literal["all"] | None
    tensors: Mapping[str, Tensor]

    @classmethod
    def of(cls, config: ModelConfig, tensors: Mapping[str, Tensor]) -> MergedLora:
        """Return the matrices of a model of this configuration."""
        return cls(config.lora_rank, config.lora_alpha, config.lora_targets, tensors)


class Candidate(NamedTuple):
    """One of the translations that beam search found."""

    tokens: list[int]
    score: float | None
    """Log-probability of the tokens over their number to the power of the length penalty; None
    where only the best was asked for."""


def load_language_model(
    config: ModelConfig, tokenizer: TextTokenizer, in_full: bool = False
) -> LanguageModel:
    """Load the LLM, in float32 when ``in_full``.

    Raises :class:`UserError` without it, or without room for a text.
    """
    dtype = "float32" if in_full else config.llm_dtype
    frozen = load_frozen(dataclasses.replace(config, llm_dtype=dtype))
    llm = LanguageModel(frozen, tokenizer.prompt, tokenizer.opening)
    room = llm.room(config.num_sign_tokens)
    if room is not None and room < 1:
        raise UserError(
            f"model.llm {config.llm!r} has a context of {llm.context}: model.num_sign_tokens "
            f"{config.num_sign_tokens} and the {len(tokenizer.opening) + len(tokenizer.prompt)} "
            "tokens of model.prompt "
            "leave no room for a text"
        )
    return llm


def load_frozen(config: ModelConfig) -> PreTrainedModel:
    """Load ``config.llm`` in its dtype, quantized and with the attention that is asked for.

    Raises UserError when it is not there, is of no known kind, or has no such attention.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    quantization = _quantization(config)
    try:
        known = AutoConfig.from_pretrained(config.llm, revision=config.llm_revision)
        auto = AutoModelForSeq2SeqLM if known.is_encoder_decoder else AutoModelForCausalLM
        folder = find_folder(config.llm, config.llm_revision)
        if folder is not None:
            read_ahead(folder)
        with without_bars():
            model: PreTrainedModel = auto.from_pretrained(
                config.llm,
                revision=config.llm_revision,
                dtype=getattr(torch, config.llm_dtype),
                **quantization,
            )
    except unloadable() as e:
        raise not_found(config, e) from e
    _set_attention(model, config)
    return model


def unloadable() -> tuple[type[Exception], ...]:
    """Return what transformers raises for files that are no model's, or damaged."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    of_values = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError)
    return (OSError, ImportError, RuntimeError, SafetensorError, StrictDataclassError, *of_values)


@contextmanager
def without_bars() -> Iterator[None]:
    """Let transformers draw no bar over tensors that it reads or writes: one a process.

    What the hub downloads keeps its own, which it draws on terminals alone.
    """
    from transformers.utils import logging as transformers_logging

    before = transformers_logging.set_tqdm_hook(
        lambda factory, args, kwargs: factory(*args, **{**kwargs, "disable": True})
    )
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(before)


def add_lora(model: PreTrainedModel, config: ModelConfig) -> Any:
    """Return ``model`` with trainable LoRA matrices of rank r and scale alpha / r.

    On the layers of ``config.lora_targets``; where it is None on every projection of the attention
    blocks, with `all` on every linear layer but the output layer. Raises UserError for a target
    that matches no layer.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    targets = find_linear(model) if config.lora_targets == "all" else config.lora_targets
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=find_projections(model) if targets is None else list(targets),
        task_type=(
            TaskType.SEQ_2_SEQ_LM if model.config.is_encoder_decoder else TaskType.CAUSAL_LM
        ),
    )
    if targets is not None:
        _refuse_unmatched(model, targets)
    try:
        with warnings.catch_warnings():
            # PEFT reads a property that transformers renamed: nobody else can act on it.
            about = "`is_gradient_checkpointing` is deprecated"
            warnings.filterwarnings("ignore", about, FutureWarning)
            return get_peft_model(model, lora)
    except ValueError as e:
        raise UserError(f"model.lora_targets {list(targets or ())}: {e}") from e


def _by_clip(adapted: Any, rate: float) -> list[ClipDropout]:
    """Put dropout that draws by clip in the place of PEFT's; return all of it."""
    dropouts = []
    for name, layer in adapted.named_modules():
        if rate and isinstance(getattr(layer, "lora_dropout", None), nn.ModuleDict):
            for adapter in layer.lora_dropout:
                layer.lora_dropout[adapter] = ClipDropout(rate, name)
                dropouts.append(layer.lora_dropout[adapter])
    return dropouts


def find_projections(model: nn.Module) -> list[str]:
    """Return the full names of the linear layers inside the attention blocks of an LLM.

    Full names, not endings: GPT-2 calls a layer of its feed-forward part as one of its attention.
    Raises UserError when there are none.
    """
    from transformers.pytorch_utils import Conv1D

    projections = [
        f"{block}.{name}"
        for block, module in attention_blocks(model).items()
        for name, layer in module.named_modules()
        if isinstance(layer, (nn.Linear, Conv1D))
    ]
    if not projections:
        raise UserError(
            f"no attention layers were found in {type(model).__name__}: name the layers that get "
            "LoRA, as in model.lora_targets=[q_proj, v_proj]"
        )
    return projections


def find_linear(model: PreTrainedModel) -> tuple[str, ...]:
    """Return the full names of all linear layers of an LLM but the one that gives the logits."""
    from transformers.pytorch_utils import Conv1D

    output = model.get_output_embeddings()
    return tuple(
        name
        for name, layer in model.named_modules()
        if isinstance(layer, (nn.Linear, Conv1D)) and layer is not output
    )


def attention_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Return the innermost modules that say whether they are causal.

    transformers' attention functions read that attribute of the block that calls them, so every
    architecture that offers a choice of kernels has it.
    """
    blocks = {n: m for n, m in model.named_modules() if hasattr(m, "is_causal")}
    return {
        name: block
        for name, block in blocks.items()
        if not any(hasattr(part, "is_causal") for part in block.modules() if part is not block)
    }


def _refuse_unmatched(model: nn.Module, targets: Sequence[str]) -> None:
    names = [name for name, _ in model.named_modules()]
    unmatched = [t for t in targets if not any(n == t or n.endswith(f".{t}") for n in names)]
    if unmatched:
        there = sorted({name.rpartition(".")[2] for name in find_projections(model)})
        raise UserError(
            f"model.lora_targets: {type(model).__name__} has no layers called "
            f"{', '.join(unmatched)}; its attention has {', '.join(there)} (null takes them all, "
            "and all takes every linear layer)"
        )


def _quantization(config: ModelConfig) -> dict[str, Any]:
    """Return what from_pretrained needs: 4 bits are NF4, both compute in ``llm_dtype``."""
    if config.llm_quantization == "none":
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"model.llm_quantization={config.llm_quantization} needs the package bitsandbytes, "
            "which is not installed (pip install bitsandbytes)"
        )
    from transformers import BitsAndBytesConfig

    settings = BitsAndBytesConfig(
        load_in_8bit=config.llm_quantization == "8bit",
        load_in_4bit=config.llm_quantization == "4bit",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=getattr(torch, config.llm_dtype),
    )
    return {"quantization_config": settings}


def _set_attention(model: PreTrainedModel, config: ModelConfig) -> None:
    """Set the LLM's attention by transformers' names.

    `auto` leaves transformers' own choice: SDPA where the model has it. transformers has no
    variable-length kernel of torch, so `varlen` is SDPA in the LLM: it needs no mask there and
    reaches the same flash kernel.
    """
    if config.attention == "auto":
        return
    asked = "sdpa" if config.attention == "varlen" else config.attention
    if asked == "flash_attention_2":
        shape = model.config
        head_dim = (
            getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
        )
        choose_backend(asked, device.choose(), getattr(torch, config.llm_dtype), head_dim)
    try:
        model.set_attn_implementation(asked)
    except (ValueError, ImportError) as e:
        raise _no_attention(config, model, first_line(e)) from e
    taken = model.config._attn_implementation
    if taken != asked:  # transformers may put another kernel in its place
        raise _no_attention(config, model, f"transformers took {taken} in its place")


def _no_attention(config: ModelConfig, model: PreTrainedModel, why: str) -> UserError:
    return UserError(
        f"model.attention={config.attention}: not for the LLM {config.llm!r} "
        f"({type(model).__name__}): {why}. Choose auto, varlen, sdpa or eager"
    )


def _all_real(embeds: Tensor) -> Tensor:
    return torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device)
