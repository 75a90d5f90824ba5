"""Section 3.7 as a table: what trains in each stage, and which losses it minimises."""

from __future__ import annotations

from torch import Tensor, nn

from signfuse_dist import loss
from signfuse_dist.batch import SignBatch
from signfuse_dist.config import LossConfig, StageName
from signfuse_dist.model.signfuse import SignFuse, SignFuseOutput
from signfuse_dist.stage_parts import TRAINABLE as TRAINABLE
from signfuse_dist.stage_parts import needs_language_model as needs_language_model
from signfuse_dist.stage_parts import previous as previous
from signfuse_dist.stage_parts import trained_parts as trained_parts


def loss_weights(stage: StageName, config: LossConfig) -> dict[str, float]:
    """Return how much each summed loss counts in the stage's total.

    ``distance`` is the squared distance of Eq. 22 and L_align = distance + language, so Eq. 23 as
    printed, L_LM + lambda_1 L_contra + lambda_2 L_align, counts L_LM 1 + lambda_2 times. With
    lambda_1 = 0 the contrastive loss is not computed.
    """
    if stage == "contrastive":
        return {"contrastive": 1.0}
    if stage == "alignment":
        return {"language": 1.0, "distance": 1.0}
    weights = {"language": 1.0 + config.alignment_weight, "distance": config.alignment_weight}
    if config.contrastive_weight > 0:
        weights["contrastive"] = config.contrastive_weight
    return weights


def prepare(model: SignFuse, stage: StageName, config: LossConfig) -> None:
    """Let exactly the stage's parameters train; the fine-tune stage adds LoRA to the LLM."""
    model.requires_grad_(False)
    for name in trained_parts(stage, config):
        if name == "lora":
            if model.language_model is not None:
                model.language_model.add_lora(model.built_from)
        elif getattr(model, name.partition(".")[0]) is not None:  # a stream may not be there
            model.get_submodule(name).requires_grad_(True)


def set_mode(model: SignFuse, stage: StageName) -> None:
    """Training mode for what trains, evaluation mode for what is frozen (its BatchNorm too)."""
    model.train()
    for name, part in model.named_children():
        if name not in TRAINABLE[stage] and name != "language_model":
            part.eval()
    if model.language_model is not None and "lora" not in TRAINABLE[stage]:
        model.language_model.eval()


class StageObjective:
    """What the engine minimises: sums and counts of named losses for one batch."""

    def __init__(self, stage: StageName, config: LossConfig) -> None:
        self.config = config
        self.weights = loss_weights(stage, config)
        self._language = needs_language_model(stage)
        self._contrastive = config.contrastive_features if "contrastive" in self.weights else None

    def counts(self, batch: SignBatch) -> dict[str, float]:
        """Return what each loss is averaged over: real clips, or real tokens for ``language``."""
        clips = float(batch.weight.sum())
        counts = dict.fromkeys(self.weights, clips)
        if batch.text_lengths is not None:
            counts["language"] = float((batch.text_lengths * batch.weight).sum())
        return counts

    def __call__(self, model: nn.Module, batch: SignBatch) -> dict[str, Tensor]:
        """Return each loss summed over this process's real clips, 0-dim with a gradient."""
        output: SignFuseOutput = model(batch.augmented(), self._contrastive, self._language)
        sums: dict[str, Tensor] = {}
        if output.summaries is not None:
            terms = loss.contrastive(*output.summaries, batch.weight, self.config.temperature)
            sums["contrastive"] = terms.sum()
        if output.negative_log_likelihood is not None:
            assert output.sign_embeddings is not None
            assert output.text_embeddings is not None
            assert batch.text_lengths is not None
            sums["language"] = (output.negative_log_likelihood * batch.weight).sum()
            apart = loss.distance(
                output.sign_embeddings, output.text_embeddings, batch.text_lengths,
                self.config.alignment_pooling,
            )  # fmt: skip
            sums["distance"] = (apart * batch.weight).sum()
        return sums

    def report(self, means: dict[str, float]) -> dict[str, float]:
        """Return the losses under the names of the paper: Eq. 21, L_LM, Eq. 22, and the total."""
        named: dict[str, float] = {n: means[n] for n in ("contrastive", "language") if n in means}
        if "distance" in means:
            named["alignment"] = means["distance"] + means["language"]
        named["total"] = sum(self.weights[name] * value for name, value in means.items())
        return named
