#!/usr/bin/env bash
# Everything that needs a card, in under 8 minutes: build, correctness, benchmarks, a tuning sweep.
#
#   benchmarks/run_gpu.sh [results.json]      # default: benchmarks/results/<card>-<date>.json
#   LIMIT=1200 benchmarks/run_gpu.sh          # seconds instead of 450: fewer calls until every row is there
#
# One JSON and one log (the same name, .log) come out; the ten rows that lose most, or win least, are printed last. What
# the time does not suffice for is named, in the JSON too, and the exit code is 1: the same command continues with what is
# missing. Steps are kept in <results>-<digest of the sources>.parts, so changed code is measured again.
#
# Needs torch >= 2.11 with triton >= 3.6, numpy, timm, and the wheels pytest, pytest-xdist and pytest-benchmark; no
# network and no install. nvcc, setuptools >= 77 and ninja build the extensions; without them the augmentation is left out.
# So is, with the reason, a group that needs more: augment torchvision, pillow and scikit-learn; inference transformers,
# safetensors and pillow; overhead pillow; loader torchvision, simplejpeg and scikit-image; train and resume what
# pyproject's extra [train] lists. Stops at the first wrong result, a time of a wrong kernel is worth nothing; and where
# the tests do not end in time: what they have compiled is kept, and the same command continues. Not run on a card yet.
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
digest=$($python -c 'from benchmarks.measure.machine import sources; print(sources())')
parts=${results%.json}-$digest.parts log=${results%.json}.log
mkdir -p "$parts"
rm -f "$parts/left_out"
exec > >(tee -a "$log") 2>&1
commit=$($python -c 'from benchmarks.measure.machine import commit; print(commit())')
echo "$(date '+%F %T') $card, sources $digest, commit $commit"
status=0

left_out() {
    echo "$1 is left out: $2" | tee -a "$parts/left_out"
}

# step NAME SECONDS COMMAND…: once; `.done` appears when the command has succeeded. SIGINT at the limit, or where the
# script's own is nearer, so that what has been measured until then is written; a kernel that hangs is killed.
step() {
    local name=$1 seconds=$2 left=$((${LIMIT:-450} - SECONDS)) code=0
    shift 2
    [ -e "$parts/$name.done" ] && { echo "$name: done before"; return 0; }
    [ "$left" -ge 10 ] || { left_out "$name" "no time is left: run the same command again"; return 1; }
    echo "$(date +%T) $name"
    timeout -s INT -k 15 $((seconds < left ? seconds : left)) "$@" || code=$?
    [ "$code" -eq 0 ] || { left_out "$name" "exit code $code, in part at least"; return "$code"; }
    touch "$parts/$name.done"
}

step build 150 $python setup.py -q build_ext --inplace || status=1
# Eight processes, because most of their time is compilation: some 180 kernels at a second each.
tests=(tests/kernels/attention/test_attention_on_a_card.py tests/kernels/distill_loss/test_loss_on_a_card.py)
augments='import sys, PIL, sklearn; from deit_kernels import _extension; sys.exit(_extension.cuda_missing)'
if reason=$($python -c "$augments" 2>&1 >/dev/null); then
    tests+=(tests/kernels/augment/test_augment_gpu.py)
else
    left_out "the augmentation's tests" "${reason##*$'\n'}"
fi
step tests 400 $python -m pytest -q -n 8 -m "gpu and not slow" "${tests[@]}"
# What decides most comes first. A failure does not lose the rest.
for limited in attention:120 loss:60 train:90 augment:40 inference:60 tune:60 overhead:30 resume:30 loader:180; do
    group=${limited%:*} seconds=${limited#*:}
    if [ "$group" = tune ]; then
        tuning=(--out "$parts/tune.json" --seconds $((seconds - 20)))
        step tune "$seconds" $python -m deit_kernels.tune "${tuning[@]}" || status=1
    elif reason=$($python -c "import benchmarks.bench_$group" 2>&1 >/dev/null); then
        step "$group" "$seconds" $python -m benchmarks "$group" --out "$parts/$group.json" --continue || status=1
    else
        left_out "$group" "${reason##*$'\n'}"
    fi
done

$python -m benchmarks.card_results "$parts" --out "$results"
echo "results: $results, log: $log"
exit $status
