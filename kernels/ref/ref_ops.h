// SPDX-License-Identifier: Apache-2.0
// RefOps: every op as plain fp32 loops, one .cc per op. It is the definition the other backends are
// tested against, so it is written to be read, not to be fast. Stateless; any thread.
#pragma once

#include <string>

#include "kernels/device/host_backend.h"
#include "kernels/ops.h"

namespace asynctls {

class RefOps : public HostBackend {
 public:
  std::string Describe() const { return "reference"; }

  void Prepare(Matrix&) {}
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
};
static_assert(BoundOps<RefOps>);

}  // namespace asynctls
