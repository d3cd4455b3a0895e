#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# run.sh SERVER_BINARY: the tests of the Python package. Exit code 77: there is no grpcio to test with.
set -euo pipefail
python=/usr/bin/python3
"$python" -c 'import grpc' 2>/dev/null || { echo "no python3-grpcio"; exit 77; }
exec "$python" "$(dirname "$0")/client_test.py" "$1"
