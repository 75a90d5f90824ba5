"""A trained model, loaded and ready to translate batches, and new clips as a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from signfuse_dist.batch import SignBatch
from signfuse_dist.data.loader import collate
from signfuse_dist.data.manifest import NO_EXTRACTOR
from signfuse_dist.errors import UserError
from signfuse_dist.evaluation.asked import ask_model
from signfuse_dist.evaluation.new_clips import NewClip
from signfuse_dist.evaluation.new_vectors import load_vectorisers, vectors_of
from signfuse_dist.model import saved
from signfuse_dist.model.attention import choose_for, recorded_weights
from signfuse_dist.model.signfuse import SignFuse
from signfuse_dist.model.usage import Usage
from signfuse_dist.model.vision import FrameVectors

# The directions of Eq. 8-9, as attention.npz and the fusions of one direction name them.
DIRECTIONS = ("visual_from_skeletal", "skeletal_from_visual")


@dataclass(frozen=True)
class Translation:
    """One clip's translation and its gate over time, float32 ``[steps]``, None without a gate.

    ``candidates`` are the best sentences that beam search found, with their scores; an evaluation
    keeps none.
    """

    id: str
    text: str
    gate: NDArray[np.float32] | None
    candidates: list[tuple[str, float | None]] = field(default_factory=list)


class Translator:
    """A trained model, ready to translate batches.

    Attributes:
        model: in evaluation mode.
        usage: how clips are brought to it and decoded.
        folder: that it was loaded from; None for one that was handed over.
        device: where it computes.
    """

    def __init__(self, model: SignFuse, usage: Usage, folder: Path | None = None) -> None:
        self.model, self.usage, self.folder = model.eval(), usage, folder
        self.device = next(model.parameters()).device

    @cached_property
    def vectorisers(self) -> tuple[FrameVectors, ...]:
        """What makes the vectors of new clips; none for a model of pictures.

        Raises UserError as :func:`.load_vectorisers` does.
        """
        return load_vectorisers(self.usage, self.device)

    def ask_by(self, prompt: str) -> None:
        """Ask by another prompt than the model's, as the clips of a corpus of a blend are."""
        if prompt != self.model.built_from.prompt:
            assert self.model.language_model is not None
            assert self.model.tokenizer is not None
            tokens = torch.tensor(self.model.tokenizer.ask(prompt), device=self.device)
            self.model.language_model.prompt = tokens

    @torch.no_grad()
    def translate(self, batch: SignBatch, num_candidates: int = 1) -> list[Translation]:
        """Translate the clips of a batch; nothing is sampled.

        Raises UserError naming clips whose sign tokens are not finite.
        """
        tokenizer = self.model.tokenizer
        assert tokenizer is not None
        batch = batch.to(self.device)
        with self._precision():
            decoded = self.model.decode(batch, self.usage.decoding, num_candidates)
        gates: list[NDArray[np.float32] | None] = [None] * len(batch.ids)
        if decoded.gate is not None:
            rows, lengths = decoded.gate.float().cpu().numpy(), decoded.step_lengths.tolist()
            both = _have_both(batch)
            gates = [
                row[:length] if gated else None
                for row, length, gated in zip(rows, lengths, both, strict=True)
            ]
        sentences = [
            [(tokenizer.decode(c.tokens), c.score) for c in of] for of in decoded.candidates
        ]
        return [
            Translation(name, candidates[0][0], over_time, candidates)
            for name, candidates, over_time in zip(batch.ids, sentences, gates, strict=True)
        ]

    @torch.no_grad()
    def cross_attention(self, batch: SignBatch) -> dict[str, NDArray[np.float32]]:
        """Return the weights of Eq. 8-9 of a batch of one clip, in the first CMFA layer.

        By name of :data:`DIRECTIONS`, float32 ``[query steps, key steps]``, averaged over heads;
        only the directions that the model's fusion has. None for a clip of one stream, which
        attends to itself.
        """
        if not all(_have_both(batch)):
            return {}
        batch = batch.to(self.device)
        with self._precision(), recorded_weights(self.model.fusion) as weights:
            streams = self.model.encode(batch)
            self.model.fusion(streams.visual, streams.skeletal, streams.mask)
        names = {direction: f"layers.0.{direction}.attention" for direction in DIRECTIONS}
        return {
            direction: weights[name][0].float().mean(dim=0).cpu().numpy()
            for direction, name in names.items()
            if name in weights
        }

    def _precision(self) -> torch.autocast:
        bf16 = self.usage.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=bf16)


def _have_both(batch: SignBatch) -> list[bool]:
    """Return of each clip whether it has both streams, as the host knows it."""
    every = (True,) * len(batch.ids)
    known = zip(batch.known_visual or every, batch.known_skeletal or every, strict=True)
    return [seen and tracked for seen, tracked in known]


def load_translator(place: Path, device: torch.device, overrides: Sequence[str] = ()) -> Translator:
    """Load the model of a run folder, of a folder of its own or of the model hub.

    ``overrides`` are ``evaluation.key=value``, what differs from the run's decoding settings, and,
    for a run, ``data.stage_to``, which is the machine's.
    Raises UserError when one is wrong, or the model is missing, damaged or of the first stage.
    """
    asked = ask_model(place, overrides)
    if asked.run is not None:
        # The LLM may have moved since: the run's configuration says where it is now.
        config = asked.run.model
        moved = {key: getattr(config, key) for key in saved.MOVABLE}
        if saved.read_config(asked.folder).llm_trained:  # it lies in the model
            moved = {k: value for k, value in moved.items() if k not in ("llm", "llm_revision")}
    else:
        # It may come from a machine with other attention kernels.
        config = replace(saved.read_config(asked.folder).model, attention="auto")
        moved = {"attention": "auto"}
    # Or say why not, at once.
    choose_for(config, asked.usage.precision, device, asked.usage.max_frames)
    model = SignFuse.from_pretrained(asked.folder, **moved)
    if model.tokenizer is None:
        raise UserError(f"{place}: a model of the encoders alone, without LLM; it cannot translate")
    return Translator(model.to(device), asked.usage, asked.folder)


def join(clips: Sequence[NewClip], vectorisers: Sequence[FrameVectors] = ()) -> SignBatch:
    """Return clips as one batch; with ``vectorisers``, with vectors in the place of pictures.

    They are made of all frames of a clip, as for a feature set: some models look at several at
    once.
    """
    read = [clip.clip() for clip in clips]
    frames = torch.cat([torch.from_numpy(clip.frames) for clip in read])
    shown = np.array([bool(clip.encoded.jpegs) for clip in clips])
    tracked = np.array([clip.encoded.record["extractor"] != NO_EXTRACTOR for clip in clips])
    batch = collate(
        read,
        frames,
        np.array([len(clip.mask) for clip in read]),
        encode=None,
        shown=None if shown.all() else shown,
        tracked=None if tracked.all() else tracked,
    )
    if not vectorisers or not shown.any():
        return batch
    vectors = [
        vectors_of(clip.pictures(range(len(clip.encoded.jpegs))), vectorisers)[clip.chosen]
        for clip in clips
        if clip.encoded.jpegs
    ]
    return replace(
        batch, frames=batch.frames[:0], frame_vectors=torch.from_numpy(np.concatenate(vectors))
    )
