"""The report of a run and its model card: what was measured, as people look at it."""
