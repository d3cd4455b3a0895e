#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# From a fresh Debian 12 to an answer: installs what is missing, builds, serves the demo model on
# loopback and asks it a question about a document of 16k tokens, over gRPC, reading its KV sparsely.
#   deploy/quickstart.sh            build, ask, stop the server
#   deploy/quickstart.sh --serve    the same, then keep serving until Ctrl-C (gRPC on port 50051,
#                                   HTTP with the status page on 8000)
set -euo pipefail
cd "$(dirname "$0")/.."

serve=false
listen=127.0.0.1:0
metrics=127.0.0.1:0
http=none
case "${1:-}" in
  "") ;;
  --serve) serve=true listen=127.0.0.1:50051 metrics=127.0.0.1:9090 http=127.0.0.1:8000 ;;
  *) echo "usage: deploy/quickstart.sh [--serve]" >&2; exit 2 ;;
esac

deploy/install_packages.sh
echo "building (about two minutes on two cores)"
mkdir -p build-cpu
options=()
[[ -f build-cpu/CMakeCache.txt ]] || options+=(-DASYNCTLS_TESTS=OFF)  # a new folder needs no tests
cmake --preset cpu "${options[@]}" >build-cpu/quickstart.log 2>&1 ||
  { tail -20 build-cpu/quickstart.log; exit 1; }
cmake --build --preset cpu --target asynctls-server asynctls

log=$(mktemp)
build-cpu/server/asynctls-server --model deploy/models/demo-qwen3 \
  --dense-layers 0 --listen "$listen" --metrics-listen "$metrics" --http-listen "$http" >"$log" 2>&1 &
server=$!
stop() {
  kill "$server" 2>/dev/null || true
  wait "$server" 2>/dev/null || true
  rm -f "$log"
}
trap stop EXIT
for _ in $(seq 600); do
  target=$(sed -n 's/^asynctls-server listening on //p' "$log")
  [[ -n "$target" ]] && break
  kill -0 "$server" 2>/dev/null || { cat "$log" >&2; exit 1; }
  sleep 0.1
done
[[ -n "$target" ]] || { cat "$log" >&2; exit 1; }

echo
echo "serving demo-qwen3 on $target; a document of 16k tokens, then this question about it:"
sed -n 's/.*\\n\\n\(.*?\)",*$/  \1/p' deploy/examples/document-16k.json
echo
build-cpu/client/asynctls generate --target "$target" \
  --messages deploy/examples/document-16k.json --tail 64 --mode exact --budget 512 --temperature 0
if $serve; then
  echo
  echo "still serving on $target, and HTTP with the status page on http://$http/; Ctrl-C ends it"
  wait "$server"
fi
