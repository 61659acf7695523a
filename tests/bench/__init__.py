"""Benchmarks, run by hand: ``make bench-serving``."""
