// SPDX-License-Identifier: Apache-2.0
// The kinds of memory there are.
#pragma once

namespace asynctls {

enum class MemoryKind {
  kHost,    // pageable host memory
  kPinned,  // page-locked host memory, readable by the device
  kDevice,  // device memory
};

}  // namespace asynctls
