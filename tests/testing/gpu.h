// SPDX-License-Identifier: Apache-2.0
// CudaOps as tests use it: one for the process, on tensors in pinned memory (tensor.h), every op
// waited for. Included by builds with CUDA only; a test on a machine without a GPU is skipped.
#pragma once

#include <gtest/gtest.h>

#include <memory>

#include "kernels/cuda/cuda_ops.h"

namespace asynctls::testing {

// Null where there is no GPU.
inline std::unique_ptr<CudaOps> NewGpu() {
  CudaLimits limits;
  limits.decode_rows = 400;
  limits.max_blocks = 512;
  auto ops = CudaOps::Create(0, limits);
  return ops.ok() ? *std::move(ops) : nullptr;
}
inline CudaOps* SharedGpu() {
  static const std::unique_ptr<CudaOps> shared = NewGpu();
  return shared.get();
}

class GpuOps {
 public:
  bool available() const { return SharedGpu() != nullptr; }

  void Prepare(Matrix& w) { SharedGpu()->Prepare(w); }
  void Embed(const EmbedArgs& a) { Run(&CudaOps::Embed, a); }
  void RmsNorm(const RmsNormArgs& a) { Run(&CudaOps::RmsNorm, a); }
  void Gemm(const GemmArgs& a) { Run(&CudaOps::Gemm, a); }
  void Logits(const LogitsArgs& a) { Run(&CudaOps::Logits, a); }
  void RopeTable(const RopeTableArgs& a) { Run(&CudaOps::RopeTable, a); }
  void SwiGlu(const SwiGluArgs& a) { Run(&CudaOps::SwiGlu, a); }
  void CopyRows(const CopyRowsArgs& a) { Run(&CudaOps::CopyRows, a); }
  void AppendKv(const AppendKvArgs& a) { Run(&CudaOps::AppendKv, a); }
  void PrefillAttend(const PrefillAttendArgs& a) { Run(&CudaOps::PrefillAttend, a); }
  void DecodeAttend(const DecodeAttendArgs& a) { Run(&CudaOps::DecodeAttend, a); }
  void SelectBlocks(const SelectBlocksArgs& a) { Run(&CudaOps::SelectBlocks, a); }
  void SelectTokens(const SelectTokensArgs& a) { Run(&CudaOps::SelectTokens, a); }
  void SparseAttend(const SparseAttendArgs& a) { Run(&CudaOps::SparseAttend, a); }
  void CountBlocks(const CountBlocksArgs& a) { Run(&CudaOps::CountBlocks, a); }
  void StartHistory(const StartHistoryArgs& a) { Run(&CudaOps::StartHistory, a); }
  void Sample(const SampleArgs& a) { Run(&CudaOps::Sample, a); }
  void LogProbs(const LogProbsArgs& a) { Run(&CudaOps::LogProbs, a); }
  void Moments(const MomentsArgs& a) { Run(&CudaOps::Moments, a); }
  void FillRandom(const FillRandomArgs& a) { Run(&CudaOps::FillRandom, a); }

 private:
  template <typename Args>
  void Run(void (CudaOps::*op)(const Args&), const Args& args) {
    (SharedGpu()->*op)(args);
    SharedGpu()->Wait();
  }
};

}  // namespace asynctls::testing
