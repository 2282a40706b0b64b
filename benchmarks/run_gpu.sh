#!/usr/bin/env bash
# Everything that needs a card, in under 8 minutes: correctness, benchmarks, build, constants, a profiled step.
#
#   benchmarks/run_gpu.sh [results.json]      # default: benchmarks/results/<card>-<date>.json
#   LIMIT=1200 benchmarks/run_gpu.sh          # seconds instead of 450: fewer calls until every row is there
#   benchmarks/run_gpu.sh --wheels DIR        # where there is a network: fetch what a machine with torch alone lacks
#   WHEELS=DIR benchmarks/run_gpu.sh          # on that machine: unpack it into build/card-packages, then as above
#
# Exit code 0: all is there. 1: something is missing, and the same command continues with it. 3: a test failed; what uses
# its op was not timed. benchmarks/card/__main__.py has the steps and benchmarks/README.md the rest. Not run on a card yet.
set -euo pipefail
export HERE=$PWD
cd "$(dirname "$0")/.."
export PYTHON=${PYTHON:-$(command -v python || echo python3)}
export PYTHONPATH=$PWD:$PWD/kernels${PYTHONPATH:+:$PYTHONPATH}
exec "$PYTHON" -m benchmarks.card "$@"
