#!/usr/bin/env bash
# Everything that needs a card, in under 8 minutes: correctness, benchmarks, build, a tuning sweep.
#
#   benchmarks/run_gpu.sh [results.json]      # default: benchmarks/results/<card>-<date>.json
#   LIMIT=1200 benchmarks/run_gpu.sh          # seconds instead of 450: fewer calls until every row is there
#   benchmarks/run_gpu.sh --wheels DIR        # where there is a network: fetch what a machine with torch alone lacks
#   WHEELS=DIR benchmarks/run_gpu.sh          # on that machine: unpack it into build/card-packages, then as above
#
# One JSON and one log (the same name, .log) come out; the rows that the model of the machine predicts are printed beside
# what was measured, and the ten rows that lose most, or win least, last. What the time does not suffice for is named, in
# the JSON too, and the exit code is 1: the same command continues with what is missing. Steps are kept in
# <results>-<digest of the sources>.parts, so changed code is measured again.
#
# Needs torch >= 2.11 with triton >= 3.6, the C compiler and Python headers that Triton needs, numpy, safetensors, pytest
# and pytest-benchmark; no network. With those alone it proves and times attention and the loss. What comes first decides
# most: DeiT-S's attention, N = 198 and H = 6, is proven and timed before anything else. pytest-xdist makes the tests
# several times as fast. nvcc, setuptools >= 77 and ninja build the extensions; without them the augmentation is left out.
# So is, with the reason, a group that needs more: train and inference timm and what pyproject's extra [train] lists,
# inference transformers too; augment timm, torchvision, pillow and scikit-learn; overhead timm and pillow; loader
# torchvision, simplejpeg and scikit-image. Stops at the first wrong result with exit code 3, a time of a wrong kernel is
# worth nothing; and where tests do not end in time with 1: what they have compiled is kept, and the same command
# continues. Not run on a card yet.
set -euo pipefail
here=$PWD
cd "$(dirname "$0")/.."
python=${PYTHON:-$(command -v python || echo python3)}
export PYTHONPATH=$PWD:$PWD/kernels${PYTHONPATH:+:$PYTHONPATH}

if [ "${1:-}" = --wheels ]; then
    exec $python -m pip download -q -c constraints.txt -d "$(cd "$here" && realpath -m "${2:?name the folder: --wheels DIR}")" \
        safetensors pytest pytest-xdist pytest-benchmark
fi
if [ -n "${WHEELS:-}" ]; then
    for wheel in "$(cd "$here" && realpath "$WHEELS")"/*.whl; do
        $python -m zipfile -e "$wheel" build/card-packages
    done
    export PYTHONPATH=$PYTHONPATH:$PWD/build/card-packages
fi
facts=$($python - <<'PYTHON'
import importlib.util, sys
needed = ["torch", "triton", "numpy", "safetensors", "pytest", "pytest_benchmark"]
if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
    sys.exit(f"missing here: {', '.join(missing)}; where there is a network type benchmarks/run_gpu.sh --wheels DIR, "
             "carry DIR here, and type WHEELS=DIR benchmarks/run_gpu.sh")
import torch
if not torch.cuda.is_available():
    sys.exit("no CUDA card: this script has nothing to measure")
from benchmarks.measure.machine import commit, kind, sources
print(kind(), sources(), commit(), "yes" if importlib.util.find_spec("xdist") else "no")
PYTHON
)
read -r card digest commit in_parallel <<< "$facts"
results=$PWD/benchmarks/results/$card-$(date +%Y-%m-%d).json
[ $# -eq 0 ] || results=$(cd "$here" && realpath -m "$1")
parts=${results%.json}-$digest.parts log=${results%.json}.log
mkdir -p "$parts"
rm -f "$parts/left_out"
exec > >(tee -a "$log") 2>&1
echo "$(date '+%F %T') $card, sources $digest, commit $commit"
status=0 late=99  # late: what `step` returns when no time is left

left_out() {
    echo "$1 is left out: $2" | tee -a "$parts/left_out"
}

# step NAME SECONDS COMMAND…: once; `.done` appears when the command has succeeded. SIGINT at the limit, or where the
# script's own is nearer, so that what has been measured until then is written; a kernel that hangs is killed.
step() {
    local name=$1 seconds=$2 left=$((${LIMIT:-450} - SECONDS)) code=0
    shift 2
    [ -e "$parts/$name.done" ] && { echo "$name: done before"; return 0; }
    [ "$left" -ge 10 ] || { left_out "$name" "no time is left: run the same command again"; return $late; }
    echo "$(date +%T) $name"
    timeout -s INT -k 15 $((seconds < left ? seconds : left)) "$@" || code=$?
    [ "$code" -eq 0 ] || { left_out "$name" "exit code $code, in part at least"; return "$code"; }
    touch "$parts/$name.done"
}

# rows NAME SECONDS GROUP [WORDS [FILE]]: the rows of a group whose names match, as pytest's -k. A failure does not lose
# what comes after it.
rows() {
    step "$1" "$2" $python -m benchmarks "$3" ${4:+-k "$4"} --out "$parts/${5:-$1}.json" --continue || status=1
}

finish() {
    compgen -G "$parts/*.json" > /dev/null || { echo "nothing was measured; log: $log"; return; }
    $python -m benchmarks.card_results "$parts" --out "$results" || status=1
    echo "results: $results, log: $log"
}

# proven NAME SECONDS ARGUMENTS…: tests. Where one fails, what was measured until then is written and the script ends.
proven() {
    local name=$1 seconds=$2 code=0
    shift 2
    step "$name" "$seconds" $python -m pytest -q -m "gpu and not slow" "$@" || code=$?
    [ "$code" -eq 0 ] && return
    status=1
    case $code in
        "$late") ;;
        124 | 137) finish; exit 1 ;;  # not in time
        *) finish; exit 3 ;;
    esac
}

# Eight processes, because most of the tests' time is compilation: some 300 kernels at a second each.
[ "$in_parallel" = yes ] && together=(-n 8) || together=()
attention=tests/kernels/attention/test_attention_on_a_card.py
not_compiled="not compiled and not flex"
proven first_tests 120 -k 198-64 "$attention"
rows first_rows 60 attention "(B256-N198-H6 or agree) and $not_compiled" attention
proven attention_tests 260 "${together[@]}" "$attention"
rows attention 100 attention "$not_compiled"
proven loss_tests 120 "${together[@]}" tests/kernels/distill_loss/test_loss_on_a_card.py
rows loss 60 loss
step build 150 $python setup.py -q build_ext --inplace || status=1
augments='import sys, PIL, sklearn; from deit_kernels import _extension; sys.exit(_extension.cuda_missing)'
if reason=$($python -c "$augments" 2>&1 >/dev/null); then
    proven augmentation_tests 120 "${together[@]}" tests/kernels/augment/test_augment_gpu.py
else
    left_out augmentation_tests "${reason##*$'\n'}"
fi
for limited in train:90 augment:40 inference:60 tune:60 overhead:30 resume:30 loader:180; do
    group=${limited%:*} seconds=${limited#*:}
    if [ "$group" = tune ]; then
        tuning=(--out "$parts/tune.json" --seconds $((seconds - 20)))
        step tune "$seconds" $python -m deit_kernels.tune "${tuning[@]}" || status=1
    elif reason=$($python -c "import benchmarks.bench_$group" 2>&1 >/dev/null); then
        rows "$group" "$seconds" "$group"
    else
        left_out "$group" "${reason##*$'\n'}"
    fi
done
# Two peers that compile for most of a minute a row.
rows compiled_peers 240 attention "compiled or flex"

finish
exit $status
