"""`python -m benchmarks.compiled`, by its first name."""

from benchmarks.compiled.report import main

if __name__ == "__main__":
    main()
