// SPDX-License-Identifier: Apache-2.0
// CudaOps: one GPU of a rank. Owns its stream, the cuBLASLt handle and the scratch memory of the
// ops; every op is put on the stream and returns at once. Views must lie where the GPU can read
// them (device or pinned memory); launch sizes depend on shapes only, never on what the views hold,
// so that a sequence of ops can be captured once and replayed (Replay) while the contents change.
// A CUDA error ends the process with the call and its message. Used from one thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/device/buffer.h"
#include "kernels/ops.h"

struct CUstream_st;  // of the CUDA runtime: cudaStream_t is a pointer to it

namespace asynctls {

// What the scratch memory is made for; each the largest that will be met.
struct CudaLimits {
  int64_t decode_rows = 256;   // S
  int query_heads = 64;        // Q
  int kv_heads = 16;           // G
  int head_dim = 256;          // D
  int64_t max_blocks = 2048;   // M
  int64_t vocab = 160 * 1024;  // V
};

class CudaOps {
 public:
  static constexpr MemoryKind kMemory = MemoryKind::kDevice;
  static constexpr bool kSplitPasses = true;

  // Errors: FAILED_PRECONDITION without such a device or with one older than sm_80;
  // RESOURCE_EXHAUSTED.
  static absl::StatusOr<std::unique_ptr<CudaOps>> Create(int device, const CudaLimits& limits);
  // Bytes of device memory that Create takes.
  static int64_t Bytes(const CudaLimits& limits);
  ~CudaOps();
  CudaOps(const CudaOps&) = delete;
  CudaOps& operator=(const CudaOps&) = delete;

  // "NVIDIA H200, sm_90, 132 multiprocessors, 139 GiB".
  std::string Describe() const;

  void Prepare(Matrix& w);
  void Embed(const EmbedArgs& a);
  void RmsNorm(const RmsNormArgs& a);
  void Gemm(const GemmArgs& a);
  void Logits(const LogitsArgs& a);
  void RopeTable(const RopeTableArgs& a);
  void SwiGlu(const SwiGluArgs& a);
  void CopyRows(const CopyRowsArgs& a);
  void AppendKv(const AppendKvArgs& a);
  void PrefillAttend(const PrefillAttendArgs& a);
  void DecodeAttend(const DecodeAttendArgs& a);
  void SelectBlocks(const SelectBlocksArgs& a);
  void SelectTokens(const SelectTokensArgs& a);
  void SparseAttend(const SparseAttendArgs& a);
  void CountBlocks(const CountBlocksArgs& a);
  void StartHistory(const StartHistoryArgs& a);
  void Sample(const SampleArgs& a);
  void LogProbs(const LogProbsArgs& a);
  void Moments(const MomentsArgs& a);
  void FillRandom(const FillRandomArgs& a);

  // Puts a copy on the stream. Pinned memory must stay as it is until that is done; pageable memory
  // is done with when the call returns. Not inside Replay.
  void Upload(void* device, const void* host, int64_t bytes);
  void Download(void* host, const void* device, int64_t bytes);
  // Waits for everything on the stream.
  void Wait();
  // Places on the stream, as the concept says; none of these inside Replay. `f` is called on a
  // thread of CUDA's, and the stream goes on meanwhile.
  void Mark(int i);
  void WaitFor(int i);
  void WhenDone(int i, const std::function<void()>& f);
  double Seconds(int i, int j) const;

  // Runs `ops` (calls of this object's ops, with the same arguments for the same key) as one CUDA
  // graph: captured the first time, replayed afterwards.
  void Replay(uint64_t key, const std::function<void()>& ops);

  // For what else is to be ordered with the ops: copies, collectives, timing.
  CUstream_st* stream() const;

  struct State;  // kernels/cuda/state.h

 private:
  explicit CudaOps(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};
static_assert(Ops<CudaOps>);

}  // namespace asynctls
