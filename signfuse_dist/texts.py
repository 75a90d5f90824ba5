"""Texts that the LLM has no room or no letters for, found before training starts."""

from __future__ import annotations

from collections.abc import Callable

from signfuse_dist.data.split import Split
from signfuse_dist.errors import raise_together
from signfuse_dist.model.llm import TextTokenizer
from signfuse_dist.model.signfuse import SignFuse


def refuse_long_texts(
    model: SignFuse, tokenizer: TextTokenizer | None, split: Split, say: Callable[[str], None]
) -> None:
    """Raise UserError naming texts that the LLM's context has no room for; name unknown letters."""
    if model.language_model is None or tokenizer is None:
        return
    texts = {entry.id: entry.text for entry in split.entries()}
    room = model.language_model.room(model.built_from.num_sign_tokens)
    too_long, unknown = tokenizer.find_unfit(texts, room)
    if unknown:
        say(f"{len(unknown)} of {len(texts)} texts hold letters that the LLM's tokenizer does not "
            f"know, and are learned without them: {', '.join(unknown[:10])}")  # fmt: skip
    raise_together(
        too_long[:10],
        f"{split.folder}: {len(too_long)} texts are too long for the LLM's context; take them out "
        "of the corpus, or another LLM. The first",
    )
