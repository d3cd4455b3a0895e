#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# run_gpu.sh [OUT]: all GPU figures on this machine, as a table and as JSON lines in OUT (default: the
# current folder): torch's attention, products and top-k as the baseline, then the operators beside it,
# then whole steps of Qwen3-8B and 14B with random weights. Needs a GPU, an installed bundle (or
# BIN=build-cuda/tests) and Python with torch. About six minutes on one H200.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-.}
bin=${BIN:-$here/../../../bin}
mkdir -p "$out"

nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
python3 "$here/torch_baseline.py" >"$out/torch.jsonl"
"$bin/gpu_bench" --baseline "$out/torch.jsonl" --json "$out/gpu_bench.jsonl" | tee "$out/gpu_bench.txt"
steps() {  # model lanes context [flags]
  local model=$1 lanes=$2 context=$3
  shift 3
  "$bin/step_bench" "$here/models/$model" --lanes "$lanes" --context "$context" "$@" | tee -a "$out/step_bench.txt"
}
rm -f "$out/step_bench.txt"
steps qwen3-8b 1 512
steps qwen3-8b 8 512
steps qwen3-8b 1 65536
steps qwen3-8b 8 65536
steps qwen3-8b 8 65536 --dense-layers 0
steps qwen3-8b 4 130000
steps qwen3-14b 4 130000
