"""`python -m benchmarks.compiled.page`, by its first name."""

from benchmarks.compiled.page import main

if __name__ == "__main__":
    main()
