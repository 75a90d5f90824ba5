"""Ablations: which runs a table needs, running them, and what they show."""
