#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs what building (and, with --tests, testing) needs on Debian 12, from Debian's packages only.
# Does nothing, and needs no root, where everything is there already.
set -euo pipefail

packages=(
  build-essential cmake ninja-build pkg-config ccache git
  libgrpc++-dev protobuf-compiler-grpc libprotobuf-dev protobuf-compiler libabsl-dev
  libboost-dev libspdlog-dev nlohmann-json3-dev prometheus-cpp-dev libcurl4-openssl-dev zlib1g-dev libssl-dev
  libdnnl-dev ocl-icd-opencl-dev libhwy-dev libeigen3-dev libgloo-dev libutf8proc-dev libedit-dev patchelf
)
if [[ "${1:-}" == --tests ]]; then
  packages+=(
    libgtest-dev libgmock-dev python3-minimal python3-grpcio curl chromium
    clang-14 libclang-rt-14-dev llvm-14 libomp-14-dev
  )
fi

missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if ((${#missing[@]} == 0)); then
  exit 0
fi
echo "installing: ${missing[*]}"
as_root=()
if ((EUID != 0)); then
  as_root=(sudo)
fi
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
