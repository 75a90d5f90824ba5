"""What a stage trains and minimises: :mod:`signfuse_dist.stages` applied to model and batches.

Apart from the table because this imports torch and the model, and ``signfuse check`` needs the
table without them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from signfuse_dist.batch import SignBatch
from signfuse_dist.config import LossConfig, StageName
from signfuse_dist.model import losses
from signfuse_dist.model.signfuse import SignFuse, SignFuseOutput
from signfuse_dist.model.vision import unreached
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
        else:
            model.get_submodule(name).requires_grad_(True)
    _freeze_backbone(model)


def _freeze_backbone(model: SignFuse) -> None:
    """Keep a network of pictures as it is where it is not to train, and what no loss reaches."""
    if model.visual is None:
        return
    if not model.built_from.trains_backbone:
        model.visual.backbone.requires_grad_(False)
    elif model.vision is not None and any(p.requires_grad for p in model.vision.parameters()):
        for name in unreached(model.vision):
            model.vision.get_parameter(name).requires_grad_(False)


def set_mode(model: SignFuse, stage: StageName) -> None:
    """Put what trains into training mode, what is frozen, BatchNorm included, into evaluation."""
    model.train()
    for name, part in model.named_children():
        if name not in TRAINABLE[stage] and name != "language_model":
            part.eval()
    if model.visual is not None and not model.built_from.trains_backbone:
        model.visual.backbone.eval()
    if model.language_model is not None and "llm" not in TRAINABLE[stage]:
        model.language_model.eval()


class StageObjective:
    """What the engine minimises: sums and counts of named losses for one batch."""

    def __init__(self, stage: StageName, config: LossConfig, corpora: Sequence[str] = ()) -> None:
        """``corpora`` are the names of a blend's, whose losses are observed one by one."""
        self.config, self.corpora = config, tuple(corpora)
        self.weights = loss_weights(stage, config)
        self.language = needs_language_model(stage)
        self.contrastive_features: str | None = None
        if "contrastive" in self.weights:
            self.contrastive_features = config.contrastive_features
        self.observed = tuple(f"{name}/{c}" for c in self.corpora for name in self.weights)

    def counts(self, batch: SignBatch) -> dict[str, float]:
        """Return what each loss is averaged over.

        Real clips; of them those with both streams for ``contrastive``; real tokens for
        ``language``.
        """
        each = dict.fromkeys(self.weights, batch.weight)
        if "contrastive" in each and batch.has_both is not None:
            each["contrastive"] = batch.pair_weight
        if batch.text_lengths is not None:
            each["language"] = batch.text_lengths * batch.weight
        counts = {name: float(values.sum()) for name, values in each.items()}
        of_corpora = self._by_corpus(batch, each)
        return {**counts, **{name: float(value) for name, value in of_corpora.items()}}

    def _by_corpus(self, batch: SignBatch, each: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return sums over the clips of each corpus, without a graph; nothing without a blend."""
        sums: dict[str, Tensor] = {}
        for number, corpus in enumerate(self.corpora):
            assert batch.corpus is not None
            own = (batch.corpus == number).to(batch.weight.dtype)
            sums |= {f"{name}/{corpus}": (v.detach() * own).sum() for name, v in each.items()}
        return sums

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
        corpora = [corpus.to(device) for b in batches if (corpus := self._apart(b)) is not None]
        temperature = self.config.temperature
        return losses.contrastive_in_parts(summaries, weights, temperature, corpora or None)

    def _apart(self, batch: SignBatch) -> Tensor | None:
        """Return the corpus of each clip where Eq. 21 keeps corpora apart."""
        return batch.corpus if self.config.negatives == "corpus" else None

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
        each: dict[str, Tensor] = {}
        if output.summaries is not None and compared is not None:
            sums["contrastive"] = losses.replay(output.summaries, compared)
            each["contrastive"] = compared.terms
        elif output.summaries is not None:
            pairs = batch.pair_weight
            each["contrastive"] = losses.contrastive(
                *output.summaries, pairs, self.config.temperature, self._apart(batch)
            )
            sums["contrastive"] = each["contrastive"].sum()
        if output.negative_log_likelihood is not None:
            assert output.sign_embeddings is not None
            assert output.text_embeddings is not None
            assert batch.text_lengths is not None
            each["language"] = output.negative_log_likelihood * batch.weight
            sums["language"] = each["language"].sum()
            apart = losses.distance(
                output.sign_embeddings,
                output.text_embeddings,
                batch.text_lengths,
                self.config.alignment_pooling,
            )
            each["distance"] = apart * batch.weight
            sums["distance"] = each["distance"].sum()
        return {**sums, **self._by_corpus(batch, each)}

    def report(self, means: dict[str, float]) -> dict[str, float]:
        """Return the losses under the names of the paper: Eq. 21, L_LM, Eq. 22, and the total."""
        named: dict[str, float] = {n: means[n] for n in ("contrastive", "language") if n in means}
        if "distance" in means:
            named["alignment"] = means["distance"] + means["language"]
        named["total"] = sum(weight * means[name] for name, weight in self.weights.items())
        for corpus in self.corpora:
            end = f"/{corpus}"
            of = {n.removesuffix(end): value for n, value in means.items() if n.endswith(end)}
            if "distance" in of:  # a corpus has both or neither
                of["alignment"] = of.pop("distance") + of["language"]
            named |= {f"{name}{end}": value for name, value in of.items()}
        return named
