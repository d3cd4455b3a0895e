// SPDX-License-Identifier: Apache-2.0
// Memory of a make-believe device, for tests of what runs above the ops: programs that link
// fake_device get it for MemoryKind::kDevice. The host may touch it only inside a DeviceAccess;
// elsewhere that is a segmentation fault, as it would be with a GPU's.
#pragma once

namespace asynctls::testing {

class DeviceAccess {
 public:
  DeviceAccess();
  ~DeviceAccess();
};

// Whether it lies in memory of MemoryKind::kPinned.
bool IsPinned(const void* data);

}  // namespace asynctls::testing
