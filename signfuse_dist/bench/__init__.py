"""Measurements of parts of the system, behind `signfuse bench`."""
