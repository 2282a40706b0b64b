#!/usr/bin/env bash
# What the kernels need a card for, in under 8 minutes on an H100: correctness first, then their benchmarks, one JSON out.
#
#   benchmarks/run_gpu.sh [results.json]      # default: benchmarks/results/<card>-<date>.json
#
# Stops at the first wrong result: a time of a wrong kernel is worth nothing. Clocks, power limit and driver go beside the
# numbers. Not run on a card yet.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}

$python -c 'import torch; assert torch.cuda.is_available(), "no CUDA card"'
card=$($python -c 'import torch; print(torch.cuda.get_device_name().replace(" ", "-"))')
results=${1:-benchmarks/results/$card-$(date +%Y-%m-%d).json}
mkdir -p "$(dirname "$results")"

# Eight processes, because most of their time is compilation: some 180 kernels at a second each.
timeout 170 $python -m pytest tests/kernels -m "gpu and not slow" -q -n 8
timeout 300 $python -m pytest benchmarks/bench_attention.py benchmarks/bench_loss.py -q --benchmark-json="$results.partial"

$python - "$results.partial" "$results" <<'PYTHON'
"""Add what the numbers depend on, and move the file into place."""
import json, os, subprocess, sys

import triton

partial, results = sys.argv[1:]
fields = ["name", "driver_version", "clocks.max.sm", "clocks.max.memory", "clocks.sm", "power.limit", "temperature.gpu"]
command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
query = subprocess.run(command, capture_output=True, text=True)
content = json.load(open(partial))
content["card"] = dict(zip(fields, query.stdout.splitlines()[0].split(", "))) if query.returncode == 0 else {}
content["triton"], content["command"] = triton.__version__, "benchmarks/run_gpu.sh"
json.dump(content, open(partial, "w"), indent=1)
os.replace(partial, results)
PYTHON
echo "results: $results"
