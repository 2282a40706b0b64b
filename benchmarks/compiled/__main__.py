"""`python -m benchmarks.compiled`: see report.py."""

from benchmarks.compiled.report import main

main()
