"""What a stage trains and minimises: :mod:`signfuse_dist.stages` applied to model and batches.

Apart from the table because this imports torch and the model, and ``signfuse check`` needs the
table without them.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from signfuse_dist.batch import SignBatch
from signfuse_dist.config import LossConfig, StageName
from signfuse_dist.model import losses
from signfuse_dist.model.signfuse import SignFuse, SignFuseOutput
from signfuse_dist.stages import (
    TRAINABLE,
    loss_weights,
    needs_language_model,
    trained_parts,
    trains_llm,
)


def prepare(model: SignFuse, stage: StageName, config: LossConfig) -> None:
    """Let exactly the stage's parameters train; the fine-tune stage adds LoRA to the LLM.

    Or it trains the LLM itself, or nothing of it (``model.llm_training``).
    """
    model.requires_grad_(False)
    for name in trained_parts(stage, config, model.built_from):
        if name == "llm":
            if model.language_model is None:
                continue
            if trains_llm(stage, model.built_from):
                model.language_model.train_whole()
            else:
                model.language_model.add_lora(model.built_from)
        elif getattr(model, name.partition(".")[0]) is not None:  # a stream may not be there
            model.get_submodule(name).requires_grad_(True)


def set_mode(model: SignFuse, stage: StageName) -> None:
    """Put what trains into training mode, what is frozen, BatchNorm included, into evaluation."""
    model.train()
    for name, part in model.named_children():
        if name not in TRAINABLE[stage] and name != "language_model":
            part.eval()
    if model.language_model is not None and "llm" not in TRAINABLE[stage]:
        model.language_model.eval()


class StageObjective:
    """What the engine minimises: sums and counts of named losses for one batch."""

    def __init__(self, stage: StageName, config: LossConfig) -> None:
        self.config = config
        self.weights = loss_weights(stage, config)
        self.language = needs_language_model(stage)
        self.contrastive_features: str | None = None
        if "contrastive" in self.weights:
            self.contrastive_features = config.contrastive_features

    def counts(self, batch: SignBatch) -> dict[str, float]:
        """Return what each loss is averaged over.

        Real clips; of them those with both streams for ``contrastive``; real tokens for
        ``language``.
        """
        clips = float(batch.weight.sum())
        counts = dict.fromkeys(self.weights, clips)
        if "contrastive" in counts and batch.has_both is not None:
            counts["contrastive"] = float(batch.pair_weight.sum())
        if batch.text_lengths is not None:
            counts["language"] = float((batch.text_lengths * batch.weight).sum())
        return counts

    @property
    def compares(self) -> bool:
        """Whether a loss compares the clips of a step with each other: Eq. 21 does."""
        return self.contrastive_features is not None

    def summarise(self, model: nn.Module, batch: SignBatch) -> tuple[Tensor, Tensor]:
        """Return f_v and f_s, what Eq. 21 compares, ``[batch, dim]`` each; nothing else is run."""
        output: SignFuseOutput = model(batch.augmented(), self.contrastive_features, False)
        assert output.summaries is not None
        return output.summaries

    def compare(
        self, batches: Sequence[SignBatch], summaries: Sequence[tuple[Tensor, Tensor]]
    ) -> list[losses.Compared]:
        """Return each micro batch's part of Eq. 21 over the clips of all of them."""
        device = summaries[0][0].device
        weights = [batch.pair_weight.to(device) for batch in batches]
        return losses.contrastive_in_parts(summaries, weights, self.config.temperature)

    def __call__(
        self, model: nn.Module, batch: SignBatch, compared: losses.Compared | None = None
    ) -> dict[str, Tensor]:
        """Return each loss summed over this process's real clips, 0-dim with a gradient.

        Without ``compared``, Eq. 21 is over the clips of this batch on all processes.
        """
        output: SignFuseOutput = model(
            batch.augmented(),
            self.contrastive_features,
            self.language,
            self.config.label_smoothing,
        )
        sums: dict[str, Tensor] = {}
        if output.summaries is not None and compared is not None:
            sums["contrastive"] = losses.replay(output.summaries, compared)
        elif output.summaries is not None:
            pairs = batch.pair_weight
            terms = losses.contrastive(*output.summaries, pairs, self.config.temperature)
            sums["contrastive"] = terms.sum()
        if output.negative_log_likelihood is not None:
            assert output.sign_embeddings is not None
            assert output.text_embeddings is not None
            assert batch.text_lengths is not None
            sums["language"] = (output.negative_log_likelihood * batch.weight).sum()
            apart = losses.distance(
                output.sign_embeddings,
                output.text_embeddings,
                batch.text_lengths,
                self.config.alignment_pooling,
            )
            sums["distance"] = (apart * batch.weight).sum()
        return sums

    def report(self, means: dict[str, float]) -> dict[str, float]:
        """Return the losses under the names of the paper: Eq. 21, L_LM, Eq. 22, and the total."""
        named: dict[str, float] = {n: means[n] for n in ("contrastive", "language") if n in means}
        if "distance" in means:
            named["alignment"] = means["distance"] + means["language"]
        named["total"] = sum(self.weights[name] * value for name, value in means.items())
        return named
