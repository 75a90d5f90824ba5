"""Whether two rows' translations differ by more than which sentences were asked."""

from __future__ import annotations

from collections.abc import Sequence

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.significance import PairedTest, Result

from signfuse_dist.evaluation.presets import Preset, normalize

NUM_SAMPLES = 1000
SIGNIFICANT = 0.05


def bleu_p_value(
    ours: Sequence[str], others: Sequence[str], references: Sequence[str], preset: Preset
) -> float:
    """Return p of the difference in BLEU-4: sacrebleu's paired bootstrap (Koehn, 2004).

    Equal translations have p 1. Translations of several seeds may follow one another, each with
    its reference.
    """
    if list(ours) == list(others):
        return 1.0
    systems: list[tuple[str, Sequence[str]]] = [
        (name, [normalize(text, preset) for text in texts])
        for name, texts in (("others", others), ("ours", ours))
    ]
    theirs = [normalize(text, preset) for text in references]
    metric = BLEU(
        lowercase=preset.lowercase, tokenize=preset.tokenizer, smooth_method=preset.smoothing,
        smooth_value=0.0 if preset.smoothing == "floor" else None,
        effective_order=preset.effective_order, force=True,
    )  # fmt: skip
    _, found = PairedTest(systems, {"BLEU": metric}, [theirs], "bs", NUM_SAMPLES)()
    result = next(iter(v for k, v in found.items() if k != "System"))[1]
    assert isinstance(result, Result)
    assert result.p_value is not None
    return float(result.p_value)
