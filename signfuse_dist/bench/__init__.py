"""Measurements of parts of the system, run by `signfuse bench`."""
