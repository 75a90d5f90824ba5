"""Benchmarks: each measures one part of the system against what it could be at best."""
