"""Reproducible benchmarks: see README.md."""
