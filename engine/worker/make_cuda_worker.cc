// SPDX-License-Identifier: Apache-2.0
#include "engine/worker/make_cuda_worker.h"

#include "absl/strings/str_cat.h"
#include "engine/worker/local_worker.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/devices.h"

namespace asynctls {
namespace {

CudaLimits LimitsOf(const RankPlan& plan) {
  CudaLimits limits;
  limits.decode_rows = plan.decode_rows;
  limits.query_heads = plan.shape.query_heads;
  limits.kv_heads = plan.shape.kv_heads;
  limits.head_dim = plan.shape.head_dim;
  limits.max_blocks = plan.max_blocks;
  limits.vocab = int64_t{plan.shape.vocab_rows} * plan.shard.size;
  return limits;
}

absl::StatusOr<Backend<CudaOps>> MakeBackend(const v1::InitRequest& request) {
  const int device = static_cast<int>(request.rank());
  const absl::Status found = CheckGpus(device + 1);
  if (!found.ok()) return found;
  Backend<CudaOps> backend;
  backend.available = CudaAvailableMemory(device);
  backend.workspace = [](const RankPlan& plan) { return CudaOps::Bytes(LimitsOf(plan)); };
  backend.make = [device](const RankPlan& plan) { return CudaOps::Create(device, LimitsOf(plan)); };
  return backend;
}

}  // namespace

int GpuCount() { return CudaDevices(); }

absl::Status CheckGpus(int ranks) {
  const int count = CudaDevices();
  if (ranks <= count) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("device is cuda: ", ranks, " ranks need a GPU each, this machine has ", count));
}

std::unique_ptr<Worker> MakeCudaWorker() {
  return std::make_unique<LocalWorker<CudaOps>>(MakeBackend);
}

}  // namespace asynctls
