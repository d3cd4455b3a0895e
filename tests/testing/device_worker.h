// SPDX-License-Identifier: Apache-2.0
// A rank on the make-believe device of device_ops.h, for tests of the host half. For programs that
// link fake_device.
#pragma once

#include <memory>

#include "engine/worker/worker.h"

namespace asynctls::testing {

std::unique_ptr<Worker> MakeDeviceWorker();

}  // namespace asynctls::testing
