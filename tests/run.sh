#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs what is missing (Debian 12), builds and runs all tests of the CPU build. Arguments go to
# ctest, e.g. tests/run.sh -R scheduler.
set -euo pipefail
cd "$(dirname "$0")/.."

deploy/install_packages.sh --tests
cmake --preset cpu -DASYNCTLS_TESTS=ON
cmake --build --preset cpu
ctest --preset cpu -j "$(nproc)" "$@"
