// SPDX-License-Identifier: Apache-2.0
// The CUDA backend's instantiation root. Every build has it: make_cuda_worker.cc with CUDA,
// no_cuda_worker.cc without; CMake picks the file.
#pragma once

#include <memory>

#include "absl/status/status.h"
#include "engine/worker/worker.h"

namespace asynctls {

// GPUs that this build can use.
int GpuCount();

// FAILED_PRECONDITION, saying what is missing, unless each of `ranks` ranks can have a GPU.
absl::Status CheckGpus(int ranks);

// One rank on the GPU of its rank's number, idle until Init. Requires: CheckGpus.
std::unique_ptr<Worker> MakeCudaWorker();

}  // namespace asynctls
