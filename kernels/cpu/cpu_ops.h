// SPDX-License-Identifier: Apache-2.0
// CpuOps: oneDNN for matrix products in bf16, Highway for the rest, OpenMP over the cores for both.
// One per rank; its ops are called from that rank's thread only and are synchronous. Scratch memory
// grows on first use of a shape and is then kept.
#pragma once

#include <memory>
#include <string>

#include "kernels/device/host_backend.h"
#include "kernels/ops.h"

namespace asynctls {

class CpuOps : public HostBackend {
 public:
  // Requires: threads >= 1.
  explicit CpuOps(int threads);
  ~CpuOps();
  CpuOps(const CpuOps&) = delete;
  CpuOps& operator=(const CpuOps&) = delete;

  int threads() const;
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
  void BoundAppend(const BoundAppendArgs& a);
  void BoundSelectBlocks(const BoundSelectBlocksArgs& a);
  void BoundSelectTokens(const BoundSelectTokensArgs& a);
  void StartHistory(const StartHistoryArgs& a);
  void Sample(const SampleArgs& a);
  void LogProbs(const LogProbsArgs& a);
  void Moments(const MomentsArgs& a);
  void FillRandom(const FillRandomArgs& a);

 private:
  struct State;  // oneDNN engine, stream, primitive caches, per-thread scratch
  std::unique_ptr<State> state_;
};
static_assert(BoundOps<CpuOps>);

}  // namespace asynctls
