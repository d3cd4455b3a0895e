// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/cuda_ops.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/cuda/state.h"

namespace asynctls {
namespace {

constexpr int64_t kGemmWorkspace = int64_t{32} << 20;  // what cuBLASLt asks for on sm_90

int SplitsOf(int multiprocessors, int64_t kv_heads) {
  return static_cast<int>(std::clamp<int64_t>(2 * multiprocessors / kv_heads, 1, 64));
}

constexpr int64_t kSampledRows = 32;  // whose adjusted logits are in global memory at once

// Most multiprocessors of any device, so that sizes can be known before one is chosen.
constexpr int kMostMultiprocessors = 160;

void Carve(const CudaLimits& l, int multiprocessors, CudaOps::State& s, Carver& carver) {
  // Heads are padded to a multiple of 8 per KV head; splits times KV heads fill the machine twice.
  const int64_t columns = (l.query_heads + 8 * l.kv_heads - 1) / (8 * l.kv_heads) * 8;
  const int64_t parts = l.decode_rows * 2 * multiprocessors * columns;
  s.gemm_workspace = carver.Take<uint8_t, 1>({kGemmWorkspace});
  s.split.out = carver.Take<float, 1>({parts * l.head_dim});
  s.split.largest = carver.Take<float, 1>({parts});
  s.split.weight = carver.Take<float, 1>({parts});
  s.split.arrived = carver.Take<uint32_t, 1>({l.decode_rows * l.query_heads});
  s.scored = carver.Take<uint32_t, 1>({l.decode_rows * l.kv_heads});
  s.token_keys =
      carver.Take<uint32_t, 1>({l.decode_rows * l.kv_heads * l.max_blocks * kBlockPositions});
  s.sampled = carver.Take<float, 1>({kSampledRows * l.vocab});
  s.block_keys = carver.Take<uint32_t, 1>({l.decode_rows * l.kv_heads * l.max_blocks});
}

}  // namespace

CudaOps::State::~State() {
  for (const auto& [key, graph] : graphs) cudaGraphExecDestroy(graph);
  if (lt != nullptr) cublasLtDestroy(lt);
  if (notices != nullptr) {
    cudaStreamSynchronize(notices);  // nobody is called any more
    cudaStreamDestroy(notices);
  }
  for (cudaEvent_t mark : marks) {
    if (mark != nullptr) cudaEventDestroy(mark);
  }
  if (stream != nullptr) cudaStreamDestroy(stream);
}

void CudaOps::State::Prepare(const void* kernel) const {
  if (!prepared.insert(kernel).second) return;
  cudaFuncAttributes attributes;
  CUDA_CHECK(cudaFuncGetAttributes(&attributes, kernel));
  CUDA_CHECK(cudaFuncSetAttribute(kernel,
                                  cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  shared_bytes - static_cast<int>(attributes.sharedSizeBytes)));
  CUDA_CHECK(cudaFuncSetAttribute(
      kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared));
}

int CudaOps::State::MaxSplits(int64_t kv_heads) const {
  return SplitsOf(multiprocessors, kv_heads);
}

int64_t CudaOps::Bytes(const CudaLimits& limits) {
  State measured;
  Carver carver;
  Carve(limits, kMostMultiprocessors, measured, carver);
  return carver.bytes();
}

CudaOps::CudaOps(std::unique_ptr<State> state) : state_(std::move(state)) {}
CudaOps::~CudaOps() = default;

absl::StatusOr<std::unique_ptr<CudaOps>> CudaOps::Create(int device, const CudaLimits& limits) {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || device < 0 || device >= count) {
    return absl::FailedPreconditionError(
        absl::StrCat("device ", device, ": this machine has ", count, " CUDA devices"));
  }
  auto state = std::make_unique<State>();
  state->device = device;
  CUDA_CHECK(cudaSetDevice(device));
  CUDA_CHECK(cudaDeviceGetAttribute(&state->major, cudaDevAttrComputeCapabilityMajor, device));
  CUDA_CHECK(cudaDeviceGetAttribute(&state->minor, cudaDevAttrComputeCapabilityMinor, device));
  CUDA_CHECK(
      cudaDeviceGetAttribute(&state->multiprocessors, cudaDevAttrMultiProcessorCount, device));
  CUDA_CHECK(cudaDeviceGetAttribute(
      &state->shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  if (state->major < 8) {
    return absl::FailedPreconditionError(absl::StrCat("device ",
                                                      device,
                                                      " has compute capability ",
                                                      state->major,
                                                      ".",
                                                      state->minor,
                                                      ", 8.0 or later is needed"));
  }
  Carver measure;
  Carve(limits, state->multiprocessors, *state, measure);
  absl::StatusOr<Buffer> arena = Buffer::Allocate(MemoryKind::kDevice, measure.bytes());
  if (!arena.ok()) return arena.status();
  state->arena = *std::move(arena);
  Carver carver(state->arena);
  Carve(limits, state->multiprocessors, *state, carver);
  CUDA_CHECK(cudaStreamCreateWithFlags(&state->stream, cudaStreamNonBlocking));
  CUDA_CHECK(cudaStreamCreateWithFlags(&state->notices, cudaStreamNonBlocking));
  for (cudaEvent_t& mark : state->marks) CUDA_CHECK(cudaEventCreate(&mark));
  CUBLAS_CHECK(cublasLtCreate(&state->lt));
  return std::unique_ptr<CudaOps>(new CudaOps(std::move(state)));
}

std::string CudaOps::Describe() const {
  cudaDeviceProp properties;
  CUDA_CHECK(cudaGetDeviceProperties(&properties, state_->device));
  return absl::StrCat(properties.name,
                      ", sm_",
                      state_->major,
                      state_->minor,
                      ", ",
                      state_->multiprocessors,
                      " multiprocessors, ",
                      properties.totalGlobalMem >> 30,
                      " GiB");
}

void CudaOps::Prepare(Matrix&) {}  // row-major is what the kernels read

void CudaOps::Upload(void* device, const void* host, int64_t bytes) {
  CUDA_CHECK(cudaMemcpyAsync(
      device, host, static_cast<size_t>(bytes), cudaMemcpyHostToDevice, state_->stream));
}

void CudaOps::Download(void* host, const void* device, int64_t bytes) {
  CUDA_CHECK(cudaMemcpyAsync(
      host, device, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, state_->stream));
}

CUstream_st* CudaOps::stream() const { return state_->stream; }

void CudaOps::Wait() { CUDA_CHECK(cudaStreamSynchronize(state_->stream)); }

void CudaOps::Mark(int i) { CUDA_CHECK(cudaEventRecord(state_->marks[i], state_->stream)); }

void CudaOps::WaitFor(int i) { CUDA_CHECK(cudaEventSynchronize(state_->marks[i])); }

void CudaOps::WhenDone(int i, const std::function<void()>& f) {
  const auto call = [](void* told) { (*static_cast<const std::function<void()>*>(told))(); };
  CUDA_CHECK(cudaStreamWaitEvent(state_->notices, state_->marks[i], 0));
  CUDA_CHECK(cudaLaunchHostFunc(state_->notices, call, const_cast<std::function<void()>*>(&f)));
}

double CudaOps::Seconds(int i, int j) const {
  float milliseconds = 0;
  CUDA_CHECK(cudaEventElapsedTime(&milliseconds, state_->marks[i], state_->marks[j]));
  return 1e-3 * milliseconds;
}

void CudaOps::Replay(uint64_t key, const std::function<void()>& ops) {
  auto found = state_->graphs.find(key);
  if (found == state_->graphs.end()) {
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    CUDA_CHECK(cudaStreamBeginCapture(state_->stream, cudaStreamCaptureModeThreadLocal));
    ops();
    CUDA_CHECK(cudaStreamEndCapture(state_->stream, &graph));
    CUDA_CHECK(cudaGraphInstantiate(&exec, graph, 0));
    CUDA_CHECK(cudaGraphDestroy(graph));
    found = state_->graphs.emplace(key, exec).first;
  }
  CUDA_CHECK(cudaGraphLaunch(found->second, state_->stream));
}

}  // namespace asynctls
