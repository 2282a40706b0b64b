"""`python -m benchmarks.compare`: see changes.py."""

from benchmarks.compare.changes import main

raise SystemExit(main())
