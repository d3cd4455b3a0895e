#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# tests/fuzz/run.sh [SECONDS]: builds the fuzz targets with clang and runs each for so long (10),
# starting from tests/fuzz/corpus. What a target finds is left in build-asan/findings. Prints how
# many inputs each one ran.
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=${1:-10}

cmake --preset asan
cmake --build --preset asan --target fuzzers
mkdir -p build-asan/findings
for source in tests/fuzz/*_fuzz.cc; do
  name=$(basename "$source" .cc)
  work=build-asan/corpus/$name
  mkdir -p "$work"
  log=build-asan/$name.log
  if ! build-asan/tests/fuzz/"$name" "$work" "tests/fuzz/corpus/${name%_fuzz}" \
      -max_total_time="$seconds" -max_len=65536 -rss_limit_mb=4096 -timeout=10 \
      -artifact_prefix="build-asan/findings/$name-" -print_final_stats=1 >"$log" 2>&1; then
    tail -40 "$log" >&2
    echo "$name failed; the input is in build-asan/findings" >&2
    exit 1
  fi
  runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  echo "$name: $runs inputs in $seconds s, $(find "$work" -type f | wc -l) kept"
done
