#!/usr/bin/env bash
# Everything that needs a card, in under 8 minutes on an H100: build, correctness, benchmarks, a tuning sweep.
#
#   benchmarks/run_gpu.sh [results.json]      # default: benchmarks/results/<card>-<date>.json
#
# One JSON and one log (the same name, .log) come out; the ten rows that lose most, or win least, are printed last. The
# same command again continues: a step that is done is not repeated (delete <results>.parts to start anew).
#
# Needs torch >= 2.11 with triton >= 3.6, nvcc, numpy, timm, and the wheels pytest, pytest-xdist and pytest-benchmark; no
# network and no install. A group that needs more is left out and says what is missing: augment torchvision, pillow and
# scikit-learn; inference transformers, safetensors and pillow; train what pyproject's extra [train] lists. Stops at the
# first wrong result: a time of a wrong kernel is worth nothing. Not run on a card yet.
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
card=$($python -c 'import torch; print(torch.cuda.get_device_name().replace(" ", "-"))')
results=${1:-benchmarks/results/$card-$(date +%Y-%m-%d).json}
parts=${results%.json}.parts log=${results%.json}.log
mkdir -p "$parts"
exec > >(tee -a "$log") 2>&1
echo "$(date '+%F %T') $card, commit $($python -c 'from benchmarks.machine import commit; print(commit())')"

# step NAME COMMAND…: once; `.done` appears when the command has succeeded.
step() {
    local name=$1
    shift
    [ -e "$parts/$name.done" ] && { echo "$name: done before"; return 0; }
    echo "$(date +%T) $name"
    "$@" && touch "$parts/$name.done"
}

step build $python setup.py -q build_ext --inplace  # says what it cannot build; its tests are then skipped
# Eight processes, because most of their time is compilation: some 180 kernels at a second each.
step tests timeout 170 $python -m pytest -q -n 8 -m "gpu and not slow" \
    tests/kernels/attention/test_attention_on_a_card.py \
    tests/kernels/distill_loss/test_loss_on_a_card.py \
    tests/kernels/augment/test_augment_gpu.py
# Group and seconds. SIGINT at the limit: what has been measured until then is written. A failure does not lose the rest.
status=0
for limited in attention:120 loss:60 augment:30 inference:40 train:40; do
    group=${limited%:*}
    [ -e "benchmarks/bench_$group.py" ] || continue
    if ! missing=$($python -c "import benchmarks.bench_$group" 2>&1 | tail -1 | grep Error); then
        step "$group" timeout -s INT "${limited#*:}" $python -m benchmarks "$group" --out "$parts/$group.json" || status=$?
    else
        echo "$group is left out: $missing"
    fi
done
step tune timeout 60 $python -m deit_kernels.tune --out "$parts/tune.json" || status=$?

$python -m benchmarks.card_results "$parts" --out "$results"
echo "results: $results, log: $log"
exit $status
