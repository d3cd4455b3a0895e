// SPDX-License-Identifier: Apache-2.0
// Of a build without CUDA.
#include "engine/worker/make_cuda_worker.h"

namespace asynctls {

int GpuCount() { return 0; }

absl::Status CheckGpus(int) {
  return absl::FailedPreconditionError("device is cuda: this build has no CUDA, use cpu");
}

std::unique_ptr<Worker> MakeCudaWorker() { return nullptr; }

}  // namespace asynctls
