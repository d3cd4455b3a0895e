// SPDX-License-Identifier: Apache-2.0
#include "tests/testing/device_worker.h"

#include "engine/worker/local_worker.h"
#include "tests/testing/device_ops.h"

namespace asynctls::testing {

std::unique_ptr<Worker> MakeDeviceWorker() {
  return std::make_unique<LocalWorker<DeviceOps>>(
      [](const v1::InitRequest&) { return std::make_unique<DeviceOps>(); });
}

}  // namespace asynctls::testing
