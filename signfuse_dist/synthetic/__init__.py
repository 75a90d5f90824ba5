"""The demo's invented world: a language, its signs, a drawn signer, a corpus and a tiny LLM."""
