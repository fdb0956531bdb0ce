#!/usr/bin/env bash
# Everything that needs a GPU, in one go: build, tests, sanitizers, benchmarks. `make gpu` runs it; it needs no package
# registry, only a Python with torch, typer, pybind11, cmake, ninja and pytest, a host compiler, and dist/seed_fast.fatbin
# (`make fatbin`, on any machine) where NVIDIA's compiler packages are not installed.
#
#   benchmarks/gpu.sh [FOLDER]     default: out/gpu; PYTHON=python3.12 chooses the interpreter
#
# Leaves a log per step, the results as JSON, and summary.txt: one line per step, ok or its exit code. Every step runs,
# whatever the others did; the exit code is 1 if one failed. Changes no setting of the GPU.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
out=${1:-out/gpu}
mkdir -p "$out"
out=$(cd "$out" && pwd)
: >"$out/summary.txt"
failed=0

step() { # step NAME COMMAND...: run it, log it, remember how it went
  local name=$1 start=$SECONDS code=0
  shift
  "$@" >"$out/$name.log" 2>&1 || code=$?
  [ "$code" -eq 0 ] && local verdict=ok || { local verdict="failed with $code"; failed=1; }
  printf '%-28s %-16s %5d s  %s\n' "$name" "$verdict" $((SECONDS - start)) "$(tail -n 1 "$out/$name.log" | cut -c 1-100)" |
    tee -a "$out/summary.txt"
}

export SEED_FAST_NATIVE=1 PYTHONPATH=$PWD
if [ -f dist/seed_fast.fatbin ]; then export SEED_FAST_FATBIN=$PWD/dist/seed_fast.fatbin; fi
gpu_tests=(-m pytest -p no:cacheprovider -q -m gpu tests/ops)
# Without a usable GPU every test skips, and pytest calls that success: here it is a failure.
ran() { "$@" | tee /dev/stderr | grep -q '^[0-9]* passed\|, [0-9]* passed'; }

step gpu nvidia-smi
step build "$python" setup.py build_ext --inplace
step info "$python" -c 'from seed_fast import info; print(info.render(info.collect()))'
step tests-native ran "$python" "${gpu_tests[@]}"
step tests-plan ran "$python" -m pytest -p no:cacheprovider -q -m gpu tests/model tests/data
step tests-triton ran "$python" -m pytest -p no:cacheprovider -q tests/ops/test_nearest_code_triton.py \
  tests/ops/test_attention_triton.py tests/ops/test_vector_quantize_triton.py tests/ops/test_add_layer_norm_triton.py \
  tests/ops/test_bias_gelu_triton.py
SEED_FAST_CUDA_ARCH=70 step tests-compute70 ran "$python" "${gpu_tests[@]}"
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    step "$tool-native" ran compute-sanitizer --tool "$tool" --error-exitcode 9 "$python" "${gpu_tests[@]}" -k "not memory and not graph" -x
    SEED_FAST_CUDA_ARCH=70 step "$tool-compute70" ran compute-sanitizer --tool "$tool" --error-exitcode 9 "$python" \
      "${gpu_tests[@]}" -k "not memory and not graph" -x
  done
else
  echo "compute-sanitizer is not installed: memcheck and racecheck did not run" | tee -a "$out/summary.txt"
fi
step bench-ops "$python" -m seed_fast bench ops --output "$out/ops.json"
step bench-e2e "$python" -m seed_fast bench e2e --output "$out/e2e.json"
step bench-loader "$python" -m seed_fast bench loader --output "$out/loader.json"
exit "$failed"
