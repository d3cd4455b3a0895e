#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# sanitize_gpu.sh [BUILD]: the GPU's op tests of a CUDA build (default: build-cuda) under
# compute-sanitizer, memcheck and racecheck, eight programs at a time. Prints a line for each; what
# they say is in BUILD/sanitizer. Needs a GPU and the CUDA toolkit. cuBLAS's own kernels are left
# out, and of racecheck what takes it longer than LIMIT seconds (default 200) is said and passed
# over. Four minutes on one H200.
set -euo pipefail
cd "$(dirname "$0")/.."
build=${1:-build-cuda}
export LIMIT=${LIMIT:-200} OUT=$build/sanitizer
export FILTER='*/3.*:*Select*:*SparseAttend*:*Moments*:CudaOps*'  # backend 3 of op tests is the GPU
mkdir -p "$OUT"

check() {  # tool program
  local log=$OUT/$1.$(basename "$2").txt rc=0
  timeout "$LIMIT" compute-sanitizer --tool "$1" --kernel-name-exclude kernel_substring=nvjet \
    --error-exitcode 9 "$2" --gtest_filter="$FILTER" >"$log" 2>&1 || rc=$?
  if [[ $rc == 124 && $1 == racecheck ]]; then
    echo "$1 $(basename "$2"): not done after $LIMIT s"
    return
  fi
  echo "$1 $(basename "$2"): exit code $rc, $(grep -E '(ERROR|RACECHECK) SUMMARY' "$log" || echo 'no summary')"
  return $rc
}
export -f check

programs=$(find "$build/tests" -maxdepth 1 -name 'kernels.*_test' ! -name 'kernels.cpu.*' ! -name 'kernels.device.*')
failed=0
for tool in memcheck racecheck; do
  xargs -P 8 -I{} bash -c "check $tool {}" <<<"$programs" || failed=1
done
exit $failed
