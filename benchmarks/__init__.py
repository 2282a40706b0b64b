"""Comparisons with peers (`pytest benchmarks`) and the reports that need no GPU (`python -m benchmarks.compile_report`)."""
