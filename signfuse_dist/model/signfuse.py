"""SignFuse: the two streams, CMFA, HTA, SLA and the LLM, put together (Figure 1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from signfuse_dist.batch import SignBatch, length_mask
from signfuse_dist.config import ModelConfig
from signfuse_dist.model.attention import set_backend
from signfuse_dist.model.cmfa import CrossModalFusion
from signfuse_dist.model.hta import TemporalAggregation
from signfuse_dist.model.llm import LanguageModel
from signfuse_dist.model.norm import StepNorm, SyncBatchNorm
from signfuse_dist.model.skeletal import SkeletalStream
from signfuse_dist.model.sla import SignLanguageAdapter
from signfuse_dist.model.visual import ResNet, VisualStream


@dataclass(frozen=True)
class Streams:
    """``visual`` and ``skeletal`` ``[batch, steps, dim]``, zero beyond ``step_lengths``."""

    visual: Tensor
    skeletal: Tensor
    step_lengths: Tensor

    @property
    def mask(self) -> Tensor:
        """Bool ``[batch, steps]``, True = real."""
        return length_mask(self.step_lengths, self.visual.shape[1])


@dataclass(frozen=True)
class SignFuseOutput:
    """What the losses need; None where the stage does not ask for it.

    Attributes:
        summaries: ``visual_summary`` and ``skeletal_summary`` (f_v, f_s of Eq. 21), ``[batch,
            dim]`` each.
        sign_embeddings: E_sign of Eq. 19, ``[batch, sign_tokens, llm_dim]``.
        text_embeddings: E_text of Eq. 22, ``[batch, tokens, llm_dim]``.
        negative_log_likelihood: of each clip's text (Eq. 20), summed over tokens, ``[batch]``.
    """

    summaries: tuple[Tensor, Tensor] | None = None
    sign_embeddings: Tensor | None = None
    text_embeddings: Tensor | None = None
    negative_log_likelihood: Tensor | None = None


class SignFuse(nn.Module):
    """The translator. Components carry the names of the stage table in ``stages.py``."""

    def __init__(self, config: ModelConfig, llm: LanguageModel | tuple[int, float] | None) -> None:
        """Build the model around an LLM.

        ``llm`` None builds the encoders alone, without adapter: the contrastive stage needs no
        LLM. A pair ``(llm_dim, embedding_rms)`` builds the adapter for an LLM that is not there,
        to count parameters.
        """
        super().__init__()
        self.built_from = config
        make_norm = _step_norm(config)
        self.visual = VisualStream(
            ResNet(config.visual_backbone, config.visual_width, config.visual_norm),
            config.dim, config.visual_kernel, config.visual_stride, make_norm(config.dim),
        )  # fmt: skip
        self.skeletal = SkeletalStream(
            config.skeletal_channels, config.skeletal_strides, config.skeletal_kernel, make_norm
        )
        self.fusion = CrossModalFusion(
            config.dim, config.fusion_layers, config.num_heads, config.ffn_multiplier * config.dim
        )
        self.temporal = TemporalAggregation(
            config.dim, config.scale_kernels, config.scale_strides, config.pooled_length,
            config.num_heads,
        )  # fmt: skip
        self.stride = config.visual_stride
        self.adapter: SignLanguageAdapter | None = None
        self.language_model = llm if isinstance(llm, LanguageModel) else None
        if llm is not None:
            llm_dim, rms = llm if isinstance(llm, tuple) else (llm.llm_dim, llm.embedding_rms)
            self.adapter = SignLanguageAdapter(config.dim, llm_dim, config.num_sign_tokens, rms)
        set_backend(self, config.attention)

    def forward(
        self, batch: SignBatch, contrastive_features: str | None, language: bool
    ) -> SignFuseOutput:
        """Compute what a stage's losses need.

        Args:
            batch: clips; with ``tokens`` when ``language``.
            contrastive_features: which features Eq. 21 compares, or None for no contrastive loss.
            language: whether to run HTA, SLA and the LLM.
        """
        streams = self.encode(batch)
        summaries = None
        if contrastive_features is not None:
            summaries = self.summarise(streams, contrastive_features)
        if not language:
            return SignFuseOutput(summaries)
        if self.language_model is None or batch.tokens is None or batch.text_lengths is None:
            raise ValueError("a language loss needs a language model and a batch with tokens")
        sign_embeddings, _ = self.translate(streams)
        return SignFuseOutput(
            summaries,
            sign_embeddings,
            self.language_model.embed(batch.tokens),
            self.language_model.negative_log_likelihood(
                sign_embeddings, batch.tokens, batch.text_lengths
            ),
        )

    def encode(self, batch: SignBatch) -> Streams:
        """Run both streams (Eq. 2-5); without a graph through a stream that is frozen."""
        steps = torch.div(batch.frame_lengths + self.stride - 1, self.stride, rounding_mode="floor")
        with torch.set_grad_enabled(torch.is_grad_enabled() and _trains(self.visual)):
            visual = self.visual(batch.frames, batch.frame_lengths, steps, batch.weight)
        with torch.set_grad_enabled(torch.is_grad_enabled() and _trains(self.skeletal)):
            skeletal = self.skeletal(
                batch.pose, batch.joint_mask, batch.frame_lengths, batch.weight
            )
        return Streams(visual, skeletal, steps)

    def summarise(self, streams: Streams, features: str) -> tuple[Tensor, Tensor]:
        """Return f_v and f_s of Eq. 21, ``[batch, dim]`` each.

        Paper: "pooled visual and skeletal features", while stage 1 trains CMFA. Here, `unimodal`:
        CMFA(visual, visual) and CMFA(skeletal, skeletal), each pooled over its real steps.
        Because: pooled before CMFA (`streams`), CMFA gets no gradient; pooled after
        cross-attention (`attended`), each side holds the other and the loss is met by leakage.
        """
        visual, skeletal, mask = streams.visual, streams.skeletal, streams.mask
        if features == "unimodal":
            visual, _ = self.fusion(visual, visual, mask)
            skeletal, _ = self.fusion(skeletal, skeletal, mask)
        elif features == "attended":
            visual, skeletal = self.fusion.attend_across(visual, skeletal, mask)
        return _mean_over_steps(visual, mask), _mean_over_steps(skeletal, mask)

    def translate(self, streams: Streams) -> tuple[Tensor, Tensor]:
        """Return E_sign of Eq. 19 and the gate over time, ``[batch, steps]``."""
        if self.adapter is None:
            raise ValueError("a model without an LLM has no adapter and cannot translate")
        fused, gate = self.fusion(streams.visual, streams.skeletal, streams.mask)
        return self.adapter(self.temporal(fused, streams.step_lengths)), gate


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Return the parameters of each component in their order, the frozen LLM among them."""
    return {
        name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()
    }


def _step_norm(config: ModelConfig) -> Callable[[int], nn.Module]:
    return SyncBatchNorm if config.norm == "sync_batch" else StepNorm


def _trains(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


def _mean_over_steps(x: Tensor, mask: Tensor) -> Tensor:
    keep = mask[:, :, None].to(x.dtype)
    return (x * keep).sum(dim=1) / keep.sum(dim=1)
