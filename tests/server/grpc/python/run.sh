#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# run.sh SERVER_BINARY: every gRPC protocol from Python. Exit code 77: there is no grpcio to test with.
set -euo pipefail
python=/usr/bin/python3
"$python" -c 'import grpc' 2>/dev/null || { echo "no python3-grpcio"; exit 77; }
exec "$python" "$(dirname "$0")/protocols_test.py" "$1"
