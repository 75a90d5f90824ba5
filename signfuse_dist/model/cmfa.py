"""Cross-Modal Fusion Attention, Eq. 6-12: bidirectional cross-attention with a gate."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from signfuse_dist.errors import UserError
from signfuse_dist.model.attention import Attention
from signfuse_dist.model.dropout import ClipDropout

# Those that FusionLayer mixes itself.
FUSIONS = ("cmfa", "concat", "sum", "visual_from_skeletal", "skeletal_from_visual", "no_gate")


class CrossAttention(nn.Module):
    """One direction of Eq. 6-9, with the output projection of multi-head attention [21].

    Paper: no output projection in Eq. 8-9. Here: one a direction. Because: heads would otherwise
    never mix, and with it the parameter total of Table 1 is met.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.attention = Attention(num_heads)
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.output = nn.Linear(dim, dim)

    def forward(self, queries_from: Tensor, keys_from: Tensor, key_mask: Tensor) -> Tensor:
        """``[batch, steps, dim]`` twice to ``[batch, steps, dim]``.

        Both streams of a clip have the same steps, so one mask serves queries and keys.
        """
        query = self.query(self.attention.placed(queries_from))
        key = self.key(self.attention.placed(keys_from))
        attended = self.attention(query, key, self.value(keys_from), key_mask, key_mask)
        projected: Tensor = self.output(attended)
        return projected


class FusionLayer(nn.Module):
    """One CMFA layer, Eq. 6-12, or one of the fusions that section 5.4 compares it with.

    Eq. 11 adds the residual outside the layer norm and Eq. 12 is post-norm: both as printed. The
    queries of one direction and the keys and values of the other come from the same stream; their
    six projections are those of Eq. 6-7.

    Paper: "concatenation, element-wise addition, unidirectional cross-attention, bidirectional
    without gating", without equations. Here: each replaces Eq. 6-10, what is inside the norm of
    Eq. 11, and nothing else: `concat` W [visual; skeletal] + b, `sum` visual + skeletal,
    `visual_from_skeletal` O_{v->s} alone, `skeletal_from_visual` O_{s->v} alone, `no_gate`
    (O_{v->s} + O_{s->v}) / 2. Because: depth, residual and feed-forward network stay the same, so
    a difference is the fusion's.
    """

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, fusion: str) -> None:
        super().__init__()
        if fusion not in FUSIONS and type(self).mix is FusionLayer.mix:
            raise UserError(
                f"model.fusion={fusion}: no layer is built for it. It is none of "
                f"{', '.join(FUSIONS)}, and needs a mix of its own (docs/extending.md)"
            )
        self.fusion = fusion
        both = fusion in ("cmfa", "no_gate")
        self.visual_from_skeletal: CrossAttention | None = None
        self.skeletal_from_visual: CrossAttention | None = None
        if both or fusion == "visual_from_skeletal":
            self.visual_from_skeletal = CrossAttention(dim, num_heads)
        if both or fusion == "skeletal_from_visual":
            self.skeletal_from_visual = CrossAttention(dim, num_heads)
        self.gate = nn.Linear(2 * dim, dim) if fusion == "cmfa" else None
        self.concat = nn.Linear(2 * dim, dim) if fusion == "concat" else None
        self.fusion_norm = nn.LayerNorm(dim)
        self.ffn = nn.Sequential(nn.Linear(dim, ffn_dim), nn.GELU(), nn.Linear(ffn_dim, dim))
        self.ffn_norm = nn.LayerNorm(dim)
        self.mixed_dropout, self.ffn_dropout = ClipDropout(), ClipDropout()

    def forward(
        self, visual: Tensor, skeletal: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return F'_fused of Eq. 12 and alpha of Eq. 10, both ``[batch, steps, dim]``.

        ``mask`` is bool ``[batch, steps]``, True = real; the result is zero elsewhere. A fusion
        without a gate returns None for it.
        """
        mixed, gate = self.mix(visual, skeletal, mask)
        fused = self.mixed_dropout(self.fusion_norm(mixed)) + (visual + skeletal) / 2
        fused = self.ffn_norm(fused + self.ffn_dropout(self.ffn(fused)))
        return fused * mask[:, :, None], gate

    def mix(self, visual: Tensor, skeletal: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return what is inside the norm of Eq. 11 and the gate, ``[batch, steps, dim]`` each.

        Another fusion is a subclass with a ``mix`` of its own (docs/extending.md). Steps where
        ``mask`` is False are padding: they may be given any value, and none that is real may
        depend on them. The gate is the share of the visual side, or None.
        """
        if self.fusion == "sum":
            return visual + skeletal, None
        if self.concat is not None:
            return self.concat(torch.cat((visual, skeletal), dim=-1)), None
        if self.skeletal_from_visual is None:
            assert self.visual_from_skeletal is not None
            return self.visual_from_skeletal(visual, skeletal, mask), None
        if self.visual_from_skeletal is None:
            return self.skeletal_from_visual(skeletal, visual, mask), None
        from_skeletal, from_visual = self.attend_across(visual, skeletal, mask)
        if self.gate is None:
            return (from_skeletal + from_visual) / 2, None
        gate = torch.sigmoid(self.gate(torch.cat((from_skeletal, from_visual), dim=-1)))
        return gate * from_skeletal + (1 - gate) * from_visual, gate

    def attend_across(
        self, visual: Tensor, skeletal: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return O_{v->s} of Eq. 8 and O_{s->v} of Eq. 9, both ``[batch, steps, dim]``."""
        if self.visual_from_skeletal is None or self.skeletal_from_visual is None:
            raise ValueError(f"fusion {self.fusion} does not attend in both directions")
        from_skeletal = self.visual_from_skeletal(visual, skeletal, mask)
        from_visual = self.skeletal_from_visual(skeletal, visual, mask)
        return from_skeletal, from_visual


class CrossModalFusion(nn.Module):
    """The CMFA stack. From the second layer on both inputs are the fused features (section 3.4).

    With no layer at all, what is left of Eq. 11-12 is the residual: (visual + skeletal) / 2.

    Paper: no word of where the gain of Eq. 11's norm starts. Here: at ``gain``, for which
    ``model.fusion_gain`` has 0.1. Because: untrained attention gives every step of a clip nearly
    the same vector, and a norm of gain 1 makes it louder than the residual, in which the steps
    differ. On the synthetic corpus direct training of eight epochs reached BLEU-4 85.5 +- 6.7 from
    0.1 and 52.3 +- 1.2 from 1 (three seeds, p 0.012; docs/recipes.md); from 0 the first step
    teaches attention nothing.
    """

    def __init__(
        self,
        dim: int,
        num_layers: int,
        num_heads: int,
        ffn_dim: int,
        fusion: str,
        gain: float,
        layer: type[FusionLayer] = FusionLayer,
    ) -> None:
        super().__init__()
        layers = [layer(dim, num_heads, ffn_dim, fusion) for _ in range(num_layers)]
        for made in layers:
            nn.init.constant_(made.fusion_norm.weight, gain)
        self.layers = nn.ModuleList(layers)

    def forward(
        self, visual: Tensor, skeletal: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return ``fused`` ``[batch, steps, dim]`` and the first layer's gate over time.

        The gate is averaged over the channels, ``[batch, steps]``: 1 = all from the query side of
        the picture, 0 = all from that of the skeleton. Only in the first layer do its two sides
        belong to one stream each. None where nothing is gated.
        """
        if not self.layers:
            return (visual + skeletal) / 2 * mask[:, :, None], None
        fused, gate = self.layers[0](visual, skeletal, mask)
        for layer in self.layers[1:]:
            fused, _ = layer(fused, fused, mask)
        return fused, None if gate is None else gate.mean(dim=-1)

    def attend_across(
        self, visual: Tensor, skeletal: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the first layer's O_{v->s} and O_{s->v} (Eq. 8-9), ``[batch, steps, dim]``."""
        first: FusionLayer = self.layers[0]  # type: ignore[assignment]
        return first.attend_across(visual, skeletal, mask)
