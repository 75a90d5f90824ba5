"""SignFuse, section 3: frames and joints to a translation."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from signfuse_dist.batch import SignBatch, TokenLayout, lay_out, length_mask
from signfuse_dist.config import EvaluationConfig, ModelConfig
from signfuse_dist.errors import UserError, raise_together
from signfuse_dist.model.attention import laid_out, set_backend
from signfuse_dist.model.building import build_fusion, build_skeletal, build_temporal, build_visual
from signfuse_dist.model.dropout import drawn, set_dropout
from signfuse_dist.model.llm import Candidate, LanguageModel
from signfuse_dist.model.llm_identity import LLMReference
from signfuse_dist.model.sla import SignLanguageAdapter
from signfuse_dist.model.text_tokenizer import TextTokenizer
from signfuse_dist.model.usage import Usage
from signfuse_dist.model.vision import VisionModel
from signfuse_dist.model.visual import GivenVectors
from signfuse_dist.sections import build_section

if TYPE_CHECKING:
    from signfuse_dist.model.saved import SignFuseConfig


class SignFuse(nn.Module):
    """The translator. Components carry the names of the stage table in ``stages.py``.

    Attributes:
        built_from: the numbers it was built from.
        max_frames: longer clips are refused; None = any length.
        tokenizer: the LLM's, None without an LLM that was loaded by name.
        llm_reference: which LLM that was, None likewise.
        usage: how clips are brought to it; None where it was saved by no run.
        card: the text of the model card that it was loaded with, None without one.
    """

    tokenizer: TextTokenizer | None = None
    llm_reference: LLMReference | None = None
    usage: Usage | None = None
    card: str | None = None

    def __init__(
        self,
        config: ModelConfig,
        llm: LanguageModel | tuple[int, float] | None,
        max_frames: int | None = None,
        vector_dim: int | None = None,
        vision: VisionModel | None = None,
    ) -> None:
        """Build the model around an LLM.

        ``llm`` None builds the encoders alone, without adapter: the contrastive stage needs no
        LLM. A pair ``(llm_dim, embedding_rms)`` builds the adapter for an LLM that is not there,
        to count parameters. ``vector_dim`` is the numbers of a frame where
        ``config.visual_backbone`` names feature sets, which say it; ``vision`` the vision model
        that it names, where that is here already.
        """
        super().__init__()
        self.built_from, self.max_frames = config, max_frames
        self.visual = None
        if config.streams != "skeletal":
            self.visual = build_visual(config, vector_dim, vision)
        self.skeletal = build_skeletal(config) if config.streams != "visual" else None
        self.fusion = build_fusion(config)
        self.temporal = build_temporal(config)
        self.stride = config.visual_stride
        self.adapter: SignLanguageAdapter | None = None
        self.language_model = llm if isinstance(llm, LanguageModel) else None
        if llm is not None:
            llm_dim, rms = llm if isinstance(llm, tuple) else (llm.llm_dim, llm.embedding_rms)
            gain = rms if config.adapter_gain == "embeddings" else 1.0
            self.adapter = SignLanguageAdapter(config.dim, llm_dim, config.num_sign_tokens, gain)
        set_backend(self, config.attention)
        for part in (self.skeletal, self.fusion, self.temporal, self.adapter):
            if part is not None:
                set_dropout(part, config.dropout)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, revision: str | None = None, **changes: Any
    ) -> SignFuse:
        """Load a saved model with its LLM, in evaluation mode.

        Args:
            name: a folder that :meth:`save_pretrained` or a finished stage wrote, or a name of
                the model hub.
            revision: of the hub, in which case the model's, not the LLM's.
            changes: what may differ here from where it was trained: ``llm=FOLDER`` where the LLM
                has moved, ``llm_dtype``, ``attention``, ``visual_chunk`` and the like.

        Raises :class:`~signfuse_dist.errors.UserError` when a file is damaged or of another
        configuration, or the LLM cannot be loaded or is another one. No file of the model is
        unpickled.
        """
        from signfuse_dist.model import saved  # which builds models

        return saved.load(name, revision, changes)

    def save_pretrained(self, folder: str | Path, *, with_llm: bool = False) -> None:
        """Write a folder for :meth:`from_pretrained`; see :mod:`signfuse_dist.model.saved`.

        ``with_llm`` copies the frozen LLM into it. Raises UserError where there is none.
        """
        from signfuse_dist.model import saved

        saved.save(self, Path(folder), {}, with_llm)

    def push_to_hub(
        self,
        name: str,
        *,
        private: bool | None = None,
        with_llm: bool = False,
        token: str | None = None,
    ) -> str:
        """Upload the model to the model hub, for :meth:`from_pretrained`; return its address there.

        Args:
            name: OWNER/NAME; a repository that is there gets another commit.
            private: of a new repository; None: what its owner has chosen.
            with_llm: whether the frozen LLM is uploaded too, where its licence lets it be passed
                on. Without, it must have a name on the hub.
            token: of the hub; None: that of `hf auth login`.

        Raises UserError for an LLM in a folder that nobody else has, and where the hub refuses.
        """
        from signfuse_dist.model import hub

        return hub.push(self, name, private, with_llm, token)

    @property
    def config(self) -> SignFuseConfig:
        """The configuration as transformers knows it."""
        from signfuse_dist.model.saved import SignFuseConfig  # which builds models

        trained_with = self.llm_reference
        return SignFuseConfig.of(
            self.built_from,
            llm_commit=None if trained_with is None else trained_with.commit,
            llm_fingerprint=None if trained_with is None else trained_with.fingerprint,
            llm_trained=self.language_model is not None and self.language_model.is_trained,
            max_frames=self.max_frames,
            vector_dim=self.vector_dim,
            visual_commit=None if self.vision is None else self.vision.commit,
            visual_fingerprint=None if self.vision is None else self.vision.fingerprint,
            visual_network=self._trained_network(),
        )

    @property
    def vision(self) -> VisionModel | None:
        """The vision model of transformers that encodes frames; None without one."""
        backbone = None if self.visual is None else self.visual.backbone
        return backbone if isinstance(backbone, VisionModel) else None

    def _trained_network(self) -> dict[str, Any] | None:
        """Return what a vision model is built from whose weights are part of this model."""
        if self.vision is None or not self.built_from.trains_backbone:
            return None
        return self.vision.described

    @property
    def vector_dim(self) -> int | None:
        """Numbers of a frame in the feature sets that it sees; None for a model of pictures."""
        if self.visual is None or not isinstance(self.visual.backbone, GivenVectors):
            return None
        return self.visual.backbone.output_dim

    def forward(
        self,
        batch: SignBatch,
        contrastive_features: str | None,
        language: bool,
        label_smoothing: float = 0.0,
    ) -> SignFuseOutput:
        """Compute what a stage's losses need.

        Args:
            batch: clips; with ``tokens`` when ``language``.
            contrastive_features: which features Eq. 21 compares, or None for no contrastive loss.
            language: whether to run HTA, SLA and the LLM.
            label_smoothing: of the targets of Eq. 20; what training asks for, and no score.
        """
        with drawn(self, batch.draws):
            return self._output(batch, contrastive_features, language, label_smoothing)

    def _output(
        self,
        batch: SignBatch,
        contrastive_features: str | None,
        language: bool,
        label_smoothing: float,
    ) -> SignFuseOutput:
        streams = self.encode(batch)
        summaries = None
        if contrastive_features is not None:
            summaries = self.summarise(streams, contrastive_features)
        if not language:
            return SignFuseOutput(summaries)
        if self.language_model is None or batch.tokens is None or batch.text_lengths is None:
            raise ValueError("a language loss needs a language model and a batch with tokens")
        sign_embeddings, _ = self.embed_signs(streams)
        return SignFuseOutput(
            summaries,
            sign_embeddings,
            self.language_model.embed(batch.tokens),
            self.language_model.negative_log_likelihood(
                sign_embeddings,
                batch.tokens,
                batch.text_lengths,
                label_smoothing,
                batch.known_corpus,
            ),
        )

    def encode(self, batch: SignBatch) -> Streams:
        """Run the streams (Eq. 2-5); without a graph through a stream that is frozen.

        Features that the batch brings are taken in their place. Of a clip that lacks a stream, the
        other's features stand on both sides, as in a model of one stream; its missing frames are
        not there to be computed, and enter no statistic. Raises UserError when a clip is longer
        than ``max_frames``, or lacks the one stream of this model.
        """
        self._refuse_long(batch)
        self._refuse_unseen(batch)
        steps = torch.div(batch.frame_lengths + self.stride - 1, self.stride, rounding_mode="floor")
        streams = [features for features in (batch.visual, batch.skeletal) if features is not None]
        known = batch.known_lengths
        count = None if known is None else sum(-(-n // self.stride) for n in known)
        if streams:
            return Streams(streams[0], streams[-1], steps, count)
        if self.visual is not None:
            with torch.set_grad_enabled(torch.is_grad_enabled() and _trains(self.visual)):
                longest, shown = batch.pose.shape[1], batch.picture_lengths
                steps_shown = steps if shown is batch.frame_lengths else steps * (shown > 0)
                streams.append(
                    self.visual(
                        batch.frames,
                        shown,
                        steps_shown,
                        batch.weight,
                        longest,
                        self._given(batch.frame_vectors),
                    )
                )
        if self.skeletal is not None:
            with torch.set_grad_enabled(torch.is_grad_enabled() and _trains(self.skeletal)):
                streams.append(
                    self.skeletal(batch.pose, batch.joint_mask, batch.joint_lengths, batch.weight)
                )
        visual, skeletal = streams[0], streams[-1]
        if len(streams) == 2:
            visual = _replaced(visual, skeletal, batch.has_visual)
            skeletal = _replaced(skeletal, streams[0], batch.has_skeletal)
        if batch.spans is not None:
            visual = _without_span(visual, steps, batch.spans[:, 0])
            skeletal = _without_span(skeletal, steps, batch.spans[:, 1])
        return Streams(visual, skeletal, steps, count)

    def summarise(self, streams: Streams, features: str) -> tuple[Tensor, Tensor]:
        """Return f_v and f_s of Eq. 21, ``[batch, dim]`` each.

        Paper: "pooled visual and skeletal features", while stage 1 trains CMFA. Here, `unimodal`:
        CMFA(visual, visual) and CMFA(skeletal, skeletal), each pooled over its real steps.
        Because: pooled before CMFA (`streams`), CMFA gets no gradient; pooled after
        cross-attention (`attended`), each side holds the other and the loss is met by leakage.
        Raises ValueError for a model of one stream, which has no pairs.
        """
        if self.visual is None or self.skeletal is None:
            raise ValueError("Eq. 21 compares two streams, and this model has one")
        visual, skeletal, mask = streams.visual, streams.skeletal, streams.mask
        with laid_out(self.fusion, (mask, streams.layout)):
            if features == "unimodal":
                visual, _ = self.fusion(visual, visual, mask)
                skeletal, _ = self.fusion(skeletal, skeletal, mask)
            elif features == "attended":
                visual, skeletal = self.fusion.attend_across(visual, skeletal, mask)
        return _mean_over_steps(visual, mask), _mean_over_steps(skeletal, mask)

    def embed_signs(self, streams: Streams) -> tuple[Tensor, Tensor | None]:
        """Return E_sign of Eq. 19 and the gate over time, ``[batch, steps]``.

        The gate is None where nothing is gated, or both sides of the gate are the same stream.
        """
        if self.adapter is None:
            raise ValueError("a model without an LLM has no adapter and cannot translate")
        with laid_out(self.fusion, (streams.mask, streams.layout)):
            fused, gate = self.fusion(streams.visual, streams.skeletal, streams.mask)
        if self.visual is None or self.skeletal is None:
            gate = None
        return self.adapter(self.temporal(fused, streams.step_lengths)), gate

    def translate(
        self,
        videos: Sequence[str | Path],
        *,
        joints: Sequence[str | Path] | None = None,
        pose_model: str | Path | None = None,
        workers: int = 0,
        **decoding: Any,
    ) -> list[str]:
        """Return the sentence of each clip; it is cut and scaled as the training clips were.

        A warning says what a reader should know of a clip, and where joints come from elsewhere
        than those of training.

        Args:
            videos: files, folders of frames, or joints alone (``.pose``, ``.npz``, a folder of
                OpenPose's frames), where the model needs no picture; a corpus is for `signfuse
                translate`, which goes on after a clip that cannot be read.
            joints: an ``.npz`` for each video, in place of MediaPipe.
            pose_model: MediaPipe's model file, where it brings none.
            workers: processes that decode and find joints; 0: none beside this one.
            decoding: ``num_beams``, ``max_new_tokens``, ``length_penalty``, ``batch_size``, where
                they differ from those of the run that trained the model.

        Raises :class:`~signfuse_dist.errors.UserError` naming a clip that cannot be read, and for a
        model without LLM, or one that was saved by no run: it knows no frame rate.
        """
        from signfuse_dist.evaluation.choices import Choices
        from signfuse_dist.evaluation.translate import sentences  # which loads models

        choices = Choices(
            joints=None if joints is None else [Path(path) for path in joints],
            decoding=[f"evaluation.{key}={value}" for key, value in decoding.items()],
            workers=workers,
            pose_model=None if pose_model is None else Path(pose_model),
        )
        if isinstance(videos, (str, Path)):
            raise UserError(f"translate({str(videos)!r}): give a list of videos, [{videos!r}]")
        paths = [Path(video) for video in videos]
        return sentences(self, paths, choices, lambda note: warnings.warn(note, stacklevel=5))

    @torch.no_grad()
    def generate(self, batch: SignBatch, **settings: Any) -> Tensor:
        """Return the best translations' tokens, ``[batch, tokens]``, padded with the end token.

        ``tokenizer.decode(row.tolist())`` makes a sentence of a row. Nothing is sampled.

        Args:
            batch: clips on the model's device; they need no ``tokens``.
            settings: ``num_beams``, ``max_new_tokens``, ``length_penalty`` as in transformers;
                the defaults are those of :class:`~signfuse_dist.config.EvaluationConfig`.
        """
        errors: list[str] = []
        decoding = build_section("generate", EvaluationConfig, settings, errors)
        raise_together(errors, "generate cannot do this")
        assert decoding is not None
        rows = self.decode(batch, decoding).tokens
        return torch.tensor(rows, device=batch.frames.device)

    @torch.no_grad()
    def decode(
        self, batch: SignBatch, decoding: EvaluationConfig, num_candidates: int = 1
    ) -> Decoded:
        """Return the best translations of each clip of a batch, with the gate over time.

        Raises UserError for a model without LLM, and naming the clips whose sign tokens are not
        finite: their sentences would say nothing of it.
        """
        if self.language_model is None or self.tokenizer is None:
            raise UserError("a model without an LLM cannot translate: load that of a later stage")
        streams = self.encode(batch)
        sign_embeddings, gate = self.embed_signs(streams)
        finite = sign_embeddings.isfinite().flatten(1).all(dim=1).tolist()
        raise_together(
            [name for name, is_finite in zip(batch.ids, finite, strict=True) if not is_finite],
            "the model's sign tokens are not finite; its weights are broken. Clips",
        )
        candidates = self.language_model.candidates(
            sign_embeddings, decoding, self.tokenizer.end, num_candidates
        )
        return Decoded(candidates, gate, streams.step_lengths)

    def _given(self, vectors: Tensor | None) -> Tensor | None:
        """Return vectors that a batch brings; raise UserError where this model is not of them."""
        assert self.visual is not None
        if vectors is None:
            return None
        dim, given = self.visual.backbone.output_dim, isinstance(self.visual.backbone, GivenVectors)
        if not given or vectors.shape[1] != dim:
            raise UserError(
                f"the clips have vectors of {vectors.shape[1]} numbers a frame, and the model has "
                f"model.visual_backbone={self.built_from.visual_backbone} of {dim}"
            )
        return vectors

    def _refuse_unseen(self, batch: SignBatch) -> None:
        """A model of one stream has nothing to read of a clip without it; known on the host."""
        known = batch.known_skeletal if self.visual is None else batch.known_visual
        if known is None or (self.visual is not None and self.skeletal is not None):
            return
        named = ("skeletal", "joints") if self.visual is None else ("visual", "pictures")
        raise_together(
            [name for name, there in zip(batch.ids, known, strict=True) if name and not there],
            f"a model of model.streams={named[0]} needs {named[1]}, and clips have none",
        )

    def _refuse_long(self, batch: SignBatch) -> None:
        """The padded length is known on the host: nothing waits for a GPU."""
        longest = batch.pose.shape[1]
        if self.max_frames is None or longest <= self.max_frames:
            return
        lengths = batch.frame_lengths.tolist()
        raise_together(
            [
                f"{name}: {n} frames"
                for name, n in zip(batch.ids, lengths, strict=True)
                if n > self.max_frames
            ]
            or [f"padded to {longest} frames"],
            f"clips are longer than the {self.max_frames} frames of data.max_frames",
        )


@dataclass(frozen=True)
class Streams:
    """``visual`` and ``skeletal`` ``[batch, steps, dim]``, zero beyond ``step_lengths``.

    A model of one stream has it in both places, so CMFA attends within it. ``count`` is the sum
    of the lengths where the host knows it, else None.
    """

    visual: Tensor
    skeletal: Tensor
    step_lengths: Tensor
    count: int | None = None

    @cached_property
    def mask(self) -> Tensor:
        """Bool ``[batch, steps]``, True = real; one tensor for all that ask."""
        return length_mask(self.step_lengths, self.visual.shape[1])

    def layout(self) -> TokenLayout:
        """Return where the real steps are, found once; without ``count`` the host waits for it."""
        return self._layout

    @cached_property
    def _layout(self) -> TokenLayout:
        count = int(self.step_lengths.sum()) if self.count is None else self.count
        return lay_out(self.step_lengths, self.visual.shape[1], count)


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


@dataclass(frozen=True)
class Decoded:
    """Translations of each clip, best first, and the gate over time, ``[batch, steps]``.

    The gate is None for a model without one.
    """

    candidates: list[list[Candidate]]
    gate: Tensor | None
    step_lengths: Tensor

    @property
    def tokens(self) -> list[list[int]]:
        """The best translation's tokens for each clip."""
        return [best[0].tokens for best in self.candidates]


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Return the parameters of each component in their order, the frozen LLM among them."""
    return {
        name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()
    }


def _trains(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


def _replaced(stream: Tensor, other: Tensor, has: Tensor | None) -> Tensor:
    """Return ``[batch, steps, dim]``: of clips that have not this stream, the other."""
    return (
        stream if has is None else torch.where(has[:, None, None], stream, other.to(stream.dtype))
    )


def _without_span(stream: Tensor, step_lengths: Tensor, span: Tensor) -> Tensor:
    """Return ``[batch, steps, dim]``, zero where the middle of a step lies in the clip's span.

    ``span`` is float ``[batch, 2]``, beginning and end as shares of the clip.
    """
    middle = torch.arange(stream.shape[1], device=stream.device)[None] + 0.5
    begin, end = (span * step_lengths[:, None]).T[:, :, None]
    return stream.masked_fill(((middle >= begin) & (middle < end))[:, :, None], 0)


def _mean_over_steps(x: Tensor, mask: Tensor) -> Tensor:
    keep = mask[:, :, None].to(x.dtype)
    return (x * keep).sum(dim=1) / keep.sum(dim=1)
