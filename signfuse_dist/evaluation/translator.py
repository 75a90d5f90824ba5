"""A trained stage, loaded and ready to translate batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from signfuse_dist.batch import SignBatch
from signfuse_dist.config import RunConfig
from signfuse_dist.evaluation.asked import trained_run
from signfuse_dist.model import saved
from signfuse_dist.model.attention import choose_for, recorded_weights
from signfuse_dist.model.signfuse import SignFuse
from signfuse_dist.run_folder import RunFolder

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
    """A trained stage, ready to translate batches."""

    def __init__(self, run: RunConfig, model: SignFuse) -> None:
        self.run, self.model = run, model.eval()
        self.device = next(model.parameters()).device

    @torch.no_grad()
    def translate(self, batch: SignBatch, num_candidates: int = 1) -> list[Translation]:
        """Translate the clips of a batch; nothing is sampled.

        Raises UserError naming clips whose sign tokens are not finite.
        """
        tokenizer = self.model.tokenizer
        assert tokenizer is not None
        batch = batch.to(self.device)
        with self._precision():
            decoded = self.model.decode(batch, self.run.evaluation, num_candidates)
        gates: list[NDArray[np.float32] | None] = [None] * len(batch.ids)
        if decoded.gate is not None:
            rows, lengths = decoded.gate.float().cpu().numpy(), decoded.step_lengths.tolist()
            gates = [row[:length] for row, length in zip(rows, lengths, strict=True)]
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
        only the directions that the model's fusion has.
        """
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
        bf16 = self.run.train.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=bf16)


def load_translator(
    run_folder: Path, device: torch.device, overrides: Sequence[str] = ()
) -> Translator:
    """Load ``RUN/model`` with the configuration of the run.

    ``overrides`` are ``evaluation.key=value``, what differs from the run's decoding settings, and
    ``data.stage_to``, which is the machine's.
    Raises UserError when one is wrong, or the model is missing, damaged or of the first stage.
    """
    run, folder = trained_run(run_folder, overrides), RunFolder(run_folder)
    # Or say why not, at once.
    choose_for(run.model, run.train.precision, device, run.data.max_frames)
    # The LLM may have moved since: the run's configuration says where it is now.
    moved = {key: getattr(run.model, key) for key in saved.MOVABLE}
    model = SignFuse.from_pretrained(folder.model, **moved)
    return Translator(run, model.to(device))
