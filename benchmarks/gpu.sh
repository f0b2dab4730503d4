#!/bin/sh
# Everything that has to be measured on a CUDA device, in at most 8 minutes. Keeps the raw output.
#
#     benchmarks/gpu.sh [FOLDER]       FOLDER is benchmarks/results/gpu by default
#     TINY=1 benchmarks/gpu.sh FOLDER  try the parts on a CPU, with tiny and meaningless sizes
#
# PYTHON is the interpreter to use. The exit status is 1 if a part fails; the other parts still run.
set -u
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/results/gpu}
python=${PYTHON:-python}
mkdir -p "$out"
status=0

part() {
    name=$1 limit=$2
    shift 2
    echo "== $name"
    timeout "$limit" "$@" >"$out/$name.txt" 2>&1 || {
        echo "$name failed with status $?; see $out/$name.txt" >&2
        status=1
    }
    tail -n 12 "$out/$name.txt"
}

part versions 60 "$python" -c \
    "import torch; print(torch.__version__, torch.version.cuda, torch.cuda.is_available())"
if [ -n "${TINY:-}" ]; then
    part tests 60 "$python" -m pytest -q --collect-only -m gpu "$here/../tests/trajstore/recording/test_cuda.py"
    part overhead 120 "$python" "$here/overhead.py" --device cuda --tiny --out "$out/overhead.json"
else
    part device 30 nvidia-smi
    part tests 150 "$python" -m pytest -q -m gpu "$here/../tests"
    part overhead 240 "$python" "$here/overhead.py" --device cuda --out "$out/overhead.json"
fi
exit $status
