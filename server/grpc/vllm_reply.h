// SPDX-License-Identifier: Apache-2.0
// VllmReply: the front end's messages in vllm.grpc.engine's words: chunks where streamed, and one
// complete per sequence.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "asynctls/v1/generation.pb.h"
#include "vllm/grpc/engine/vllm_engine.pb.h"

namespace asynctls {

// Prompt log-probabilities that one chunk holds at most, ids beside them counted; what is more goes
// ahead in chunks without tokens.
inline constexpr int kMaxInputLogProbs = 1 << 16;

class VllmReply {
 public:
  // `request` is what FromVllmRequest made of the call's.
  VllmReply(const v1::GenerateRequest& request, bool stream);

  // Fills `out`, whatever it held; false: nothing is to be sent for `response`.
  bool Take(const v1::GenerateResponse& response, vllm::grpc::engine::GenerateResponse& out);

 private:
  bool TakePrompt(const v1::PromptLogProbs& prompt, vllm::grpc::engine::GenerateResponse& out);
  bool TakeDelta(const v1::Delta& delta, vllm::grpc::engine::GenerateResponse& out);
  vllm::grpc::engine::GenerateComplete& Complete(uint32_t index);
  void TakeFinished(const v1::Finished& finished, vllm::grpc::engine::GenerateResponse& out);

  const bool stream_;
  const absl::flat_hash_set<uint32_t> stop_ids_;  // those the client asked for
  uint32_t prompt_tokens_ = 0;
  vllm::grpc::engine::InputLogProbs input_;  // not sent yet; without a stream, all
  // Without a stream: what each sequence has so far.
  std::vector<vllm::grpc::engine::GenerateComplete> completes_;
};

}  // namespace asynctls
