"""`python -m benchmarks.tradeoff`: see measure.py."""

import sys

from benchmarks.tradeoff.measure import main

sys.exit(main())
