"""Comparisons with peers (`pytest benchmarks`), and what needs no GPU (`python -m benchmarks.compiled`)."""
