"""Benchmarks: each gives its figures as ratios to something bare in the same run."""
