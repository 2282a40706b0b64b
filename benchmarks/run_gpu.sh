#!/usr/bin/env bash
# What the kernels need a card for, in under 8 minutes on an H100: correctness first, then their benchmarks, one JSON out.
#
#   benchmarks/run_gpu.sh [results.json]      # default: benchmarks/results/<card>-<date>.json
#
# Needs torch >= 2.11 with triton >= 3.6, numpy, timm, nvcc, and the wheels pytest, pytest-xdist and pytest-benchmark; no
# network and no install. Stops at the first wrong result: a time of a wrong kernel is worth nothing. Clocks, power limit
# and driver go beside the numbers. Covers attention and loss; the augmentation's benchmark has no card form yet.
# Not run on a card yet.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
export PYTHONPATH=$PWD:$PWD/kernels${PYTHONPATH:+:$PYTHONPATH}

$python - <<'PYTHON'
import importlib.util, sys
needed = ["torch", "triton", "numpy", "timm", "pytest", "xdist", "pytest_benchmark"]
if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
    sys.exit(f"missing here: {', '.join(missing)}; carry their wheels and pip install --no-index --find-links them")
import torch
if not torch.cuda.is_available():
    sys.exit("no CUDA card: this script has nothing to measure")
PYTHON
$python setup.py -q build_ext --inplace  # says what it cannot build; the tests of that part are then skipped
card=$($python -c 'import torch; print(torch.cuda.get_device_name().replace(" ", "-"))')
results=${1:-benchmarks/results/$card-$(date +%Y-%m-%d).json}
mkdir -p "$(dirname "$results")"

# Eight processes, because most of their time is compilation: some 180 kernels at a second each.
timeout 170 $python -m pytest -q -n 8 -m "gpu and not slow" \
    tests/kernels/attention/test_attention_on_a_card.py \
    tests/kernels/distill_loss/test_loss_on_a_card.py \
    tests/kernels/augment/test_augment_gpu.py
# SIGINT at the limit: pytest-benchmark then still writes what it has. A failing row does not lose the others.
status=0
timeout -s INT 270 $python -m pytest benchmarks/bench_attention.py benchmarks/bench_loss.py -q \
    --benchmark-json="$results.partial" || status=$?

$python - "$results.partial" "$results" <<'PYTHON'
"""Add what the numbers depend on, and move the file into place."""
import json, os, shutil, subprocess, sys

import triton

partial, results = sys.argv[1:]
fields = ["name", "driver_version", "clocks.max.sm", "clocks.max.memory", "clocks.sm", "power.limit", "temperature.gpu"]
content = json.load(open(partial))
content["card"] = {}
if shutil.which("nvidia-smi"):
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    query = subprocess.run(command, capture_output=True, text=True)
    if query.returncode == 0:
        content["card"] = dict(zip(fields, query.stdout.splitlines()[0].split(", ")))
content["triton"], content["command"] = triton.__version__, "benchmarks/run_gpu.sh"
json.dump(content, open(partial, "w"), indent=1)
os.replace(partial, results)
PYTHON
echo "results: $results"
exit $status
