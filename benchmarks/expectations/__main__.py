"""`python -m benchmarks.expectations`: see page.py."""

from benchmarks.expectations.page import main

main()
